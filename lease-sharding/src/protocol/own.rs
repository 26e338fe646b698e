//! The own Lease: when it is written, what it says, and what an answer means.

use super::{
    Effect, Lease, Millis, Mutant, Outstanding, Precondition, Protocol, Record, Stage, Version,
    Write,
};
use crate::partitions::PartitionSet;
use std::sync::Arc;

impl Protocol {
    /// Begins to give everything away.
    pub(super) fn leave(&mut self, effects: &mut Vec<Effect>) {
        if self.stage >= Stage::Draining {
            return;
        }
        self.wanted = PartitionSet::EMPTY;
        if self.seq == 0 {
            self.stage = Stage::Left;
            effects.push(Effect::Left);
        } else {
            self.stage = Stage::Draining;
            self.stop_unwanted(effects);
        }
    }

    pub(super) fn written(&mut self, version: Version, effects: &mut Vec<Effect>) {
        let Some(Outstanding { age, record }) = self.write.take() else { return };
        (self.version, self.joined) = (Some(version), true);
        if record.holder.is_none() {
            self.stage = Stage::Left;
            effects.push(Effect::Left);
            return;
        }
        if !record.claims.is_subset(&self.held) {
            self.echo = record.seq;
        }
        self.held = record.claims.clone();
        self.published = Some((record.claims.clone(), record.stage));
        let age = if self.broken(Mutant::FenceFromAnswer) { 0 } else { age };
        self.valid = self.timing.fence.saturating_sub(age);
        if self.valid > 0 && std::mem::take(&mut self.fenced) {
            effects.push(Effect::Resumed);
        }
    }

    /// Somebody else wrote the Lease, or an earlier write of ours arrived late.
    pub(super) fn refused(&mut self, lease: Option<&Lease>, effects: &mut Vec<Effect>) {
        if self.write.take().is_none() {
            return;
        }
        self.version = lease.map(|lease| lease.version);
        self.transitions = lease.map_or(0, |lease| lease.record.transitions);
        match lease.and_then(|lease| Some((lease, lease.record.holder?))) {
            Some((lease, holder)) if holder == self.me.holder => {
                self.joined = true;
                self.published = None;
                self.held = self.held.intersection(&lease.record.claims);
                let disowned = self.active.union(&self.stopping).difference(&self.held);
                self.revoke(disowned, effects);
            }
            Some(_) if self.joined => {
                self.stage = Stage::Left;
                self.drop_all(effects);
                effects.push(Effect::Superseded);
            }
            // A former pod of our name lives after all: watch it for a whole lease time again.
            Some((_, holder)) if holder.pod != self.me.holder.pod => self.seq = 0,
            // Taken away, deleted, or still as a former process of this pod left it.
            _ => self.drop_all(effects),
        }
    }

    fn drop_all(&mut self, effects: &mut Vec<Effect>) {
        (self.published, self.held) = (None, PartitionSet::EMPTY);
        (self.valid, self.echo, self.fenced) = (0, 0, false);
        let owned = self.active.union(&self.stopping);
        self.revoke(owned, effects);
    }

    fn revoke(&mut self, partitions: PartitionSet, effects: &mut Vec<Effect>) {
        if !partitions.is_empty() {
            self.active = self.active.difference(&partitions);
            self.stopping = self.stopping.difference(&partitions);
            self.lost = self.lost.union(&partitions);
            effects.push(Effect::Revoked(partitions));
        }
    }

    pub(super) fn fail(&mut self) {
        if self.write.take().is_some() {
            self.until_retry = self.timing.retry;
            // What the Lease says now is not known, so it is to be said again.
            self.until_renewal = 0;
        }
    }

    /// Whether the own name is free: nobody has it, or a former process of this pod, or another
    /// pod's that has not renewed for its whole lease time.
    fn may_join(&self) -> bool {
        let Some((lease, idle)) = self.peers.own() else { return true };
        let other = lease.record.holder.filter(|holder| holder.pod != self.me.holder.pod);
        self.seq > 0 || other.is_none() || idle >= lease.record.lease
    }

    /// How long until the own Lease is to be written; `Millis::MAX` if not before something
    /// happens.
    pub(super) fn until_write(&self) -> Millis {
        match &self.published {
            _ if self.stage == Stage::Left => Millis::MAX,
            None if !self.may_join() => self
                .peers
                .own()
                .map_or(Millis::MAX, |(lease, idle)| lease.record.lease.saturating_sub(idle)),
            None => self.until_retry,
            Some(_) => {
                let wait = if self.is_urgent() { 0 } else { self.until_renewal };
                wait.max(self.until_retry)
            }
        }
    }

    /// Whether the Lease should say something else than what was last published.
    pub(super) fn is_news(&self, (claims, stage): &(PartitionSet, Stage)) -> bool {
        let next = self.next_record();
        next.claims != *claims || next.stage != *stage
    }

    fn is_urgent(&self) -> bool {
        let news = |published: &(PartitionSet, Stage)| self.is_news(published) && !self.gives_way();
        self.published.as_ref().is_none_or(news)
    }

    /// Writes the own Lease if it is time: what is new at once, a mere renewal with a tick.
    pub(super) fn publish(&mut self, is_tick: bool, effects: &mut Vec<Effect>) {
        let idle = self.write.is_none() && self.peers.are_listed();
        if !idle || self.until_write() > 0 || !(is_tick || self.is_urgent()) {
            return;
        }
        if self.seq == 0
            && let Some((lease, _)) = self.peers.own()
        {
            self.version = Some(lease.version);
            self.transitions = lease.record.transitions.saturating_add(1);
        }
        self.seq = self.seq.saturating_add(1);
        let record = Arc::new(self.next_record());
        self.held = self.held.intersection(&record.claims);
        self.until_renewal = self.timing.renew;
        let on = self.version.map_or(Precondition::Absent, Precondition::Is);
        #[cfg(test)]
        let on = if self.broken(Mutant::BlindRenewal) { Precondition::Nothing } else { on };
        self.write = Some(Outstanding { age: 0, record: record.clone() });
        effects.push(Effect::Write(Write { on, record }));
    }

    fn next_record(&self) -> Record {
        let claims = self.next_claims();
        let leaves = self.stage == Stage::Draining && self.stopping.is_empty();
        Record {
            holder: (!leaves).then_some(self.me.holder),
            lease: self.timing.lease,
            keyspace: self.me.keyspace,
            placement: self.me.placement,
            claims,
            seq: self.seq,
            stage: if leaves { Stage::Left } else { self.stage },
            generation: self.me.generation,
            transitions: self.transitions,
        }
    }

    fn next_claims(&self) -> PartitionSet {
        let acts = !(self.active.is_empty() && self.stopping.is_empty());
        if !acts && self.foreign_claims() && !self.broken(Mutant::StubbornKeyspace) {
            return PartitionSet::EMPTY;
        }
        if self.broken(Mutant::ReleaseBeforeStop) {
            return self.wanted.clone();
        }
        self.wanted.union(&self.stopping)
    }

    /// Whether anybody has claims under another keyspace.
    pub(super) fn foreign_claims(&self) -> bool {
        self.peers.foreign_claims(self.me.keyspace) && !self.broken(Mutant::OneKeyspace)
    }

    /// When two keyspaces start at the same moment, the larger claims only along with its
    /// renewals: else both would claim, see each other and withdraw for ever.
    fn gives_way(&self) -> bool {
        self.stage == Stage::Active
            && self.active.is_empty()
            && self.stopping.is_empty()
            && self.published.as_ref().is_some_and(|(claims, _)| claims.is_empty())
            && self.peers.smaller_keyspace(self.me.keyspace)
    }
}
