//! Which objects a set of kube-state-metrics pods exposes between them, decided exactly and
//! without looking at any object.
//!
//! kube-state-metrics keeps an object if `jump(fnv1a64(uid), total) == ordinal`
//! ([`shard_of`]; upstream `pkg/sharding/listwatch.go`). Jump hashing (Lamping & Veach,
//! <https://arxiv.org/abs/1406.2294>) is a chain: going from `n` to a larger `m` shards, an object
//! stays where it is with probability `n/m` and else moves to any of `n..m` with probability `1/m`
//! each, whatever happened before. For the few totals that pods run with at one time there are
//! therefore few tuples (shard under the first total, shard under the second, …) that an object
//! can have, each with a known probability. Pods cover everything if and only if every such tuple
//! is hit by one of them.

use crate::api::MAX_SHARD_COUNT;
use std::fmt;

/// What one pod exposes: the objects of shard `ordinal` out of `total`.
///
/// An unsharded pod is `0/1`. Only combinations that kube-state-metrics can run with exist, and
/// `total` is at most [`MAX_SHARD_COUNT`], which bounds the arithmetic: 2^9 tuples at the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice {
    total: u8,
    ordinal: u8,
}

impl Slice {
    /// Everything: what a pod without sharding exposes.
    pub const ALL: Self = Self { total: 1, ordinal: 0 };

    /// Shard `ordinal` of `total`, or `None` if there is no such shard.
    #[must_use]
    pub fn new(ordinal: u32, total: u32) -> Option<Self> {
        let known = ordinal < total && total <= MAX_SHARD_COUNT.unsigned_abs();
        let (total, ordinal) = (u8::try_from(total).ok()?, u8::try_from(ordinal).ok()?);
        known.then_some(Self { total, ordinal })
    }

    /// The shard.
    #[must_use]
    pub fn ordinal(self) -> u32 {
        self.ordinal.into()
    }

    /// The number of shards.
    #[must_use]
    pub fn total(self) -> u32 {
        self.total.into()
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ordinal, self.total)
    }
}

/// How much of the cluster's objects a set of pods exposes, as exact fractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    missing: u64,
    surplus: u64,
    whole: u64,
}

impl Coverage {
    /// The coverage of pods that expose `slices`, one entry for each pod.
    #[must_use]
    pub fn of(slices: &[Slice]) -> Self {
        let mut coverage = Self { missing: 0, surplus: 0, whole: 1 };
        let totals = totals(slices);
        coverage.whole = totals.iter().map(|&n| u64::from(n)).product();
        each_tuple(&totals, &mut |tuple, weight| {
            let hits = |(&total, &ordinal): (&u8, &u8)| {
                slices.iter().filter(|s| s.total == total && s.ordinal == ordinal).count() as u64
            };
            match totals.iter().zip(tuple).map(hits).sum::<u64>() {
                0 => coverage.missing += weight,
                hits => coverage.surplus += weight * (hits - 1),
            }
        });
        coverage
    }

    /// Whether every object is exposed by at least one pod.
    #[must_use]
    pub fn is_complete(self) -> bool {
        self.missing == 0
    }

    /// The fraction of objects that no pod exposes, 0 to 1.
    #[must_use]
    pub fn gap(self) -> f64 {
        ratio(self.missing, self.whole)
    }

    /// Exposures beyond the first of each object, as a fraction of all objects. 1.0 means that on
    /// average every object is exposed twice.
    #[must_use]
    pub fn duplicates(self) -> f64 {
        ratio(self.surplus, self.whole)
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (covered, twice) = (100.0 * (1.0 - self.gap()), 100.0 * self.duplicates());
        write!(f, "{covered:.1} % covered, {twice:.1} % duplicated")
    }
}

/// Whether every object of `slice` is also exposed by one of `others`: a pod that exposes `slice`
/// can then go without one series going missing.
#[must_use]
pub fn is_redundant(slice: Slice, others: &[Slice]) -> bool {
    let mut all = others.to_vec();
    all.push(slice);
    let totals = totals(&all);
    let mut redundant = true;
    each_tuple(&totals, &mut |tuple, _| {
        let holds = |slice: &Slice| {
            totals.iter().zip(tuple).any(|(&n, &o)| slice.total == n && slice.ordinal == o)
        };
        redundant &= !holds(&slice) || others.iter().any(holds);
    });
    redundant
}

