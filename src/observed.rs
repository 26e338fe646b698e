//! What was read from the cluster, at one time, as plain values.

use crate::{
    coverage::Slice,
    names::{KUBE_STATE_METRICS, LABEL_INDEX, LABEL_MANAGED_BY, LABEL_REVISION, OPERATOR},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::{ContainerStatus, Pod, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::ClusterRoleBinding,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use std::{collections::BTreeMap, net::IpAddr};

/// Everything that [`crate::plan::plan`] looks at beside the spec and the time.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Nodes in the cluster. There is no value for "not known": without a node list there is no
    /// `Observed` (R15).
    pub nodes: u32,
    /// Whether the spec's namespace takes pods.
    pub namespace: NamespaceState,
    /// Our pods by UID, in whatever namespace (R29).
    pub pods: Vec<ObservedPod>,
    /// Our PodDisruptionBudgets by UID, and the one that stands where ours should be.
    pub budgets: Vec<PodDisruptionBudget>,
    /// ServiceAccounts that the operator made for us, and the one that our pods run as.
    pub service_accounts: Vec<ServiceAccount>,
    /// ClusterRoleBindings that the operator made for us, or for our namespace.
    pub bindings: Vec<ClusterRoleBinding>,
    /// Why ServiceAccounts and bindings could not be read, if so.
    pub access_fault: Option<String>,
    /// Names of the other KSMScales.
    pub others: Vec<String>,
}

/// The state of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespaceState {
    /// It takes pods.
    #[default]
    Active,
    /// It does not exist.
    Missing,
    /// It is being deleted.
    Terminating,
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// No container runs yet: it serves nothing.
    Pending,
    /// Its container runs, or ran and is started again.
    Running,
    /// It failed or succeeded, and will never run again.
    Finished,
}

/// One of our pods.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// Arguments of its kube-state-metrics container.
    pub args: Vec<String>,
    /// When it was created.
    pub created: Timestamp,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// How far it has come.
    pub life: Life,
    /// Since when it is Ready; `None` while it is not.
    pub ready_since: Option<Timestamp>,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// Why it cannot start, in the kubelet's or the scheduler's words.
    pub trouble: Option<String>,
    /// Whether audits found so often that it does not serve what it should that it is to be
    /// replaced (V5).
    pub condemned: bool,
}

impl ObservedPod {
    /// Reads what matters of a pod.
    #[must_use]
    pub fn new(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let status = pod.status.as_ref();
        let container = pod.spec.iter().flat_map(|s| &s.containers);
        let container = container.into_iter().find(|c| c.name == KUBE_STATE_METRICS);
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True");
        let life = match status.and_then(|s| s.phase.as_deref()) {
            Some("Running" | "Unknown") => Life::Running,
            Some("Failed" | "Succeeded") => Life::Finished,
            _ => Life::Pending,
        };
        let created = meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            args: container.and_then(|c| c.args.clone()).unwrap_or_default(),
            created,
            terminating: meta.deletion_timestamp.is_some(),
            life,
            ready_since: ready.map(|c| c.last_transition_time.as_ref().map_or(created, |t| t.0)),
            ip: status.and_then(|s| s.pod_ip.as_deref()?.parse().ok()),
            trouble: trouble(pod),
            condemned: false,
        }
    }

    /// What it exposes, by the arguments it runs with. `None` if they make no sense.
    ///
    /// The arguments of a pod cannot change, so they say what its process was told. What it really
    /// serves can only be learned from its content.
    #[must_use]
    pub fn slice(&self) -> Option<Slice> {
        let value =
            |flag: &str| self.args.iter().find_map(|arg| arg.strip_prefix(flag)?.strip_prefix('='));
        match (value("--shard"), value("--total-shards")) {
            (None, None) => Some(Slice::ALL),
            (shard, total) => {
                Slice::new(shard.unwrap_or("0").parse().ok()?, total.unwrap_or("1").parse().ok()?)
            }
        }
    }

    /// Its index, by its label.
    #[must_use]
    pub fn index(&self) -> Option<u32> {
        self.labels.get(LABEL_INDEX)?.parse().ok()
    }

    /// The revision it was made from.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.labels.get(LABEL_REVISION).map(String::as_str)
    }

    /// Whether it is Ready and stays.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready_since.is_some() && !self.terminating && self.life == Life::Running
    }

    /// When its being Ready counts: after `settle`. `None` while it is not Ready.
    #[must_use]
    pub fn settles_at(&self, settle: SignedDuration) -> Option<Timestamp> {
        self.ready_since
            .filter(|_| self.is_ready())
            .map(|since| since.saturating_add(settle).unwrap_or(since))
    }

    /// Whether it counts as serving: Ready for at least `settle`. Whether its *content* is
    /// complete is not looked at: that is proven before another pod goes (V1).
    #[must_use]
    pub fn is_serving(&self, now: Timestamp, settle: SignedDuration) -> bool {
        self.settles_at(settle).is_some_and(|at| at <= now)
    }
}

