//! When two states of the model are the same but for names and numbers that nothing depends on.

use super::{Lease, MemberName, Protocol, Record, Version};
use crate::partitions::PartitionSet;
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Other names for members and partitions, and what versions and sequence numbers count from.
///
/// Nobody's behaviour depends on names, but for the order in which tombstones are tried, and that
/// makes no difference without [`super::TimingConfig::stagger`]. Versions are compared for equality
/// with others of the same Lease, and sequence numbers with others of the same process: how far
/// they are from the newest says it all.
pub(crate) struct View<'a> {
    /// Members in the order of their new names. All that is looked at has these very names.
    pub(crate) members: &'a [&'a MemberName],
    /// The new number of each partition.
    pub(crate) partitions: &'a [u32],
    /// The Lease that the API server has of each member, in the same order.
    pub(crate) server: &'a [Option<&'a Lease>],
    /// The processes' sequence numbers and incarnations, in the same order.
    pub(crate) processes: &'a [Option<(u64, u128)>],
}

impl View<'_> {
    pub(crate) fn place(&self, member: &MemberName) -> usize {
        let is_it = |name: &&MemberName| Arc::ptr_eq(name, member);
        self.members.iter().position(is_it).expect("a member of the model")
    }

    pub(crate) fn version(&self, at: usize, version: Version) -> u64 {
        let newest = self.server[at].map_or(0, |lease| lease.version.0);
        newest.wrapping_sub(version.0)
    }

    fn set(&self, set: &PartitionSet) -> u64 {
        set.iter().fold(0, |bits, partition| bits | 1 << self.partitions[partition as usize])
    }

    pub(crate) fn lease(&self, lease: &Lease, state: &mut impl Hasher) {
        let at = self.place(&lease.member);
        (at, self.version(at, lease.version)).hash(state);
        self.record(at, &lease.record, state);
    }

    pub(crate) fn record(&self, at: usize, record: &Record, state: &mut impl Hasher) {
        let holder = record.holder.map(|holder| holder.incarnation);
        let current = self.processes[at].filter(|(_, incarnation)| holder == Some(*incarnation));
        let seq = current.map_or(record.seq, |(newest, _)| newest.wrapping_sub(record.seq));
        (holder, current.is_some(), seq).hash(state);
        (record.keyspace, self.set(&record.claims), record.stage, record.transitions).hash(state);
    }
}

impl Protocol {
    /// What a [`View`] has to know of a process: its newest sequence number and its incarnation.
    pub(crate) fn newest(&self) -> (u64, u128) {
        (self.seq, self.me.holder.incarnation)
    }

    /// Some of what [`Protocol::hash_in`] says, and the same in every view.
    pub(crate) fn hash_nameless(&self, state: &mut impl Hasher) {
        (self.stage, self.seq == 0, self.joined).hash(state);
        (self.valid, self.until_renewal, self.until_retry).hash(state);
        for set in [&self.wanted, &self.held, &self.active, &self.stopping, &self.lost] {
            set.len().hash(state);
        }
    }

    /// Hashes all on which behaviour depends, as it looks in `view`. Whether the fence was told is
    /// not in it, nor what constants say.
    pub(crate) fn hash_in(&self, view: &View<'_>, state: &mut impl Hasher) {
        let at = view.place(&self.me.member);
        (self.me.holder.incarnation, self.me.keyspace, self.stage, self.transitions).hash(state);
        self.version.map(|version| view.version(at, version)).hash(state);
        let published = self.published.as_ref();
        published.map(|(claims, stage)| (view.set(claims), *stage)).hash(state);
        let write = self.write.as_ref();
        write.map(|write| write.age).hash(state);
        if let Some(write) = write {
            view.record(at, &write.record, state);
        }
        (self.seq == 0, self.joined, self.awaited()).hash(state);
        (self.valid, self.until_renewal, self.until_retry).hash(state);
        for set in [&self.wanted, &self.held, &self.active, &self.stopping, &self.lost] {
            view.set(set).hash(state);
        }
        for member in view.members {
            let seen = self.peers.seen_of(member);
            seen.map(|(_, idle, ghost)| (idle, ghost)).hash(state);
            if let Some((lease, ..)) = seen {
                view.lease(lease, state);
            }
        }
    }

    /// How far back the write is that has yet to be seen. Once it was, it makes no difference which
    /// one it was: what a process writes is stored in order.
    fn awaited(&self) -> Option<u64> {
        let seen = self.peers.shows_own(self.me.holder, self.echo);
        (!seen).then(|| self.seq.wrapping_sub(self.echo))
    }
}
