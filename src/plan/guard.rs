//! What of a plan has to be proven by content before it is applied, and the plan without what was
//! not (V1).

use super::{Change, DeleteReason, Plan, Settings, WaitReason, Waiting};
use crate::{
    exposure::Loss,
    observed::{Observed, ObservedPod},
};
use jiff::{SignedDuration, Timestamp};
use std::{fmt::Write as _, time::Duration};

/// How soon a delete that was held back is tried again. Pods that sync take seconds, and each try
/// reads what they serve.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Pods that a plan deletes although they may serve, and those that have to serve all of theirs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stake<'a> {
    /// To be deleted: surplus, or replaced.
    pub victims: Vec<&'a ObservedPod>,
    /// Pods that serve, and that the plan does not delete.
    pub survivors: Vec<&'a ObservedPod>,
}

impl Plan {
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

    /// Takes the deletes of these pods out, says why, and plans to look again soon.
    ///
    /// Successors are still created: where the pods before and after a change share objects out by
    /// another hash, none of the former can go before all of the latter are there.
    pub fn keep(&mut self, losses: &[Loss], now: Timestamp) {
        let loss_of = |uid: &str| losses.iter().find(|loss| loss.pod == uid);
        let mut kept = Vec::new();
        self.changes.retain(|change| match change {
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
        self.again_in = self.again_in.min(LOOK_AGAIN);
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
