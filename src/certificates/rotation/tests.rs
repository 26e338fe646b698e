//! The rotation step by step, and under every fault at any moment.

use super::*;
use proptest::prelude::*;
use std::time::Duration;
use world::{CA, LEAF, SKEW, SOAK, World, at, lifetimes};

mod world;

/// A world at rest with one CA, in which everybody is ready.
fn steady(replicas: usize) -> World {
    let mut world = World::new(replicas);
    world.settle();
    world
}

fn phase(world: &World) -> Phase {
    world.state().unwrap().phase()
}

/// Time passes, and everybody looks.
fn after(world: &mut World, seconds: i64) -> Phase {
    world.now += seconds;
    world.settle();
    world.check().unwrap();
    phase(world)
}

#[test]
fn t2_lifetimes_that_do_not_fit_into_each_other_are_refused() {
    let s = Duration::from_secs;
    assert!(Lifetimes::new(s(3_000), s(600), s(60)).is_ok());
    let refused = |ca, leaf, soak| Lifetimes::new(s(ca), s(leaf), s(soak)).unwrap_err();
    assert!(matches!(refused(3_000, 600, 300), LifetimesError::Authority { .. }));
    assert!(matches!(refused(2_000, 600, 60), LifetimesError::Authority { .. }));
    assert!(matches!(refused(3_000, 100, 60), LifetimesError::Leaf { .. }));
    assert!(matches!(refused(3_000, 600, 0), LifetimesError::Soak { .. }));
    let Lifetimes { ca, leaf, soak } = Lifetimes::default();
    assert!(Lifetimes::new(ca, leaf, soak).is_ok() && soak >= s(60));
}

#[test]
fn t2_replicas_that_start_together_share_one_ca() {
    let mut world = World::new(5);
    // All read that there is nothing before the first of them writes.
    for _ in 0..4 {
        (0..5).for_each(|r| world.call(r));
    }
    world.settle();
    assert_eq!((world.generations.len(), world.switches), (1, 0));
    let ca = world.state().unwrap().ca().clone();
    assert_eq!([world.bundle(0), world.bundle(1)], [&[ca.clone()][..]; 2]);
    assert!(world.replicas.iter().all(|r| r.ready && r.leaf.as_ref().unwrap().issuer == ca));
}

#[test]
fn t2_a_rotation_announces_soaks_switches_and_retires() {
    let mut world = steady(3);
    let first = world.state().unwrap().ca().clone();
    assert_eq!(phase(&world), Phase::Steady);
    world.ask_for_rotation();
    // The write that announces; nobody has touched the bundles.
    world.pass(0);
    assert_eq!(phase(&world), Phase::Announce);
    assert_eq!(after(&mut world, 1), Phase::Soak);
    assert_eq!(world.bundle(0).len(), 2);
    assert!(world.replicas.iter().all(|r| r.leaf.as_ref().unwrap().issuer == first));
    assert_eq!(after(&mut world, SOAK - 1), Phase::Soak);
    assert_eq!(after(&mut world, 1), Phase::Retire);
    let second = world.state().unwrap().ca().clone();
    assert!(world.replicas.iter().all(|r| r.ready && r.leaf.as_ref().unwrap().issuer == second));
    assert_eq!(world.bundle(1), [first, second.clone()]);
    assert_eq!(after(&mut world, LEAF + SOAK - 1), Phase::Retire);
    assert_eq!(after(&mut world, 1), Phase::Steady);
    assert_eq!(world.bundle(1), [second]);
    assert_eq!(world.generations, [1, 2].into());
}

#[test]
fn t2_a_bundle_that_is_wiped_during_the_soak_starts_it_again() {
    let mut world = steady(2);
    world.ask_for_rotation();
    assert_eq!(after(&mut world, 1), Phase::Soak);
    world.now += SOAK - 1;
    world.edit_bundle(1, Vec::new());
    world.pass(0);
    assert_eq!(phase(&world), Phase::Announce);
    assert_eq!(after(&mut world, 1), Phase::Soak);
    assert_eq!(after(&mut world, SOAK - 1), Phase::Soak);
    assert_eq!(after(&mut world, 1), Phase::Retire);
}

#[test]
fn t2_a_ca_is_replaced_in_the_last_third_of_its_life_and_leaves_long_before() {
    let mut world = steady(2);
    let renew_at = world.replicas[0].leaf.as_ref().unwrap().renew_at;
    assert!(at(LEAF / 2) <= renew_at && renew_at <= at(LEAF * 2 / 3), "{renew_at}");
    assert_eq!(after(&mut world, CA * 2 / 3 - 1), Phase::Steady);
    assert_eq!(after(&mut world, 2), Phase::Soak);
}

