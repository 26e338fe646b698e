//! What the operator tells about a KSMScale: status, conditions and Events (R10, R20, R35, R36,
//! R70–R72).
//!
//! Pure: old status, what was observed and what applying did go in, the new status comes out. It
//! is written only if it differs, and an Event is sent only for a difference, so at rest nothing
//! is written, and a restarted operator repeats nothing.

use crate::{
    api::{KSMScaleStatus, Phase, ShardStatus, ShardingStatus},
    coverage::Slice,
    observed::{Life, Observed, ObservedPod},
    plan::{Change, Plan, Settings, scale::Efficiency},
    rules::Reason,
    validate::{Mode, Scale, Shards, Violation, Violations},
};
use conditions::{Conditions, Fact, conditions_of};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::fmt;

mod conditions;
mod coverage;
mod described;
pub mod events;

pub use coverage::Checked;
pub use described::{CONDITIONS, Described};

/// What applying a plan did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Changes that were made.
    pub applied: Vec<Change>,
    /// Changes that failed. What depends on them was not tried.
    pub failed: Vec<Failure>,
}

/// A change that failed.
#[derive(Debug)]
pub struct Failure {
    /// The attempt.
    pub change: Change,
    /// The kind of failure.
    pub reason: FailureReason,
    /// What the API server said.
    pub message: String,
    /// How long the API server asked us to wait.
    pub retry_after: Option<std::time::Duration>,
}

/// Kinds of failures, by what has to be done about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// The object changed meanwhile: look again.
    Conflict,
    /// The API server asks for patience.
    Throttled,
    /// The operator lacks a right.
    Forbidden,
    /// A ResourceQuota is used up.
    QuotaExceeded,
    /// An object of that name exists that is not ours.
    NameTaken,
    /// An admission plugin, policy or webhook refused it.
    AdmissionDenied,
    /// The pods' ServiceAccount does not exist.
    ServiceAccountMissing,
    /// Anything else: the API server cannot be reached, or fails.
    ApiError,
}

impl FailureReason {
    /// Whether it passes without anybody's help, so that it is no news for the user.
    #[must_use]
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Conflict | Self::Throttled)
    }

    /// What to do about it.
    fn remedy(self) -> &'static str {
        match self {
            Self::Conflict | Self::Throttled => "it is tried again",
            Self::Forbidden => {
                "grant it: bind ClusterRole ksm-scale-operator-workload to the operator's ServiceAccount in that namespace"
            }
            Self::QuotaExceeded => "raise the ResourceQuota or free some of it",
            Self::NameTaken => {
                "delete or rename the object, which does not belong to this KSMScale"
            }
            Self::AdmissionDenied => "change the policy named here or the spec",
            Self::ServiceAccountMissing => {
                "create it, or start the operator with --manage-service-account=true"
            }
            Self::ApiError => "it is tried again; look at the API server if it lasts",
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot {}: {}; {}",
            self.change,
            self.message.trim_end_matches('.'),
            self.reason.remedy()
        )
    }
}

/// What [`status`] looks at beside the old status.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The spec.
    pub scale: &'a Scale,
    /// What was observed before the work.
    pub seen: &'a Observed,
    /// What was planned.
    pub plan: &'a Plan,
    /// What came of it.
    pub outcome: &'a Outcome,
    /// What came of looking at what pods serve.
    pub checked: &'a Checked,
    /// The administrator's settings.
    pub settings: &'a Settings,
    /// This replica's name.
    pub owner: &'a str,
    /// The time.
    pub now: Timestamp,
}