/// The shard of `total` to which kube-state-metrics assigns the object with this UID.
///
/// # Panics
/// Never: a `total` of 0 counts as 1.
#[must_use]
pub fn shard_of(uid: &str, total: u32) -> u32 {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    jump(hash, total.max(1))
}

/// Jump consistent hash, in the floating-point form of the paper and of the Go library that
/// kube-state-metrics uses, so that rounding is the same.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the algorithm is defined on f64, and its operands are below 2^53"
)]
fn jump(mut key: u64, buckets: u32) -> u32 {
    let (mut bucket, mut next) = (0, 0_u64);
    while next < u64::from(buckets) {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * ((1_u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as u64;
    }
    bucket as u32
}

fn totals(slices: &[Slice]) -> Vec<u8> {
    let mut totals: Vec<u8> = slices.iter().map(|s| s.total).collect();
    totals.sort_unstable();
    totals.dedup();
    totals
}

/// Calls `visit` with every tuple of shards that an object can have under `totals` (ascending),
/// and with its probability as a count out of the product of all totals, which is at most
/// 10! and so fits. Without totals there is one tuple, the empty one: every object.
fn each_tuple(totals: &[u8], visit: &mut impl FnMut(&[u8], u64)) {
    fn extend(totals: &[u8], tuple: &mut Vec<u8>, weight: u64, visit: &mut impl FnMut(&[u8], u64)) {
        let Some(&total) = totals.get(tuple.len()) else { return visit(tuple, weight) };
        let (before, stays) = match tuple.len().checked_sub(1) {
            None => (0, None),
            Some(last) => (totals[last], Some(tuple[last])),
        };
        if let Some(shard) = stays {
            tuple.push(shard);
            extend(totals, tuple, weight * u64::from(before), visit);
            tuple.pop();
        }
        for shard in before..total {
            tuple.push(shard);
            extend(totals, tuple, weight, visit);
            tuple.pop();
        }
    }
    extend(totals, &mut Vec::with_capacity(totals.len()), 1, visit);
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "counts of a few thousand")]
#[expect(clippy::float_cmp, reason = "equal fractions come from equal integers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ordinals and totals, percent missing, percent duplicated.
    type Row = (&'static [(u32, u32)], f64, f64);

    fn slices(pairs: &[(u32, u32)]) -> Vec<Slice> {
        pairs.iter().map(|&(ordinal, total)| Slice::new(ordinal, total).unwrap()).collect()
    }

    /// The table of states during a change of 3 to 5 shards, percent of all objects, as measured
    /// over random UIDs with kube-state-metrics' own function.
    #[test]
    fn coverage_of_each_state_between_3_and_5_shards_is_as_measured() {
        let table: &[Row] = &[
            (&[(0, 5), (1, 3), (2, 3)], 13.4, 0.0),
            (&[(0, 5), (1, 5), (2, 3)], 26.7, 0.0),
            (&[(0, 5), (1, 5), (2, 5)], 39.9, 0.0),
            (&[(0, 5), (1, 5), (2, 5), (3, 5)], 19.8, 0.0),
            (&[(0, 3), (1, 3), (2, 3), (3, 5)], 0.0, 20.2),
            (&[(0, 3), (1, 3), (2, 3), (3, 5), (4, 5)], 0.0, 39.9),
            (&[(0, 5), (1, 3), (2, 3), (3, 5), (4, 5)], 0.0, 26.6),
            (&[(0, 5), (1, 5), (2, 3), (3, 5), (4, 5)], 0.0, 13.2),
            (&[(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)], 0.0, 0.0),
            (&[(0, 3), (1, 5), (2, 5), (3, 5), (4, 5)], 0.0, 13.4),
            (&[(0, 1), (0, 2), (1, 2)], 0.0, 100.0),
        ];
        for (pairs, gap, duplicates) in table {
            let coverage = Coverage::of(&slices(pairs));
            assert!((100.0 * coverage.gap() - gap).abs() < 0.3, "{pairs:?}: {coverage}");
            assert!(
                (100.0 * coverage.duplicates() - duplicates).abs() < 0.3,
                "{pairs:?}: {coverage}"
            );
            assert_eq!(coverage.is_complete(), *gap == 0.0, "{pairs:?}");
        }
    }

    #[test]
    fn nothing_covers_nothing_and_only_a_shard_that_exists_is_a_slice() {
        assert!(!Coverage::of(&[]).is_complete());
        assert!((Coverage::of(&[]).gap() - 1.0).abs() < f64::EPSILON);
        assert!(Coverage::of(&[Slice::ALL]).is_complete());
        assert_eq!(Slice::new(3, 3), None);
        assert_eq!(Slice::new(0, 0), None);
        assert_eq!(Slice::new(0, 11), None);
    }

    #[test]
    fn jump_hash_agrees_with_published_values() {
        assert_eq!(
            [jump(42, 57), jump(256, 1024), jump(0xDEAD_10CC, 666), jump(7, 1)],
            [43, 520, 361, 0]
        );
        let shards = |uid| [2, 3, 5, 7, 10].map(|n| shard_of(uid, n));
        assert_eq!(shards("00000000-0000-0000-0000-000000000000"), [1, 1, 1, 1, 1]);
        assert_eq!(shards("a0497afe-e9cb-476d-8f02-f3314a6abfab"), [1, 2, 4, 4, 4]);
        assert_eq!(shards(""), [1, 1, 1, 1, 1]);
    }

    /// What the real kube-state-metrics did with 64 objects. `KSM_VECTORS` names another file of
    /// the same form.
    #[test]
    fn shards_agree_with_the_real_kube_state_metrics() {
        #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
        let path = std::env::var("KSM_VECTORS").unwrap_or_else(|_| {
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/ksm-shards.json").to_owned()
        });
        let text = std::fs::read_to_string(&path).expect("vectors can be read");
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).expect("vectors are JSON");
        assert!(!rows.is_empty(), "{path} has no rows");
        for row in rows {
            let uid = row["uid"].as_str().expect("uid");
            let shards = row["shard"].as_object().expect("shard");
            assert!(!shards.is_empty());
            for (total, shard) in shards {
                let total: u32 = total.parse().expect("a number of shards");
                assert_eq!(
                    Some(u64::from(shard_of(uid, total))),
                    shard.as_u64(),
                    "{uid} of {total}"
                );
            }
        }
    }

    fn any_slice() -> impl Strategy<Value = Slice> {
        (1_u32..=10).prop_flat_map(|n| (0..n, Just(n))).prop_map(|(o, n)| Slice::new(o, n).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// The arithmetic against the hash itself, on objects it knows nothing of.
        #[test]
        fn coverage_is_what_hashing_uids_finds(
            slices in prop::collection::vec(any_slice(), 0..9), seed in any::<u32>(),
        ) {
            let objects = 4_000;
            let hits = |i: u32| {
                let uid = format!("{seed:08x}-{i:08x}");
                slices.iter().filter(|s| shard_of(&uid, s.total()) == s.ordinal()).count()
            };
            let hits: Vec<usize> = (0..objects).map(hits).collect();
            let missing = hits.iter().filter(|&&n| n == 0).count() as f64 / f64::from(objects);
            let extra: usize = hits.iter().map(|n| n.saturating_sub(1)).sum();
            let coverage = Coverage::of(&slices);
            prop_assert!((missing - coverage.gap()).abs() < 0.05);
            prop_assert!((extra as f64 / f64::from(objects) - coverage.duplicates()).abs() < 0.15);
            prop_assert!(!coverage.is_complete() || missing == 0.0);
        }

        #[test]
        fn taking_a_redundant_slice_away_never_changes_what_is_missing(
            slices in prop::collection::vec(any_slice(), 1..9),
        ) {
            let (slice, others) = slices.split_first().unwrap();
            let (with, without) = (Coverage::of(&slices), Coverage::of(others));
            prop_assert_eq!(is_redundant(*slice, others), with.gap() == without.gap());
        }
    }
}
