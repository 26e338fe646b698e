//! What goes wrong with sharding by consistent hashing and heartbeats alone, number by number as in
//! the design's list, and does not go wrong here. Numbers 8 and 17 to 20 are about reading and
//! writing Leases and events: they are in `apiserver/library.rs`.

use lease_sharding::{
    hash::KeyHash,
    partitions::PartitionSet,
    placement::Placement,
    protocol::{
        Effect, Event, Holder, Identity, Lease, MemberName, Now, Precondition, Protocol, Stage,
        Timing, TimingConfig, Version,
    },
    ring::{Compat, Error, Ring, RingConfig},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const PARTITIONS: u32 = 8;
const LEASE: u64 = TimingConfig::DEFAULT.lease;
const FENCE: u64 = TimingConfig::DEFAULT.fence;

struct Member {
    name: MemberName,
    process: Protocol,
    /// What the time of day is ahead of the steady clock.
    wall: u64,
    connected: bool,
    gained: usize,
}

/// Members on an API server that answers at once.
#[derive(Default)]
struct Cluster {
    now: u64,
    leases: BTreeMap<MemberName, Lease>,
    revision: u64,
    members: Vec<Member>,
}

impl Cluster {
    fn of(names: &[&str]) -> Self {
        let mut cluster = Self::default();
        for name in names {
            cluster.join(name, 1);
        }
        cluster
    }

    /// Starts a process that has not heard anything.
    fn start(&mut self, name: &str, keyspace: u64, pod: u128) -> usize {
        let at = self.members.len();
        let me = Identity {
            member: name.into(),
            holder: Holder { pod, incarnation: u128::from(self.revision) },
            keyspace,
            placement: Placement::default().fingerprint(),
            generation: 0,
        };
        let timing = Timing::try_from(TimingConfig::DEFAULT).expect("the default is safe");
        let wall = at as u64 * 86_400_000;
        let now = Now { steady: self.now, wall: self.now + wall };
        let process = Protocol::new(me, timing, now);
        self.members.push(Member { name: name.into(), process, wall, connected: true, gained: 0 });
        at
    }

    fn join(&mut self, name: &str, keyspace: u64) -> usize {
        let at = self.start(name, keyspace, self.members.len() as u128);
        self.step(at, Event::Ready);
        self.step(at, Event::Listed(self.leases.values().cloned().collect()));
        at
    }

    fn step(&mut self, at: usize, event: Event) {
        let mut events = vec![event];
        while !events.is_empty() {
            let member = &mut self.members[at];
            let now = Now { steady: self.now, wall: self.now + member.wall };
            let effects = member.process.step(now, events.remove(0));
            for effect in effects {
                events.extend(self.effect(at, effect));
            }
            let member = &self.members[at];
            let wants = Placement::default().wants(PARTITIONS, &member.process, &member.name);
            let takes_part = member.process.stage() <= Stage::Active;
            if events.is_empty() && takes_part && wants != *member.process.wanted() {
                events.push(Event::Want(wants));
            }
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) -> Option<Event> {
        let member = self.members[at].name.clone();
        let seen = self.leases.get(&member).cloned();
        let connected = self.members[at].connected;
        match effect {
            Effect::Write(_) | Effect::Tombstone(_) if !connected => Some(Event::Failed),
            Effect::Write(write) => {
                let allowed = match write.on {
                    Precondition::Absent => seen.is_none(),
                    Precondition::Is(version) => {
                        seen.as_ref().is_some_and(|l| l.version == version)
                    }
                };
                if !allowed {
                    return Some(Event::Refused(seen));
                }
                let version = Version(self.revision + 1);
                self.commit(at, Lease { member, version, record: write.record });
                None
            }
            Effect::Tombstone(lease) => {
                if self.leases.get(&lease.member).is_some_and(|l| l.version == lease.version) {
                    self.commit(usize::MAX, lease);
                }
                None
            }
            Effect::Stop(partitions) | Effect::Revoked(partitions) => {
                Some(Event::Stopped(partitions))
            }
            Effect::Gained(_) => {
                self.members[at].gained += 1;
                None
            }
            _ => None,
        }
    }

    /// Writes a Lease and tells the writer, and then everybody.
    fn commit(&mut self, writer: usize, lease: Lease) {
        self.revision += 1;
        let lease = Lease { version: Version(self.revision), ..lease };
        self.leases.insert(lease.member.clone(), lease.clone());
        if writer < self.members.len() {
            self.step(writer, Event::Written(lease.version));
        }
        for at in 0..self.members.len() {
            if self.members[at].connected {
                self.step(at, Event::Seen(lease.clone()));
            }
        }
    }

    /// Lets time pass; every process gets the alarms that it asked for.
    fn wait(&mut self, time: u64) {
        let end = self.now + time;
        loop {
            let due = |m: &Member| m.process.deadline().map(|due| due.max(self.now + 1));
            let next =
                self.members.iter().enumerate().filter_map(|(at, m)| Some((due(m)?, at))).min();
            match next {
                Some((due, at)) if due <= end => {
                    self.now = due;
                    self.step(at, Event::Tick);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn acts(&self, at: usize, partition: u32) -> bool {
        let member = &self.members[at];
        let until = member.process.acts_until(partition);
        until.is_some_and(|until| self.now < until.steady && self.now + member.wall < until.wall)
    }

    fn share(&self, at: usize) -> usize {
        (0..PARTITIONS).filter(|partition| self.acts(at, *partition)).count()
    }

    fn shares(&self) -> Vec<usize> {
        (0..self.members.len()).map(|at| self.share(at)).collect()
    }
}

#[test]
fn weakness_1_a_new_replica_owns_nothing_before_it_has_seen_its_claim() {
    let mut cluster = Cluster::of(&["a"]);
    assert_eq!(cluster.shares(), [8]);
    let new = cluster.start("b", 1, 9);
    cluster.step(new, Event::Ready);
    cluster.step(new, Event::Want(PartitionSet::first(PARTITIONS)));
    assert_eq!(cluster.shares(), [8, 0]);
    assert_eq!(cluster.members[new].process.deadline(), None, "it waits for the list");
}

#[test]
fn weakness_2_work_still_queued_is_refused_after_its_partition_was_given_away() {
    let mut cluster = Cluster::of(&["a"]);
    let queued: Vec<u32> = (0..PARTITIONS).collect();
    let new = cluster.join("b", 1);
    assert!(cluster.share(new) > 0);
    for partition in queued {
        assert!(cluster.acts(0, partition) != cluster.acts(new, partition), "{partition}");
    }
}

#[test]
fn weakness_3_a_replica_that_cannot_renew_stops_before_others_take_over() {
    let mut cluster = Cluster::of(&["a", "b"]);
    let share = cluster.share(1);
    cluster.members[1].connected = false;
    cluster.wait(FENCE);
    assert_eq!(cluster.shares(), [8 - share, 0]);
    cluster.wait(LEASE - FENCE + 1_000);
    assert_eq!(cluster.shares(), [8, 0]);
}

#[test]
fn weakness_4_clocks_a_day_apart_change_nothing() {
    // Each member's time of day in a cluster is a day ahead of the one before.
    let mut cluster = Cluster::of(&["a", "b", "c"]);
    let before = cluster.shares();
    cluster.wait(10 * LEASE);
    assert_eq!(cluster.shares(), before);
    assert_eq!(before.iter().sum::<usize>(), 8);
    assert!(cluster.leases.values().all(|lease| lease.record.transitions == 0));
}

#[test]
fn weakness_5_members_that_disagree_about_everything_still_have_one_owner_each() {
    let mut cluster = Cluster::of(&["a"]);
    cluster.members[0].connected = false;
    let new = cluster.join("b", 1);
    cluster.step(new, Event::Want(PartitionSet::first(PARTITIONS)));
    assert_eq!(cluster.shares(), [8, 0], "the first has not even heard of the second");
}

#[test]
fn weakness_6_a_deleted_lease_is_honoured_and_ends_its_holder() {
    let mut cluster = Cluster::of(&["a", "b"]);
    let share = cluster.share(1);
    cluster.members[1].connected = false;
    let name = cluster.members[1].name.clone();
    cluster.leases.remove(&name);
    cluster.step(0, Event::Gone(name));
    assert_eq!(cluster.shares(), [8 - share, share], "the process may still run");
    cluster.wait(FENCE);
    assert_eq!(cluster.shares(), [8 - share, 0]);
    cluster.wait(LEASE - FENCE + 1_000);
    assert_eq!(cluster.shares(), [8, 0]);

    let mut cluster = Cluster::of(&["a"]);
    cluster.leases.clear();
    let lost = cluster.members[0].process.step(Now { steady: 3_000, wall: 3_000 }, Event::Tick);
    assert!(matches!(lost[..], [Effect::Write(_)]));
    let now = Now { steady: 3_001, wall: 3_001 };
    let lost = cluster.members[0].process.step(now, Event::Refused(None));
    assert_eq!(lost, [Effect::Revoked(PartitionSet::first(PARTITIONS))]);
    assert_eq!(cluster.share(0), 0);
}

#[test]
fn weakness_7_a_rolling_change_of_the_keyspace_never_has_two_owners() {
    let mut cluster = Cluster::of(&["a", "b"]);
    let new = [cluster.join("c", 2), cluster.join("d", 2)];
    assert_eq!(new.map(|at| cluster.share(at)), [0, 0], "the old ones have claims");
    cluster.step(0, Event::Leave);
    cluster.wait(1_000);
    assert_eq!(cluster.shares(), [0, 8, 0, 0], "the old ones absorb each other's work");
    cluster.step(1, Event::Leave);
    cluster.wait(TimingConfig::DEFAULT.renew);
    assert_eq!(cluster.shares()[..2], [0, 0]);
    assert_eq!(new.map(|at| cluster.share(at)).iter().sum::<usize>(), 8);
}

#[test]
fn weakness_9_what_is_gained_is_announced() {
    let mut cluster = Cluster::of(&["a", "b"]);
    let before = cluster.members[0].gained;
    cluster.step(1, Event::Leave);
    assert_eq!(cluster.members[0].gained, before + 1);
    assert_eq!(cluster.shares(), [8, 0]);
}

#[test]
fn weakness_10_a_death_is_noticed_without_any_event() {
    let mut cluster = Cluster::of(&["a", "b"]);
    cluster.members.truncate(1);
    cluster.wait(LEASE - 1);
    assert!(cluster.share(0) < 8);
    cluster.wait(2);
    assert_eq!(cluster.shares(), [8]);
}

#[test]
fn s1_a_label_that_a_stranger_writes_is_no_sign_of_life() {
    let mut cluster = Cluster::of(&["a", "b"]);
    let dead = cluster.members.remove(1).name;
    cluster.wait(LEASE / 2);
    let labelled = cluster.leases[&dead].clone();
    cluster.commit(usize::MAX, labelled);
    cluster.wait(LEASE / 2 + 1);
    assert_eq!(cluster.shares(), [8]);
}

#[test]
fn weakness_11_a_replica_that_stops_hands_over_at_once() {
    let mut cluster = Cluster::of(&["a", "b", "c"]);
    cluster.step(2, Event::Leave);
    assert_eq!(cluster.share(2), 0);
    assert_eq!(cluster.shares().iter().sum::<usize>(), 8);
    assert_eq!(cluster.members[2].process.stage(), Stage::Left);
}

#[test]
fn weakness_12_a_list_without_the_own_lease_takes_nothing_away() {
    let mut cluster = Cluster::of(&["a"]);
    let now = Now::default();
    let effects = cluster.members[0].process.step(now, Event::Listed(vec![]));
    assert_eq!((effects, cluster.share(0)), (vec![], 8));
}

#[test]
fn weakness_13_a_ring_without_members_is_an_error_and_a_placement_without_members_is_empty() {
    let none: [&str; 0] = [];
    assert_eq!(Ring::new(RingConfig::OPERATOR_SCALING, none), Err(Error::NoMembers));
    assert_eq!(Placement::default().place(PARTITIONS, &[]).owner(0), None);
    // All Leases are overdue after an outage: nobody lost anything.
    let mut cluster = Cluster::of(&["a", "b"]);
    let before = cluster.shares();
    cluster.members.iter_mut().for_each(|member| member.connected = false);
    cluster.wait(4 * LEASE);
    assert_eq!(cluster.shares(), [0, 0]);
    cluster.members.iter_mut().for_each(|member| member.connected = true);
    cluster.wait(TimingConfig::DEFAULT.renew);
    assert_eq!(cluster.shares(), before);
}

#[test]
fn weakness_14_ordinal_names_share_no_position_or_are_refused() {
    let ring = |compat, count: u32| {
        let config = RingConfig { compat, ..RingConfig::OPERATOR_SCALING };
        Ring::new(config, (0..count).map(|i| format!("op-{i}")))
    };
    assert!(ring(Compat::V0_10, 11).is_ok());
    let refused = ring(Compat::V0_10, 12);
    assert!(matches!(refused, Err(Error::SharedPosition(..))), "{refused:?}");
    assert!(ring(Compat::V1_0, 50).is_ok());
}

#[test]
fn weakness_15_a_tight_load_is_an_error() {
    let tight = RingConfig { load: 1.0, ..RingConfig::OPERATOR_SCALING };
    let ring = Ring::new(tight, ["a", "b"]);
    assert_eq!(ring, Err(Error::NoRoom { partition: 508, members: 2, capacity: 254 }));
    for load in [f64::NAN, f64::INFINITY, -1.0] {
        let ring = Ring::new(RingConfig { load, ..tight }, ["a"]);
        assert!(matches!(ring, Err(Error::Load(_))), "{ring:?}");
    }
    let twice = Ring::new(RingConfig::OPERATOR_SCALING, ["a", "a"]);
    assert_eq!(twice, Err(Error::DuplicateMember("a".to_owned())));
    let huge = RingConfig { partitions: u32::MAX, hash: KeyHash::Xxh3, ..tight };
    assert!(matches!(Ring::new(huge, ["a"]), Err(Error::TooLarge { .. })));
}

#[test]
fn weakness_16_times_that_a_lease_cannot_say_or_that_are_unsafe_are_refused() {
    let refused = |change: fn(&mut TimingConfig)| {
        let mut config = TimingConfig::DEFAULT;
        change(&mut config);
        Timing::try_from(config).expect_err("unsafe").to_string()
    };
    assert_eq!(refused(|c| c.lease = 500), "unsafe times: lease >= 1 s does not hold: 500 ms");
    assert_eq!(
        refused(|c| c.lease = 15_500),
        "unsafe times: lease mod 1 s = 0 does not hold: 15500 ms"
    );
    assert_eq!(
        refused(|c| c.fence = 14_000),
        "unsafe times: fence * (1 + clock error) <= lease * (1 - clock error) does not hold: \
         14000 ms * 1.050 > 15000 ms * 0.950"
    );
    assert_eq!(
        refused(|c| c.renew = 5_000),
        "unsafe times: renew + renew_timeout < fence - write_timeout does not hold: \
         5000 ms + 3000 ms >= 10000 ms - 3000 ms"
    );
    assert!(refused(|c| c.clock_error_permille = 1_000).contains("clock error"));
    assert!(Timing::try_from(TimingConfig::FAST).is_ok());
}

#[test]
fn weakness_21_a_reused_name_waits_for_its_former_process_unless_that_was_in_the_same_pod() {
    let mut cluster = Cluster::of(&["a"]);
    cluster.members.clear();
    let other_pod = cluster.start("a", 1, 77);
    cluster.step(other_pod, Event::Ready);
    cluster.step(other_pod, Event::Listed(cluster.leases.values().cloned().collect()));
    cluster.wait(LEASE - 1);
    assert_eq!(cluster.shares(), [0], "the former one may still run");
    cluster.wait(2);
    assert_eq!(cluster.shares(), [8]);

    let mut cluster = Cluster::of(&["a"]);
    cluster.members.clear();
    let same_pod = cluster.start("a", 1, 0);
    cluster.step(same_pod, Event::Ready);
    cluster.step(same_pod, Event::Listed(cluster.leases.values().cloned().collect()));
    assert_eq!(cluster.shares(), [8], "the former one is gone");
}

/// The names of tests in a folder, without those above it.
fn tests_in(folder: &Path) -> Vec<String> {
    let sources = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one").path());
    let texts = sources.filter_map(|path| fs::read_to_string(path).ok());
    let names = |text: String| -> Vec<String> {
        let starts = text.lines().filter_map(|line| line.trim().split_once("fn "));
        starts.map(|(_, name)| name.to_owned()).collect()
    };
    texts.flat_map(names).collect()
}

#[test]
fn each_of_the_21_weaknesses_has_its_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let names = [tests_in(&tests), tests_in(&tests.join("apiserver"))].concat();
    let number = |name: &String| name.strip_prefix("weakness_")?.split('_').next()?.parse().ok();
    let tested: BTreeSet<u32> = names.iter().filter_map(number).collect();
    assert_eq!(tested, (1..=21).collect());
}
