//! No dual owner in any weather, and every gap within its bound.

use super::{
    Fault, Happening, KEYSPACE, Load, Millis, Mutant, OBJECTS_OF_PAIRS, OTHER_KEYSPACE, Placement,
    TimingConfig, Weather, World,
};

/// A usual network: a watch event and each way of a request take up to 50 ms.
const FAIR: Weather = Weather { watch: 50, trip: 50, late: 0, lost: 0, work: 0 };
const STORM: Weather = Weather { watch: 3_000, trip: 400, late: 5, lost: 5, work: 2_000 };

/// A handover at its slowest: a renewal that is on its way there and back, the release and its sight;
/// and with the one who takes over a renewal on its way, the claim and its echo.
const MESSAGES: Millis = 2 * FAIR.watch + 6 * FAIR.trip;

/// A settled world of three replicas.
fn settled(seed: u64, weather: Weather, mutant: Option<Mutant>) -> World {
    start(World { mutant, ..World::new(seed, FAIR) }, KEYSPACE, weather)
}

fn start(mut world: World, keyspace: u64, weather: Weather) -> World {
    for _ in 0..3 {
        world.join(0, keyspace);
    }
    world.run_until(3_000);
    assert_eq!(world.unowned(), 0, "it does not start");
    (world.longest_gap, world.weather) = (0, weather);
    world.objects.iter_mut().for_each(|object| object.moves = 0);
    world
}

fn schedule(world: &mut World, fault: Fault) -> usize {
    let at = world.random.index(3);
    let delay = world.random.below(8_000);
    world.push(delay, at, Happening::Fault(fault));
    at
}

/// Whether every gap stays below its bound when this happens.
fn gaps(seeds: std::ops::Range<u64>, fault: impl Fn(&mut World) -> (Fault, Millis)) {
    let mut worst = 0;
    for seed in seeds {
        let mut world = settled(seed, FAIR, None);
        let (fault, bound) = fault(&mut world);
        schedule(&mut world, fault);
        world.run_until(60_000);
        assert_eq!(world.two_owners, None, "seed {seed} after {:#?}", world.log);
        assert_eq!(world.unowned(), 0, "seed {seed}: not all owned after {:?}", world.log);
        assert!(
            world.longest_gap <= bound,
            "seed {seed}: {} ms without an owner, the bound is {bound} ms, after {:?}",
            world.longest_gap,
            world.log
        );
        worst = worst.max(world.longest_gap);
    }
    println!("longest gap {worst} ms");
}

/// On the slowest clock, with a watch event and a request before and after.
fn slow(timing: &TimingConfig, time: Millis) -> Millis {
    time * 1_000 / (1_000 - u64::from(timing.clock_error_permille))
}

fn storm(seed: u64, mutant: Option<Mutant>) -> World {
    rage(settled(seed, STORM, mutant))
}

/// A storm in which each replica that is replaced has another number of partitions.
fn storm_of_keyspaces(seed: u64, mutant: Option<Mutant>) -> World {
    let world = World { mutant, rolls_keyspace: true, ..World::new(seed, FAIR) };
    rage(start(world.with_objects(OBJECTS_OF_PAIRS), KEYSPACE, STORM))
}

fn rage(mut world: World) -> World {
    for _ in 0..2 + world.random.below(6) {
        let time = world.random.below(30_000);
        let jump = world.random.below(7_200_000).cast_signed() - 3_600_000;
        let fault = match world.random.below(10) {
            0 | 1 => Fault::Crash,
            2 | 3 => Fault::Pause(time),
            4 => Fault::CutOff(time),
            5 => Fault::Outage(time),
            6 => Fault::JumpWall(jump),
            7 => Fault::Relist,
            8 => Fault::Leave,
            _ => Fault::Replace,
        };
        let at = world.random.index(3);
        let delay = world.random.below(40_000);
        world.push(delay, at, Happening::Fault(fault));
        if world.random.percent(70) {
            let later = delay + world.random.below(20_000);
            world.push(later, at, Happening::Fault(Fault::Restart));
        }
    }
    world.run_until(70_000);
    // All is well again: whoever is left takes everything within a lease time and a bit.
    world.weather = FAIR;
    let late_requests = 30_000;
    world.join(9, KEYSPACE);
    world.run_until(70_000 + late_requests);
    world.longest_gap = 0;
    world.run_until(140_000);
    world
}

