//! Whole replicas over the shipped [`Protocol`] and [`Placement`], on a simulated API server with
//! delays, losses, pauses and wrong clocks. A seed gives the same run each time.

mod checks;
mod world;

use crate::{
    partitions::PartitionSet,
    placement::{Load, Placement},
    protocol::{
        Effect, Event, Holder, Identity, Lease, MemberName, Millis, Mutant, Now, Precondition,
        Protocol, Record, Timing, TimingConfig, Version, Write,
    },
};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// The first keyspace, and the other of a rolling change of the partition count.
const KEYSPACE: u64 = 1;
const OTHER_KEYSPACE: u64 = 2;

/// How many partitions a keyspace has. With these, each of three members has a share: one without
/// any would wait for its renewal before it claims beside another keyspace.
fn partitions(keyspace: u64) -> u32 {
    if keyspace == KEYSPACE { 7 } else { 11 }
}

/// One object for each partition is enough, until there are two keyspaces: then one for each pair.
const OBJECTS: u32 = 7;
const OBJECTS_OF_PAIRS: u32 = 7 * 11;

/// Random numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// One of the first `count`.
    fn index(&mut self, count: u8) -> usize {
        usize::try_from(self.below(count.into())).unwrap_or_default()
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// How the world treats messages.
#[derive(Clone, Copy, Debug)]
struct Weather {
    /// The longest that a watch event takes.
    watch: Millis,
    /// The longest that a request takes, and the longest that its answer takes.
    trip: Millis,
    /// Percent of requests that arrive long after anybody waits for them.
    late: u64,
    /// Percent of answers that get lost.
    lost: u64,
    /// The longest that work stays in flight after it was asked to stop.
    work: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Crash,
    Restart,
    Pause(Millis),
    CutOff(Millis),
    Outage(Millis),
    JumpWall(i64),
    Relist,
    Leave,
    Replace,
}

#[derive(Clone, Debug)]
enum Happening {
    Wake(u64),
    Deliver,
    Arrive(u64, Write),
    Bury(Lease),
    Delete(MemberName, Version),
    Answer(u64, Event),
    WorkEnds(PartitionSet),
    Fault(Fault),
}

/// A thing that happens to the `epoch`-th process of a replica.
#[derive(Clone, Debug)]
struct Entry {
    at: Millis,
    order: u64,
    replica: usize,
    epoch: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

#[derive(Clone, Debug)]
struct Replica {
    identity: Identity,
    process: Option<Protocol>,
    epoch: u64,
    /// The number of the outstanding request.
    waits_for: Option<u64>,
    /// The number of the newest alarm: older ones are off.
    alarm: u64,
    inbox: VecDeque<Lease>,
    paused_until: Millis,
    cut_off_until: Millis,
    clock_start: Millis,
    /// In thousandths, of both clocks.
    clock_error: i64,
    wall_offset: i64,
}

impl Replica {
    fn now(&self, at: Millis) -> Now {
        let real = i64::try_from(at).unwrap_or(i64::MAX / 2_000);
        let steady = self.clock_start.saturating_add_signed(real + real * self.clock_error / 1_000);
        Now { steady, wall: steady.saturating_add_signed(self.wall_offset) }
    }

    /// When, in real time and at the earliest, its steady clock shows `steady`.
    fn real(&self, steady: Millis) -> Millis {
        let own = steady.saturating_sub(self.clock_start);
        (own * 1_000).div_ceil(1_000_u64.saturating_add_signed(self.clock_error))
    }

    /// The process, if it is not fenced.
    fn valid(&self, at: Millis) -> Option<&Protocol> {
        let (process, now) = (self.process.as_ref()?, self.now(at));
        let until = process.valid_until()?;
        (now.steady < until.steady && now.wall < until.wall).then_some(process)
    }
}

/// What is worked on.
#[derive(Clone, Debug)]
struct Object {
    owner: Option<usize>,
    unowned_since: Option<Millis>,
    /// How often it went from one owner to another.
    moves: u32,
}

struct World {
    random: Random,
    weather: Weather,
    timing: TimingConfig,
    placement: Placement,
    now: Millis,
    order: u64,
    queue: BinaryHeap<Entry>,
    server: BTreeMap<MemberName, Lease>,
    revision: u64,
    outage_until: Millis,
    replicas: Vec<Replica>,
    numbers: u64,
    objects: Vec<Object>,
    /// Who may act, each with its partitions' number and those of them it owns.
    acting: Vec<(usize, u32, PartitionSet)>,
    /// Since when the object that waits longest has no owner.
    unowned_since: Option<Millis>,
    /// Whether replaced replicas have another keyspace.
    rolls_keyspace: bool,
    /// The longest time without an owner since it was last asked for.
    longest_gap: Millis,
    mutant: Option<Mutant>,
    /// When an object first had two owners.
    two_owners: Option<String>,
    log: Vec<String>,
}
