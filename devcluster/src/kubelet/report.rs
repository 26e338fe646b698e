//! What a pod of each fate reports.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::pod_status::{self, Report};

/// What a pod's status is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Ready,
    NotReady,
    Waiting(&'static str),
    Failed,
}

impl Shown {
    /// The same for a pod with an address, in full.
    pub(super) fn report(self, pod: &Pod, ip: &str) -> Report {
        let running = matches!(self, Self::Ready | Self::NotReady);
        Report {
            phase: match self {
                Self::Ready | Self::NotReady => "Running",
                Self::Waiting(_) => "Pending",
                Self::Failed => "Failed",
            },
            ip: Some(ip.to_owned()),
            // Its node need not exist.
            host_ip: None,
            state: match self {
                Self::Ready | Self::NotReady => json!({
                    "running": { "startedAt": started_at(pod).unwrap_or_else(pod_status::now) },
                }),
                Self::Waiting(reason) => json!({ "waiting": { "reason": reason } }),
                Self::Failed => json!({ "terminated": { "exitCode": 1, "reason": "Error" } }),
            },
            last_state: json!({}),
            restarts: 0,
            started: running,
            ready: self == Self::Ready,
        }
    }
}

/// When the pod's containers began to run, if they do.
fn started_at(pod: &Pod) -> Option<Value> {
    let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let started = container.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
    serde_json::to_value(started).ok()
}
