//! How many pods, which slot each of them fills, and whether the shard count fits the cluster.

use crate::{
    coverage::Slice,
    validate::{Mode, Scale},
};
use std::fmt;

/// Band of nodes per shard in which a shard count fits (R42–R45).
const NODES_PER_SHARD: std::ops::RangeInclusive<f64> = 15.0..=40.0;

/// What one pod is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// 0..desired-1.
    pub index: u32,
    /// The shard it serves: `index mod total`; 0 where every pod serves everything.
    pub shard: u32,
    /// Which of the shard's replicas it is.
    pub replica: u32,
    /// The number of shards; 1 where every pod serves everything.
    pub total: u32,
}

impl Slot {
    /// What a pod in this slot exposes.
    #[must_use]
    pub fn slice(self) -> Option<Slice> {
        Slice::new(self.shard, self.total)
    }
}

/// How many pods `nodes` nodes need (R14, R31).
///
/// `ceil(nodes / nodesPerMonitor)`; with sharding, at least the minimum and at most the maximum of
/// replicas for every shard. 0 nodes need 0 pods without sharding, and the minimum with it.
#[must_use]
pub fn desired(scale: &Scale, nodes: u32) -> u32 {
    let needed = nodes.div_ceil(scale.nodes_per_monitor.get());
    match &scale.mode {
        Mode::Unsharded => needed,
        Mode::Sharded(shards) => {
            let (min, max) =
                (shards.count * shards.min_replicas, shards.count * shards.max_replicas);
            needed.clamp(min, max)
        }
    }
}

/// The slots of `desired` pods, in order of their index (R32).
pub fn slots(mode: &Mode, desired: u32) -> impl Iterator<Item = Slot> {
    let (total, sharded) = (mode.total(), matches!(mode, Mode::Sharded(_)));
    (0..desired).map(move |index| Slot {
        index,
        shard: index % total,
        replica: if sharded { index / total } else { 0 },
        total,
    })
}

/// Whether a shard count fits the number of nodes (R42–R45).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Efficiency {
    /// It does, or there is nothing to judge.
    Fits,
    /// Another count fits better.
    Misfit(Misfit),
    /// It is outside the band, and no other count fits better.
    NothingBetter(Misfit),
}

/// A shard count outside the band.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Misfit {
    /// Shards there are.
    pub shards: u32,
    /// Nodes there are.
    pub nodes: u32,
    /// Shards that would fit better.
    pub recommended: u32,
    /// Whether there are too many shards rather than too few.
    pub over: bool,
}

impl Misfit {
    /// Nodes that each shard serves on average.
    #[must_use]
    pub fn nodes_per_shard(&self) -> f64 {
        f64::from(self.nodes) / f64::from(self.shards.max(1))
    }
}

/// The warning, word for word as R43 and R44 give it.
impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards, nodes, recommended, over } = *self;
        let (kind, remedy) = if over { ("Over", "reducing") } else { ("Under", "increasing") };
        write!(
            f,
            "{kind}-sharded: {shards} shards for {nodes} nodes ({:.1} nodes/shard). Consider {remedy} to {recommended} shards.",
            self.nodes_per_shard()
        )
    }
}

/// Judges the shard count of `mode` for a cluster of `nodes` nodes.
#[must_use]
pub fn efficiency(mode: &Mode, nodes: u32) -> Efficiency {
    let Mode::Sharded(shards) = mode else { return Efficiency::Fits };
    if nodes == 0 {
        return Efficiency::Fits;
    }
    let (shards, recommended) = (shards.count, recommended(nodes));
    let per_shard = f64::from(nodes) / f64::from(shards);
    let misfit = |over| Misfit { shards, nodes, recommended, over };
    if per_shard < *NODES_PER_SHARD.start() {
        if recommended < shards {
            Efficiency::Misfit(misfit(true))
        } else {
            Efficiency::NothingBetter(misfit(true))
        }
    } else if per_shard > *NODES_PER_SHARD.end() {
        if recommended > shards {
            Efficiency::Misfit(misfit(false))
        } else {
            Efficiency::NothingBetter(misfit(false))
        }
    } else {
        Efficiency::Fits
    }
}

/// The number of shards that fits `nodes` nodes (R42).
#[must_use]
pub fn recommended(nodes: u32) -> u32 {
    match nodes {
        0..=60 => 2,
        61..=120 => 3,
        121..=200 => 5,
        _ => nodes.div_ceil(40).clamp(7, 10),
    }
}