/// The status after a reconcile. Equal to `old` if nothing changed.
#[must_use]
pub fn status(old: &KSMScaleStatus, inputs: &Inputs<'_>) -> KSMScaleStatus {
    let Inputs { scale, seen, plan, owner, now, .. } = *inputs;
    let current: Vec<_> = seen.pods.iter().filter(|p| is_current(p)).collect();
    let sharding_status = match &scale.mode {
        Mode::Sharded(shards) => Some(sharding_status(shards, &current, plan)),
        Mode::Unsharded => None,
    };
    let mut conditions = Conditions::new(old, scale.generation, now);
    for condition in conditions_of(inputs) {
        conditions.set(condition);
    }
    let audits = plan.desired > 0 && !inputs.settings.audit_interval.is_zero();
    conditions.set_or_keep(
        "CoverageComplete",
        audits,
        inputs.checked.report.as_ref().map(coverage::complete),
    );
    conditions.set_or_keep("CoverageVerified", plan.desired > 0, coverage::verified(inputs));
    let mut status = KSMScaleStatus {
        node_count: Some(int(seen.nodes)),
        desired_replicas: Some(int(plan.desired)),
        current_replicas: Some(int(current.len())),
        phase: Some(phase(sharding_status.as_ref(), current.len(), plan)),
        observed_generation: Some(scale.generation),
        conditions: conditions.done(),
        sharding_status,
        change: coverage::change(old, int(current.len()), inputs),
        coverage: coverage::coverage(old, inputs),
        owner: Some(owner.to_owned()),
        last_updated: old.last_updated.clone(),
    };
    touch(&mut status, old, now);
    status
}

/// The status of a KSMScale whose stored spec is not valid, or asks for what is not allowed.
/// Everything else stays as it was.
#[must_use]
pub fn rejected(
    old: &KSMScaleStatus,
    owner: &str,
    generation: i64,
    violations: &Violations,
    now: Timestamp,
) -> KSMScaleStatus {
    let mut conditions = Conditions::new(old, generation, now).keeping_the_rest();
    let forbidden = |violation: &Violation| violation.reason == Reason::FieldValueForbidden;
    let (reason, what) = if violations.0.iter().all(forbidden) {
        ("NotAllowed", "asks for what is not allowed")
    } else {
        ("InvalidSpec", "is not valid")
    };
    let message = format!("the spec {what}, and its pods are left as they are: {violations}");
    conditions.set(Fact::new("Degraded", true, reason, message.clone()));
    conditions.set(Fact::new("Progressing", false, reason, message));
    let mut status = KSMScaleStatus {
        observed_generation: Some(generation),
        owner: Some(owner.to_owned()),
        conditions: conditions.done(),
        ..old.clone()
    };
    touch(&mut status, old, now);
    status
}

fn touch(status: &mut KSMScaleStatus, old: &KSMScaleStatus, now: Timestamp) {
    if status != old {
        status.last_updated = Some(Time(now));
    }
}

/// R36, R20. A pod counts while it is there for good, whether or not it is Ready.
fn phase(sharding: Option<&ShardingStatus>, current: usize, plan: &Plan) -> Phase {
    if sharding.is_some_and(|s| s.active_shards < s.total_shards) {
        Phase::Incomplete
    } else if current == plan.desired as usize && !plan.in_progress {
        Phase::Ready
    } else {
        Phase::Scaling
    }
}

fn is_current(pod: &ObservedPod) -> bool {
    !pod.terminating && pod.life != Life::Finished
}

/// R35: a shard is active by a Ready pod that runs with the right number of shards.
fn sharding_status(shards: &Shards, current: &[&ObservedPod], plan: &Plan) -> ShardingStatus {
    let shard = |ordinal: u32| {
        let slice = Slice::new(ordinal, shards.count);
        let mut pods: Vec<_> = current.iter().filter(|p| p.slice() == slice).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        ShardStatus {
            replicas: int(pods.len()),
            ready: int(pods.iter().filter(|p| p.is_ready()).count()),
            pods: pods.iter().map(|p| p.name.clone()).collect(),
        }
    };
    let distribution: Vec<_> = (0..shards.count).map(|n| (n.to_string(), shard(n))).collect();
    ShardingStatus {
        total_shards: int(shards.count),
        active_shards: int(distribution.iter().filter(|(_, s)| s.ready > 0).count()),
        shard_distribution: distribution.into_iter().collect(),
        warning: match plan.efficiency {
            Efficiency::Misfit(misfit) => Some(misfit.to_string()),
            _ => None,
        },
    }
}

fn int<N: TryInto<i32>>(n: N) -> i32 {
    n.try_into().unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
