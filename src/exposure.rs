//! Whether pods can go without one series going missing, proven by what is really served (V1).
//!
//! Ready says little: kube-state-metrics is Ready before it serves anything, and no signal of its
//! own says that all it lists is there. So everything that the pods to be deleted serve is
//! looked for in what the others serve. A series is a name and labels; values and whose answer it
//! stands in don't matter. Only hashes are kept, of the victims alone, and the others are
//! read as they arrive: eight bytes for each series at risk.

use xxhash_rust::xxh3::xxh3_64;

/// Series that are to be found, and which of them were.
#[derive(Clone, Debug, Default)]
pub struct Series {
    hashes: Vec<u64>,
    /// A bit for each.
    found: Vec<u64>,
}

impl FromIterator<u64> for Series {
    fn from_iter<T: IntoIterator<Item = u64>>(hashes: T) -> Self {
        let mut hashes: Vec<u64> = hashes.into_iter().collect();
        hashes.sort_unstable();
        hashes.dedup();
        let found = vec![0; hashes.len().div_ceil(64)];
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

    /// Marks one as found. Returns whether it is among them.
    pub fn find(&mut self, hash: u64) -> bool {
        let at = self.hashes.binary_search(&hash);
        if let Ok(at) = at {
            self.found[at / 64] |= 1 << (at % 64);
        }
        at.is_ok()
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
        let is_found = |at: usize| self.found[at / 64] >> (at % 64) & 1 == 1;
        let all = self.hashes.iter().enumerate();
        all.filter(|(at, _)| is_found(*at) == found).map(|(_, hash)| *hash).collect()
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
            let among: Vec<bool> = others.iter().map(|&hash| series.find(hash)).collect();
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
