//! The Leases that were seen, and for how long each has not changed.

use super::{Effect, Holder, Lease, MemberName, Millis, Stage, Timing};
use crate::partitions::PartitionSet;
use std::sync::Arc;

/// A Lease as last seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Peer {
    lease: Lease,
    /// It is this member's.
    own: bool,
    /// For how long it has not changed, counted only while this member's own Lease was valid.
    idle: Millis,
    /// It was deleted with claims in it, and they are honoured for one lease time.
    ghost: bool,
}

impl Peer {
    fn is_live(&self) -> bool {
        self.lease.record.holder.is_some() && !self.ghost
    }

    /// After how much idle time something is to be done about it.
    fn limit(&self, timing: &Timing, rank: u64) -> Millis {
        if self.is_live() {
            self.lease.record.lease.saturating_add(timing.stagger.saturating_mul(rank))
        } else if self.ghost {
            self.lease.record.lease
        } else {
            timing.forget
        }
    }
}

/// All Leases of the ring, by member, as a watch shows them: a prefix of one history.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peers {
    me: MemberName,
    listed: bool,
    /// Sorted by member.
    seen: Vec<Peer>,
}

impl Peers {
    pub(super) fn new(me: MemberName) -> Self {
        Self { me, listed: false, seen: Vec::new() }
    }

    /// Whether the Leases were listed at least once.
    pub(super) fn are_listed(&self) -> bool {
        self.listed
    }

    /// A stranger that writes a label, say, changes the version but not the record: that is no sign
    /// of life, so the idle time goes on.
    pub(super) fn see(&mut self, lease: Lease) {
        let own = lease.member == self.me;
        match self.seen.binary_search_by(|peer| peer.lease.member.cmp(&lease.member)) {
            Ok(at) if self.seen[at].lease.record == lease.record && !self.seen[at].ghost => {
                self.seen[at].lease.version = lease.version;
            }
            Ok(at) => self.seen[at] = Peer { lease, own, idle: 0, ghost: false },
            Err(at) => self.seen.insert(at, Peer { lease, own, idle: 0, ghost: false }),
        }
    }

    pub(super) fn lose(&mut self, member: &MemberName) {
        let Ok(at) = self.seen.binary_search_by(|peer| peer.lease.member.cmp(member)) else {
            return;
        };
        let peer = &mut self.seen[at];
        if peer.lease.record.claims.is_empty() || peer.own {
            self.seen.remove(at);
        } else if !peer.ghost {
            (peer.ghost, peer.idle) = (true, 0);
        }
    }

    pub(super) fn list(&mut self, leases: Vec<Lease>) {
        let listed = |member: &MemberName| leases.iter().any(|lease| lease.member == *member);
        let missing: Vec<_> = self
            .seen
            .iter()
            .map(|peer| peer.lease.member.clone())
            .filter(|member| !listed(member))
            .collect();
        for member in &missing {
            self.lose(member);
        }
        for lease in leases {
            self.see(lease);
        }
        self.listed = true;
    }

    /// Lets time pass: `others` for the Leases of others, `own` for the own one, which matters while
    /// a former process of our name may have it.
    pub(super) fn age(&mut self, others: Millis, own: Millis, timing: &Timing) {
        let most = self.seen.len() as u64;
        for peer in &mut self.seen {
            let elapsed = if peer.own { own } else { others };
            peer.idle = peer.idle.saturating_add(elapsed).min(peer.limit(timing, most));
        }
    }

    /// The Leases that are held, this member's own among them.
    pub(super) fn live(&self) -> impl Iterator<Item = &Lease> {
        self.seen.iter().filter(|peer| peer.is_live()).map(|peer| &peer.lease)
    }

    fn others(&self) -> impl Iterator<Item = &Peer> {
        self.seen.iter().filter(|peer| !peer.own)
    }

    /// The own Lease as the watch shows it, and for how long it has not changed.
    pub(super) fn own(&self) -> Option<(&Lease, Millis)> {
        let own = self.seen.iter().find(|peer| peer.own);
        own.map(|peer| (&peer.lease, peer.idle))
    }

    /// A Lease as last seen, for how long it has not changed, and whether it was deleted. The name
    /// is to be the very one of the Lease.
    #[cfg(test)]
    pub(super) fn seen_of(&self, member: &MemberName) -> Option<(&Lease, Millis, bool)> {
        let peer = self.seen.iter().find(|peer| Arc::ptr_eq(&peer.lease.member, member))?;
        Some((&peer.lease, peer.idle, peer.ghost))
    }

    /// Whether the watch shows a write of this process at or after number `seq`.
    pub(super) fn shows_own(&self, holder: Holder, seq: u64) -> bool {
        let is_it = |(lease, _): (&Lease, _)| {
            lease.record.holder == Some(holder) && lease.record.seq >= seq
        };
        self.own().is_some_and(is_it)
    }

    /// The claims of all others, each with whether its Lease is overdue.
    pub(super) fn claims(&self) -> impl Iterator<Item = (&PartitionSet, bool)> {
        self.others().map(|peer| (&peer.lease.record.claims, peer.idle >= peer.lease.record.lease))
    }

    /// Whether anybody has claims under another keyspace.
    pub(super) fn foreign_claims(&self, keyspace: u64) -> bool {
        self.others().any(|peer| {
            peer.lease.record.keyspace != keyspace && !peer.lease.record.claims.is_empty()
        })
    }

    /// Whether a member of a smaller keyspace is about to claim as well.
    pub(super) fn smaller_keyspace(&self, keyspace: u64) -> bool {
        let about_to = |peer: &Peer| {
            peer.is_live()
                && peer.lease.record.keyspace < keyspace
                && peer.lease.record.stage == Stage::Active
        };
        self.others().any(about_to)
    }

    pub(super) fn drop_ghosts(&mut self) {
        self.seen.retain(|peer| !peer.ghost || peer.idle < peer.lease.record.lease);
    }

    /// How many live members come before this one: those that seem dead don't count.
    fn rank(&self) -> u64 {
        let before = |peer: &&Peer| {
            peer.is_live() && peer.lease.member < self.me && peer.idle < peer.lease.record.lease
        };
        self.seen.iter().filter(before).count() as u64
    }

    /// Tombstones for overdue Leases, and an end to old tombstones.
    pub(super) fn bury(&mut self, timing: &Timing, effects: &mut Vec<Effect>) {
        let rank = self.rank();
        for peer in &mut self.seen {
            let limit = peer.limit(timing, rank);
            if peer.own || peer.idle < limit {
                continue;
            }
            if peer.is_live() {
                let record = Arc::new(peer.lease.record.vacated());
                effects.push(Effect::Tombstone(Lease { record, ..peer.lease.clone() }));
                peer.idle = limit.saturating_sub(timing.retry);
            } else if !peer.ghost && timing.forget > 0 && rank == 0 {
                effects.push(Effect::Forget(peer.lease.member.clone(), peer.lease.version));
                peer.idle = 0;
            }
        }
    }

    /// How much valid time is left until one of them is due.
    pub(super) fn next_change(&self, timing: &Timing) -> Option<Millis> {
        let rank = self.rank();
        let due = |peer: &Peer| match peer.limit(timing, rank) {
            0 => None,
            _ if !peer.is_live() && !peer.ghost && rank > 0 => None,
            limit => Some(limit.saturating_sub(peer.idle)),
        };
        self.others().filter_map(due).min()
    }
}
