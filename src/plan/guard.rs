//! What of a plan has to be proven by content before it is applied, and the plan without what was
//! not (V1).

use super::{Change, CreateReason, DeleteReason, Plan, Settings, WaitReason, Waiting};
use crate::{
    exposure::Loss,
    observed::{Observed, ObservedPod},
};
use jiff::{SignedDuration, Timestamp};
use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

/// For how long successors wait for a delete that is held back: longer than it takes a pod to serve
/// all that it will.
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

/// Pods that a plan deletes although they may serve, and those that have to serve all of theirs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stake<'a> {
    /// To be deleted: surplus, or replaced.
    pub victims: Vec<&'a ObservedPod>,
    /// Pods that serve, and that the plan does not delete.
    pub survivors: Vec<&'a ObservedPod>,
}

/// What looks at pods that are to go have found, from one to the next. Forgetting it costs time
/// only.
///
/// What the others serve has to have been scraped there as well, so a pod goes when the others were
/// seen to serve all of it for the settle time: at a first look, and at the one before the delete.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    whole: Option<Whole>,
    held_since: Option<Timestamp>,
}

/// Pods by UID, and since when all that some serve is served by the others.
#[derive(Clone, Debug)]
struct Whole {
    victims: BTreeSet<String>,
    survivors: BTreeSet<String>,
    since: Timestamp,
}

impl Looks {
    /// Takes in a look at what is at stake, and returns how long the others still have to serve it.
    pub fn record(
        &mut self,
        stake: &Stake<'_>,
        lost: bool,
        now: Timestamp,
        settle: Duration,
    ) -> Duration {
        if lost {
            self.whole = None;
        } else if !self.whole.as_ref().is_some_and(|whole| whole.is_of(stake)) {
            let uids = |pods: &[&ObservedPod]| pods.iter().map(|pod| pod.uid.clone()).collect();
            let (victims, survivors) = (uids(&stake.victims), uids(&stake.survivors));
            self.whole = Some(Whole { victims, survivors, since: now });
        }
        self.wait(stake, now, settle)
    }

    /// How long it is until a look at what is at stake could let it go. Zero: look now.
    #[must_use]
    pub fn wait(&self, stake: &Stake<'_>, now: Timestamp, settle: Duration) -> Duration {
        let whole = self.whole.as_ref().filter(|whole| whole.is_of(stake));
        let settled = whole.map(|whole| {
            let settle = SignedDuration::try_from(settle).unwrap_or(SignedDuration::MAX);
            whole.since.saturating_add(settle).unwrap_or(Timestamp::MAX)
        });
        settled.map_or(Duration::ZERO, |at| now.duration_until(at).try_into().unwrap_or_default())
    }

    /// A delete is held back. Returns whether successors should wait for it.
    pub fn hold(&mut self, now: Timestamp) -> bool {
        self.held_since.get_or_insert(now).duration_until(now) < PATIENCE
    }

    /// What was held back goes now.
    pub fn let_go(&mut self) {
        *self = Self::default();
    }
}

impl Whole {
    /// Fewer that go and more that stay are as well served.
    fn is_of(&self, stake: &Stake<'_>) -> bool {
        let staying: BTreeSet<&str> = stake.survivors.iter().map(|pod| &*pod.uid).collect();
        stake.victims.iter().all(|pod| self.victims.contains(&pod.uid))
            && self.survivors.iter().all(|uid| staying.contains(&**uid))
    }
}

impl Plan {
    /// Whether a pod is Ready and has to stay so before the next step.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        let waiting = self.waiting.as_ref();
        waiting.is_some_and(|waiting| matches!(waiting.reason, WaitReason::PodSettling { .. }))
    }

    /// What has to be looked at before this plan is applied; no victims if nothing has to be.
    /// Where no pod is wanted at all, nothing is to be kept.
    #[must_use]
    pub fn at_stake<'a>(
        &self,
        seen: &'a Observed,
        now: Timestamp,
        settings: &Settings,
    ) -> Stake<'a> {
        if self.desired == 0 {
            return Stake::default();
        }
        let settle = SignedDuration::try_from(settings.settle).unwrap_or(SignedDuration::MAX);
        let reason_of = |pod: &ObservedPod| {
            self.changes.iter().find_map(|change| match change {
                Change::DeletePod(gone, reason) if gone.uid == pod.uid => Some(reason),
                _ => None,
            })
        };
        let at_stake = |pod: &&ObservedPod| {
            matches!(reason_of(pod), Some(DeleteReason::Surplus | DeleteReason::ReplacedBy(_)))
        };
        let survives = |pod: &&ObservedPod| reason_of(pod).is_none() && pod.is_serving(now, settle);
        Stake {
            victims: seen.pods.iter().filter(at_stake).collect(),
            survivors: seen.pods.iter().filter(survives).collect(),
        }
    }

    /// Takes the deletes of these pods out, says why, and plans to look again after `again`.
    ///
    /// With `successors_wait` no other successor is created meanwhile: there would be more pods and
    /// duplicates than the change needs. That cannot be for ever: where the pods before and after a
    /// change share objects out by another hash, none of the former can go before all of the latter
    /// are there.
    pub fn keep(
        &mut self,
        losses: &[Loss],
        successors_wait: bool,
        again: Duration,
        now: Timestamp,
    ) {
        let loss_of = |uid: &str| losses.iter().find(|loss| loss.pod == uid);
        let mut kept = Vec::new();
        self.changes.retain(|change| match change {
            Change::CreatePod(_, CreateReason::Replaces(_)) => {
                !successors_wait || losses.is_empty()
            }
            Change::DeletePod(pod, _) => match loss_of(&pod.uid) {
                Some(loss) => {
                    kept.push(keeping(&pod.to_string(), loss));
                    false
                }
                None => true,
            },
            _ => true,
        });
        let Some(first) = kept.first() else { return };
        let mut message = first.clone();
        if kept.len() > 1 {
            // Writing to a string cannot fail.
            let _ = write!(message, "; and {} more", kept.len() - 1);
        }
        self.again_in = self.again_in.min(again);
        // A pod that does not become Ready is what the kept one waits for.
        match &mut self.waiting {
            Some(waiting)
                if matches!(
                    waiting.reason,
                    WaitReason::PodNotReady | WaitReason::PodCannotStart
                ) =>
            {
                let _ = write!(waiting.message, "; {message}");
            }
            waiting => {
                *waiting = Some(Waiting { reason: WaitReason::SeriesAtRisk, since: now, message });
            }
        }
    }
}

fn keeping(pod: &str, loss: &Loss) -> String {
    let Loss { series, examples, silent, .. } = loss;
    let mut message = match series {
        0 => format!("keeping pod {pod}"),
        1 => format!("keeping pod {pod}: 1 series is served by no other pod"),
        n => format!("keeping pod {pod}: {n} series are served by no other pod"),
    };
    if let Some(example) = examples.first() {
        let _ = write!(message, ", such as {}", shortened(example));
    }
    if let Some(silent) = silent {
        let _ = write!(message, "; {silent}");
    }
    message
}

/// Labels can be as long as annotations.
fn shortened(series: &str) -> String {
    const LONGEST: usize = 200;
    if series.len() <= LONGEST {
        return series.to_owned();
    }
    format!("{}...", &series[..series.floor_char_boundary(LONGEST)])
}

#[cfg(test)]
mod tests;