fn survives(seed: u64, world: &World) {
    assert_eq!(world.two_owners, None, "seed {seed} after {:#?}", world.log);
    let unowned = world.unowned();
    assert_eq!(unowned, 0, "seed {seed}: not all owned in the end, after {:#?}", world.log);
}

fn survives_a_storm(seed: u64) {
    survives(seed, &storm(seed, None));
}

fn survives_a_storm_of_keyspaces(seed: u64) {
    survives(seed, &storm_of_keyspaces(seed, None));
}

/// `SCHEDULES` says how many, or which: `400000..500000`. A million if it does not. Every eighth has
/// two keyspaces.
#[test]
#[ignore = "long: `make -C lease-sharding soak`"]
fn soak_no_storm_gives_an_object_two_owners() {
    #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
    let which = std::env::var("SCHEDULES").unwrap_or_else(|_| "1000000".into());
    let number = |text: &str| text.parse::<u64>().expect("SCHEDULES is a number, or two with `..`");
    let (first, end) = which.split_once("..").unwrap_or(("0", &which));
    let (first, end) = (number(first), number(end));
    let (begun, hundredth) = (std::time::Instant::now(), (end - first).div_ceil(100));
    for at in first..end {
        let seed = 10_000 + at;
        if at % 8 == 7 {
            survives_a_storm_of_keyspaces(seed);
        } else {
            survives_a_storm(seed);
        }
        let done = at + 1 - first;
        if done % hundredth == 0 || at + 1 == end {
            println!("{done} schedules from {first} on in {:.0?}", begun.elapsed());
        }
    }
}

#[test]
fn no_storm_gives_an_object_two_owners_or_leaves_it_without_one() {
    (0..2_000).for_each(survives_a_storm);
}

#[test]
fn s6_no_storm_of_keyspaces_gives_an_object_two_owners_or_leaves_it_without_one() {
    (0..500).for_each(survives_a_storm_of_keyspaces);
}

#[test]
fn storms_of_keyspaces_break_what_keeps_them_apart() {
    let storm = |seed, mutant| storm_of_keyspaces(seed, Some(mutant));
    let mixed = |seed| storm(seed, Mutant::OneKeyspace).two_owners.is_some();
    assert!((0..1_000).any(mixed), "keyspaces make no difference");
    let stuck = |seed| storm(seed, Mutant::StubbornKeyspace).unowned() > 0;
    assert!((0..1_000).any(stuck), "nobody needs to give way");
}

#[test]
fn storms_break_each_mutant() {
    for mutant in [
        Mutant::NoClaims,
        Mutant::NoEcho,
        Mutant::BlindRenewal,
        Mutant::ReleaseBeforeStop,
        Mutant::FenceFromAnswer,
        Mutant::DeathWithoutWrite,
    ] {
        let breaks = |seed: &u64| storm(*seed, Some(mutant)).two_owners.is_some();
        let seed = (0..1_000).find(breaks);
        assert!(seed.is_some(), "{mutant:?} survives every storm");
        println!("{mutant:?} is broken by seed {seed:?}");
    }
}

#[test]
fn a_crash_leaves_a_gap_of_a_lease_time_and_a_few_messages() {
    gaps(0..2_000, |world| {
        let t = world.timing;
        let messages = 3 * FAIR.watch + 4 * FAIR.trip;
        (Fault::Crash, slow(&t, t.lease + 3 * t.stagger) + messages)
    });
}

