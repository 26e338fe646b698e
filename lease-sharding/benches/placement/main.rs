//! Placement and rings, beside the Go library `buraksezer/consistent` in both its versions: how
//! long lookups and changes take, and how much moves. Both sides are asked in one run, with the
//! same members and keys; each answer of the library is compared with that of [`Ring`].
//!
//! Times are those of the fastest sample: whatever else runs on the machine only adds to them.

mod peer;

use anyhow::{Context as _, Result, ensure};
use lease_sharding::{
    hash::KeyHash,
    keys::{Key, Keyspace},
    partitions::PartitionSet,
    placement::{Candidate, Load, Placement},
    ring::{Compat, Ring, RingConfig},
};
use std::{
    collections::BTreeMap,
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

const SAMPLES: usize = 50;
const LOOKUPS: u32 = 200_000;
const KEYS: u32 = 1_024;
const TRIALS: u32 = 200;
/// One member more than so many.
const ADDED_TO: [u32; 3] = [3, 10, 50];
/// All of so many are replaced, one by one, each new one before the old one leaves.
const ROLLED: [u32; 2] = [3, 10];

const RENDEZVOUS: Placement = Placement::Rendezvous(Load::DEFAULT);
const STICKY: Placement = Placement::Sticky(Load::DEFAULT);

/// One column of the table.
struct Figures {
    name: String,
    partitions: u32,
    lookup_ns: f64,
    lookup_pair_ns: f64,
    /// CPU time of a thread beside another one, where it is known.
    lookup_pair_cpu_ns: Option<f64>,
    rebuild_us: f64,
    least_most_ns: f64,
    /// Of the mean, in percent.
    least_most: [f64; 2],
    add_moves: Vec<usize>,
    roll_moves: Vec<usize>,
}

fn main() -> Result<()> {
    let reports = peer::ask()?;
    let mut columns = Vec::new();
    for (report, compat) in reports.into_iter().zip([Compat::V0_10, Compat::V1_0]) {
        columns.push(of_peer(&report));
        columns.push(of_ring(compat, &report)?);
    }
    columns.push(of_placement("rendezvous", RENDEZVOUS)?);
    columns.push(of_placement("sticky", STICKY)?);
    print(&columns);
    Ok(())
}

fn print(columns: &[Figures]) {
    let row = |what: &str, cell: &dyn Fn(&Figures) -> String| {
        let cells: Vec<_> = columns.iter().map(|f| format!("{:>14}", cell(f))).collect();
        println!("{what:44}{}", cells.concat());
    };
    row("", &|f| f.name.clone());
    row("partitions", &|f| f.partitions.to_string());
    row("lookup, ns (goal < 10)", &|f| format!("{:.1}", f.lookup_ns));
    row("lookup on each of 2 threads, ns", &|f| format!("{:.1}", f.lookup_pair_ns));
    row("the same, CPU time", &|f| {
        f.lookup_pair_cpu_ns.map_or("-".to_owned(), |ns| format!("{ns:.1}"))
    });
    row("rebuild at 50 members, µs (goal < 1000)", &|f| format!("{:.0}", f.rebuild_us));
    row("least and most loaded of 10, ns", &|f| format!("{:.0}", f.least_most_ns));
    row("least and most loaded of 10, % of mean", &|f| {
        format!("{:.0}-{:.0}", f.least_most[0], f.least_most[1])
    });
    for (at, count) in ADDED_TO.into_iter().enumerate() {
        let what = format!("moved on {count} + 1, of the optimum (goal 1.01)");
        row(&what, &|f| {
            let optimum = f64::from(TRIALS * (f.partitions / (count + 1)));
            format!("{:.3}", ratio(f.add_moves[at], optimum))
        });
    }
    for (at, count) in ROLLED.into_iter().enumerate() {
        let what = format!("moved in a roll of {count}, of the optimum (goal 1)");
        row(&what, &|f| {
            format!("{:.3}", ratio(f.roll_moves[at], f64::from(TRIALS * f.partitions)))
        });
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn ratio(count: usize, of: f64) -> f64 {
    count as f64 / of
}

/// A load in percent of the mean of 10 members.
fn of_mean(load: usize, partitions: u32) -> f64 {
    1_000.0 * ratio(load, f64::from(partitions))
}

fn member(number: u32) -> String {
    format!("operator-{:08x}", number.wrapping_mul(0x9e37_79b9))
}

fn members(first: u32, count: u32) -> impl Iterator<Item = String> {
    (first..first + count).map(member)
}

fn texts() -> Vec<[String; 2]> {
    (0..KEYS).map(|i| [format!("namespace-{}", i % 7), format!("name-{i}")]).collect()
}

/// The fastest of many samples.
fn fastest(mut sample: impl FnMut()) -> Duration {
    let time = |_| {
        let begun = Instant::now();
        sample();
        begun.elapsed()
    };
    (0..SAMPLES).map(time).min().unwrap_or_default()
}

/// CPU time of the calling thread.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

/// Nanoseconds for each lookup: CPU time alone; on two threads that share everything; and the CPU
/// time of the faster of these. CPU time does not depend on what else runs on the machine.
fn lookups<K: Sync>(keys: &[K], lookup: impl Fn(&K) + Sync) -> [f64; 3] {
    let all = || {
        let begun = cpu();
        for key in keys.iter().cycle().take(LOOKUPS as usize) {
            lookup(black_box(key));
        }
        cpu().saturating_sub(begun)
    };
    let mut used = Duration::MAX;
    let alone = (0..SAMPLES).map(|_| all()).min().unwrap_or_default();
    let pair = fastest(|| {
        thread::scope(|scope| {
            let threads = [scope.spawn(all), scope.spawn(all)];
            for time in threads.map(|thread| thread.join().unwrap_or_default()) {
                used = used.min(time);
            }
        });
    });
    [alone, pair, used].map(|time| time.as_secs_f64() * 1e9 / f64::from(LOOKUPS))
}

fn of_peer(report: &peer::Report) -> Figures {
    Figures {
        name: format!("Go {}", report.version),
        partitions: 509,
        lookup_ns: report.lookup_ns,
        lookup_pair_ns: report.lookup_pair_ns,
        lookup_pair_cpu_ns: None,
        rebuild_us: report.rebuild_us,
        least_most_ns: report.least_most_ns,
        least_most: report.loads.map(|load| of_mean(load, 509)),
        add_moves: report.add_moves.clone(),
        roll_moves: report.roll_moves.clone(),
    }
}

fn of_ring(compat: Compat, report: &peer::Report) -> Result<Figures> {
    let config = RingConfig { compat, hash: KeyHash::Xxh64, ..RingConfig::OPERATOR_SCALING };
    let ring = |first, count| Ring::new(config, members(first, count)).context("a ring");
    let ten = ring(0, 10)?;
    let keys: Vec<_> =
        texts().iter().map(|[ns, name]| format!("apps/Deployment/{ns}/{name}")).collect();
    let owners: Vec<_> = keys.iter().map(|key| ten.owner(key.as_bytes())).collect();
    ensure!(owners == report.owners, "other owners than {}", report.version);
    let extremes = || {
        let loads = || ten.loads().map(|(_, load)| load);
        [loads().min(), loads().max()].map(Option::unwrap_or_default)
    };
    ensure!(extremes() == report.loads, "other loads than {}", report.version);
    let (mut add_moves, mut roll_moves) = (vec![], vec![]);
    for count in ADDED_TO {
        let moved = |trial| -> Result<usize> {
            let first = 1_000 * trial;
            Ok(ring(first, count)?.relocated(&ring(first, count + 1)?))
        };
        add_moves.push((0..TRIALS).map(moved).sum::<Result<usize>>()?);
    }
    for count in ROLLED {
        let mut moves = 0;
        for trial in 0..TRIALS {
            let mut before = ring(1_000 * trial, count)?;
            for first in 1_000 * trial..1_000 * trial + count {
                let (joined, left) = (ring(first, count + 1)?, ring(first + 1, count)?);
                moves += before.relocated(&joined) + joined.relocated(&left);
                before = left;
            }
        }
        roll_moves.push(moves);
    }
    ensure!(add_moves == report.add_moves, "other moves than {}", report.version);
    ensure!(roll_moves == report.roll_moves, "other moves than {}", report.version);
    let [lookup_ns, lookup_pair_ns, lookup_pair_cpu_ns] = lookups(&keys, |key| {
        black_box(ten.owner(key.as_bytes()));
    });
    let names: Vec<_> = members(0, 50).collect();
    let rebuild = fastest(|| drop(black_box(Ring::new(config, names.iter().map(String::as_str)))));
    let finding = fastest(|| {
        black_box(extremes());
    });
    Ok(Figures {
        name: format!("Ring {}", report.version),
        partitions: ten.partitions(),
        lookup_ns,
        lookup_pair_ns,
        lookup_pair_cpu_ns: Some(lookup_pair_cpu_ns),
        rebuild_us: rebuild.as_secs_f64() * 1e6,
        least_most_ns: finding.as_secs_f64() * 1e9,
        least_most: extremes().map(|load| of_mean(load, ten.partitions())),
        add_moves,
        roll_moves,
    })
}

/// Members with what they claim, and the generation of each.
struct Claimed {
    placement: Placement,
    partitions: u32,
    members: BTreeMap<String, (u64, PartitionSet)>,
    owners: Vec<String>,
}

impl Claimed {
    fn of(placement: Placement, names: impl Iterator<Item = String>) -> Result<Self> {
        let members = names.map(|name| (name, (0, PartitionSet::EMPTY))).collect();
        let partitions = Keyspace::default().partitions();
        let mut all = Self { placement, partitions, members, owners: vec![] };
        all.settle()?;
        Ok(all)
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        self.members
            .iter()
            .map(|(name, (generation, claims))| Candidate { name, claims, generation: *generation })
            .collect()
    }

    /// Places, and makes the answer everybody's claims. Returns how many partitions moved.
    fn settle(&mut self) -> Result<usize> {
        let candidates = self.candidates();
        let assignment = self.placement.place(self.partitions, &candidates);
        let owners: Vec<_> = assignment.owners().map(str::to_owned).collect();
        ensure!(owners.len() == self.partitions as usize, "partitions without an owner");
        let most = Load::DEFAULT.capacity(self.partitions, self.members.len());
        let mixed = candidates.iter().any(|c| c.generation != candidates[0].generation);
        let peak = assignment.loads().map(|(_, load)| load).max();
        ensure!(mixed || peak <= Some(most), "{peak:?} partitions on one member");
        let moved = self.owners.iter().zip(&owners).filter(|(a, b)| a != b).count();
        let shares: Vec<_> =
            self.members.keys().map(|name| (name.clone(), assignment.share(name))).collect();
        for (name, share) in shares {
            self.members.entry(name).and_modify(|(_, claims)| *claims = share);
        }
        self.owners = owners;
        Ok(moved)
    }

    fn join(&mut self, name: String, generation: u64) -> Result<usize> {
        self.members.insert(name, (generation, PartitionSet::EMPTY));
        self.settle()
    }
}

fn of_placement(name: &str, placement: Placement) -> Result<Figures> {
    let keyspace = Keyspace::default();
    let ten = Claimed::of(placement, members(0, 10))?;
    let candidates = ten.candidates();
    let assignment = placement.place(ten.partitions, &candidates);
    let keys: Vec<_> =
        texts().iter().map(|[ns, name]| Key::new("apps", "Deployment", ns, name)).collect();
    for key in &keys {
        let partition = keyspace.partition_of(key);
        let owner = assignment.owner(partition).context("no owner")?;
        ensure!(ten.members[owner].1.contains(partition), "{owner} does not claim {partition}");
    }
    let [lookup_ns, lookup_pair_ns, lookup_pair_cpu_ns] = lookups(&keys, |key| {
        black_box(assignment.owner(keyspace.partition_of(key)));
    });
    let fifty = Claimed::of(placement, members(0, 50))?;
    // A change that moves something: the last one's claims are gone.
    let mut changed = fifty.candidates();
    changed.pop();
    let rebuild = fastest(|| drop(black_box(placement.place(fifty.partitions, &changed))));
    let extremes = || {
        let loads = || assignment.loads().map(|(_, load)| load);
        [loads().min(), loads().max()].map(Option::unwrap_or_default)
    };
    let finding = fastest(|| {
        black_box(extremes());
    });
    let (mut add_moves, mut roll_moves) = (vec![], vec![]);
    for count in ADDED_TO {
        let moved = |trial| {
            let first = 1_000 * trial;
            Claimed::of(placement, members(first, count))?.join(member(first + count), 0)
        };
        add_moves.push((0..TRIALS).map(moved).sum::<Result<usize>>()?);
    }
    for count in ROLLED {
        let mut moves = 0;
        for trial in 0..TRIALS {
            let all = 1_000 * trial..1_000 * trial + count;
            let mut rolled = Claimed::of(placement, all.clone().map(member))?;
            for old in all {
                moves += rolled.join(member(old + count), 1)?;
                rolled.members.remove(&member(old));
                moves += rolled.settle()?;
            }
        }
        roll_moves.push(moves);
    }
    Ok(Figures {
        name: name.to_owned(),
        partitions: ten.partitions,
        lookup_ns,
        lookup_pair_ns,
        lookup_pair_cpu_ns: Some(lookup_pair_cpu_ns),
        rebuild_us: rebuild.as_secs_f64() * 1e6,
        least_most_ns: finding.as_secs_f64() * 1e9,
        least_most: extremes().map(|load| of_mean(load, ten.partitions)),
        add_moves,
        roll_moves,
    })
}
