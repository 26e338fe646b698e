//! What a reconcile runs under: proof that its object is this replica's, for as long as that is
//! sure.
//!
//! A guard is asked before each write, either by hand ([`Guard::is_valid`]) or by the client that
//! it makes ([`Guard::client`]). While a guard of a partition exists, the partition is not handed
//! over; work that does not end by itself loses its guard [`PATIENCE`] after it was asked to stop.

mod fence;
mod ledger;
#[cfg(test)]
mod tests;

pub use fence::{Fence, Fenced, Refused};
pub(crate) use ledger::Ledger;

use kube::{Client, client::Body};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// For how long work may go on after its partition was given away.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// The right to act on one partition. Clones share it; it ends with the last of them.
///
/// # Guarantees
/// While [`Guard::is_valid`] says so, no other replica acts on the partition.
#[derive(Clone, Debug)]
pub struct Guard {
    work: Arc<Work>,
}

/// One piece of work under way.
#[derive(Debug)]
struct Work {
    partition: u32,
    number: u64,
    lost: CancellationToken,
    ledger: Arc<Ledger>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.ledger.end(self.partition, self.number);
    }
}

/// The guard was lost: somebody else may act on the object now, and reconciles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object belongs to another replica now, which reconciles it")]
pub struct Lost;

impl Guard {
    /// The partition that it is about.
    pub fn partition(&self) -> u32 {
        self.work.partition
    }

    /// Whether a write that is sent now, and takes no longer than
    /// [`TimingConfig::write_timeout`](crate::protocol::TimingConfig::write_timeout), ends while
    /// the partition is surely this replica's. Costs two readings of clocks.
    ///
    /// It can be `false` for a while, when the API server does not answer, and `true` again.
    pub fn is_valid(&self) -> bool {
        !self.work.lost.is_cancelled() && self.work.ledger.allows_write()
    }

    /// Waits until the guard is lost for good. Cancel safe.
    pub async fn lost(&self) {
        self.work.lost.cancelled().await;
    }

    /// Runs `work`, and drops it if the guard is lost for good. A write that [`Guard::client`]
    /// has sent by then still ends by itself, and the partition is kept until then.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Lost> {
        tokio::select! {
            biased;
            () = self.lost() => Err(Lost),
            result = work => Ok(result),
        }
    }

    /// The layer that refuses writes once the guard is lost; see [`Fence`].
    pub fn fence(&self) -> Fence {
        Fence(Arc::downgrade(&self.work))
    }

    /// A client over `client`'s connections that refuses writes once the guard is lost, by
    /// [`Fence`]. It is made for one reconcile, and costs a small task.
    ///
    /// Its errors are `kube::Error::Service` with [`Refused`] inside. To be called on a Tokio
    /// runtime.
    #[must_use]
    pub fn client(&self, client: &Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let client = client.clone();
        let send = tower::service_fn(move |request: http::Request<Body>| {
            let client = client.clone();
            async move { client.send(request).await }
        });
        Client::new(tower::Layer::layer(&self.fence(), send), namespace)
    }
}
