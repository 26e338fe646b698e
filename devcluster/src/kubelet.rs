//! A stand-in for scheduler and kubelet, for control planes without either: its pods run nothing.

mod pods;
mod report;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Runs, and is Ready (its readiness gates permitting) when `after` has passed since the pod
    /// was given this fate. It runs without being Ready until then.
    Ready {
        /// Zero for at once.
        after: Duration,
    },
    /// Stays in phase Pending with its containers waiting.
    Pending {
        /// Why they wait, such as `ImagePullBackOff`.
        reason: &'static str,
    },
    /// Runs and never becomes Ready.
    RunningNotReady,
    /// Ends in phase Failed, for good: such a pod is left alone from then on.
    Failed,
}

impl Fate {
    /// Ready at once.
    pub const READY: Self = Self::Ready { after: Duration::ZERO };
}

/// Decides over each pod. It is asked again at every change of a pod, so it should answer alike
/// for the same pod until [`Kubelet::set_policy`] replaces it.
pub type Policy = Arc<dyn Fn(&Pod) -> Fate + Send + Sync>;

/// Brings all pods of a control plane to life, for as long as this value lives.
///
/// An unbound pod is bound to the node [`Kubelet::NODE`], which need not exist. A bound one gets
/// the status its [`Fate`] calls for, with a pod IP of its own in 127.64.0.0/10 (so a test can
/// listen there, and a connection is refused at once where none does); conditions of others, such
/// as readiness gates, are kept and respected. A pod that is being deleted goes at once, its grace
/// period notwithstanding. Errors of the API server are retried until it answers.
///
/// For [`Level::ApiServer`](crate::Level::ApiServer) only, and one per control plane: it would
/// fight with a scheduler, with kwok, with [`Machines`](crate::Machines) and with another of its
/// kind. Where something has to answer on a pod's address, take [`Machines`](crate::Machines).
#[derive(Debug)]
pub struct Kubelet {
    policy: watch::Sender<PolicyCell>,
    task: JoinHandle<()>,
}

/// A [`Policy`] that can be shown (closures cannot).
#[derive(Clone)]
struct PolicyCell(Policy);

impl std::fmt::Debug for PolicyCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Policy")
    }
}

impl Kubelet {
    /// The node that pods are bound to.
    pub const NODE: &'static str = "devcluster";

    /// Starts to look after pods. Must be called in a Tokio runtime; `client` must be an
    /// administrator's.
    pub fn start(client: Client, policy: Policy) -> Self {
        let (policy, receiver) = watch::channel(PolicyCell(policy));
        Self { policy, task: tokio::spawn(pods::look_after(client, receiver)) }
    }

    /// The usual policy: every pod is Ready at once.
    pub fn always_ready() -> Policy {
        Arc::new(|_| Fate::READY)
    }

    /// Replaces the policy and asks the new one about every pod.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.send_replace(PolicyCell(policy));
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}
