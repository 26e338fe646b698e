//! Consistent hashing with bounded loads, bit-compatible with the Go library
//! `buraksezer/consistent` at its tags v0.10.0 and v1.0.0.
//!
//! Every member has `replication` positions on a circle of 64-bit numbers. Partition by partition,
//! in order, the walk starts at the partition's own hash and goes up to the first position whose
//! member still has room; nobody gets more than [`Ring::capacity`] partitions. A key belongs to
//! the partition `hash(key) mod partitions`.
//!
//! A [`Ring`] is a value: there is no `add` and no `remove`, a changed member set is another ring,
//! and [`Ring::relocated`] counts what differs. Whatever makes the Go library panic is an
//! [`Error`] here.

use crate::hash::KeyHash;

/// Which version's numbers to reproduce. The two disagree on most partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compat {
    /// Positions are `hash(name + i)`, the capacity rounds `partitions / members` down first.
    V0_10,
    /// Positions are `hash(i + ":" + name)`, the capacity is exact.
    V1_0,
}

/// How a ring is built. Zero stands for the Go library's default, as it does there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RingConfig {
    /// The version whose numbers are reproduced.
    pub compat: Compat,
    /// The hash of positions, partitions and keys.
    pub hash: KeyHash,
    /// Number of partitions; 0 means 271. At most [`MAX_PARTITIONS`].
    pub partitions: u32,
    /// Positions of each member; 0 means 20.
    pub replication: u32,
    /// The bound as a multiple of the mean; 0 means 1.25. Below 1.0 there is no room for all.
    pub load: f64,
}

impl RingConfig {
    /// What `operator-scaling` runs with by default.
    pub const OPERATOR_SCALING: Self = Self {
        compat: Compat::V0_10,
        hash: KeyHash::Blake3,
        partitions: 509,
        replication: 20,
        load: 1.25,
    };
}

/// The most partitions that a ring can have.
pub const MAX_PARTITIONS: u32 = 1 << 20;
/// The most positions (members times replication) that a ring can have.
pub const MAX_POSITIONS: u64 = 1 << 24;

/// Why there is no such ring.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The member set is empty: nobody owns anything.
    #[error("a ring without members")]
    NoMembers,
    /// The same name was given twice.
    #[error("member {0:?} is named twice")]
    DuplicateMember(String),
    /// Two members share a position, so that who owns what would depend on the order in which they
    /// were added. With [`Compat::V0_10`], `op-1` and `op-11` do (`op-1` + `10` = `op-11` + `0`).
    #[error("members {0:?} and {1:?} share a position on the ring, rename one of them")]
    SharedPosition(String, String),
    /// The bound is too tight for a partition to find a member.
    #[error(
        "no room for partition {partition}: {members} members take at most {capacity} partitions each"
    )]
    NoRoom {
        /// The first partition that found no member.
        partition: u32,
        /// The number of members.
        members: usize,
        /// The most partitions that one member may have.
        capacity: u64,
    },
    /// The load is negative, infinite or not a number.
    #[error("a load of {0} is no bound")]
    Load(f64),
    /// A size is beyond what is meant to be built.
    #[error("{what} would be {value}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The value asked for.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// More distinct members were asked for than there are.
    #[error("{asked} distinct members of {members}")]
    TooFewMembers {
        /// The number asked for.
        asked: usize,
        /// The number of members.
        members: usize,
    },
}

/// Who owns which partition: an immutable table.
///
/// # Guarantees
/// Equal member sets under equal configurations give equal rings, in whatever order the members
/// come. No member owns more than [`Ring::capacity`] partitions. Looking a key up takes one hash
/// and one index, and neither locks nor allocates.
#[derive(Clone, Debug, PartialEq)]
pub struct Ring {
    hash: KeyHash,
    capacity: u64,
    distinct_positions: usize,
    members: Vec<String>,
    owners: Vec<u32>,
    /// How many partitions each member owns.
    loads: Vec<u64>,
}

impl Ring {
    /// The ring of a set of members.
    pub fn new<S: Into<String>>(
        config: RingConfig,
        members: impl IntoIterator<Item = S>,
    ) -> Result<Self, Error> {
        let mut members: Vec<String> = members.into_iter().map(Into::into).collect();
        members.sort_unstable();
        let positions = positions(config, &members)?;
        if let Some(pair) = positions.windows(2).find(|w| w[0].0 == w[1].0 && w[0].1 != w[1].1) {
            let name = |at: u32| members[at as usize].clone();
            return Err(Error::SharedPosition(name(pair[0].1), name(pair[1].1)));
        }
        Self::distribute(config, members, &positions)
    }

    /// The ring of the Go library after these members were added in this order: members that share
    /// a position are accepted, and the one added last has it. For comparing with a running
    /// operator only: replicas that add in different orders disagree about such a ring.
    pub fn in_order_of_addition<S: Into<String>>(
        config: RingConfig,
        members: impl IntoIterator<Item = S>,
    ) -> Result<Self, Error> {
        let members: Vec<String> = members.into_iter().map(Into::into).collect();
        let mut positions = positions(config, &members)?;
        // Ascending by index within a position, so the last one is the one added last.
        for at in (1..positions.len()).rev() {
            if positions[at - 1].0 == positions[at].0 {
                positions[at - 1].1 = positions[at].1;
            }
        }
        Self::distribute(config, members, &positions)
    }

