//! The conditions of a KSMScale (R70): what is so, why, and what to do about it.

use super::Inputs;
use crate::{
    api::KSMScaleStatus,
    names::{KUBE_STATE_METRICS, OPERATOR},
    observed::{NamespaceState, Observed, is_managed},
    plan::{Change, Group, Plan, WaitReason, access, disruption, scale::Efficiency},
    status::FailureReason,
    validate::{Mode, Scale},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use std::fmt;

/// A condition before it has times.
pub(super) struct Fact {
    type_: &'static str,
    status: bool,
    reason: String,
    message: String,
}

impl Fact {
    pub(super) fn new(
        type_: &'static str,
        status: bool,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { type_, status, reason: reason.into(), message: message.into() }
    }
}

/// R70, in the order in which people read them.
pub(super) fn conditions_of(inputs: &Inputs<'_>) -> Vec<Fact> {
    let mut facts = vec![available(inputs), progressing(inputs), degraded(inputs)];
    facts.extend(sharding_efficient(inputs.plan, &inputs.scale.mode));
    facts.extend(duplicate_metrics(inputs));
    facts.push(scope_overlap(&inputs.seen.others));
    facts.push(service_account_ready(inputs));
    facts.push(namespace_ready(inputs));
    facts
}

fn available(inputs: &Inputs<'_>) -> Fact {
    let Inputs { plan, .. } = inputs;
    let serving = format!("{} of {} pods serve", plan.serving_slots, plan.desired);
    if plan.desired == 0 {
        Fact::new(
            "Available",
            true,
            "NoNodes",
            "the cluster has no nodes, so there is nothing to serve",
        )
    } else if plan.coverage.is_complete() {
        let message = format!("every object is exposed; {serving} as the spec asks");
        Fact::new("Available", true, "AllObjectsExposed", message)
    } else {
        let missing = 100.0 * plan.coverage.gap();
        let message =
            format!("{missing:.1} % of the objects are exposed by no pod that serves; {serving}");
        Fact::new("Available", false, "ObjectsMissing", message)
    }
}

fn progressing(inputs: &Inputs<'_>) -> Fact {
    let Inputs { plan, scale, .. } = inputs;
    let done =
        format!("{} of {} pods are as the spec asks and serve", plan.serving_slots, plan.desired);
    if let Some(waiting) = &plan.waiting {
        return Fact::new(
            "Progressing",
            true,
            waiting.reason.to_string(),
            format!("{}; {done}", waiting.message),
        );
    }
    let step =
        plan.changes.iter().find(|c| matches!(c, Change::CreatePod(..) | Change::DeletePod(..)));
    match step {
        Some(step) => Fact::new("Progressing", true, "ChangingPods", format!("{step}; {done}")),
        None if plan.in_progress => {
            let message =
                format!("pods wait for namespace {} to take them; {done}", scale.namespace);
            Fact::new("Progressing", false, "Blocked", message)
        }
        None => Fact::new("Progressing", false, "Complete", done),
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PodSettling { .. } => "PodSettling",
            Self::PodNotReady => "PodNotReady",
            Self::PodCannotStart => "PodCannotStart",
            Self::StillNeeded => "StillNeeded",
            Self::SeriesAtRisk => "SeriesAtRisk",
        })
    }
}

