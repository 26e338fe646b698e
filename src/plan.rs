//! From a valid spec, what was observed and the time to changes, as data.
//!
//! [`plan`] is a pure function: no client, no clock, nothing that could fail. Applying its changes
//! and planning again gives no changes ("fixpoint"), and the same input gives the same plan, so two
//! replicas of the operator print the same one.

use crate::{
    coverage::{Coverage, Slice},
    observed::{NamespaceState, Observed, ObservedPod},
    validate::{Mode, Scale, Valid},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::{Pod, ServiceAccount},
    policy::v1::PodDisruptionBudget,
    rbac::v1::ClusterRoleBinding,
};
use std::{fmt, time::Duration};

pub(crate) mod access;
pub(crate) mod disruption;
pub mod guard;
mod order;
pub mod pods;
pub mod scale;

/// What an administrator sets for all KSMScales.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For how long a pod has to be Ready before it counts as serving.
    pub settle: Duration,
    /// After how long without a trigger a KSMScale without sharding is looked at again (R38).
    pub requeue: Duration,
    /// The same for one with sharding (R38).
    pub requeue_sharded: Duration,
    /// Whether the operator makes the pods' ServiceAccount and its binding (R63).
    pub manage_access: bool,
    /// After how long a pod that does not become Ready counts as failed.
    pub progress_deadline: Duration,
    /// Whether a pod is deleted only after a look at what it and the others serve (V1).
    pub verify_coverage: bool,
    /// How often what is served is compared with the nodes while nothing changes (V3). Zero: never.
    pub audit_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(30),
            requeue: Duration::from_mins(1),
            requeue_sharded: Duration::from_mins(2),
            manage_access: true,
            progress_deadline: Duration::from_mins(10),
            verify_coverage: true,
            audit_interval: Duration::from_mins(1),
        }
    }
}

/// What to do, and what the decision rests on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Pods there should be.
    pub desired: u32,
    /// Changes, in the order in which they have to be made.
    pub changes: Vec<Change>,
    /// What has to happen before the next step.
    pub waiting: Option<Waiting>,
    /// Whether pods have to be created, replaced or deleted, now or later.
    pub in_progress: bool,
    /// Pods that are still to be created, replaced or deleted, before these changes.
    pub remaining: u32,
    /// Slots whose pod is the right one and serves.
    pub serving_slots: u32,
    /// What the serving pods expose, before the changes.
    pub coverage: Coverage,
    /// Whether the shard count fits the cluster.
    pub efficiency: scale::Efficiency,
    /// When to plan again if nothing happens before.
    pub again_in: Duration,
}

/// One write.
#[derive(Clone, Debug)]
pub enum Change {
    /// Delete this very pod.
    DeletePod(PodRef, DeleteReason),
    /// Make a pod. Fails if one of that name exists: pods are never adopted.
    CreatePod(Box<Pod>, CreateReason),
    /// Make the ServiceAccount, or merge this into the one with this UID.
    ApplyServiceAccount(Box<ServiceAccount>),
    /// Take the ownerReference to this UID from this very ServiceAccount, and leave the others.
    ReleaseServiceAccount(Box<ServiceAccount>, String),
    /// Delete this very ServiceAccount, as observed.
    DeleteServiceAccount(Box<ServiceAccount>),
    /// Make the binding, or merge this into the one with this UID.
    ApplyBinding(Box<ClusterRoleBinding>),
    /// Take the ownerReference to this UID from this very binding, and leave the others.
    ReleaseBinding(Box<ClusterRoleBinding>, String),
    /// Delete this very binding, as observed.
    DeleteBinding(Box<ClusterRoleBinding>),
    /// Make the PodDisruptionBudget so.
    ApplyBudget(Box<PodDisruptionBudget>),
    /// Delete this very PodDisruptionBudget, as observed.
    DeleteBudget(Box<PodDisruptionBudget>),
}

/// Changes of one group depend on each other; those of different groups don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// ServiceAccounts and bindings.
    Access,
    /// Pods.
    Pods,
    /// PodDisruptionBudgets.
    Disruption,
}

impl Change {
    /// The group it belongs to. After a failure the rest of the group is left for the next plan.
    #[must_use]
    pub fn group(&self) -> Group {
        match self {
            Self::DeletePod(..) | Self::CreatePod(..) => Group::Pods,
            Self::ApplyBudget(_) | Self::DeleteBudget(_) => Group::Disruption,
            _ => Group::Access,
        }
    }
}

/// Says what is done to which object, and for pods why.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = |meta: &kube::api::ObjectMeta| {
            let name = meta.name.clone().unwrap_or_default();
            meta.namespace.as_ref().map_or_else(|| name.clone(), |ns| format!("{ns}/{name}"))
        };
        match self {
            Self::DeletePod(pod, reason) => write!(f, "delete pod {pod}: {reason}"),
            Self::CreatePod(pod, reason) => {
                write!(f, "create pod {}: {reason}", object(&pod.metadata))
            }
            Self::ApplyServiceAccount(o) => {
                write!(f, "apply ServiceAccount {}", object(&o.metadata))
            }
            Self::ReleaseServiceAccount(o, _) => {
                write!(f, "release ServiceAccount {}", object(&o.metadata))
            }
            Self::DeleteServiceAccount(o) => {
                write!(f, "delete ServiceAccount {}", object(&o.metadata))
            }
            Self::ApplyBinding(o) => write!(f, "apply ClusterRoleBinding {}", object(&o.metadata)),
            Self::ReleaseBinding(o, _) => {
                write!(f, "release ClusterRoleBinding {}", object(&o.metadata))
            }
            Self::DeleteBinding(o) => {
                write!(f, "delete ClusterRoleBinding {}", object(&o.metadata))
            }
            Self::ApplyBudget(o) => write!(f, "apply PodDisruptionBudget {}", object(&o.metadata)),
            Self::DeleteBudget(o) => {
                write!(f, "delete PodDisruptionBudget {}", object(&o.metadata))
            }
        }
    }
}