#[test]
fn t2_an_old_ca_goes_a_soak_after_the_switch_if_everyone_has_acknowledged_the_new_one() {
    let mut world = steady(1);
    world.ask_for_rotation();
    after(&mut world, 1);
    assert_eq!(after(&mut world, SOAK), Phase::Retire);
    let (state, leaf) = (world.state().unwrap(), &world.replicas[0].leaf);
    let live = [world.bundle(0).to_vec(), world.bundle(1).to_vec()];
    let seen = Seen {
        stored: Ok(Some(state)),
        remembered: None,
        live: &live,
        serving: leaf.as_ref(),
        rotate: false,
        everyone_serves: Some(&state.old[0].certificate.name),
    };
    assert_eq!(step(&seen, at(world.now), &lifetimes()).unwrap(), None);
    let seen = Seen { everyone_serves: Some(&state.ca().name), ..seen };
    let switched = world.now;
    assert_eq!(step(&seen, at(switched + SOAK - 2), &lifetimes()).unwrap(), None);
    let soon = look_again(state, leaf.as_ref(), at(switched), &lifetimes()).unwrap();
    assert!(soon <= at(switched + SOAK), "{soon}");
    let next = step(&seen, at(switched + SOAK), &lifetimes()).unwrap().unwrap();
    assert_eq!(next.phase(), Phase::Steady);
    let unanswered = Seen { everyone_serves: None, ..seen };
    let late = |after| step(&unanswered, at(switched + after), &lifetimes()).unwrap();
    assert_eq!(late(LEAF), None);
    assert_eq!(late(LEAF + SOAK).unwrap().phase(), Phase::Steady);
}

#[test]
fn t2_a_lost_secret_comes_back_from_any_replicas_memory() {
    for lose in [World::delete_secret, World::damage_secret] {
        let mut world = steady(2);
        let before = world.state().unwrap().clone();
        world.crash(0);
        lose(&mut world);
        world.pass(1);
        assert_eq!(world.state().unwrap(), &before);
    }
}

#[test]
fn t2_a_secret_nobody_remembers_gives_a_new_ca_beside_the_one_in_the_bundles() {
    let mut world = steady(2);
    let first = world.state().unwrap().ca().clone();
    world.delete_secret();
    // Replica 1 is alive, and slow.
    world.crash(0);
    for _ in 0..20 {
        world.pass(0);
        world.check().unwrap();
    }
    let second = world.state().unwrap().ca().clone();
    assert_eq!(world.bundle(0), [first.clone(), second.clone()]);
    assert!(!world.replicas[0].ready, "API servers may not know the new CA yet");
    assert_eq!(after(&mut world, 1), Phase::Retire);
    assert_eq!(world.replicas[1].leaf.as_ref().unwrap().issuer, first);
    after(&mut world, SOAK);
    assert!(world.replicas.iter().all(|r| r.ready && r.leaf.as_ref().unwrap().issuer == second));
    assert_eq!(after(&mut world, LEAF + SOAK), Phase::Steady);
}

/// What a replica remembers of an old CA may be a rotation behind.
#[test]
fn t2_a_state_from_memory_keeps_what_the_bundles_hold_for_the_life_of_a_leaf() {
    let mut world = steady(1);
    world.ask_for_rotation();
    after(&mut world, 1);
    assert_eq!(after(&mut world, SOAK), Phase::Retire);
    let state = world.state().unwrap();
    let live = [world.bundle(0).to_vec(), world.bundle(1).to_vec()];
    let seen = Seen {
        stored: Ok(None),
        remembered: Some(state),
        live: &live,
        serving: None,
        rotate: false,
        everyone_serves: None,
    };
    let now = at(world.now + LEAF);
    let restored = step(&seen, now, &lifetimes()).unwrap().unwrap();
    assert!(restored.old.len() == 1 && restored.old[0].until > later(now, lifetimes().leaf()));
}

#[test]
fn t2_a_state_without_the_ca_of_a_served_leaf_gets_it_back() {
    let (world, stranger) = (steady(1), steady(1));
    let (leaf, other) = (world.replicas[0].leaf.clone(), stranger.state().unwrap());
    let live = [world.bundle(0).to_vec(), world.bundle(1).to_vec()];
    let seen = Seen {
        stored: Ok(Some(other)),
        remembered: None,
        live: &live,
        serving: leaf.as_ref(),
        rotate: false,
        everyone_serves: None,
    };
    let next = step(&seen, at(1), &lifetimes()).unwrap().unwrap();
    assert!(next.trusted().any(|ca| *ca == leaf.as_ref().unwrap().issuer));
    assert!(!leaf_is_due(&Seen { stored: Ok(Some(&next)), ..seen }, at(1), &lifetimes()));
    let established = |leaf: &Option<Leaf>, before| {
        next.is_established(leaf.as_ref().unwrap(), before, at(SOAK), &lifetimes())
    };
    assert!(!established(&stranger.replicas[0].leaf, true), "of a CA that is new to everybody");
    assert!(established(&leaf, true), "of one that was known, and signs no more");
    assert!(!established(&leaf, false), "of one that was lost before it was known");
}

