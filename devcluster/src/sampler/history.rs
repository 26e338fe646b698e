//! Samples over time.

use std::fmt::Write as _;
use std::time::Duration;

/// What was exposed at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Since the sampler was started.
    pub at: Duration,
    /// Pods that were asked.
    pub pods: usize,
    /// Those among them that gave no answer.
    pub failed: usize,
    /// Those among these that had not ended theirs after a second. What they expose is not known.
    pub late: usize,
    /// Objects that should be exposed.
    pub expected: usize,
    /// Those among them that are not.
    pub missing: Vec<String>,
    /// Exposures beyond the first of each object.
    pub duplicated: usize,
    /// Objects that are exposed and do not exist.
    pub ghosts: Vec<String>,
}

/// Samples, in the order in which they were begun.
#[derive(Debug, Clone, Default)]
pub struct History {
    samples: Vec<Sample>,
}

impl History {
    pub(super) fn add(&mut self, sample: Sample) {
        let later = self.samples.iter().rev().take_while(|other| other.at > sample.at).count();
        self.samples.insert(self.samples.len() - later, sample);
    }

    /// All of them.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The one with most missing; among equals the one with most ghosts, and the earliest. `None` if
    /// there are no samples.
    ///
    /// Left out are those in which something may be missing only because a pod's answer was late, as
    /// on a busy machine: what is lost because a pod is gone or has not synced is missing in others too.
    pub fn worst(&self) -> Option<&Sample> {
        let badness = |sample: &&Sample| (sample.missing.len(), sample.ghosts.len());
        let certain = |sample: &&Sample| sample.late == 0 || sample.missing.is_empty();
        self.samples.iter().rev().filter(certain).max_by_key(badness)
    }

    /// The most exposures beyond the first of each object in any sample.
    pub fn most_duplicated(&self) -> usize {
        self.samples.iter().map(|sample| sample.duplicated).max().unwrap_or_default()
    }

    /// The longest time between two samples: nothing is known of what happened meanwhile.
    pub fn longest_gap(&self) -> Duration {
        let gaps = self.samples.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at));
        gaps.max().unwrap_or_default()
    }

    /// A line for each sample, below a line of names; times in milliseconds.
    pub fn csv(&self) -> String {
        let mut csv = "at_ms,pods,failed,expected,missing,duplicated,ghosts\n".to_owned();
        for sample in &self.samples {
            let Sample { at, pods, failed, expected, missing, duplicated, ghosts, .. } = sample;
            let (at, missing, ghosts) = (at.as_millis(), missing.len(), ghosts.len());
            // Writing to a string cannot fail.
            let _ =
                writeln!(csv, "{at},{pods},{failed},{expected},{missing},{duplicated},{ghosts}");
        }
        csv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, missing: usize) -> Sample {
        let missing = vec![String::new(); missing];
        Sample { at: Duration::from_millis(at), missing, expected: 9, ..Sample::default() }
    }

    #[test]
    fn samples_are_in_the_order_of_their_beginning_and_the_worst_is_the_first_of_the_worst() {
        let mut history = History::default();
        let late = Sample { late: 1, ..sample(75, 3) };
        for sample in [sample(0, 0), sample(100, 2), late, sample(50, 2), sample(300, 1)] {
            history.add(sample);
        }
        assert_eq!(history.worst(), Some(&sample(50, 2)));
        assert_eq!(history.longest_gap(), Duration::from_millis(200));
        assert_eq!(history.csv().lines().nth(2), Some("50,0,0,9,2,0,0"));
    }
}