/// The longest gaps of many runs of one profile, sorted.
fn distribution(timing: TimingConfig, fault: Fault) -> Vec<Millis> {
    let gap = |seed| {
        let world = World { timing, ..World::new(seed, FAIR) };
        let mut world = start(world, KEYSPACE, FAIR);
        schedule(&mut world, fault);
        world.run_until(60_000);
        survives(seed, &world);
        world.longest_gap
    };
    let mut gaps: Vec<_> = (60_000..65_000).map(gap).collect();
    gaps.sort_unstable();
    gaps
}

#[test]
#[ignore = "figures: `make -C lease-sharding gaps`"]
fn distributions_of_gaps() {
    for (profile, timing) in [("default", TimingConfig::DEFAULT), ("fast", TimingConfig::FAST)] {
        for fault in [Fault::Crash, Fault::Leave] {
            let gaps = distribution(timing, fault);
            let at = |percent: usize| gaps[(gaps.len() - 1) * percent / 100];
            println!(
                "{fault:?}, {profile} profile, {} runs: least {} ms, p50 {}, p90 {}, p99 {}, most {}",
                gaps.len(),
                at(0),
                at(50),
                at(90),
                at(99),
                at(100)
            );
        }
    }
}

#[test]
fn leaving_leaves_a_gap_of_a_few_messages() {
    gaps(10_000..12_000, |_| (Fault::Leave, MESSAGES));
}

#[test]
fn a_replacement_leaves_a_gap_of_a_few_messages() {
    gaps(20_000..22_000, |_| (Fault::Replace, MESSAGES));
}

#[test]
fn an_outage_costs_nothing_before_the_fence_and_ends_with_the_first_renewal() {
    gaps(30_000..32_000, |world| {
        let t = world.timing;
        let outage = world.random.below(2 * t.lease);
        let spare = (t.fence - t.renew - 2 * FAIR.trip) * 1_000
            / (1_000 + u64::from(t.clock_error_permille));
        let again = slow(&t, t.renew_timeout + t.retry) + 2 * FAIR.trip;
        let gap = (outage + again).saturating_sub(spare);
        (Fault::Outage(outage), if outage + again < spare { 0 } else { gap })
    });
}

/// Replaces three settled replicas one after the other, each once its successor is there.
fn roll(mut world: World, keyspace: u64) -> World {
    for at in 0..3 {
        world.join(1, keyspace);
        let wait = 1_000 + world.random.below(4_000);
        world.run_until(world.now + wait);
        world.push(0, at, Happening::Fault(Fault::Leave));
        let wait = 1_000 + world.random.below(4_000);
        world.run_until(world.now + wait);
    }
    world
}

#[test]
fn s6_a_rolling_update_with_sticky_placement_moves_each_object_once() {
    for seed in 40_000..42_000 {
        let placement = Placement::Sticky(Load::DEFAULT);
        let world = World { placement, ..World::new(seed, FAIR) };
        let world = roll(start(world, KEYSPACE, FAIR), KEYSPACE);
        survives(seed, &world);
        let moves: Vec<_> = world.objects.iter().map(|object| object.moves).collect();
        assert!(moves.iter().all(|moves| *moves == 1), "seed {seed}: {moves:?}");
        let gap = world.longest_gap;
        assert!(gap <= MESSAGES, "seed {seed}: {gap} ms without an owner");
    }
}

#[test]
fn s6_a_rolling_change_of_the_partition_count_leaves_gaps_of_a_few_messages() {
    for seed in 50_000..52_000 {
        let world = World::new(seed, FAIR).with_objects(OBJECTS_OF_PAIRS);
        let mut keyspaces = [KEYSPACE, OTHER_KEYSPACE];
        keyspaces.rotate_left((seed % 2) as usize);
        let world = roll(start(world, keyspaces[0], FAIR), keyspaces[1]);
        survives(seed, &world);
        let owners = world.objects.iter().filter_map(|object| object.owner);
        assert!(owners.min() >= Some(3), "seed {seed}: an old one works");
        let gap = world.longest_gap;
        assert!(gap <= MESSAGES, "seed {seed}: {gap} ms without an owner");
    }
}
