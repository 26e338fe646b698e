//! What must hold in every state, what must be reachable, and which bounds are checked when.

use super::{Action, Action::*, Bounds, EDGE, HANDOVER, RESUMED, State, TAKEOVER};
use crate::protocol::{Mutant, Stage, TimingConfig};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::{collections::BTreeSet, num::NonZero, time::Instant};

const ONE_OWNER: &str = "no partition has two owners, and no two keyspaces are acted on";
const SETTLES: &str = "at rest each wanted partition has its owner";

fn owners(state: &State, partition: u32) -> Vec<usize> {
    let acts = |at: &usize| {
        let process = state.members[*at].process.as_ref();
        process.is_some_and(|process| process.acts_until(partition).is_some())
    };
    (0..state.members.len()).filter(acts).collect()
}

/// Everybody runs, has renewed, knows everything, and has nothing to do but to renew.
fn at_rest(state: &State) -> bool {
    state.log.is_empty()
        && state.members.iter().all(|member| {
            let settled = |process: &crate::protocol::Protocol| {
                process.stage() == Stage::Active && process.is_at_rest()
            };
            member.outstanding.is_none()
                && member.late.is_none()
                && member.process.as_deref().is_some_and(settled)
        })
}

/// The keyspaces that anybody acts on.
fn keyspaces(model: &Bounds, state: &State) -> BTreeSet<u64> {
    let owners = (0..model.partitions).flat_map(|partition| owners(state, partition));
    owners.map(|member| model.keyspaces[member]).collect()
}

/// Partitions of different keyspaces have nothing to do with each other but that any two may have
/// objects in common.
fn one_owner(model: &Bounds, state: &State) -> bool {
    (0..model.partitions).all(|partition| owners(state, partition).len() <= 1)
        && keyspaces(model, state).len() <= 1
}

/// If several keyspaces are wanted, one of them is worked on, as if the others were not there.
fn settles(model: &Bounds, state: &State) -> bool {
    let wanting = |keyspace: u64, partition: u32| -> Vec<usize> {
        let wants = |at: &usize| {
            let process = state.members[*at].process.as_ref();
            model.keyspaces[*at] == keyspace
                && process.is_some_and(|process| process.wanted().contains(partition))
        };
        (0..state.members.len()).filter(wants).collect()
    };
    let served = |keyspace: u64| {
        (0..model.partitions).all(|partition| {
            let wanting = wanting(keyspace, partition);
            wanting.len() != 1 || owners(state, partition) == wanting
        })
    };
    let wanted = |keyspace: &u64| (0..model.partitions).any(|p| !wanting(*keyspace, p).is_empty());
    let all: BTreeSet<u64> = model.keyspaces[..model.members].iter().copied().collect();
    let mut wanted = all.into_iter().filter(wanted).peekable();
    !at_rest(state) || wanted.peek().is_none() || wanted.any(served)
}

pub(super) fn properties(history: bool) -> Vec<Property<Bounds>> {
    let mut properties =
        vec![Property::always(ONE_OWNER, one_owner), Property::always(SETTLES, settles)];
    if history {
        properties
            .push(Property::sometimes("handover", |_, state: &State| state.reached[HANDOVER]));
        properties
            .push(Property::sometimes("takeover", |_, state: &State| state.reached[TAKEOVER]));
        properties.push(Property::sometimes("resumed", |_, state: &State| state.reached[RESUMED]));
        properties.push(Property::sometimes("rest", |model: &Bounds, state| {
            at_rest(state) && (0..model.partitions).all(|p| owners(state, p).len() == 1)
        }));
    }
    properties
}

/// As in the table of bounds: members, partitions, writes, crashes, lost answers.
pub(super) const fn bounds([members, partitions, writes, crashes, losses]: [u8; 5]) -> Bounds {
    Bounds {
        members: members as usize,
        partitions: partitions as u32,
        writes,
        crashes,
        losses,
        keyspaces: [0; 3],
        timing: EDGE,
        mutant: None,
        after: &[],
        history: false,
    }
}

