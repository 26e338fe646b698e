//! This replica among the others: whose a piece of work is. See the crate `lease_sharding`.

use crate::{api::KSMScale, names::GROUP, readiness::ReadinessHandle, telemetry::chain};
use futures::{Stream, StreamExt as _, stream};
use kube::{
    Resource,
    core::PartialObjectMeta,
    runtime::reflector::{ObjectRef, Store},
};
use lease_sharding::{Builder, End, JoinError, Sharding, Texts, guard::Guard, keys::Key};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// After Leases could not be listed.
const AGAIN: Duration = Duration::from_secs(1);

/// What one replica does for all, beside the KSMScales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// One CA after another: every write of the Secret and of `caBundle` that can wait.
    WebhookCa,
    /// To tell how many nodes there are.
    NodeCount,
}

impl Duty {
    fn key(self) -> Key {
        let name = match self {
            Self::WebhookCa => "webhook-ca",
            Self::NodeCount => "node-count",
        };
        Key::new(GROUP, "Duty", "", name)
    }
}

/// The key of a KSMScale.
fn scale_key(name: &str) -> Key {
    Key::new(GROUP, &KSMScale::kind(&()), "", name)
}

/// What each replica publishes, by its name.
pub type Published = BTreeMap<Arc<str>, Texts>;

/// This replica's membership, which begins and ends while others hold this. Before and after,
/// nothing is this replica's.
#[derive(Clone, Debug)]
pub struct Membership {
    name: Arc<str>,
    joined: watch::Receiver<Option<Sharding>>,
}

/// Why a replica is no member any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not become one.
    #[error("cannot share the work with other replicas")]
    Join(#[source] JoinError),
    /// Its name is another's.
    #[error(
        "another process runs under this one's name, {0}: give each replica a --pod-name (POD_NAME) of its own"
    )]
    Superseded(Arc<str>),
    /// Nothing renews its Lease any more.
    #[error("a defect in the operator: its membership ended by itself")]
    Ended,
}

/// The other end of a [`Membership`].
#[derive(Debug)]
pub struct Member {
    builder: Builder,
    name: Arc<str>,
    joined: watch::Sender<Option<Sharding>>,
}

/// A membership that has not begun. `name` is the pod's.
pub fn membership(name: &str, builder: Builder) -> (Membership, Member) {
    let (sender, joined) = watch::channel(None);
    let name: Arc<str> = name.into();
    (Membership { name: name.clone(), joined }, Member { builder, name, joined: sender })
}

impl Membership {
    /// This replica's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The right to work on a KSMScale, if it is this replica's.
    pub fn guard_of_scale(&self, name: &str) -> Option<Guard> {
        self.guard(&scale_key(name))
    }

    /// The right to do a duty, if it is this replica's.
    pub fn guard_of_duty(&self, duty: Duty) -> Option<Guard> {
        self.guard(&duty.key())
    }

    fn guard(&self, key: &Key) -> Option<Guard> {
        self.joined.borrow().as_ref()?.guard(key)
    }

    /// Says something to all replicas; see [`Sharding::publish`]. Lost before the membership
    /// begins: to be said again with each of [`Membership::news`].
    pub fn publish(&self, name: &str, text: &str) {
        if let Some(sharding) = &*self.joined.borrow() {
            sharding.publish(name, text);
        }
    }

    /// What every replica says; see [`Sharding::published`].
    pub fn published(&self) -> Published {
        let joined = self.joined.borrow();
        joined.as_ref().map(|sharding| sharding.published().borrow().clone()).unwrap_or_default()
    }

    /// Waits for the membership to begin. Never returns if it never does.
    async fn sharding(mut self) -> Sharding {
        let sharding = self.joined.wait_for(Option::is_some).await.ok().and_then(|s| s.clone());
        match sharding {
            Some(sharding) => sharding,
            None => std::future::pending().await,
        }
    }

    /// KSMScales that are to be worked on now, because they became this replica's (S3).
    pub fn gained_scales(
        &self,
        store: Store<PartialObjectMeta<KSMScale>>,
    ) -> impl Stream<Item = ObjectRef<PartialObjectMeta<KSMScale>>> + Send + use<> {
        stream::once(self.clone().sharding())
            .flat_map(move |sharding| sharding.gained_objects(store.clone()))
    }

    /// One item when the membership begins, when a duty becomes this replica's, and whenever a
    /// replica says something else.
    pub fn news(&self, duty: Duty) -> impl Stream<Item = ()> + Send + use<> {
        stream::once(self.clone().sharding()).flat_map(move |sharding| {
            let partition = sharding.partition_of(&duty.key());
            let gained = sharding.gained().filter_map(move |partitions| {
                std::future::ready(partitions.contains(partition).then_some(()))
            });
            let said = stream::unfold(sharding.published(), |mut published| async move {
                published.changed().await.ok().map(|()| ((), published))
            });
            stream::once(std::future::ready(())).chain(stream::select(gained, said))
        })
    }
}

impl Member {
    /// Joins, and leaves when `stop` is cancelled: gives everything away, so that others go on at
    /// once. While Leases cannot be listed, `ready` is told why and it is tried again.
    ///
    /// # Errors
    /// If this process can't be a member, or another one took its place.
    pub async fn run(self, ready: ReadinessHandle, stop: CancellationToken) -> Result<(), Error> {
        let joined = stop.run_until_cancelled(self.join(&ready)).await;
        let Some(sharding) = joined.transpose()? else { return Ok(()) };
        ready.done();
        self.joined.send_replace(Some(sharding.clone()));
        let end = tokio::select! {
            end = sharding.ended() => end,
            () = stop.cancelled() => sharding.leave().await,
        };
        match end {
            End::Left => tracing::info!("the work was handed over"),
            End::Expired if stop.is_cancelled() => tracing::warn!(
                "the work could not be handed over, as the API server does not answer: others take it when the lease time is over"
            ),
            End::Expired => return Err(Error::Ended),
            End::Superseded => return Err(Error::Superseded(self.name)),
        }
        Ok(())
    }

    async fn join(&self, ready: &ReadinessHandle) -> Result<Sharding, Error> {
        let mut failed = false;
        loop {
            match self.builder.clone().join().await {
                Err(error @ JoinError::List { .. }) => {
                    let error = chain(&error);
                    if !std::mem::replace(&mut failed, true) {
                        tracing::warn!(error, "cannot share the work yet, it is tried again");
                    }
                    ready.failed(&error);
                    tokio::time::sleep(AGAIN).await;
                }
                other => return other.map_err(Error::Join),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::{ObjectMeta, PartialObjectMetaExt as _};

    #[test]
    fn s3_what_is_gained_is_what_is_guarded() {
        let meta = ObjectMeta { name: Some("dev".into()), ..ObjectMeta::default() };
        let scale: PartialObjectMeta<KSMScale> = meta.into_response_partial();
        assert_eq!(Key::of(&scale), scale_key("dev"));
        assert_ne!(Duty::WebhookCa.key(), Duty::NodeCount.key());
    }
}
