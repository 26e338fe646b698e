//! What must hold in every state, what must be reachable, and which bounds are checked when.

use super::{Action, Action::*, Bounds, EDGE, HANDOVER, RESUMED, State, TAKEOVER};
use crate::protocol::{Mutant, Stage, TimingConfig};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::{collections::BTreeSet, time::Instant};

const ONE_OWNER: &str = "no partition has two owners";
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
                && member.process.as_ref().is_some_and(settled)
        })
}

fn one_owner(model: &Bounds, state: &State) -> bool {
    (0..model.partitions).all(|partition| owners(state, partition).len() <= 1)
}

fn settles(model: &Bounds, state: &State) -> bool {
    let wanting = |partition: u32| -> Vec<usize> {
        let wants = |at: &usize| {
            let process = state.members[*at].process.as_ref();
            process.is_some_and(|process| process.wanted().contains(partition))
        };
        (0..state.members.len()).filter(wants).collect()
    };
    !at_rest(state)
        || (0..model.partitions).all(|partition| {
            let wanting = wanting(partition);
            wanting.len() != 1 || owners(state, partition) == wanting
        })
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
fn bounds([members, partitions, writes, crashes, losses]: [u8; 5]) -> Bounds {
    Bounds {
        members: members.into(),
        partitions: partitions.into(),
        writes,
        crashes,
        losses,
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

fn hold(numbers: [u8; 5], after: &'static [Action]) {
    let start = Instant::now();
    let checker = Bounds { after, ..bounds(numbers) }.checker().threads(2).spawn_bfs().join();
    println!(
        "{numbers:?}: {} states, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f32()
    );
    let found = checker.discoveries().into_iter().map(|(what, path)| (what, path.into_actions()));
    assert_eq!(found.collect::<Vec<_>>(), []);
}

/// That a rule is needed: without it two members come to act on one partition.
fn is_caught(after: &'static [Action], mutant: Option<Mutant>, timing: TimingConfig) {
    let model = Bounds { timing, mutant, after, ..bounds([2, 1, 3, 0, 0]) };
    let only = BTreeSet::from([ONE_OWNER]);
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AllOf(only)).spawn_bfs();
    let checker = checker.join();
    let path = checker.discovery(ONE_OWNER).expect("a mutant is caught").into_actions();
    println!("{} states, {} steps: {path:?}", checker.unique_state_count(), path.len());
}

#[test]
fn two_members_hold_with_three_writes() {
    hold([2, 1, 3, 0, 0], &[]);
}

#[test]
fn two_members_hold_with_a_crash() {
    hold([2, 1, 2, 1, 0], &[]);
}

#[test]
fn two_members_hold_with_a_lost_answer() {
    hold([2, 1, 2, 0, 1], &[]);
}

#[test]
fn two_members_hold_once_they_contend() {
    hold([2, 1, 2, 1, 1], CONTENDED);
}

#[test]
fn two_members_hold_with_two_partitions() {
    hold([2, 2, 2, 0, 0], &[]);
}

#[test]
fn handover_takeover_resumption_and_rest_are_reached() {
    let model = Bounds { history: true, after: CONTENDED, ..bounds([2, 1, 3, 1, 0]) };
    let wanted = ["handover", "takeover", "resumed", "rest"];
    let all = HasDiscoveries::AllOf(BTreeSet::from(wanted));
    let checker = model.checker().threads(2).finish_when(all).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    for what in wanted {
        assert!(checker.discovery(what).is_some(), "{what} is never reached");
    }
}

#[test]
fn three_members_hold_with_a_lost_answer() {
    hold([3, 1, 2, 0, 1], &[]);
}

macro_rules! large_bounds {
    ($($name:ident: $numbers:expr;)*) => {$(
        #[test]
        #[ignore = "minutes and gigabytes: `make -C lease-sharding model`"]
        fn $name() {
            hold($numbers, &[]);
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
    is_caught(&[], Some(Mutant::NoClaims), EDGE);
}

#[test]
fn a_claim_without_an_echo_is_caught() {
    is_caught(&[], Some(Mutant::NoEcho), EDGE);
}

#[test]
fn a_renewal_without_a_precondition_is_caught() {
    is_caught(CONTENDED, Some(Mutant::BlindRenewal), EDGE);
}

#[test]
fn a_release_before_work_has_stopped_is_caught() {
    is_caught(CONTENDED, Some(Mutant::ReleaseBeforeStop), EDGE);
}

#[test]
fn a_fence_counted_from_the_answer_is_caught() {
    is_caught(CONTENDED, Some(Mutant::FenceFromAnswer), EDGE);
}

#[test]
fn a_fence_that_outlasts_the_lease_is_caught() {
    is_caught(CONTENDED, None, TimingConfig { fence: EDGE.lease + 1, ..EDGE });
}

#[test]
fn a_death_without_a_write_is_caught() {
    is_caught(CONTENDED, Some(Mutant::DeathWithoutWrite), EDGE);
}