fn degraded(inputs: &Inputs<'_>) -> Fact {
    let yes = |reason: &dyn fmt::Display, message: String| {
        Fact::new("Degraded", true, reason.to_string(), message)
    };
    let Inputs { scale, seen, plan, outcome, settings, now, .. } = *inputs;
    if let Some((reason, message)) = namespace_fault(scale, seen) {
        return yes(&reason, message);
    }
    if let Some(failure) = outcome.failed.iter().find(|f| !f.reason.is_passing()) {
        return yes(&failure.reason, failure.to_string());
    }
    if let Some(budget) = disruption::foreign_budget(scale, seen) {
        let name = budget.metadata.name.as_deref().unwrap_or_default();
        let namespace = &scale.namespace;
        let message = format!(
            "PodDisruptionBudget {namespace}/{name} exists and does not belong to this KSMScale, so the pods have none; delete it, or rename the KSMScale"
        );
        return yes(&FailureReason::NameTaken, message);
    }
    if let Some(message) = access_fault(scale, seen) {
        return yes(&FailureReason::Forbidden, message);
    }
    let deadline =
        SignedDuration::try_from(settings.progress_deadline).unwrap_or(SignedDuration::MAX);
    match &plan.waiting {
        Some(w) if w.reason == WaitReason::PodCannotStart => yes(&w.reason, w.message.clone()),
        Some(w)
            if matches!(w.reason, WaitReason::PodNotReady)
                && w.since.duration_until(now) > deadline =>
        {
            yes(&"ProgressDeadlineExceeded", w.message.clone())
        }
        _ => Fact::new("Degraded", false, "AsExpected", "nothing is wrong"),
    }
}

fn sharding_efficient(plan: &Plan, mode: &Mode) -> Option<Fact> {
    let Mode::Sharded(shards) = mode else { return None };
    Some(match plan.efficiency {
        Efficiency::Fits => Fact::new(
            "ShardingEfficient",
            true,
            "Fits",
            format!("{} shards fit the cluster", shards.count),
        ),
        Efficiency::Misfit(misfit) => {
            let reason = if misfit.over { "OverSharded" } else { "UnderSharded" };
            Fact::new("ShardingEfficient", false, reason, misfit.to_string())
        }
        Efficiency::NothingBetter(misfit) => {
            let message = format!(
                "{:.1} nodes/shard is outside 15 to 40, and no other shard count from 2 to 10 fits {} nodes better",
                misfit.nodes_per_shard(),
                misfit.nodes
            );
            Fact::new("ShardingEfficient", false, "NoBetterShardCount", message)
        }
    })
}

fn duplicate_metrics(inputs: &Inputs<'_>) -> Option<Fact> {
    let desired = inputs.plan.desired;
    (inputs.scale.mode == Mode::Unsharded).then(|| {
        if desired > 1 {
            let message = format!("without sharding each of {desired} pods exports every series, so each series exists {desired} times; set spec.sharding, or deduplicate in queries");
            Fact::new("DuplicateMetrics", true, "UnshardedReplicas", message)
        } else {
            Fact::new("DuplicateMetrics", false, "SinglePod", "at most one pod exports each series")
        }
    })
}

/// Names one of the others: all names of a thousand would be 20 MB in the status of all of them.
fn scope_overlap(others: &[String]) -> Fact {
    let Some(first) = others.iter().min() else {
        return Fact::new(
            "ScopeOverlap",
            false,
            "OnlyKSMScale",
            "no other KSMScale covers this cluster",
        );
    };
    let others = match others.len() {
        1 => format!("KSMScale {first}"),
        n => format!("KSMScale {first} and {} more", n - 1),
    };
    let message = format!(
        "the same objects are also exported for {others}; delete all but one, or tell them apart when scraping"
    );
    Fact::new("ScopeOverlap", true, "OtherKSMScales", message)
}

fn service_account_ready(inputs: &Inputs<'_>) -> Fact {
    let Inputs { scale, seen, outcome, settings, .. } = inputs;
    let account = format!("ServiceAccount {}/{KUBE_STATE_METRICS}", scale.namespace);
    let fact =
        |status, reason: &str, message| Fact::new("ServiceAccountReady", status, reason, message);
    if let Some(message) = access_fault(scale, seen) {
        return fact(false, "Forbidden", message);
    }
    let is_access = |c: &Change| c.group() == Group::Access;
    if let Some(failure) = outcome.failed.iter().find(|f| is_access(&f.change)) {
        return fact(false, &failure.reason.to_string(), failure.to_string());
    }
    let applied = outcome.applied.iter().any(|c| matches!(c, Change::ApplyServiceAccount(_)));
    match access::account_in(seen, &scale.namespace) {
        Some(found) if !is_managed(found.metadata.labels.as_ref()) => {
            fact(true, "Provided", format!("{account} exists and is used as it is"))
        }
        Some(_) => fact(true, "Managed", format!("{account} and its binding are in place")),
        None if applied => fact(true, "Managed", format!("{account} and its binding are in place")),
        None if settings.manage_access => {
            fact(false, "Blocked", format!("{account} waits for its namespace"))
        }
        None => fact(
            false,
            "Missing",
            format!(
                "{account} does not exist; create it, or start the operator with --manage-service-account=true"
            ),
        ),
    }
}

