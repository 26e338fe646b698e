//! Claim, echo, tombstone: who may act on which partition, decided without agreement on anything
//! but the order of writes to each Lease.
//!
//! Every member publishes the partitions it *claims* in its own Lease. It acts on a partition only
//! once it has seen its own claim come back in its watch (the *echo*) and sees no other claim to
//! it; and only until the *fence*, a fixed time after it sent its newest acknowledged renewal. The
//! claims of a dead member are taken away by a write to its Lease (the *tombstone*) that succeeds
//! only if the Lease is unchanged for its whole lease time. Placement only says what to want: it
//! can be wrong, or differ between members, and still no partition has two owners.
//!
//! [`Protocol`] makes all decisions and no I/O: it is told what happened and answers with what is
//! to be done. Time is an argument.
//!
//! # Guarantees
//! At no time do two members act on the same partition, whatever is lost, late, paused or cut
//! off. When messages flow again, every partition that exactly one member wants is acted on by it.
//!
//! # Assumptions
//! - A write with a precondition is atomic, and a watch or list shows a prefix of one history.
//! - Clocks that are said to be steady run at the right rate within
//!   [`TimingConfig::clock_error_permille`]. Clocks of different members are never compared.
//! - The driver does what [`Effect`] says, and asks [`Protocol::acts_until`] before each write it
//!   guards. A write that was already sent can still arrive late: give it a resourceVersion.
//! - A Lease with claims is not deleted by a stranger. If it is, members that had seen it honour
//!   its claims for one more lease time; one that starts just then can't know of them.

mod mutant;
mod own;
mod peers;
mod record;
#[cfg(test)]
mod symmetry;
mod timing;

pub use record::{Holder, Lease, MemberName, Precondition, Record, Stage, Version, Write};
pub use timing::{Millis, Timing, TimingConfig, UnsafeTiming};

pub(crate) use mutant::Mutant;
#[cfg(test)]
pub(crate) use symmetry::View;

use crate::partitions::PartitionSet;
use peers::Peers;
use std::sync::Arc;

/// What the clocks of this member show. Only differences are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Now {
    /// A clock that is never set (`CLOCK_BOOTTIME`).
    pub steady: Millis,
    /// The time of day. It may jump: forwards it can only end ownership early, as it must after the
    /// machine was suspended and the steady clock did not notice.
    pub wall: Millis,
}

/// Who a member is: constant for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The member's name, and so its Lease's.
    pub member: MemberName,
    /// This process.
    pub holder: Holder,
    /// See [`Record::keyspace`].
    pub keyspace: u64,
    /// See [`Record::placement`].
    pub placement: u64,
    /// See [`Record::generation`].
    pub generation: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time passed: [`Protocol::deadline`] was reached. Mere renewals are sent with this event only.
    Tick,
    /// The program is able to reconcile.
    Ready,
    /// Placement says which partitions this member should have.
    Want(PartitionSet),
    /// No work is in flight any more on these partitions. Each [`Effect::Stop`] and
    /// [`Effect::Revoked`] is answered at once with those that have none (maybe none of them), and
    /// again whenever work ends. The partitions of one that were not yet reported are not handed
    /// out again.
    Stopped(PartitionSet),
    /// The process is about to end.
    Leave,
    /// All Leases of the ring, read at one time: what is not among them is gone.
    Listed(Vec<Lease>),
    /// A Lease was created or changed.
    Seen(Lease),
    /// A Lease was deleted.
    Gone(MemberName),
    /// The outstanding write was made and gave this version.
    Written(Version),
    /// The outstanding write's precondition did not hold; the own Lease as read afterwards, if
    /// there is one.
    Refused(Option<Lease>),
    /// Nobody knows what became of the outstanding write.
    Failed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write the own Lease; there is at most one such write at a time. To be answered with
    /// [`Event::Written`], [`Event::Refused`] or, at the latest after
    /// [`TimingConfig::renew_timeout`], with [`Event::Failed`].
    Write(Write),
    /// Replace another member's Lease by this if it still is at the version. The answer does not
    /// matter: success is seen in the watch.
    Tombstone(Lease),
    /// Delete the Lease of a member that left, if it still is at the version.
    Forget(MemberName, Version),
    /// These partitions are this member's: reconcile all objects of theirs, now.
    Gained(PartitionSet),
    /// Start nothing more on these partitions. What runs may end.
    Stop(PartitionSet),
    /// These partitions were lost: what runs on them must write nothing more.
    Revoked(PartitionSet),
    /// Nothing may be written until [`Effect::Resumed`]: renewals don't arrive.
    Fenced,
    /// Renewals arrive again, and nothing was lost.
    Resumed,
    /// Everything is given away: the process can end.
    Left,
    /// Another process runs under this member's name: this one must end. It owns nothing.
    Superseded,
}

