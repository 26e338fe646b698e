//! Nodes whose pods are processes of this machine.

mod command;
mod health;
mod life;
mod node;
mod pods;
mod reporter;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::control_plane::{Accounts, ControlPlane, Level};
use crate::process::Signal;
use node::Node;

/// What runs in place of a pod's container.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Follow the container's own arguments. `$(NAME)` is replaced in both, by the container's
    /// environment and what [`Machines`] adds to it.
    pub args: Vec<String>,
    /// How long the image takes to pull.
    pub pull: Duration,
}

/// The program for a pod's image; `None` is an image that can't be pulled. Asked once for each pod
/// that comes, and again when a pod without a program changes.
pub type Programs = Arc<dyn Fn(&Pod) -> Option<Program> + Send + Sync>;

/// Nodes `machine-<i>`, registered with the API server beside others, on which every pod is a
/// process of this machine: for as long as this value lives.
///
/// They do what a kubelet does. The process starts when the image is pulled, with the container's
/// arguments and environment (values, and `fieldRef`s of the downward API), and ends when the pod is
/// deleted: SIGTERM, SIGKILL after the grace period, and only then is the pod gone. Startup,
/// readiness and liveness probes ask over HTTP; a container that ends or fails its liveness probe is
/// started again after a back-off, as `restartPolicy` says. The status tells all that: phase,
/// conditions, `containerStatuses` with `restartCount`, `startTime`; readiness gates are respected,
/// and conditions of others kept. While the API server is away, processes and probes go on.
///
/// What differs from a container:
/// - A pod has one container; others are not started, and there are no volumes.
/// - Each pod has a loopback address of its own, in the node's network 127.x.y.0/24, and listens on
///   the ports that its container names. Since processes share this machine, `0.0.0.0` and `[::]`
///   in arguments stand for that address.
/// - `KUBECONFIG` names a file with the identity of the pod's ServiceAccount, in place of the
///   mounted token.
///
/// On a control plane without a scheduler ([`Level::ApiServer`]) pods are bound to these nodes in
/// turn. Elsewhere the scheduler chooses, also among nodes of kwok; [`ControlPlane::cordon_nodes`]
/// keeps it from those.
#[derive(Debug)]
pub struct Machines {
    signals: Signals,
    _tasks: JoinSet<()>,
}

/// Where each pod's signals go, by namespace and name.
type Signals = Arc<Mutex<HashMap<(String, String), mpsc::UnboundedSender<Signal>>>>;

/// What all pods share.
struct Site {
    client: kube::Client,
    accounts: Accounts,
    programs: Programs,
    pace: u32,
    signals: Signals,
    nodes: Vec<Node>,
    binds: bool,
}

impl Machines {
    /// Registers `count` nodes and starts to look after their pods. Must be called in a Tokio
    /// runtime.
    ///
    /// Delays and periods of probes and the back-off of restarts are divided by `pace`: 1 for those
    /// in the pods. Grace periods and pulls are as they are.
    pub async fn start(
        plane: &ControlPlane,
        count: u32,
        pace: u32,
        programs: Programs,
    ) -> Result<Self> {
        let mut nodes = Vec::new();
        for index in 0..count {
            let node = Node::claim(index)?;
            node.register(&plane.admin()).await?;
            nodes.push(node);
        }
        let signals = Signals::default();
        let site = Arc::new(Site {
            client: plane.admin(),
            accounts: plane.accounts(),
            programs,
            pace: pace.max(1),
            signals: Arc::clone(&signals),
            nodes,
            binds: plane.level() == Level::ApiServer,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(node::keep_alive(Arc::clone(&site)));
        tasks.spawn(pods::look_after(site));
        Ok(Self { signals, _tasks: tasks })
    }

    /// Sends a signal to the process of a pod: SIGKILL is a crash, SIGSTOP a hang. An error means
    /// that the pod has none.
    pub fn signal(&self, namespace: &str, name: &str, signal: Signal) -> Result<()> {
        let signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = signals.get(&(namespace.to_owned(), name.to_owned()));
        let sent = sender.is_some_and(|sender| sender.send(signal).is_ok());
        sent.then_some(()).with_context(|| format!("no process runs for pod {namespace}/{name}"))
    }
}
