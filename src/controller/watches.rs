//! What the controller watches, as metadata only (R47). The objects themselves are read when they
//! are worked on, so a watch that lags can cause no wrong decision, only a later one.

use crate::{
    api::KSMScale,
    names::{KUBE_STATE_METRICS, LABEL_NAME, LABEL_SCALE},
    readiness::ReadinessHandle,
};
use futures::{Stream, StreamExt, future};
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource,
    core::PartialObjectMeta,
    runtime::{
        PredicateConfig, WatchStreamExt, predicates,
        reflector::{self, ObjectRef, Store},
        utils::Backoff,
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, time::Duration};
use tokio::{sync::watch, time::timeout};

type Meta<K> = PartialObjectMeta<K>;
type Events<K> = watcher::Result<watcher::Event<Meta<K>>>;

/// How many objects of a kind there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// The first list has been asked for.
    Awaited,
    /// The list failed, and why. Never to be read as none (R15).
    Unknown(String),
    /// As of the last event.
    Known(u32),
}

/// Watches every object of a kind.
pub(super) fn events<K>(
    client: Client,
    config: watcher::Config,
    ready: ReadinessHandle,
) -> impl Stream<Item = Events<K>> + Send
where
    K: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()> + Send + 'static,
{
    watcher(Api::<Meta<K>>::all(client), config)
        .backoff(WatchBackoff::default())
        .inspect(move |event| match event {
            Ok(watcher::Event::InitDone) => ready.done(),
            Ok(_) => {}
            Err(error) => {
                ready.failed(error);
                tracing::warn!(error = %error, kind = %K::kind(&()), "watch interrupted, it is restored");
            }
        })
}

/// kube's default, but for its limit of half a minute: after an outage of the API server the first
/// two attempts fail (no connection, then an expired resourceVersion), and both would take that.
#[derive(Default)]
struct WatchBackoff(watcher::DefaultBackoff);

impl Iterator for WatchBackoff {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|delay| delay.min(Duration::from_secs(10)))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// The objects to reconcile. Errors end here: [`events`] has told about them and waits before it
/// tries again, while the controller would stop listening to *all* its streams for as long.
fn triggers<K: Send>(
    objects: impl Stream<Item = watcher::Result<Meta<K>>> + Send,
) -> impl Stream<Item = watcher::Result<Meta<K>>> + Send {
    objects.filter(|object| future::ready(object.is_ok()))
}

/// Counts nodes, and keeps their names and UIDs. The count changes only when a node joins or leaves: heartbeats wake nobody (R18).
///
/// Takes events rather than a client, so that it can be tested without a cluster. The future has
/// to be polled for the count to change.
pub fn count_nodes<S>(
    events: S,
) -> (watch::Receiver<Count>, Store<Meta<Node>>, impl Future<Output = ()> + Send)
where
    S: Stream<Item = Events<Node>> + Send,
{
    let (store, writer) = reflector::store();
    let seen = store.clone();
    let (sender, receiver) = watch::channel(Count::Awaited);
    let feed = events.modify(forget_all_but_identity).reflect(writer).for_each(move |event| {
        use watcher::{Error, Event};
        let now = match event {
            Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone) => {
                Some(Count::Known(u32::try_from(seen.len()).unwrap_or(u32::MAX)))
            }
            Err(Error::InitialListFailed(error)) => Some(Count::Unknown(error.to_string())),
            _ => None,
        };
        if let Some(now) = now {
            sender.send_if_modified(|last| {
                *last != now && {
                    *last = now;
                    true
                }
            });
        }
        future::ready(())
    });
    (receiver, store, feed)
}

/// One item for each change of a count, for `Controller::reconcile_all_on`.
pub(super) fn changes<T: Send + Sync + 'static>(
    receiver: watch::Receiver<T>,
) -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.changed().await.ok().map(|()| ((), receiver))
    })
}

/// How long nothing more may change until a burst is over.
const QUIET: Duration = Duration::from_secs(2);

/// One item after each burst of changes. For what may be told late: a thousand KSMScales that come
/// one after the other wake all of them once, and not a thousand times. A burst that never ends
/// wakes nobody; then the periodic reconciles have to do.
pub(super) fn bursts<T: Send + Sync + 'static>(
    receiver: watch::Receiver<T>,
) -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.changed().await.ok()?;
        while let Ok(more) = timeout(QUIET, receiver.changed()).await {
            more.ok()?;
        }
        Some(((), receiver))
    })
}

/// KSMScales, their store and their number. An item of the stream is a new or changed spec, which
/// is woken by that: the number does not count as changed when the first ones come.
pub(super) fn scales(
    client: Client,
    ready: ReadinessHandle,
) -> (
    impl Stream<Item = watcher::Result<Meta<KSMScale>>> + Send,
    Store<Meta<KSMScale>>,
    watch::Receiver<usize>,
) {
    let (store, writer) = reflector::store();
    let (sender, receiver) = watch::channel(0);
    let seen = store.clone();
    let stream = events::<KSMScale>(client, watcher::Config::default(), ready)
        .modify(forget_managed_fields)
        .reflect(writer)
        .inspect(move |_| {
            let now = seen.len();
            sender.send_if_modified(|last| {
                let before = std::mem::replace(last, now);
                before != now && before > 0
            });
        })
        .applied_objects()
        .predicate_filter(predicates::generation, PredicateConfig::default());
    (triggers(stream), store, receiver)
}

