//! Samples as they are kept: what did not change is said once.

use devcluster::sampler::Sample;
use std::{fmt::Write as _, time::Duration};

/// Samples of one change, in their order.
pub struct Samples {
    pub all: Vec<Sample>,
    /// When the change was asked for.
    pub begun: Duration,
    /// When whoever made it said that it was done.
    pub done: Duration,
}

/// The samples of all changes, as CSV.
pub struct Record {
    text: String,
}

impl Default for Record {
    fn default() -> Self {
        let names = "way,change,at_ms,samples,longest_gap_ms,pods,expected,missing,duplicated,done";
        Self { text: format!("{names}\n") }
    }
}

impl Record {
    /// Adds a line for each run of samples that agree: when it begins, counted from the request,
    /// and how many they are; and a line for the last one, which ends the last run. `done` says
    /// whether the change was said to be done.
    pub fn add(&mut self, way: &str, change: &str, samples: &Samples) {
        let state = |sample: &Sample| {
            let Sample { pods, expected, missing, duplicated, .. } = sample;
            let done = u8::from(sample.at >= samples.done);
            format!("{pods},{expected},{},{duplicated},{done}", missing.len())
        };
        let gaps = samples.all.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at));
        let gaps: Vec<_> = gaps.chain([Duration::ZERO]).map(|gap| gap.as_millis()).collect();
        let begun = millis(samples.begun);
        let mut at = 0;
        while let Some(first) = samples.all.get(at) {
            let last = at + 1 == samples.all.len();
            let alike = |sample: &&Sample| state(sample) == state(first);
            let mut run = samples.all[at..].iter().take_while(alike).count();
            if !last && at + run == samples.all.len() {
                run -= 1;
            }
            let gap = gaps[at..at + run].iter().max().copied().unwrap_or_default();
            let after = millis(first.at) - begun;
            // Writing to a string cannot fail.
            let _ = writeln!(self.text, "{way},{change},{after},{run},{gap},{}", state(first));
            at += run;
        }
    }

    pub fn csv(&self) -> &str {
        &self.text
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