#[test]
fn t2_an_expired_ca_is_replaced_at_once() {
    let mut world = steady(2);
    let first = world.state().unwrap().ca().clone();
    world.crash(0);
    world.crash(1);
    assert_eq!(after(&mut world, 2 * CA), Phase::Steady);
    let state = world.state().unwrap();
    assert!(*state.ca() != first && state.generation == 2);
    assert!(
        world.replicas.iter().all(|r| r.ready && r.leaf.as_ref().unwrap().issuer == *state.ca())
    );
}

#[test]
fn t2_clocks_that_jump_leave_a_valid_leaf() {
    let (day, mut world) = (24 * 3_600, steady(2));
    for jump in [40 * day, -day, 3 * day] {
        world.now += jump;
        world.settle();
        let now = at(world.now);
        // A client that is five minutes behind accepts it too.
        let behind = at(world.now - 300);
        for replica in &world.replicas {
            let leaf = replica.leaf.as_ref().unwrap();
            assert!(leaf.is_valid(now) && leaf.is_valid(behind), "{jump}: {leaf:?}");
        }
        // A CA from the future is replaced as any other is.
        after(&mut world, SOAK);
        assert!(world.state().unwrap().ca().is_valid(behind));
    }
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Call(usize),
    Pass(usize),
    Abandon(usize),
    Crash(usize),
    Sleep(i64),
    Clock(usize, i64),
    Rotate,
    Duty(usize),
    Delete,
    Damage,
    Wipe(usize),
}

const REPLICAS: usize = 3;

fn ordinary() -> impl Strategy<Value = Event> {
    let replica = || 0..REPLICAS;
    prop_oneof![
        30 => replica().prop_map(Event::Call),
        20 => replica().prop_map(Event::Pass),
        2 => replica().prop_map(Event::Abandon),
        1 => replica().prop_map(Event::Crash),
        12 => (1..20_i64).prop_map(Event::Sleep),
        4 => (20..2 * SOAK).prop_map(Event::Sleep),
        2 => (SOAK..LEAF).prop_map(Event::Sleep),
        2 => (replica(), -SKEW..=SKEW).prop_map(|(r, clock)| Event::Clock(r, clock)),
        2 => Just(Event::Rotate),
        1 => replica().prop_map(Event::Duty),
    ]
}

fn history(faults: impl Strategy<Value = Event>) -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(prop_oneof![40 => ordinary(), 1 => faults], 50..300)
}

fn replay(history: &[Event], acknowledges: bool) -> Result<World, TestCaseError> {
    // The first installation is left out: before it no webhook was called.
    let mut world = steady(REPLICAS);
    world.acknowledges = acknowledges;
    for (at, event) in history.iter().enumerate() {
        match *event {
            Event::Call(r) => world.call(r),
            Event::Pass(r) => world.pass(r),
            Event::Abandon(r) => world.abandon(r),
            Event::Crash(r) => world.crash(r),
            Event::Sleep(seconds) => world.now += seconds,
            Event::Clock(r, clock) => world.replicas[r].clock = clock,
            Event::Rotate => world.ask_for_rotation(),
            Event::Duty(r) => world.duty = Some(r),
            Event::Delete => world.delete_secret(),
            Event::Damage => world.damage_secret(),
            Event::Wipe(which) => world.edit_bundle(which, Vec::new()),
        }
        world.check().map_err(|broken| TestCaseError::fail(format!("event {at}: {broken}")))?;
    }
    Ok(world)
}

/// Left in peace, the world comes to rest: everybody ready, one CA, nothing to write.
fn comes_to_rest(mut world: World) -> Result<(), TestCaseError> {
    world.replicas.iter_mut().for_each(|replica| replica.clock = 0);
    for _ in 0..8 {
        world.now += LEAF / 4;
        world.settle();
        world.check().map_err(TestCaseError::fail)?;
    }
    prop_assert!(world.replicas.iter().all(|replica| replica.ready));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Replicas crash, stop between any two calls for any time, and lose races and answers.
    #[test]
    fn w7_every_api_server_accepts_every_ready_replica_while_the_secret_is_lost_and_cas_rotate(
        history in history(prop_oneof![Just(Event::Delete), Just(Event::Damage)]), acknowledges: bool,
    ) {
        comes_to_rest(replay(&history, acknowledges)?)?;
    }

    #[test]
    fn w7_every_api_server_accepts_every_ready_replica_while_bundles_are_wiped_and_cas_rotate(
        history in history((0..2_usize).prop_map(Event::Wipe)), acknowledges: bool,
    ) {
        comes_to_rest(replay(&history, acknowledges)?)?;
    }
}