/// The first thing that keeps a pod from starting: scheduling, then its containers.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        let reason = condition.reason.as_deref().unwrap_or("Unschedulable");
        return Some(explain(reason, condition.message.as_deref()));
    }
    status.container_statuses.iter().flatten().find_map(container_trouble)
}

/// What is wrong with a container, in words that stay the same from one attempt to the next: the
/// kubelet's own change with every back-off, and each would be a new status and a new Event.
fn container_trouble(status: &ContainerStatus) -> Option<String> {
    let waiting = status.state.as_ref().and_then(|s| s.waiting.as_ref());
    match waiting.and_then(|w| w.reason.as_deref()) {
        Some("ErrImagePull" | "ImagePullBackOff") => {
            Some(format!("ImagePullBackOff: image {} cannot be pulled", status.image))
        }
        // What every pod goes through is no trouble, unless it was here before.
        None | Some("ContainerCreating" | "PodInitializing" | "CrashLoopBackOff") => {
            let last = status.last_state.as_ref()?.terminated.as_ref()?;
            let (code, reason) = (last.exit_code, last.reason.as_deref().unwrap_or("Error"));
            (!status.ready).then(|| {
                format!("CrashLoopBackOff: the container exits with code {code} ({reason})")
            })
        }
        Some(reason) => Some(explain(reason, waiting.and_then(|w| w.message.as_deref()))),
    }
}

fn explain(reason: &str, message: Option<&str>) -> String {
    match message.map(str::trim).filter(|m| !m.is_empty()) {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    }
}

/// Whether `owners` name the object with this UID.
#[must_use]
pub fn is_owned_by(owners: Option<&Vec<OwnerReference>>, uid: &str) -> bool {
    owners.into_iter().flatten().any(|owner| owner.uid == uid)
}

/// Whether the operator made an object that several KSMScales may share.
#[must_use]
pub fn is_managed(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.and_then(|l| l.get(LABEL_MANAGED_BY)).is_some_and(|by| by == OPERATOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn trouble_of(container: &Value) -> Option<String> {
        let pod = json!({
            "metadata": {"name": "p"},
            "status": {"phase": "Running", "containerStatuses": [container]},
        });
        ObservedPod::new(&serde_json::from_value(pod).expect("a pod")).trouble
    }

    fn container(state: &Value, last: &Value) -> Value {
        json!({
            "name": "c", "image": "r/k:1", "imageID": "", "ready": false, "restartCount": 1,
            "state": state, "lastState": last,
        })
    }

    #[test]
    fn r71_a_crash_loop_and_a_failed_pull_are_told_in_words_that_stay_the_same() {
        let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let exited = json!({"terminated": {"exitCode": 2, "reason": "Error"}});
        let crash = Some("CrashLoopBackOff: the container exits with code 2 (Error)".to_owned());
        assert_eq!(
            trouble_of(&container(&waiting("CrashLoopBackOff", "back-off 10s"), &exited)),
            crash
        );
        assert_eq!(trouble_of(&container(&json!({"running": {}}), &exited)), crash);
        let pull = Some("ImagePullBackOff: image r/k:1 cannot be pulled".to_owned());
        assert_eq!(trouble_of(&container(&waiting("ErrImagePull", "not found"), &json!({}))), pull);
        assert_eq!(
            trouble_of(&container(&waiting("ImagePullBackOff", "Back-off"), &json!({}))),
            pull
        );
    }

    #[test]
    fn a_pod_that_is_on_its_way_is_in_no_trouble() {
        let creating = json!({"waiting": {"reason": "ContainerCreating"}});
        assert_eq!(trouble_of(&container(&creating, &json!({}))), None);
        assert_eq!(trouble_of(&container(&json!({"running": {}}), &json!({}))), None);
        let mut recovered =
            container(&json!({"running": {}}), &json!({"terminated": {"exitCode": 1}}));
        recovered["ready"] = json!(true);
        assert_eq!(trouble_of(&recovered), None);
    }

    #[test]
    fn the_scheduler_and_the_kubelet_are_quoted_where_their_words_are_steady() {
        let config = json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret not found"}});
        let text = trouble_of(&container(&config, &json!({})));
        assert_eq!(text.as_deref(), Some("CreateContainerConfigError: secret not found"));
        let pod = json!({"metadata": {"name": "p"}, "status": {"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes",
        }]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        assert_eq!(ObservedPod::new(&pod).trouble.as_deref(), Some("Unschedulable: 0/4 nodes"));
    }
}
