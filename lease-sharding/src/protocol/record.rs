//! What a member's Lease says, and what is asked of the API server.

use super::Millis;
use crate::partitions::PartitionSet;
use std::sync::Arc;

/// A member's name: that of its pod, and unique among pods that run at the same time.
pub type MemberName = Arc<str>;

/// The `resourceVersion` of a Lease. Only equality is ever used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

/// Which process holds a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The pod's UID. A process with the same UID replaces a former one, which is gone then.
    pub pod: u128,
    /// Drawn at random when the process starts.
    pub incarnation: u128,
}

/// A member's way through life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Not ready to reconcile: gets no share.
    Joining,
    /// Takes part.
    Active,
    /// Finishes what runs and gives everything away.
    Draining,
    /// Gone: nothing is written any more.
    Left,
}

/// The content of a Lease, as far as decisions depend on it. Times of day are not in it: they
/// are written for people and for foreign tools, and never read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Who holds it; `None` if it was released, or taken away from a dead member.
    pub holder: Option<Holder>,
    /// For how long this Lease has to stay unchanged before its claims may be taken away.
    pub lease: Millis,
    /// Identifies how keys become partitions. A claim under another keyspace is in conflict with
    /// every partition.
    pub keyspace: u64,
    /// Identifies how partitions are placed. A difference costs movement, never safety.
    pub placement: u64,
    /// The partitions that nobody else may act on.
    pub claims: PartitionSet,
    /// Counts this process's writes.
    pub seq: u64,
    /// Where the member is in its life.
    pub stage: Stage,
    /// Which roll-out the member belongs to; a larger number is newer.
    pub generation: u64,
    /// How often the Lease went from one process to the next or was taken away.
    pub transitions: u32,
}

impl Record {
    /// What is left of a Lease that is released or taken away.
    #[must_use]
    pub fn vacated(&self) -> Self {
        Self {
            holder: None,
            claims: PartitionSet::EMPTY,
            stage: Stage::Left,
            transitions: self.transitions.saturating_add(1),
            ..self.clone()
        }
    }
}

/// A Lease as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Whose it is.
    pub member: MemberName,
    /// Its version.
    pub version: Version,
    /// Its content.
    pub record: Arc<Record>,
}

/// What must be true of the own Lease for a write to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precondition {
    /// There is none: create it.
    Absent,
    /// It is at this version: replace it.
    Is(Version),
    /// Nothing. Only a mutant asks for this.
    #[cfg(test)]
    Nothing,
}

/// A write of the own Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// What must be true for it to be made.
    pub on: Precondition,
    /// The new content.
    pub record: Arc<Record>,
}