/// A write of the own Lease whose answer is not known yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Outstanding {
    age: Millis,
    record: Arc<Record>,
}

/// One member's part of the protocol.
///
/// Two values that are equal but for the time behave alike from then on.
///
#[doc = include_str!("protocol/example.md")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Protocol {
    me: Arc<Identity>,
    timing: Timing,
    now: Now,
    stage: Stage,
    peers: Peers,
    /// The version of the own Lease after the last write known to us.
    version: Option<Version>,
    transitions: u32,
    /// What the newest acknowledged write says, while the Lease is known to be ours.
    published: Option<(PartitionSet, Stage)>,
    write: Option<Outstanding>,
    seq: u64,
    /// Whether a write of this process was ever made.
    joined: bool,
    /// The write that has to be seen in the watch before anything is gained.
    echo: u64,
    /// For how long this member may still act.
    valid: Millis,
    fenced: bool,
    until_renewal: Millis,
    until_retry: Millis,
    wanted: PartitionSet,
    /// Claimed by every write since some acknowledged one: nobody else can have gained these.
    held: PartitionSet,
    /// Where work may start. A subset of `wanted` and of `held`.
    active: PartitionSet,
    /// Given up, but work may be in flight: still claimed. A subset of `held`.
    stopping: PartitionSet,
    /// Taken from us before the end of work was reported.
    lost: PartitionSet,
    #[cfg(test)]
    mutant: Option<Mutant>,
}

impl Protocol {
    /// A member that has not done anything. The first event it needs is [`Event::Listed`].
    pub fn new(me: Identity, timing: Timing, now: Now) -> Self {
        Self {
            peers: Peers::new(me.member.clone()),
            me: Arc::new(me),
            timing,
            now,
            stage: Stage::Joining,
            version: None,
            transitions: 0,
            published: None,
            write: None,
            seq: 0,
            joined: false,
            echo: 0,
            valid: 0,
            fenced: false,
            until_renewal: 0,
            until_retry: 0,
            wanted: PartitionSet::EMPTY,
            held: PartitionSet::EMPTY,
            active: PartitionSet::EMPTY,
            stopping: PartitionSet::EMPTY,
            lost: PartitionSet::EMPTY,
            #[cfg(test)]
            mutant: None,
        }
    }

