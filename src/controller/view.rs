//! What the watches know, for those who answer questions about it (admission).

use super::watches::Count;
use crate::api::KSMScale;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    core::PartialObjectMeta,
    runtime::reflector::{Store, store::WriterDropped},
};
use tokio::sync::watch;

/// What the controller's watches know of the cluster. It may be a moment old; clones share it.
#[derive(Clone)]
pub struct View {
    pub(super) nodes: watch::Receiver<Count>,
    pub(super) scales: Store<PartialObjectMeta<KSMScale>>,
    pub(super) pods: Store<PartialObjectMeta<Pod>>,
}

impl View {
    /// Whether the first lists of KSMScales and of pods are complete. It stays so.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let complete = |ready: Option<Result<(), WriterDropped>>| matches!(ready, Some(Ok(())));
        complete(self.scales.wait_until_ready().now_or_never())
            && complete(self.pods.wait_until_ready().now_or_never())
    }

    /// Nodes in the cluster; `None` until the first list is complete.
    #[must_use]
    pub fn nodes(&self) -> Option<u32> {
        match *self.nodes.borrow() {
            Count::Known(nodes) => Some(nodes),
            Count::Awaited | Count::Unknown(_) => None,
        }
    }

    /// How many KSMScales there are beside `name`, and the first of them by name.
    #[must_use]
    pub fn others(&self, name: &str) -> (usize, Option<String>) {
        let all = self.scales.state();
        let others = all.iter().filter_map(|scale| scale.metadata.name.as_deref());
        let others = others.filter(|other| *other != name);
        (others.clone().count(), others.min().map(str::to_owned))
    }

    /// Pods that the KSMScale with this UID owns.
    #[must_use]
    pub fn pods_of(&self, uid: &str) -> u32 {
        let all = self.pods.state();
        let owned = all.iter().filter(|pod| pod.owner_references().iter().any(|o| o.uid == uid));
        u32::try_from(owned.count()).unwrap_or(u32::MAX)
    }
}
