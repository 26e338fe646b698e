//! Sets of partitions, as Leases carry them.

use std::{fmt, iter};

/// A set of partition numbers, as a bitmap. Equal sets have equal representations.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionSet {
    /// Partitions 0 to 63, in place: small sets need no memory of their own.
    low: u64,
    /// The others, without empty words at the end, and so never an empty list: small sets, of which
    /// there are millions in a test run, are compared without a call.
    high: Option<Vec<u64>>,
}

impl PartitionSet {
    /// The empty set.
    pub const EMPTY: Self = Self { low: 0, high: None };

    /// The partitions `0..count`.
    pub fn first(count: u32) -> Self {
        (0..count).collect()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.low == 0 && self.high.is_none()
    }

    /// The number of partitions in it.
    pub fn len(&self) -> usize {
        self.words().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether `partition` is in it.
    pub fn contains(&self, partition: u32) -> bool {
        let word = match (partition / 64) as usize {
            0 => self.low,
            at => self.high().get(at - 1).copied().unwrap_or_default(),
        };
        word >> (partition % 64) & 1 == 1
    }

    /// Adds a partition.
    pub fn insert(&mut self, partition: u32) {
        let bit = 1 << (partition % 64);
        match (partition / 64) as usize {
            0 => self.low |= bit,
            at => {
                let high = self.high.get_or_insert_default();
                if high.len() < at {
                    high.resize(at, 0);
                }
                high[at - 1] |= bit;
            }
        }
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.merge(other, |a, b| a | b)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.merge(other, |a, b| a & b)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.merge(other, |a, b| a & !b)
    }

    /// Whether all of it is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.difference(other).is_empty()
    }

    /// The partitions, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..).step_by(64).zip(self.words()).flat_map(|(base, word)| {
            let left = iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)));
            left.take_while(|rest| *rest != 0).map(move |rest| base + rest.trailing_zeros())
        })
    }

    fn high(&self) -> &[u64] {
        self.high.as_deref().unwrap_or_default()
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        iter::once(self.low).chain(self.high().iter().copied())
    }

    fn merge(&self, other: &Self, op: fn(u64, u64) -> u64) -> Self {
        let longest = self.high().len().max(other.high().len());
        let word = |set: &Self, at: usize| set.high().get(at).copied().unwrap_or_default();
        let mut high: Vec<u64> =
            (0..longest).map(|at| op(word(self, at), word(other, at))).collect();
        while high.last() == Some(&0) {
            high.pop();
        }
        Self { low: op(self.low, other.low), high: (!high.is_empty()).then_some(high) }
    }
}

impl FromIterator<u32> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = u32>>(partitions: I) -> Self {
        let mut set = Self::EMPTY;
        partitions.into_iter().for_each(|partition| set.insert(partition));
        set
    }
}

impl fmt::Debug for PartitionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_of_partitions_is_a_set(
            a in proptest::collection::btree_set(0_u32..300, 0..40),
            b in proptest::collection::btree_set(0_u32..300, 0..40),
        ) {
            let (x, y): (PartitionSet, PartitionSet) =
                (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert!((0..320).all(|p| x.contains(p) == a.contains(&p)));
            prop_assert_eq!(x.union(&y), a.union(&b).copied().collect());
            prop_assert_eq!(x.intersection(&y), a.intersection(&b).copied().collect());
            prop_assert_eq!(x.difference(&y), a.difference(&b).copied().collect());
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x.is_empty(), a.is_empty());
        }
    }
}
