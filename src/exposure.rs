//! Whether pods can go without one series going missing, proven by what is really served (V1).
//!
//! Ready says little: kube-state-metrics is Ready before it serves anything, and no signal of its
//! own says that all it lists is there. So everything that the pods to be deleted serve is
//! looked for in what the others serve. A series is a name and labels; values and whose answer it
//! stands in don't matter. Only hashes are kept, of the victims alone, and the others are
//! read as they arrive: eight bytes for each series at risk.

use xxhash_rust::xxh3::xxh3_64;

/// Series that have to be found somewhere, and which of them were.
#[derive(Clone, Debug, Default)]
pub struct Series {
    hashes: Vec<u64>,
    found: Marks,
}

/// Series that one answer holds. They count when it has arrived as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// A bit for each series.
    bits: Vec<u64>,
}

impl FromIterator<u64> for Series {
    fn from_iter<T: IntoIterator<Item = u64>>(hashes: T) -> Self {
        let mut hashes: Vec<u64> = hashes.into_iter().collect();
        hashes.sort_unstable();
        hashes.dedup();
        let found = Marks { bits: vec![0; hashes.len().div_ceil(64)] };
        Self { hashes, found }
    }
}

impl Series {
    /// The hash under which a series is known. 64 bits: among a million series, the chance that a
    /// missing one is taken for another is about one in 10^13 for each.
    #[must_use]
    pub fn hash(series: &[u8]) -> u64 {
        xxh3_64(series)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Marks for the next answer.
    #[must_use]
    pub fn marks(&self) -> Marks {
        Marks { bits: vec![0; self.found.bits.len()] }
    }

    /// Marks a series, if it is one of these. Returns whether it is.
    pub fn mark(&self, hash: u64, marks: &mut Marks) -> bool {
        let at = self.hashes.binary_search(&hash);
        if let Ok(at) = at {
            marks.bits[at / 64] |= 1 << (at % 64);
        }
        at.is_ok()
    }

    /// Takes in an answer that is whole. The marks have to be this value's.
    pub fn find(&mut self, marks: &Marks) {
        for (found, new) in self.found.bits.iter_mut().zip(&marks.bits) {
            *found |= new;
        }
    }

    /// Those that were found, to be looked for anew.
    #[must_use]
    pub fn found(&self) -> Self {
        self.those(true)
    }

    /// Those that were not, to be looked for anew.
    #[must_use]
    pub fn missing(&self) -> Self {
        self.those(false)
    }

    fn those(&self, found: bool) -> Self {
        let is_found = |at: usize| self.found.bits[at / 64] >> (at % 64) & 1 == 1;
        let all = self.hashes.iter().enumerate();
        all.filter(|(at, _)| is_found(*at) == found).map(|(_, hash)| *hash).collect()
    }
}

/// What came of looking at pods before some of them are deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// What would be lost, for each pod that cannot go. Nothing: all of them can.
    pub losses: Vec<Loss>,
    /// Why a pod that is to go and is Ready could not be reached, if so. What it serves stays
    /// unknown.
    pub unreachable: Option<String>,
}

/// What only a pod that was to be deleted serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The pod's UID.
    pub pod: String,
    /// How many series. None, if that is not known, or there are none any more.
    pub series: usize,
    /// Some of them.
    pub examples: Vec<String>,
    /// What else keeps it: why one of the pods that stay was not searched, for example.
    pub silent: Option<String>,
}

impl Loss {
    /// The pod cannot go, for this reason, and not since series are known to be at risk.
    #[must_use]
    pub fn unknown(pod: &str, cause: &str) -> Self {
        let (pod, silent) = (pod.to_owned(), Some(cause.to_owned()));
        Self { pod, series: 0, examples: Vec::new(), silent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn v1_what_is_missing_is_what_was_put_in_and_not_found(
            victim in vec(0_u64..200, 0..300),
            others in vec(0_u64..200, 0..300),
        ) {
            let mut series: Series = victim.iter().copied().collect();
            let mut marks = series.marks();
            let among: Vec<bool> =
                others.iter().map(|&hash| series.mark(hash, &mut marks)).collect();
            prop_assert_eq!(series.missing().hashes, series.hashes.clone(), "not whole yet");
            series.find(&marks);
            let (victim, others): (BTreeSet<_>, BTreeSet<_>) =
                (victim.into_iter().collect(), others.into_iter().collect());
            prop_assert_eq!(among.iter().any(|&is| is), !victim.is_disjoint(&others));
            prop_assert_eq!(series.len(), victim.len());
            let lost: Vec<u64> = victim.difference(&others).copied().collect();
            prop_assert_eq!(&series.missing().hashes, &lost);
            let kept: Vec<u64> = victim.intersection(&others).copied().collect();
            prop_assert_eq!(&series.found().hashes, &kept);
            prop_assert_eq!(series.missing().is_empty(), lost.is_empty());
        }
    }
}