/// Pods that carry the labels of ours, and their store.
pub(super) fn pods(
    client: Client,
    ready: ReadinessHandle,
) -> (impl Stream<Item = watcher::Result<Meta<Pod>>> + Send, Store<Meta<Pod>>) {
    let (store, writer) = reflector::store();
    let stream = events::<Pod>(client, labelled_as_ours(), ready)
        .modify(forget_managed_fields)
        .reflect(writer)
        .touched_objects();
    (triggers(stream), store)
}

/// Objects with the labels of ours, of whatever KSMScale.
fn labelled_as_ours() -> watcher::Config {
    let labels = format!("{LABEL_NAME}={KUBE_STATE_METRICS},{LABEL_SCALE}");
    watcher::Config::default().labels(&labels)
}

/// PodDisruptionBudgets that carry the labels of ours.
pub(super) fn budgets(
    client: Client,
    ready: ReadinessHandle,
) -> impl Stream<Item = watcher::Result<Meta<PodDisruptionBudget>>> + Send {
    let stream = events::<PodDisruptionBudget>(client, labelled_as_ours(), ready);
    triggers(stream.modify(forget_managed_fields).touched_objects())
}

/// The KSMScales that own an object. kube's own mapping puts the object's namespace into the
/// reference, also to an owner that has none. A KSMScale would then go by two references, and be
/// reconciled twice at the same time.
pub(super) fn owners<K>(object: Meta<K>) -> Vec<ObjectRef<Meta<KSMScale>>> {
    let owners = object.metadata.owner_references.unwrap_or_default().into_iter();
    let scales = owners.filter(|owner| {
        owner.kind == KSMScale::kind(&()) && owner.api_version.starts_with(&*KSMScale::group(&()))
    });
    scales.map(|owner| ObjectRef::new(&owner.name)).collect()
}

fn forget_managed_fields<K>(object: &mut Meta<K>) {
    object.metadata.managed_fields = None;
    object.metadata.annotations = None;
}

/// 5,000 nodes are held in memory: keep what tells one from another.
fn forget_all_but_identity(node: &mut Meta<Node>) {
    let meta = std::mem::take(&mut node.metadata);
    node.metadata.name = meta.name;
    node.metadata.uid = meta.uid;
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    fn node(name: &str) -> Meta<Node> {
        let mut node = Meta::<Node>::default();
        node.metadata.name = Some(name.into());
        node
    }

    async fn counts(events: Vec<Events<Node>>) -> Vec<Count> {
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let (mut counts, _, feed) = count_nodes(receiver);
        tokio::pin!(feed);
        let mut seen = vec![counts.borrow_and_update().clone()];
        for event in events {
            sender.unbounded_send(event).unwrap();
            assert!(futures::poll!(feed.as_mut()).is_pending());
            if counts.has_changed().unwrap() {
                seen.push(counts.borrow_and_update().clone());
            }
        }
        seen
    }

    fn list_failed() -> watcher::Error {
        watcher::Error::InitialListFailed(kube::Error::LinesCodecMaxLineLengthExceeded)
    }

    #[tokio::test]
    async fn r47_an_error_of_one_watch_does_not_reach_the_controller() {
        let pod = || Ok(Meta::<Pod>::default());
        let items = futures::stream::iter([pod(), Err(list_failed()), pod()]);
        let passed: Vec<_> = triggers(items).collect().await;
        assert!(passed.len() == 2 && passed.iter().all(Result::is_ok), "{passed:?}");
    }

    #[test]
    fn r47_an_owner_is_one_reference_whatever_the_namespace_of_what_it_owns() {
        let mut pod = Meta::<Pod>::default();
        pod.metadata.namespace = Some("monitoring".into());
        let owner = |kind: &str, group: &str| OwnerReference {
            api_version: format!("{group}/v1alpha1"),
            kind: kind.into(),
            name: "dev".into(),
            ..OwnerReference::default()
        };
        pod.metadata.owner_references = Some(vec![
            owner("ReplicaSet", "apps"),
            owner("KSMScale", "example.com"),
            owner("KSMScale", "monitor.example.com"),
        ]);
        assert_eq!(owners(pod), [ObjectRef::new("dev")]);
    }

    #[tokio::test]
    async fn r15_nodes_are_awaited_until_the_first_list_is_complete() {
        let seen = counts(vec![
            Ok(Init),
            Ok(InitApply(node("a"))),
            Ok(InitApply(node("b"))),
            Ok(InitDone),
        ])
        .await;
        assert!(matches!(seen.as_slice(), [Count::Awaited, Count::Known(2)]), "{seen:?}");
    }

    #[tokio::test]
    async fn r15_a_failed_list_is_never_zero_nodes() {
        let seen = counts(vec![
            Ok(Init),
            Ok(InitApply(node("a"))),
            Ok(InitDone),
            Err(list_failed()),
            Ok(Init),
            Ok(InitDone),
        ])
        .await;
        let [Count::Awaited, Count::Known(1), Count::Unknown(why), Count::Known(0)] =
            seen.as_slice()
        else {
            panic!("{seen:?}")
        };
        assert!(!why.is_empty());
    }

    #[tokio::test]
    async fn r18_heartbeats_are_silent_and_joins_and_leaves_are_not() {
        let seen = counts(vec![
            Ok(Init),
            Ok(InitDone),
            Ok(Apply(node("a"))),
            Ok(Apply(node("a"))),
            Ok(Apply(node("a"))),
            Ok(Apply(node("b"))),
            Ok(Delete(node("a"))),
        ])
        .await;
        let known: Vec<_> = seen[1..].to_vec();
        assert_eq!(known, [0, 1, 2, 1].map(Count::Known));
    }
}
