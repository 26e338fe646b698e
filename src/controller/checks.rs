//! When it is looked at what pods serve, and what is remembered of it: nothing that would be missed
//! if it were lost.

use super::{Context, verify};
use crate::{
    audit::{self, Fault, History, Look, Nodes, Verdict},
    exposure::Loss,
    observed::{Observed, ObservedPod},
    plan::{self, Plan, Settings, guard::Looks},
    status::Checked,
    telemetry::otlp::TRACES,
    validate::{Scale, Valid},
};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The longest time from one look before a delete to the next.
const LATEST: Duration = Duration::from_secs(5);

/// So that clocks that tick in whole milliseconds are past it.
const A_MOMENT: Duration = Duration::from_millis(50);

/// Audits of all KSMScales of this replica, by name.
#[derive(Debug, Default)]
pub(super) struct Audits(Mutex<HashMap<String, Audit>>);

#[derive(Debug, Default)]
struct Audit {
    history: History,
    /// When the next look is due.
    due: Option<Timestamp>,
    /// What looks before deletes have found.
    looks: Looks,
}

impl Audits {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Audit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is gone, or another replica's.
    pub(super) fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// UIDs of the pods that are to be replaced.
    pub(super) fn condemned(&self, name: &str) -> BTreeSet<String> {
        let audits = self.lock();
        let condemned = audits.get(name).into_iter().flat_map(|audit| audit.history.condemned());
        condemned.map(str::to_owned).collect()
    }

    /// How long it is to the next look. The first one is a pause from now.
    fn wait(&self, name: &str, now: Timestamp, interval: Duration) -> Duration {
        let mut audits = self.lock();
        let audit = audits.entry(name.to_owned()).or_default();
        let due = *audit.due.get_or_insert_with(|| after(now, audit::pause(name, interval)));
        Duration::try_from(now.duration_until(due)).unwrap_or_default()
    }

    /// Takes in a look.
    fn record(&self, name: &str, look: &Look) -> Verdict {
        self.lock().entry(name.to_owned()).or_default().history.record(look)
    }

    /// What looks before deletes have found.
    fn looks<T>(&self, name: &str, work: impl FnOnce(&mut Looks) -> T) -> T {
        work(&mut self.lock().entry(name.to_owned()).or_default().looks)
    }

    fn next(&self, name: &str, due: Timestamp) {
        self.lock().entry(name.to_owned()).or_default().due = Some(due);
    }
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.saturating_add(SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX))
        .unwrap_or(Timestamp::MAX)
}

/// Takes out of `plan` what would lose series (V1). While pods settle it is looked ahead at what is
/// to go then, so that the settle time is also that of what they serve.
#[tracing::instrument(target = TRACES, name = "prove", skip_all)]
pub(super) async fn prove(
    ctx: &Context,
    scale: &Valid<Scale>,
    plan: &mut Plan,
    seen: &Observed,
) -> Checked {
    if !ctx.settings.verify_coverage {
        return Checked::default();
    }
    let (name, now, settle) = (&*scale.name, (ctx.clock)(), ctx.settings.settle);
    let mut stake = plan.at_stake(seen, now, &ctx.settings);
    let ahead = stake.victims.is_empty();
    if ahead && plan.is_settling() {
        let settled = Settings { settle: Duration::ZERO, ..ctx.settings };
        stake = plan::plan(scale, seen, now, &settled).at_stake(seen, now, &settled);
    }
    if plan.is_at_rest() {
        ctx.audits.looks(name, Looks::let_go);
    }
    if stake.victims.is_empty() {
        return Checked::default();
    }
    let mut checked = Checked::default();
    let mut losses = Vec::new();
    let (mut wait, mut again) = (ctx.audits.looks(name, |l| l.wait(&stake, now, settle)), LATEST);
    // Sooner it would tell nothing.
    if wait.is_zero() {
        let begin = Instant::now();
        let proof = verify::prove(&ctx.scraper, &stake, &nodes(ctx)).await;
        again = look_again(begin.elapsed());
        checked.reached = Some(proof.unreachable.map_or(Ok(()), Err));
        losses = proof.losses;
        let (now, lost) = ((ctx.clock)(), !losses.is_empty());
        wait = ctx.audits.looks(name, |l| l.record(&stake, lost, now, settle));
    }
    if losses.is_empty() && !wait.is_zero() {
        again = wait + A_MOMENT;
        let cause = "others serve its series for less than the settle time";
        losses = stake.victims.iter().map(|pod| Loss::unknown(&pod.uid, cause)).collect();
    }
    match (losses.is_empty(), ahead) {
        (true, true) => {}
        (true, false) => ctx.audits.looks(name, Looks::let_go),
        (false, true) if wait.is_zero() => plan.again_in = plan.again_in.min(again),
        (false, true) => plan.again_in = plan.again_in.max(again),
        (false, false) => hold(ctx, name, plan, &losses, again),
    }
    checked
}

