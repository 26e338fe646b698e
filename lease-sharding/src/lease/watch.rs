//! The Leases of the ring, as they change.

use super::{codec, published, published::Texts, requests::Requests};
use crate::protocol::{Event, Lease, MemberName};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1 as k8s;
use kube::runtime::{
    WatchStreamExt,
    utils::Backoff,
    watcher::{self, watcher},
};
use std::{collections::BTreeMap, pin::pin, time::Duration};
use tokio::sync::mpsc;

/// The watch is restored after this time. It is the only one of its process, so it can be short.
const AGAIN: Duration = Duration::from_millis(500);

struct Constant;

/// A list that is not complete yet.
#[derive(Default)]
struct Listed {
    leases: Vec<Lease>,
    texts: BTreeMap<MemberName, Option<Texts>>,
}

impl Iterator for Constant {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        Some(AGAIN)
    }
}

impl Backoff for Constant {
    fn reset(&mut self) {}
}

/// Sends what is seen until nobody listens.
///
/// The member's own renewals come along here several times in each lease time. A watch that shows
/// nothing for that long is dead, whatever TCP believes, and starts again.
pub(super) async fn watch(requests: Requests, news: mpsc::Sender<Event>) {
    let patience = Duration::from_millis(requests.lease_time);
    while !news.is_closed() {
        let config = watcher::Config::default().labels(&requests.selector());
        let mut events = pin!(watcher(requests.api.clone(), config).backoff(Constant));
        let (mut listed, mut failing) = (Listed::default(), false);
        while let Ok(Some(event)) = tokio::time::timeout(patience, events.next()).await {
            tell(&event, &mut failing, &requests.ring);
            if let Some(event) = read(&requests, event, &mut listed)
                && news.send(event).await.is_err()
            {
                return;
            }
        }
        tracing::warn!(ring = %requests.ring, "no news of any Lease for {patience:?}: the watch starts again");
    }
}

/// A list counts as a whole, once it is complete.
fn read(
    requests: &Requests,
    event: watcher::Result<watcher::Event<k8s::Lease>>,
    listed: &mut Listed,
) -> Option<Event> {
    let lease = |lease| codec::read_other(&requests.ring, lease, requests.lease_time);
    match event {
        Ok(watcher::Event::Init) => *listed = Listed::default(),
        Ok(watcher::Event::InitApply(one)) => {
            let lease = lease(&one)?;
            listed.texts.insert(lease.member.clone(), published::read(&one));
            listed.leases.push(lease);
        }
        Ok(watcher::Event::InitDone) => {
            let Listed { leases, texts } = std::mem::take(listed);
            requests.board.list(texts);
            return Some(Event::Listed(leases));
        }
        Ok(watcher::Event::Apply(one)) => {
            let lease = lease(&one)?;
            requests.board.see(lease.member.clone(), published::read(&one));
            return Some(Event::Seen(lease));
        }
        Ok(watcher::Event::Delete(one)) => {
            let Lease { member, .. } = lease(&one)?;
            requests.board.see(member.clone(), None);
            return Some(Event::Gone(member));
        }
        Err(_) => {}
    }
    None
}

/// An outage is told about once.
fn tell<E>(event: &watcher::Result<E>, failing: &mut bool, ring: &str) {
    match event {
        Ok(_) => *failing = false,
        Err(error) if *failing => tracing::debug!(%error, %ring, "watch of Leases interrupted"),
        Err(error) => {
            tracing::warn!(%error, %ring, "watch of Leases interrupted, it is restored");
            *failing = true;
        }
    }
}
