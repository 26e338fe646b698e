//! What members say to each other beside their claims: texts by name, in one annotation of the
//! Lease. Nothing that is decided about partitions depends on it.

use crate::protocol::MemberName;
use k8s_openapi::api::coordination::v1 as k8s;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

const PUBLISHED: &str = "lease-sharding/published";

/// What one member publishes, by name.
pub type Texts = BTreeMap<String, String>;

/// What this member publishes, and what everybody does as far as the watch has shown.
#[derive(Debug, Default)]
pub(crate) struct Board {
    own: Mutex<Texts>,
    all: watch::Sender<BTreeMap<MemberName, Texts>>,
}

impl Board {
    fn own(&self) -> MutexGuard<'_, Texts> {
        // Each change under the lock is complete in itself.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes effect with the next write of the own Lease.
    pub(crate) fn publish(&self, name: &str, text: &str) {
        self.own().insert(name.to_owned(), text.to_owned());
    }

    /// What everybody publishes, and its changes.
    pub(crate) fn all(&self) -> watch::Receiver<BTreeMap<MemberName, Texts>> {
        self.all.subscribe()
    }

    /// Adds what this member publishes to the fields of its Lease; with the last of them, that it
    /// publishes nothing any more. Who has not published anything yet says that, too: its Lease can
    /// be taken away before it does.
    pub(super) fn write(&self, fields: &mut Value, leaves: bool) {
        let text = if leaves { String::new() } else { json!(*self.own()).to_string() };
        fields["metadata"]["annotations"][PUBLISHED] = json!(text);
    }

    /// Takes note of all Leases.
    pub(super) fn list(&self, leases: BTreeMap<MemberName, Option<Texts>>) {
        let listed = leases.into_iter().filter_map(|(member, texts)| Some((member, texts?)));
        let listed = listed.collect();
        self.change(|all| *all = listed);
    }

    /// Takes note of one, or that it is gone.
    pub(super) fn see(&self, member: MemberName, texts: Option<Texts>) {
        self.change(|all| {
            match texts {
                Some(texts) => all.insert(member, texts),
                None => all.remove(&member),
            };
        });
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<MemberName, Texts>)) {
        self.all.send_if_modified(|all| {
            let before = all.clone();
            change(all);
            before != *all
        });
    }
}

/// What a Lease's member publishes; `None` if it has left. A tombstone changes no annotation of
/// ours: what the dead one published stays, and it may run.
pub(super) fn read(lease: &k8s::Lease) -> Option<Texts> {
    let text = lease.metadata.annotations.as_ref().and_then(|all| all.get(PUBLISHED));
    let text = text.filter(|text| !text.is_empty());
    let texts = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
    let held = holder.is_some_and(|holder| !holder.is_empty());
    (held || text.is_some()).then_some(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(board: &Board, leaves: bool, holder: Option<&str>) -> k8s::Lease {
        let mut fields =
            json!({"metadata": {"annotations": {}}, "spec": {"holderIdentity": holder}});
        board.write(&mut fields, leaves);
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn s7_what_is_published_is_read_until_the_member_leaves_and_outlives_a_tombstone() {
        let board = Board::default();
        assert_eq!(read(&written(&board, false, Some("a"))), Some(Texts::new()));
        let silent = Some(Texts::new());
        assert_eq!(
            read(&written(&board, false, None)),
            silent,
            "a tombstone before the first text"
        );
        board.publish("serves", "CA \"2\"");
        let texts = Texts::from([("serves".to_owned(), "CA \"2\"".to_owned())]);
        assert_eq!(read(&written(&board, false, Some("a"))), Some(texts.clone()));
        assert_eq!(read(&written(&board, false, None)), Some(texts), "a tombstone");
        assert_eq!(read(&written(&board, true, None)), None);
    }

    #[test]
    fn s7_an_annotation_that_is_not_understood_publishes_nothing() {
        let mut lease = written(&Board::default(), false, Some("a"));
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(PUBLISHED.to_owned(), "[".to_owned());
        assert_eq!(read(&lease), Some(Texts::new()));
    }

    #[test]
    fn s7_who_listens_hears_of_changes_and_of_nothing_else() {
        let board = Board::default();
        let mut all = board.all();
        let (a, texts) = (MemberName::from("a"), Texts::from([("x".to_owned(), "1".to_owned())]));
        board.list(BTreeMap::from([(a.clone(), Some(texts.clone())), ("b".into(), None)]));
        assert_eq!(*all.borrow_and_update(), BTreeMap::from([(a.clone(), texts.clone())]));
        board.see(a.clone(), Some(texts));
        board.see("b".into(), None);
        assert!(!all.has_changed().unwrap());
        board.see(a, None);
        assert!(all.has_changed().unwrap() && all.borrow().is_empty());
    }
}