    fn distribute(
        config: RingConfig,
        members: Vec<String>,
        positions: &[(u64, u32)],
    ) -> Result<Self, Error> {
        let partitions = or_default(config.partitions, 271);
        let capacity = capacity(config, partitions, members.len())?;
        let tries = match config.compat {
            Compat::V0_10 => positions.len() - 1,
            Compat::V1_0 => positions.len(),
        };
        let mut loads = vec![0_u64; members.len()];
        let mut owners = Vec::with_capacity(partitions as usize);
        for partition in 0..partitions {
            let start = config.hash.hash(&u64::from(partition).to_le_bytes());
            let first = positions.partition_point(|(position, _)| *position < start);
            let walk = positions[first..].iter().chain(&positions[..first]).take(tries);
            let free = walk.map(|(_, member)| *member).find(|m| loads[*m as usize] < capacity);
            let Some(owner) = free else {
                return Err(Error::NoRoom { partition, members: members.len(), capacity });
            };
            loads[owner as usize] += 1;
            owners.push(owner);
        }
        let distinct_positions = positions.chunk_by(|a, b| a.0 == b.0).count();
        Ok(Self { hash: config.hash, capacity, distinct_positions, members, owners, loads })
    }

    /// The members, sorted by name.
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// The number of partitions.
    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_PARTITIONS")]
    pub fn partitions(&self) -> u32 {
        self.owners.len() as u32
    }

    /// The most partitions that a member may own (`AverageLoad` in the Go library).
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The partition of a key.
    #[expect(clippy::cast_possible_truncation, reason = "smaller than the number of partitions")]
    pub fn partition_of(&self, key: &[u8]) -> u32 {
        (self.hash.hash(key) % self.owners.len() as u64) as u32
    }

    /// The owner of a partition; `None` if there is no such partition.
    pub fn owner_of_partition(&self, partition: u32) -> Option<&str> {
        let owner = *self.owners.get(partition as usize)?;
        self.members.get(owner as usize).map(String::as_str)
    }

    /// The owner of a key. There always is one, since a ring without members can't be built.
    pub fn owner(&self, key: &[u8]) -> &str {
        &self.members[self.owners[self.partition_of(key) as usize] as usize]
    }

    /// How many partitions a member owns; 0 for a stranger.
    pub fn load(&self, member: &str) -> usize {
        self.loads().find(|(name, _)| *name == member).map_or(0, |(_, load)| load)
    }

    /// The members with how many partitions each owns.
    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_PARTITIONS")]
    pub fn loads(&self) -> impl Iterator<Item = (&str, usize)> {
        self.members.iter().zip(&self.loads).map(|(name, load)| (name.as_str(), *load as usize))
    }

    /// `count` distinct members for a key, its owner first: the others follow in the order of
    /// their names' hashes.
    pub fn closest(&self, key: &[u8], count: usize) -> Result<Vec<&str>, Error> {
        if count > self.members.len() {
            return Err(Error::TooFewMembers { asked: count, members: self.members.len() });
        }
        let mut by_hash: Vec<_> =
            self.members.iter().map(|m| (self.hash.hash(m.as_bytes()), m.as_str())).collect();
        by_hash.sort_unstable();
        let owner = self.owner(key);
        let start = by_hash.iter().position(|(_, member)| *member == owner).unwrap_or_default();
        Ok(by_hash.iter().cycle().skip(start).take(count).map(|(_, member)| *member).collect())
    }

    /// How many different positions the members have on the circle: fewer than members times
    /// replication if some are shared.
    pub fn distinct_positions(&self) -> usize {
        self.distinct_positions
    }

    /// How many partitions have another owner in `next`. Rings of different sizes share only the
    /// partitions that both have.
    pub fn relocated(&self, next: &Self) -> usize {
        let moved =
            |(a, b): &(&u32, &u32)| self.members[**a as usize] != next.members[**b as usize];
        self.owners.iter().zip(&next.owners).filter(moved).count()
    }
}

/// All positions with the index of their member, ascending. Checks what can be known of the
/// settings and the members before any memory is spent on them.
fn positions(config: RingConfig, members: &[String]) -> Result<Vec<(u64, u32)>, Error> {
    let replication = or_default(config.replication, 20);
    let count = u64::from(replication).saturating_mul(members.len() as u64);
    let partitions = u64::from(config.partitions);
    for (what, value, limit) in [
        ("the number of partitions", partitions, u64::from(MAX_PARTITIONS)),
        ("the number of positions", count, MAX_POSITIONS),
    ] {
        if value > limit {
            return Err(Error::TooLarge { what, value, limit });
        }
    }
    let mut names: Vec<&String> = members.iter().collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::DuplicateMember(pair[0].clone()));
    }
    let mut positions = Vec::new();
    for (index, name) in (0_u32..).zip(members) {
        for i in 0..replication {
            let text = match config.compat {
                Compat::V0_10 => format!("{name}{i}"),
                Compat::V1_0 => format!("{i}:{name}"),
            };
            positions.push((config.hash.hash(text.as_bytes()), index));
        }
    }
    positions.sort_unstable();
    if positions.is_empty() { Err(Error::NoMembers) } else { Ok(positions) }
}

/// In the Go library's order of operations on f64: 10 * 1.1 rounds up to 12, not to 11.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "defined on f64; counts are below 2^53, and a huge bound saturates"
)]
fn capacity(config: RingConfig, partitions: u32, members: usize) -> Result<u64, Error> {
    let load = if config.load == 0.0 { 1.25 } else { config.load };
    if !load.is_finite() || load < 0.0 {
        return Err(Error::Load(load));
    }
    let mean = match config.compat {
        Compat::V0_10 => (partitions as usize / members) as f64,
        Compat::V1_0 => f64::from(partitions) / members as f64,
    };
    Ok((mean * load).ceil() as u64)
}

fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}