    /// Takes note of what happened and says what is to be done, in this order.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.advance(now);
        self.fence(&mut effects);
        let is_tick = event == Event::Tick;
        self.take(event, &mut effects);
        // Work that has ended already is to be known before the Lease is written.
        let asks = |effect: &Effect| matches!(effect, Effect::Stop(_) | Effect::Revoked(_));
        let asked_to_stop = effects.iter().any(asks);
        self.activate(&mut effects);
        self.bury(&mut effects);
        if !asked_to_stop {
            self.publish(is_tick, &mut effects);
        }
        effects
    }

    fn take(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Tick => {}
            Event::Ready => self.stage = self.stage.max(Stage::Active),
            Event::Want(wanted) => self.want(wanted, effects),
            Event::Stopped(done) => {
                self.stopping = self.stopping.difference(&done);
                self.lost = self.lost.difference(&done);
            }
            Event::Leave => self.leave(effects),
            Event::Listed(leases) => self.peers.list(leases),
            Event::Seen(lease) => self.peers.see(lease),
            Event::Gone(member) => self.peers.lose(&member),
            Event::Written(version) => self.written(version, effects),
            Event::Refused(lease) => self.refused(lease.as_ref(), effects),
            Event::Failed => self.fail(),
        }
    }

    /// When, on the steady clock, [`Event::Tick`] is due if nothing else happens before. Being late
    /// costs time without an owner, never safety.
    pub fn deadline(&self) -> Option<Millis> {
        if self.stage == Stage::Left || !self.peers.are_listed() {
            return None;
        }
        let write = match self.write {
            None => Some(self.until_write()).filter(|wait| *wait < Millis::MAX),
            Some(_) => None,
        };
        let fence = Some(self.valid).filter(|valid| *valid > 0);
        let death = self.peers.next_change(&self.timing).filter(|wait| *wait < self.valid);
        let wait = write.into_iter().chain(fence).chain(death).min()?;
        Some(self.now.steady.saturating_add(wait))
    }

    /// Until when this member may write on behalf of a partition, unless it is told otherwise
    /// before: until *either* clock passes its time. `None` if it may not at all.
    ///
    /// A write that may take until later than this must not be sent.
    pub fn acts_until(&self, partition: u32) -> Option<Now> {
        let owns = self.active.contains(partition) || self.stopping.contains(partition);
        self.valid_until().filter(|_| owns)
    }

    /// The fence: [`Protocol::acts_until`] of whatever this member owns.
    pub fn valid_until(&self) -> Option<Now> {
        (self.valid > 0).then_some(Now {
            steady: self.now.steady.saturating_add(self.valid),
            wall: self.now.wall.saturating_add(self.valid),
        })
    }

    /// The partitions on which new work may start, if this member is not fenced.
    pub fn active(&self) -> &PartitionSet {
        &self.active
    }

    /// The partitions that placement last said this member should have.
    pub fn wanted(&self) -> &PartitionSet {
        &self.wanted
    }

    /// Whether renewals have been missing for so long that nothing may be written.
    pub fn is_fenced(&self) -> bool {
        self.valid == 0
    }

    /// Where this member is in its life.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The Leases of members among which partitions are to be placed, sorted by name: those that
    /// are active, not taken away, and of this member's keyspace. This member is one of them once
    /// it has seen its own Lease.
    pub fn members(&self) -> impl Iterator<Item = &Lease> {
        self.peers.live().filter(|lease| {
            lease.record.stage == Stage::Active && lease.record.keyspace == self.me.keyspace
        })
    }

    /// The Leases that anybody holds, sorted by name.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.peers.live()
    }

    /// Members that place differently from this one. Safe, but worth a warning: they pull
    /// partitions to and fro.
    pub fn dissenters(&self) -> impl Iterator<Item = &MemberName> {
        let placement = self.me.placement;
        self.members().filter(move |l| l.record.placement != placement).map(|l| &l.member)
    }

    #[cfg(test)]
    pub(crate) fn with(mut self, mutant: Option<Mutant>) -> Self {
        self.mutant = mutant;
        self
    }

    /// Hears of Leases without doing anything about them yet.
    #[cfg(test)]
    pub(crate) fn hear(&mut self, leases: Vec<Lease>) {
        self.peers.list(leases);
    }

    /// All partitions of which [`Protocol::acts_until`] gives the fence.
    #[cfg(test)]
    pub(crate) fn owned(&self) -> PartitionSet {
        self.active.union(&self.stopping)
    }

    /// The partitions whose end of work was asked for and not reported yet.
    #[cfg(test)]
    pub(crate) fn unreported(&self) -> PartitionSet {
        self.stopping.union(&self.lost)
    }

    /// Whether nothing is left to do but to renew. What became of a write whose answer was lost, only
    /// the watch tells; until the Lease is written again, it may say what was never acknowledged.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        let shown =
            self.peers.own().map(|(Lease { record, .. }, _)| (record.claims.clone(), record.stage));
        let is_said = |said: &Option<_>| said.as_ref().is_some_and(|said| !self.is_news(said));
        let is_said = is_said(&self.published) && is_said(&shown);
        is_said && self.valid > 0 && self.write.is_none() && self.unreported().is_empty()
    }

    /// Lets time pass for a process that does not run, and begins to count it anew: everything it
    /// holds is a length of time, which is what makes time unbounded for the model checker.
    #[cfg(test)]
    pub(crate) fn sleep(&mut self, time: Millis) {
        let Now { steady, wall } = self.now;
        self.advance(Now { steady: steady + time, wall: wall + time });
        self.now = Now::default();
    }

    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, reason = "nothing is broken outside of tests")
    )]
    fn broken(&self, mutant: Mutant) -> bool {
        #[cfg(test)]
        return self.mutant == Some(mutant);
        #[cfg(not(test))]
        return {
            let _ = mutant;
            false
        };
    }

    fn advance(&mut self, now: Now) {
        let steady = now.steady.saturating_sub(self.now.steady);
        let longest = steady.max(now.wall.saturating_sub(self.now.wall));
        // After an outage nobody has renewed: time in which we could not is no evidence of death.
        let own = if self.seq == 0 { steady } else { 0 };
        self.peers.age(steady.min(self.valid), own, &self.timing);
        self.valid = self.valid.saturating_sub(longest);
        if let Some(write) = &mut self.write {
            write.age = write.age.saturating_add(longest).min(self.timing.fence);
        }
        self.until_renewal = self.until_renewal.saturating_sub(steady);
        self.until_retry = self.until_retry.saturating_sub(steady);
        self.now = now;
    }

    fn fence(&mut self, effects: &mut Vec<Effect>) {
        if self.valid == 0 && !self.fenced && self.published.is_some() {
            self.fenced = true;
            effects.push(Effect::Fenced);
        }
    }

    fn want(&mut self, wanted: PartitionSet, effects: &mut Vec<Effect>) {
        if self.stage < Stage::Draining {
            self.wanted = wanted;
            self.stop_unwanted(effects);
        }
    }

    fn stop_unwanted(&mut self, effects: &mut Vec<Effect>) {
        let unwanted = self.active.difference(&self.wanted);
        if !unwanted.is_empty() {
            self.active = self.active.intersection(&self.wanted);
            self.stopping = self.stopping.union(&unwanted);
            effects.push(Effect::Stop(unwanted));
        }
    }

    /// Starts what nobody else can be acting on: claimed, echoed, and claimed by nobody else.
    fn activate(&mut self, effects: &mut Vec<Effect>) {
        if self.valid == 0 || self.stage >= Stage::Draining {
            return;
        }
        let mut gained = self.wanted.difference(&self.active);
        if !self.broken(Mutant::NoClaims) {
            gained = gained.intersection(&self.held);
            if self.foreign_claims() && !self.broken(Mutant::MixedKeyspaces) {
                return;
            }
            if !self.peers.shows_own(self.me.holder, self.echo) && !self.broken(Mutant::NoEcho) {
                return;
            }
            for (claims, presumed_dead) in self.peers.claims() {
                if !(presumed_dead && self.broken(Mutant::DeathWithoutWrite)) {
                    gained = gained.difference(claims);
                }
            }
        }
        gained = gained.difference(&self.stopping).difference(&self.lost);
        if !gained.is_empty() {
            self.active = self.active.union(&gained);
            effects.push(Effect::Gained(gained));
        }
    }

    /// Takes away the claims of members whose Lease did not change for its whole lease time.
    fn bury(&mut self, effects: &mut Vec<Effect>) {
        self.peers.drop_ghosts();
        if self.valid == 0 || self.broken(Mutant::DeathWithoutWrite) {
            return;
        }
        self.peers.bury(&self.timing, effects);
    }
}