/// A pod by name and by UID: a pod of the same name that came later is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl PodRef {
    fn new(pod: &ObservedPod) -> Self {
        let ObservedPod { namespace, name, uid, .. } = pod;
        Self { namespace: namespace.clone(), name: name.clone(), uid: uid.clone() }
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why a pod is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateReason {
    /// Its index has none.
    Missing,
    /// To take over from this pod.
    Replaces(String),
}

impl fmt::Display for CreateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("its index has no pod"),
            Self::Replaces(pod) => write!(f, "it replaces {pod}"),
        }
    }
}

/// Why a pod is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeleteReason {
    /// It failed or was evicted, and will never run again.
    Finished,
    /// It is not what it should be, and has not started.
    NeverServed,
    /// Its index is not wanted any more.
    Surplus,
    /// This pod has taken over.
    ReplacedBy(String),
}

impl fmt::Display for DeleteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("it failed or was evicted"),
            Self::NeverServed => f.write_str("it is outdated and has not started"),
            Self::Surplus => f.write_str("it is not wanted any more"),
            Self::ReplacedBy(pod) => write!(f, "{pod} has taken over"),
        }
    }
}

/// What a change waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The kind of obstacle.
    pub reason: WaitReason,
    /// Since when.
    pub since: Timestamp,
    /// The step and the cause, for people.
    pub message: String,
}

/// Kinds of obstacles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// A pod is Ready, and has to stay so until then.
    PodSettling {
        /// When it counts.
        until: Timestamp,
    },
    /// A pod is not Ready yet.
    PodNotReady,
    /// A pod cannot be scheduled or started as things are.
    PodCannotStart,
    /// A pod that should go serves what no other pod does, as far as arguments tell.
    StillNeeded,
    /// A pod that should go has been seen to serve what no other pod has been seen to serve (V1).
    SeriesAtRisk,
}

impl Plan {
    /// Whether all pods are as they should be and serve, and nothing is to be done.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.changes.is_empty() && !self.in_progress && self.waiting.is_none()
    }
}

/// Plans the next changes for one KSMScale.
///
/// # Guarantees
/// - A pod that may serve is deleted only if the pods that then remain serving expose all its
///   objects, or if no pod is wanted at all.
/// - Only objects whose ownerReference carries the KSMScale's UID, or the operator's label where
///   several share one, are changed or deleted.
/// - After the changes are applied and every pod serves, planning again gives no changes.
#[must_use]
pub fn plan(scale: &Valid<Scale>, seen: &Observed, now: Timestamp, settings: &Settings) -> Plan {
    let desired = scale::desired(scale, seen.nodes);
    let shape = pods::Shape::new(scale);
    let templates: Vec<_> =
        scale::slots(&scale.mode, desired).map(|slot| pods::Template::new(shape, slot)).collect();
    let settle = SignedDuration::try_from(settings.settle).unwrap_or(SignedDuration::MAX);
    let clock = order::Clock { now, settle };
    let may_create = seen.namespace == NamespaceState::Active;
    let pods = order::order(&scale.name, &templates, &seen.pods, clock, may_create);
    let mut changes = Vec::new();
    if settings.manage_access && seen.access_fault.is_none() {
        changes = access::plan_access(scale, seen);
    }
    changes.extend(pods.deletes.into_iter().map(|(pod, why)| Change::DeletePod(pod, why)));
    changes.extend(pods.creates.into_iter().map(|(pod, why)| Change::CreatePod(pod.into(), why)));
    changes.extend(disruption::plan_disruption(scale, seen, desired));
    let slices: Vec<Slice> = seen
        .pods
        .iter()
        .filter(|p| p.is_serving(now, settle))
        .filter_map(ObservedPod::slice)
        .collect();
    Plan {
        desired,
        changes,
        in_progress: pods.remaining > 0,
        remaining: u32::try_from(pods.remaining).unwrap_or(u32::MAX),
        serving_slots: u32::try_from(pods.serving_slots).unwrap_or(u32::MAX),
        coverage: Coverage::of(&slices),
        efficiency: scale::efficiency(&scale.mode, seen.nodes),
        again_in: again_in(scale, pods.waiting.as_ref(), now, settings),
        waiting: pods.waiting,
    }
}

/// The backup interval, or earlier if a time is known at which something changes by itself.
fn again_in(
    scale: &Scale,
    waiting: Option<&Waiting>,
    now: Timestamp,
    settings: &Settings,
) -> Duration {
    let backup = match scale.mode {
        Mode::Unsharded => settings.requeue,
        Mode::Sharded(_) => settings.requeue_sharded,
    };
    let until = match waiting.map(|w| w.reason) {
        Some(WaitReason::PodSettling { until }) => now.duration_until(until),
        _ => return backup,
    };
    // A little later, so that clocks that tick in whole seconds are past it.
    let until = Duration::try_from(until).unwrap_or_default() + Duration::from_millis(50);
    until.min(backup)
}

#[cfg(test)]
mod tests;
