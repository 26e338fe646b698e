//! Balance, movement, and that neither order nor nonsense matters.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Names and claims that outlive the candidates made of them.
#[derive(Clone, Debug, Default)]
struct Ring(BTreeMap<String, (u64, PartitionSet)>);

impl Ring {
    fn of(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| (name, Default::default())).collect())
    }

    fn join(&mut self, name: &str, generation: u64) {
        self.0.insert(name.to_owned(), (generation, PartitionSet::EMPTY));
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        self.0
            .iter()
            .map(|(name, (generation, claims))| Candidate { name, claims, generation: *generation })
            .collect()
    }

    fn owners(&self, placement: Placement, partitions: u32) -> Vec<String> {
        let candidates = self.candidates();
        let placed = placement.place(partitions, &candidates);
        (0..partitions).filter_map(|p| placed.owner(p)).map(str::to_owned).collect()
    }

    /// Places, and makes the answer everybody's claims.
    fn settle(&mut self, placement: Placement, partitions: u32) -> Vec<String> {
        let owners = self.owners(placement, partitions);
        for (name, (_, claims)) in &mut self.0 {
            let mine = |(_, owner): &(u32, &String)| *owner == name;
            *claims = (0..).zip(&owners).filter(mine).map(|(p, _)| p).collect();
        }
        owners
    }
}

fn pods(count: u32) -> impl Iterator<Item = String> {
    (0..count).map(|i| format!("operator-{:08x}", i.wrapping_mul(0x9e37_79b9)))
}

fn moved(before: &[String], after: &[String]) -> usize {
    before.iter().zip(after).filter(|(a, b)| a != b).count()
}

fn loads(owners: &[String]) -> Vec<usize> {
    let mut loads = BTreeMap::new();
    for owner in owners {
        *loads.entry(owner).or_insert(0) += 1;
    }
    loads.into_values().collect()
}

const RENDEZVOUS: Placement = Placement::Rendezvous(Load::DEFAULT);
const STICKY: Placement = Placement::Sticky(Load::DEFAULT);

#[test]
fn rendezvous_moves_to_the_newcomer_only_and_no_more_than_its_share() {
    let (partitions, mut total, mut optimum) = (4_096, 0, 0);
    for n in 2..30 {
        let before = Ring::of(pods(n)).owners(RENDEZVOUS, partitions);
        let after = Ring::of(pods(n + 1)).owners(RENDEZVOUS, partitions);
        let gained = after.iter().filter(|o| **o == pods(n + 1).last().expect("a name")).count();
        assert!(moved(&before, &after) <= gained + partitions as usize / 100, "{n} members");
        total += moved(&before, &after);
        optimum += gained;
    }
    assert!(total * 100 <= optimum * 101, "{total} moves, {optimum} needed");
}

#[test]
fn rendezvous_shares_are_within_a_tenth_of_the_mean_at_ten_members() {
    let loads = loads(&Ring::of(pods(10)).owners(RENDEZVOUS, 4_096));
    let (least, most) = (loads.iter().min(), loads.iter().max());
    assert!(most <= Some(&451) && least >= Some(&368), "{loads:?}");
}

#[test]
fn sticky_shares_are_equal_and_a_join_moves_the_optimum() {
    let mut ring = Ring::of(pods(1));
    let mut before = ring.settle(STICKY, 4_096);
    for n in 2..20 {
        ring.join(&pods(n).last().expect("a name"), 0);
        let after = ring.settle(STICKY, 4_096);
        let loads = loads(&after);
        assert!(loads.iter().max().expect("one") - loads.iter().min().expect("one") <= 1);
        assert_eq!(moved(&before, &after), 4_096 / n as usize, "{n} members");
        assert_eq!(moved(&after, &ring.settle(STICKY, 4_096)), 0, "at rest with {n}");
        before = after;
    }
}

#[test]
fn sticky_moves_each_partition_once_in_a_rolling_update() {
    for (n, partitions) in [(2, 512), (3, 4_096), (5, 509), (10, 4_096)] {
        let mut ring = Ring::of((0..n).map(|i| format!("old-{i}")));
        let mut before = ring.settle(STICKY, partitions);
        let mut moves = 0;
        for i in 0..n {
            ring.join(&format!("new-{i}"), 1);
            for leaves in [false, true] {
                if leaves {
                    ring.0.remove(&format!("old-{i}"));
                }
                let after = ring.settle(STICKY, partitions);
                moves += moved(&before, &after);
                let back = |(b, a): &(&String, &String)| b != a && a.starts_with("old");
                assert_eq!(before.iter().zip(&after).filter(back).count(), 0, "to an old one");
                before = after;
            }
        }
        assert_eq!(moves, partitions as usize, "{n} members");
    }
}

#[test]
fn without_members_nobody_owns_anything() {
    for placement in [RENDEZVOUS, STICKY] {
        let placed = placement.place(16, &[]);
        assert_eq!((placed.owner(0), placed.share("a")), (None, PartitionSet::EMPTY));
    }
}

fn members() -> impl Strategy<Value = Vec<(String, u64, PartitionSet)>> {
    let claims = proptest::collection::vec(0_u32..200, 0..60);
    let member = ("[a-c]{0,3}", 0_u64..3, claims);
    proptest::collection::vec(member, 0..12).prop_map(|members| {
        members
            .into_iter()
            .map(|(name, at, claims)| (name, at, claims.into_iter().collect()))
            .collect()
    })
}

proptest! {
    #[test]
    fn order_never_matters_the_bound_holds_and_everything_has_an_owner(
        members in members(),
        partitions in 0_u32..150,
        percent in 0_u32..300,
    ) {
        let mut candidates: Vec<_> = members
            .iter()
            .map(|(name, generation, claims)| Candidate { name, claims, generation: *generation })
            .collect();
        for placement in [Placement::Rendezvous(Load::percent(percent)), Placement::Sticky(Load::percent(percent))] {
            let one = placement.place(partitions, &candidates);
            candidates.reverse();
            prop_assert_eq!(&placement.place(partitions, &candidates), &one);
            prop_assert_eq!(one.owner(partitions), None);
            if candidates.is_empty() {
                continue;
            }
            let owners: Vec<_> = (0..partitions).filter_map(|p| one.owner(p)).map(str::to_owned).collect();
            prop_assert_eq!(owners.len(), partitions as usize);
            let newest = one.members.iter().map(|m| m.generation).max().unwrap_or_default();
            let new = one.members.iter().filter(|m| m.generation == newest).count();
            let steady = match placement {
                Placement::Sticky(_) => new.max(one.members.len() - new),
                Placement::Rendezvous(_) => one.members.len(),
            };
            let most = Load::percent(percent).capacity(partitions, steady);
            prop_assert!(loads(&owners).into_iter().all(|load| load <= most));
        }
    }

    #[test]
    fn a_member_that_leaves_moves_little_but_its_own(n in 2_u32..12, leaver in 0_usize..12) {
        let mut ring = Ring::of(pods(n));
        let before = ring.settle(RENDEZVOUS, 1_024);
        let gone = pods(n).nth(leaver % n as usize).expect("a name");
        ring.0.remove(&gone);
        let extra = |owners: &[String]| {
            before.iter().zip(owners).filter(|(b, a)| **b != gone && b != a).count()
        };
        prop_assert!(extra(&ring.owners(RENDEZVOUS, 1_024)) <= 11);
    }
}
