//! Which partitions are this replica's, and which work is under way on them.

use super::{Guard, Work};
use crate::{
    clock::Clock,
    partitions::PartitionSet,
    protocol::{Lease, MemberName, Millis, Now},
};
use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What the protocol last said, for everybody else in the process.
#[derive(Debug)]
pub(crate) struct Ledger {
    state: Mutex<State>,
    clock: Clock,
    write_timeout: Millis,
    /// Partitions on which the last work ended after that was asked for.
    ended: mpsc::UnboundedSender<u32>,
}

#[derive(Debug, Default)]
struct State {
    /// The fence. Past either of its times nothing may be written.
    until: Option<Now>,
    active: PartitionSet,
    /// Where the end of work was asked for.
    stopping: PartitionSet,
    works: BTreeMap<(u32, u64), CancellationToken>,
    last_number: u64,
    /// Every member's Lease.
    leases: Vec<Lease>,
    listeners: Vec<mpsc::UnboundedSender<PartitionSet>>,
}

impl State {
    fn works_on(&self, partition: u32) -> impl Iterator<Item = &CancellationToken> {
        self.works.range((partition, 0)..=(partition, u64::MAX)).map(|(_, token)| token)
    }

    fn tell(&mut self, gained: &PartitionSet) {
        self.listeners.retain(|listener| listener.send(gained.clone()).is_ok());
    }

    fn stop(&mut self, partitions: &PartitionSet) -> PartitionSet {
        self.active = self.active.difference(partitions);
        let idle = partitions.iter().filter(|p| self.works_on(*p).next().is_none()).collect();
        self.stopping = self.stopping.union(partitions).difference(&idle);
        idle
    }

    fn tokens(&self, partitions: &PartitionSet) -> Vec<CancellationToken> {
        let on = |((partition, _), token): (&(u32, u64), &CancellationToken)| {
            partitions.contains(*partition).then(|| token.clone())
        };
        self.works.iter().filter_map(on).collect()
    }
}

impl Ledger {
    /// Nothing is owned. The other end hears of partitions whose work has ended, each once for
    /// every time that this was asked for.
    pub(crate) fn new(clock: Clock, write_timeout: Millis) -> (Self, mpsc::UnboundedReceiver<u32>) {
        let (ended, ends) = mpsc::unbounded_channel();
        (Self { state: Mutex::default(), clock, write_timeout, ended }, ends)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of the fence and of everybody's Leases.
    pub(crate) fn renew(&self, until: Option<Now>, leases: Vec<Lease>) {
        let mut state = self.lock();
        (state.until, state.leases) = (until, leases);
    }

    /// Work may start, and those who listen are to start it.
    pub(crate) fn gain(&self, partitions: &PartitionSet) {
        let mut state = self.lock();
        state.active = state.active.union(partitions);
        state.tell(partitions);
    }

    /// Whoever was turned away while nothing could be written is to try again.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        let active = state.active.clone();
        state.tell(&active);
    }

    /// No work may start any more. Returns where there is none, and what is under way elsewhere.
    pub(crate) fn stop(&self, partitions: &PartitionSet) -> (PartitionSet, Vec<CancellationToken>) {
        let mut state = self.lock();
        let idle = state.stop(partitions);
        (idle, state.tokens(partitions))
    }

    /// All guards of these are lost. Returns where there was no work.
    pub(crate) fn revoke(&self, partitions: &PartitionSet) -> PartitionSet {
        let mut state = self.lock();
        let idle = state.stop(partitions);
        let tokens = state.tokens(partitions);
        drop(state);
        tokens.iter().for_each(CancellationToken::cancel);
        idle
    }

    /// Nothing will be owned any more: those who listen hear so.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        let tokens = mem::take(&mut state.works);
        let (works, last_number) = (BTreeMap::new(), state.last_number);
        *state = State { works, last_number, ..State::default() };
        drop(state);
        tokens.values().for_each(CancellationToken::cancel);
    }

    /// A guard, if the partition is this replica's now.
    pub(crate) fn begin(self: &Arc<Self>, partition: u32) -> Option<Guard> {
        let mut state = self.lock();
        let now = self.clock.now();
        let valid =
            state.until.is_some_and(|until| now.steady < until.steady && now.wall < until.wall);
        if !valid || !state.active.contains(partition) {
            return None;
        }
        state.last_number += 1;
        let (number, lost) = (state.last_number, CancellationToken::new());
        state.works.insert((partition, number), lost.clone());
        Some(Guard { work: Arc::new(Work { partition, number, lost, ledger: self.clone() }) })
    }

    pub(super) fn end(&self, partition: u32, number: u64) {
        let mut state = self.lock();
        state.works.remove(&(partition, number));
        if state.stopping.contains(partition) && state.works_on(partition).next().is_none() {
            state.stopping = state.stopping.difference(&PartitionSet::from_iter([partition]));
            // Whoever listened is gone with the process's membership.
            let _ = self.ended.send(partition);
        }
    }

    /// Whether a write that starts now ends before the fence.
    pub(super) fn allows_write(&self) -> bool {
        let until = self.lock().until;
        let Now { steady, wall } = self.clock.now();
        let fits = |now: Millis, until: Millis| now.saturating_add(self.write_timeout) <= until;
        until.is_some_and(|until| fits(steady, until.steady) && fits(wall, until.wall))
    }

    /// The longest that a write may take.
    pub(super) fn write_timeout(&self) -> Millis {
        self.write_timeout
    }

    /// Hears of all that is gained, beginning with what is owned already.
    pub(crate) fn listen(&self) -> mpsc::UnboundedReceiver<PartitionSet> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        if !state.active.is_empty() {
            // The receiver is here.
            let _ = sender.send(state.active.clone());
        }
        state.listeners.push(sender);
        receiver
    }

    /// The one member that claims the partition; `None` while there is none, or several.
    pub(crate) fn claimant(&self, partition: u32) -> Option<MemberName> {
        let state = self.lock();
        let mut claimants = state.leases.iter().filter(|l| l.record.claims.contains(partition));
        let one = claimants.next()?;
        claimants.next().is_none().then(|| one.member.clone())
    }
}