/// The first member acts on the partition, the second claims it and waits.
const CONTENDED: &[Action] = &[
    Want(0, 0),
    Commit(0),
    Answer(0),
    See(0),
    Want(1, 0),
    See(1),
    Commit(1),
    Answer(1),
    See(0),
    See(1),
];

/// Explores all there is, depth first: that needs the least memory.
fn hold(model: &Bounds) {
    let start = Instant::now();
    let checker = (*model).checker().threads(threads()).spawn_dfs().join();
    let Bounds { members, partitions, writes, crashes, losses, keyspaces, .. } = model;
    println!(
        "{:?} keyspaces {keyspaces:?}: {} states, depth {}, {:.1} s",
        (members, partitions, writes, crashes, losses),
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f32()
    );
    let found = checker.discoveries().into_iter().map(|(what, path)| (what, path.into_actions()));
    assert_eq!(found.collect::<Vec<_>>(), []);
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// That a rule is needed: a property does not hold without it.
fn is_caught(model: Bounds, mutant: Option<Mutant>, property: &'static str) {
    let only = HasDiscoveries::AllOf(BTreeSet::from([property]));
    let checker = Bounds { mutant, ..model }.checker().threads(threads()).finish_when(only);
    let checker = checker.spawn_bfs().join();
    let path = checker.discovery(property).expect("a mutant is caught").into_actions();
    println!("{} states, {} steps: {path:?}", checker.unique_state_count(), path.len());
}

const FEW: Bounds = bounds([2, 1, 3, 0, 0]);
const FEW_CONTENDED: Bounds = Bounds { after: CONTENDED, ..FEW };
/// A rolling update in which the number of partitions changes.
const TWO_KEYSPACES: Bounds = Bounds { keyspaces: [0, 1, 1], ..FEW };

#[test]
fn two_members_hold_with_three_writes() {
    hold(&bounds([2, 1, 3, 0, 0]));
}

#[test]
fn two_members_hold_with_a_crash() {
    hold(&bounds([2, 1, 2, 1, 0]));
}

#[test]
fn two_members_hold_with_a_lost_answer() {
    hold(&bounds([2, 1, 2, 0, 1]));
}

#[test]
fn two_members_hold_once_they_contend() {
    hold(&Bounds { after: CONTENDED, ..bounds([2, 1, 2, 1, 1]) });
}

#[test]
fn two_members_hold_with_two_partitions() {
    hold(&bounds([2, 2, 2, 0, 0]));
}

#[test]
fn handover_takeover_resumption_and_rest_are_reached() {
    let model = Bounds { history: true, after: CONTENDED, ..bounds([2, 1, 3, 1, 0]) };
    let wanted = ["handover", "takeover", "resumed", "rest"];
    let all = HasDiscoveries::AllOf(BTreeSet::from(wanted));
    let checker = model.checker().threads(threads()).finish_when(all).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    for what in wanted {
        assert!(checker.discovery(what).is_some(), "{what} is never reached");
    }
}

#[test]
fn three_members_hold_with_a_lost_answer() {
    hold(&bounds([3, 1, 2, 0, 1]));
}

macro_rules! large_bounds {
    ($($name:ident: $numbers:expr;)*) => {$(
        #[test]
        #[ignore = "minutes and gigabytes: `make -C lease-sharding model`"]
        fn $name() {
            hold(&bounds($numbers));
        }
    )*};
}

large_bounds! {
    large_with_a_crash_and_a_lost_answer: [2, 1, 4, 1, 1];
    large_with_five_writes: [2, 1, 5, 0, 0];
    large_with_two_partitions: [2, 2, 4, 0, 0];
    large_with_five_writes_and_a_crash: [2, 1, 5, 1, 0];
    large_with_three_members_and_a_lost_answer: [3, 1, 3, 0, 1];
    large_with_three_members_and_a_crash: [3, 1, 3, 1, 0];
}

#[test]
fn a_ring_without_claims_is_caught() {
    is_caught(FEW, Some(Mutant::NoClaims), ONE_OWNER);
}

#[test]
fn a_claim_without_an_echo_is_caught() {
    is_caught(FEW, Some(Mutant::NoEcho), ONE_OWNER);
}

#[test]
fn a_renewal_without_a_precondition_is_caught() {
    is_caught(FEW_CONTENDED, Some(Mutant::BlindRenewal), ONE_OWNER);
}

#[test]
fn a_release_before_work_has_stopped_is_caught() {
    is_caught(FEW_CONTENDED, Some(Mutant::ReleaseBeforeStop), ONE_OWNER);
}

#[test]
fn a_fence_counted_from_the_answer_is_caught() {
    is_caught(FEW_CONTENDED, Some(Mutant::FenceFromAnswer), ONE_OWNER);
}

#[test]
fn a_fence_that_outlasts_the_lease_is_caught() {
    let timing = TimingConfig { fence: EDGE.lease + 1, ..EDGE };
    is_caught(Bounds { timing, ..FEW_CONTENDED }, None, ONE_OWNER);
}

#[test]
fn a_death_without_a_write_is_caught() {
    is_caught(FEW_CONTENDED, Some(Mutant::DeathWithoutWrite), ONE_OWNER);
}

#[test]
fn members_of_two_keyspaces_beside_each_other_are_caught() {
    let two_partitions = Bounds { partitions: 2, ..TWO_KEYSPACES };
    is_caught(two_partitions, Some(Mutant::MixedKeyspaces), ONE_OWNER);
}

#[test]
fn keyspaces_that_take_no_notice_of_each_other_are_caught() {
    let two_partitions = Bounds { partitions: 2, ..TWO_KEYSPACES };
    is_caught(two_partitions, Some(Mutant::OneKeyspace), ONE_OWNER);
}

#[test]
fn a_keyspace_that_does_not_give_way_is_caught() {
    is_caught(TWO_KEYSPACES, Some(Mutant::StubbornKeyspace), SETTLES);
}

#[test]
fn s6_two_keyspaces_hold() {
    hold(&TWO_KEYSPACES);
}

#[test]
fn s6_two_keyspaces_hold_with_a_crash() {
    hold(&Bounds { crashes: 1, writes: 2, ..TWO_KEYSPACES });
}

#[test]
fn s6_two_keyspaces_of_two_partitions_hold() {
    hold(&Bounds { partitions: 2, writes: 2, ..TWO_KEYSPACES });
}

#[test]
fn s6_an_old_keyspace_of_two_members_and_a_new_one_hold() {
    hold(&Bounds { members: 3, writes: 2, keyspaces: [0, 0, 1], ..TWO_KEYSPACES });
}

/// Such a claim of a larger keyspace is in the way of a smaller one, and no news to whoever made it.
#[test]
fn s6_a_claim_whose_answer_was_lost_is_withdrawn_with_the_next_write() {
    let join = |at| [Wake(at), Commit(at), Answer(at)];
    let lost = [Want(1, 0), Commit(1), See(1), Lose(1), Want(1, 0), See(1), See(1)];
    let in_the_way = [See(0), See(0), See(0), Want(0, 0)];
    let model = Bounds { writes: u8::MAX, losses: 1, ..TWO_KEYSPACES };
    let play = |state: State, actions: &[Action]| {
        actions.iter().cloned().fold(state, |state, action| {
            let mut possible = Vec::new();
            model.actions(&state, &mut possible);
            assert!(possible.contains(&action), "{action:?} is not among {possible:?}");
            model.next_state(&state, action).expect("within the bounds")
        })
    };
    let start = model.init_states().remove(0);
    let stuck = play(start, &[&join(0)[..], &join(1), &lost, &in_the_way].concat());
    assert!(owners(&stuck, 0).is_empty() && !at_rest(&stuck));
    // Refused at first, since the claim arrived.
    let withdrawn = [Wake(1), Commit(1), Answer(1), Commit(1), Answer(1), See(0)];
    let claimed = [Commit(0), Answer(0), See(0)];
    let after = play(stuck, &[&withdrawn[..], &claimed].concat());
    assert_eq!(owners(&after, 0), [0]);
}

#[test]
#[ignore = "minutes and gigabytes: `make -C lease-sharding model`"]
fn large_with_two_keyspaces() {
    hold(&Bounds { writes: 4, crashes: 1, losses: 1, ..TWO_KEYSPACES });
}
