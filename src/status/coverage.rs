//! What is told of what pods serve: how far a change has come, and what audits find (V2, V4, V6).

use super::{Inputs, conditions::Fact, int};
use crate::{
    api::{ChangeStatus, CoverageStatus, KSMScaleStatus},
    audit::{Report, describe},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What came of looking at what pods serve.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Whether pods could be reached, or why not; `None` if it was not tried.
    pub reached: Option<Result<(), String>>,
    /// What an audit has found, if one has ended.
    pub report: Option<Report>,
}

/// How often `lastAudit` is renewed if nothing else changes.
const LAST_AUDIT: SignedDuration = SignedDuration::from_hours(1);

/// Pods at fault that are described.
const DESCRIBED: usize = 3;

/// Numbers that stay are not written again, but for the time once an hour.
pub(super) fn coverage(old: &KSMScaleStatus, inputs: &Inputs<'_>) -> Option<CoverageStatus> {
    if inputs.plan.desired == 0 || inputs.settings.audit_interval.is_zero() {
        return None;
    }
    let Some(report) = &inputs.checked.report else { return old.coverage.clone() };
    let exposure = report.exposure;
    let last_audit = old.coverage.as_ref().map_or(Timestamp::MIN, |old| old.last_audit.0);
    let told = |last_audit| CoverageStatus {
        expected: int(exposure.expected),
        exposed: int(exposure.exposed),
        missing: int(exposure.missing),
        duplicated: int(exposure.duplicated),
        foreign: int(exposure.foreign),
        last_audit: Time(last_audit),
    };
    let same = told(last_audit);
    let recent = last_audit.duration_until(inputs.now) < LAST_AUDIT;
    Some(if old.coverage.as_ref() == Some(&same) && recent { same } else { told(inputs.now) })
}

/// The change that is under way. A new spec, or another number of pods, begins a new one.
pub(super) fn change(
    old: &KSMScaleStatus,
    current: i32,
    inputs: &Inputs<'_>,
) -> Option<ChangeStatus> {
    let Inputs { plan, scale, now, .. } = *inputs;
    if !plan.in_progress {
        return None;
    }
    let (to, remaining) = (int(plan.desired), int(plan.remaining));
    let same = |change: &&ChangeStatus| {
        change.to == to && old.observed_generation == Some(scale.generation)
    };
    let (from, since, of) = match old.change.as_ref().filter(same) {
        Some(change) => (change.from, change.since.clone(), change.of.max(remaining)),
        None => (current, Time(now), remaining),
    };
    let waiting_for = plan.waiting.as_ref().map(|waiting| waiting.message.clone());
    Some(ChangeStatus { from, to, step: of - remaining + 1, of, since, waiting_for })
}

/// What audits say. `None`: nothing new.
pub(super) fn complete(report: &Report) -> Fact {
    let exposure = report.exposure;
    if exposure.missing == 0 && report.faults.is_empty() {
        let message = "every node is exposed by the pods of its shard, and by no other";
        return Fact::new("CoverageComplete", true, "EveryNodeOnce", message);
    }
    let reason = match exposure {
        _ if exposure.missing > 0 => "NodesMissing",
        _ if exposure.duplicated > 0 => "NodesDuplicated",
        _ if exposure.foreign > 0 => "NodesForeign",
        _ => "PodsFaulty",
    };
    let described = report.faults.iter().take(DESCRIBED);
    let mut faults: Vec<_> =
        described.map(|(pod, faults)| format!("pod {pod} {}", describe(faults))).collect();
    match report.faults.len() {
        0 => faults.push("a shard has no pod that is Ready".to_owned()),
        n if n > DESCRIBED => faults.push(format!("{} more pods are at fault", n - DESCRIBED)),
        _ => {}
    }
    let message = format!(
        "{}; a pod that three audits in a row find at fault is replaced",
        faults.join("; ")
    );
    Fact::new("CoverageComplete", false, reason, message)
}

/// Whether deletes are proven by what pods serve. `None`: nothing new.
pub(super) fn verified(inputs: &Inputs<'_>) -> Option<Fact> {
    let fact = |status, reason, message| Fact::new("CoverageVerified", status, reason, message);
    if !inputs.settings.verify_coverage {
        let message = "pods are deleted when their successors are Ready for the settle time, whatever they serve, since --verify-coverage=false";
        return Some(fact(false, "Disabled", message.to_owned()));
    }
    Some(match inputs.checked.reached.as_ref()? {
        Ok(()) => {
            let message = "pods are deleted when others are seen to serve all their series";
            fact(true, "PodsReached", message.to_owned())
        }
        Err(cause) => {
            let message = format!(
                "{cause}; what it serves is not known, so Ready and the settle time decide; let the operator reach ports 8080 and 8081 of the pods (NetworkPolicy?)"
            );
            fact(false, "PodsUnreachable", message)
        }
    })
}