/// Keeps pods that were to go.
fn hold(ctx: &Context, name: &str, plan: &mut Plan, losses: &[Loss], again: Duration) {
    for loss in losses {
        ctx.metrics.coverage.held_back(loss.series);
    }
    let now = (ctx.clock)();
    let successors_wait = ctx.audits.looks(name, |looks| looks.hold(now));
    plan.keep(losses, successors_wait, again, now);
}

/// How soon it is looked again for what was missing. Pods that sync take seconds, and each look reads
/// all that they serve: it costs a tenth of the time at most, where that is possible.
fn look_again(took: Duration) -> Duration {
    (took * 10).clamp(Duration::from_secs(1), LATEST)
}

/// Compares what the pods of a KSMScale at rest expose with the nodes, when it is time to (V3), and
/// has `plan` come back for the next look.
#[tracing::instrument(target = TRACES, name = "audit", skip_all)]
pub(super) async fn audit(
    ctx: &Context,
    name: &str,
    plan: &mut Plan,
    seen: &Observed,
) -> Option<Checked> {
    let interval = ctx.settings.audit_interval;
    if interval.is_zero() || !plan.is_at_rest() || plan.desired == 0 {
        return None;
    }
    let wait = ctx.audits.wait(name, (ctx.clock)(), interval);
    if !wait.is_zero() {
        plan.again_in = plan.again_in.min(wait);
        return None;
    }
    let (checked, pause) = look(ctx, name, seen, interval).await;
    ctx.audits.next(name, after((ctx.clock)(), pause));
    plan.again_in = plan.again_in.min(pause);
    Some(checked)
}

/// One look, and how long to wait until the next.
async fn look(
    ctx: &Context,
    name: &str,
    seen: &Observed,
    interval: Duration,
) -> (Checked, Duration) {
    let (metrics, pause) = (&ctx.metrics.coverage, audit::pause(name, interval));
    let pods: Vec<&ObservedPod> = seen.pods.iter().filter(|pod| pod.is_ready()).collect();
    let Some(look) = verify::look(&ctx.scraper, &pods, || nodes(ctx)).await else {
        metrics.audited("too_long");
        let cause = format!("looking at the pods takes longer than {:?}", verify::LIMIT);
        return (Checked { reached: Some(Err(cause)), report: None }, pause);
    };
    let reached = Some(look.unreachable().map_or(Ok(()), |cause| Err(cause.to_owned())));
    if look.is_blind() {
        metrics.audited("unreachable");
        return (Checked { reached, report: None }, pause);
    }
    let Verdict::Audited(faults) = ctx.audits.record(name, &look) else {
        metrics.audited("look_again");
        return (Checked { reached, report: None }, audit::recheck(interval));
    };
    for fault in faults.values().flat_map(kinds) {
        metrics.fault(fault);
    }
    metrics.audited(if faults.is_empty() { "whole" } else { "faulty" });
    (Checked { reached, report: Some(look.report(&faults)) }, pause)
}

/// Each kind of fault once.
fn kinds(faults: &BTreeSet<Fault>) -> BTreeSet<&'static str> {
    faults.iter().map(Fault::label).collect()
}

/// The nodes as the watch knows them.
fn nodes(ctx: &Context) -> Nodes {
    let nodes = ctx.node_names.state();
    nodes.iter().map(|node| (node.name_any(), node.uid().unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_a_look_that_is_cheap_is_repeated_sooner() {
        let table = [(1, 1_000), (200, 2_000), (3_000, 5_000)];
        for (took, again) in
            table.map(|(a, b)| (Duration::from_millis(a), Duration::from_millis(b)))
        {
            assert_eq!(look_again(took), again);
        }
    }

    #[test]
    fn v3_the_first_look_is_a_pause_away_and_the_next_one_when_it_was_set() {
        let (audits, interval) = (Audits::default(), Duration::from_mins(1));
        let now = Timestamp::UNIX_EPOCH;
        let first = audits.wait("x", now, interval);
        assert_eq!(first, audit::pause("x", interval));
        assert!(first > interval * 3 / 4 && first <= interval);
        let due = after(now, first);
        assert!(audits.wait("x", due, interval).is_zero());
        audits.next("x", after(due, Duration::from_secs(15)));
        assert_eq!(audits.wait("x", due, interval), Duration::from_secs(15));
    }
}