/// R63. Pods are made all the same.
fn access_fault(scale: &Scale, seen: &Observed) -> Option<String> {
    let (namespace, fault) = (&scale.namespace, seen.access_fault.as_ref()?);
    Some(format!(
        "cannot read ServiceAccount {namespace}/{KUBE_STATE_METRICS}: {fault}; grant the operator's ServiceAccount ClusterRole {OPERATOR}, or start it with --manage-service-account=false"
    ))
}

fn namespace_ready(inputs: &Inputs<'_>) -> Fact {
    if let Some((reason, message)) = namespace_fault(inputs.scale, inputs.seen) {
        return Fact::new("NamespaceReady", false, reason, message);
    }
    let message = format!("namespace {} takes pods", inputs.scale.namespace);
    Fact::new("NamespaceReady", true, "Active", message)
}

/// R64.
fn namespace_fault(scale: &Scale, seen: &Observed) -> Option<(&'static str, String)> {
    let namespace = &scale.namespace;
    match seen.namespace {
        NamespaceState::Active => None,
        NamespaceState::Missing => Some((
            "NamespaceMissing",
            format!(
                "namespace {namespace} does not exist; create it with `kubectl create namespace {namespace}`, or correct spec.namespace"
            ),
        )),
        NamespaceState::Terminating => Some((
            "NamespaceTerminating",
            format!(
                "namespace {namespace} is being deleted and takes no pods; wait and create it again, or correct spec.namespace"
            ),
        )),
    }
}

/// Merges facts into the conditions that were there: a time of transition stays unless the status
/// changes (`meta.SetStatusCondition` of `k8s.io/apimachinery`).
pub(super) struct Conditions<'a> {
    old: &'a [Condition],
    new: Vec<Condition>,
    generation: i64,
    now: Timestamp,
    /// Whether conditions that nothing is said about stay.
    keep: bool,
}

impl<'a> Conditions<'a> {
    pub(super) fn new(old: &'a KSMScaleStatus, generation: i64, now: Timestamp) -> Self {
        Self { old: &old.conditions, new: Vec::new(), generation, now, keep: false }
    }

    /// Conditions that nothing is said about stay as they are.
    pub(super) fn keeping_the_rest(self) -> Self {
        Self { keep: true, ..self }
    }

    pub(super) fn set(&mut self, fact: Fact) {
        let status = if fact.status { "True" } else { "False" };
        let before = self.old.iter().find(|c| c.type_ == fact.type_ && c.status == status);
        self.new.push(Condition {
            type_: fact.type_.to_owned(),
            status: status.to_owned(),
            reason: fact.reason,
            message: fact.message,
            observed_generation: Some(self.generation),
            last_transition_time: before.map_or(Time(self.now), |c| c.last_transition_time.clone()),
        });
    }

    /// Sets what is `new`, or else, if it still `applies`, keeps what was said before.
    pub(super) fn set_or_keep(&mut self, type_: &str, applies: bool, new: Option<Fact>) {
        match new {
            Some(fact) if applies => self.set(fact),
            None if applies => {
                self.new.extend(self.old.iter().find(|c| c.type_ == type_).cloned());
            }
            _ => {}
        }
    }

    pub(super) fn done(mut self) -> Vec<Condition> {
        if self.keep {
            let unsaid = |c: &&Condition| self.new.iter().all(|new| new.type_ != c.type_);
            let kept: Vec<_> = self.old.iter().filter(unsaid).cloned().collect();
            self.new.extend(kept);
        }
        self.new
    }
}
