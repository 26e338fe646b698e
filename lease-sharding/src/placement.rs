//! Which member should have which partition. A pure function: equal inputs give equal answers on
//! every replica, and no partition has two owners even while the inputs differ.
//!
//! | | needs | peak / mean | moves on a join | moves in a rolling update |
//! | --- | --- | --- | --- | --- |
//! | [`Placement::Rendezvous`] | names | at most the load bound | the optimum within 1 % | more than one each |
//! | [`Placement::Sticky`] | names, claims, generations | 1, rounded up | the optimum | 1 each |

mod rendezvous;
mod roster;
mod sticky;
#[cfg(test)]
mod tests;

pub use roster::Roster;

use crate::{partitions::PartitionSet, protocol::Protocol};

/// A member that can be given partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it claims now.
    pub claims: &'a PartitionSet,
    /// Which roll-out it belongs to; a larger number is newer.
    pub generation: u64,
}

/// The bound on a member's share, as a fraction of the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Load(u32);

impl Load {
    /// At most 125 % of the mean.
    pub const DEFAULT: Self = Self(125);

    /// At most this many percent of the mean; less than 100 would leave partitions without an
    /// owner, so it counts as 100.
    #[must_use]
    pub fn percent(percent: u32) -> Self {
        Self(percent.max(100))
    }

    /// The most partitions for each of `members`: with it there is room for all.
    #[must_use]
    pub fn capacity(self, partitions: u32, members: usize) -> usize {
        let share = u128::from(partitions) * u128::from(self.0);
        let capacity = share.div_ceil(100 * members.max(1) as u128);
        usize::try_from(capacity).unwrap_or(usize::MAX)
    }
}

/// How partitions are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Each partition prefers members in an order of its own (rendezvous hashing); a member that is
    /// full keeps those that fit it best.
    Rendezvous(Load),
    /// Who claims a partition keeps it, as far as shares stay equal. While a newer generation joins,
    /// shares are taken over whole from members that leave, and nothing moves to an old member
    /// unless the newer ones, at `Load`, have no room.
    Sticky(Load),
}

impl Default for Placement {
    fn default() -> Self {
        Self::Rendezvous(Load::DEFAULT)
    }
}

impl Placement {
    /// Identifies the algorithm and its parameters, for [`crate::protocol::Record::placement`].
    #[must_use]
    pub fn fingerprint(self) -> u64 {
        let (algorithm, Load(load)) = match self {
            Self::Rendezvous(load) => (1, load),
            Self::Sticky(load) => (2, load),
        };
        algorithm << 32 | u64::from(load)
    }

    /// The owner of each of `partitions` partitions.
    ///
    /// # Guarantees
    /// The order of members does not matter, nor does naming one twice. Every partition has an owner
    /// if there is any member, and none has more than [`Load::capacity`] of them; while generations
    /// are mixed under [`Placement::Sticky`], of the larger generation's or the others' number.
    #[must_use]
    pub fn place<'a>(self, partitions: u32, members: &[Candidate<'a>]) -> Assignment<'a> {
        let mut members = members.to_vec();
        members.sort_by(|a, b| {
            (a.name, a.generation, a.claims).cmp(&(b.name, b.generation, b.claims))
        });
        members.dedup_by_key(|member| member.name);
        let owners = match self {
            _ if members.is_empty() => vec![],
            Self::Rendezvous(load) => rendezvous::place(partitions, load, &members),
            Self::Sticky(load) => sticky::place(partitions, load, &members),
        };
        let mut loads = vec![0; members.len()];
        for at in &owners {
            loads[*at] += 1;
        }
        Assignment { members, owners, loads }
    }

    /// What a member should want, from the Leases that it sees: the argument of
    /// [`crate::protocol::Event::Want`]. Nothing while it does not see its own.
    #[must_use]
    pub fn wants(self, partitions: u32, protocol: &Protocol, member: &str) -> PartitionSet {
        self.assign(partitions, protocol, |_| true).share(member)
    }

    /// Who should have what, from the Leases that a member sees, of those that are `placed`.
    #[must_use]
    pub fn assign(
        self,
        partitions: u32,
        protocol: &Protocol,
        placed: impl Fn(&str) -> bool,
    ) -> Assignment<'_> {
        let candidates: Vec<_> = protocol
            .members()
            .filter(|lease| placed(&lease.member))
            .map(|lease| Candidate {
                name: &lease.member,
                claims: &lease.record.claims,
                generation: lease.record.generation,
            })
            .collect();
        self.place(partitions, &candidates)
    }
}

/// Who should have what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment<'a> {
    members: Vec<Candidate<'a>>,
    owners: Vec<usize>,
    loads: Vec<usize>,
}

impl<'a> Assignment<'a> {
    /// The owner of a partition; `None` if there are no members or no such partition.
    pub fn owner(&self, partition: u32) -> Option<&'a str> {
        self.owners.get(partition as usize).map(|at| self.members[*at].name)
    }

    /// The owners of all partitions, in their order; empty if there are no members.
    pub fn owners(&self) -> impl Iterator<Item = &'a str> {
        self.owners.iter().map(|at| self.members[*at].name)
    }

    /// The members, sorted by name, with how many partitions each is to have.
    pub fn loads(&self) -> impl Iterator<Item = (&'a str, usize)> {
        self.members.iter().zip(&self.loads).map(|(member, load)| (member.name, *load))
    }

    /// All partitions of a member.
    pub fn share(&self, member: &str) -> PartitionSet {
        let mine = |(_, at): &(u32, &usize)| self.members[**at].name == member;
        (0..).zip(&self.owners).filter(mine).map(|(partition, _)| partition).collect()
    }
}

/// How well a member fits a partition: a fixed random number for each pair.
fn score(seed: u64, partition: u32) -> u64 {
    let mut mixed = seed ^ (u64::from(partition) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(factor);
    }
    mixed ^ (mixed >> 31)
}

/// The seed of each member's scores.
fn seeds(members: &[Candidate<'_>]) -> Vec<u64> {
    members.iter().map(|m| xxhash_rust::xxh3::xxh3_64(m.name.as_bytes())).collect()
}
