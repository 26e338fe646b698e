//! The shipped [`Protocol`] under a model checker: every order of what can happen, within bounds.
//!
//! Members see a prefix of one log of Lease writes, each its own. A member has at most one write
//! outstanding and one that it gave up on but that may still arrive. Answers get lost, processes
//! sleep, crash and start again, and placement is any whim at any time. Time is unbounded: the
//! protocol holds ages, which have a limit. Bounded are the Lease writes (made or on their way),
//! the crashes and the losses.

mod checks;
mod symmetry;

use crate::{
    partitions::PartitionSet,
    protocol::{
        Effect, Event, Holder, Identity, Lease, MemberName, Mutant, Now, Precondition, Protocol,
        Record, Timing, TimingConfig, Version, Write,
    },
};
use stateright::{Model, Property};
use std::sync::{Arc, LazyLock};

/// Fence and lease are equal: with exact clocks, the very edge of what is safe. Renewals may be sent
/// at any time.
const EDGE: TimingConfig = TimingConfig {
    lease: 2,
    fence: 2,
    renew: 0,
    retry: 0,
    renew_timeout: 1,
    write_timeout: 0,
    clock_error_permille: 0,
    stagger: 0,
    forget: 0,
};

static NAMES: LazyLock<[MemberName; 3]> = LazyLock::new(|| ["a", "b", "c"].map(Into::into));

/// How much may happen.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    members: usize,
    partitions: u32,
    writes: u8,
    crashes: u8,
    losses: u8,
    /// The keyspace of each member.
    keyspaces: [u64; 3],
    timing: TimingConfig,
    mutant: Option<Mutant>,
    /// What has happened already, beyond the bounds.
    after: &'static [Action],
    /// Whether to remember who acted before, for finding out what can be reached.
    history: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Member {
    /// `None` while the process is down. What one step does not change, states have in common.
    process: Option<Arc<Protocol>>,
    incarnation: u8,
    /// The outstanding write, and what became of it if the server has decided.
    outstanding: Option<(Write, Option<Event>)>,
    /// A write nobody waits for any more. It may still arrive.
    late: Option<Write>,
    /// How many entries of the log it has seen.
    seen: usize,
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    partitions: u32,
    server: Vec<Option<Lease>>,
    /// What at least one running member has not seen yet.
    log: Vec<Lease>,
    members: Vec<Member>,
    writes: u8,
    crashes: u8,
    losses: u8,
    last_owner: Option<usize>,
    reached: [bool; 3],
}

const HANDOVER: usize = 0;
const TAKEOVER: usize = 1;
const RESUMED: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Tick,
    Wake(usize),
    Want(usize, u32),
    Stopped(usize, u32),
    Commit(usize),
    Answer(usize),
    Lose(usize),
    ArriveLate(usize),
    See(usize),
    Crash(usize),
    Restart(usize),
}

fn holder(member: usize, incarnation: u8) -> Holder {
    Holder { pod: member as u128, incarnation: incarnation.into() }
}

impl Bounds {
    fn name(member: usize) -> MemberName {
        NAMES[member].clone()
    }

    fn start(&self, member: usize, incarnation: u8, leases: Vec<Lease>) -> Protocol {
        let me = Identity {
            member: Self::name(member),
            holder: holder(member, incarnation),
            keyspace: self.keyspaces[member],
            placement: 0,
            generation: 0,
        };
        let timing = Timing::unchecked(self.timing);
        let mut process = Protocol::new(me, timing, Now::default()).with(self.mutant);
        assert!(process.step(Now::default(), Event::Ready).is_empty());
        // The first write follows with the first tick that the process gets.
        process.hear(leases);
        process
    }

    fn commit(state: &mut State, member: usize, record: Arc<Record>) -> Version {
        let before = state.server[member].as_ref().map_or(0, |lease| lease.version.0);
        let lease = Lease { member: Self::name(member), version: Version(before + 1), record };
        state.server[member] = Some(lease.clone());
        state.log.push(lease);
        state.writes += 1;
        Version(before + 1)
    }

    fn holds(state: &State, member: usize, on: Precondition) -> bool {
        match on {
            Precondition::Absent => state.server[member].is_none(),
            Precondition::Is(v) => state.server[member].as_ref().is_some_and(|l| l.version == v),
            Precondition::Nothing => true,
        }
    }

    /// Gives an event to a process and does what it asks for.
    fn step(&self, state: &mut State, member: usize, event: Event) {
        let Some(process) = &mut state.members[member].process else { return };
        let was_fenced = process.is_fenced() && !process.active().is_empty();
        let effects = Arc::make_mut(process).step(Now::default(), event);
        let dead = effects.iter().filter(|e| matches!(e, Effect::Tombstone(_))).count();
        // All of them or none: within the bounds, none may depend on the order of names.
        let bury = usize::from(state.writes) + dead <= self.writes.into();
        for effect in effects {
            match effect {
                Effect::Write(write) => state.members[member].outstanding = Some((write, None)),
                Effect::Tombstone(lease) if bury => self.bury(state, lease),
                Effect::Gained(_) if self.history => {
                    let before = state.last_owner.replace(member).filter(|last| *last != member);
                    let Some(before) = before else { continue };
                    state.reached[HANDOVER] |= state.members[before].process.is_some();
                    state.reached[TAKEOVER] |= state.members[before].process.is_none();
                }
                Effect::Resumed => state.reached[RESUMED] |= self.history && was_fenced,
                _ => {}
            }
        }
    }

    fn bury(&self, state: &mut State, lease: Lease) {
        let Some(target) = (0..self.members).find(|m| NAMES[*m] == lease.member) else {
            return;
        };
        if Self::holds(state, target, Precondition::Is(lease.version)) {
            Self::commit(state, target, lease.record);
        }
    }

    fn answer(&self, state: &mut State, member: usize, outcome: Event) {
        state.members[member].outstanding = None;
        // A refusal is followed by a read, which sees the Lease as it is then.
        let event = match outcome {
            Event::Refused(_) => Event::Refused(state.server[member].clone()),
            written => written,
        };
        self.step(state, member, event);
    }

    fn toggle(&self, state: &mut State, at: usize, partition: u32) -> Option<()> {
        let wanted = state.members[at].process.as_ref()?.wanted();
        let one = PartitionSet::from_iter([partition]);
        let with = wanted.union(&one);
        let wanted = if *wanted == with { wanted.difference(&one) } else { with };
        self.step(state, at, Event::Want(wanted));
        Some(())
    }

    fn arrive(state: &mut State, at: usize) -> Option<()> {
        let (write, _) = state.members[at].outstanding.clone()?;
        let outcome = if Self::holds(state, at, write.on) {
            Event::Written(Self::commit(state, at, write.record.clone()))
        } else {
            Event::Refused(None)
        };
        state.members[at].outstanding = Some((write, Some(outcome)));
        Some(())
    }

    fn crash(state: &mut State, at: usize) {
        state.crashes += 1;
        let member = &mut state.members[at];
        let outstanding = member.outstanding.take();
        let on_its_way = outstanding.filter(|(_, outcome)| outcome.is_none()).map(|(w, _)| w);
        member.late = member.late.take().or(on_its_way);
        (member.process, member.seen) = (None, 0);
    }

    fn restart(&self, state: &mut State, at: usize) {
        let leases = state.server.iter().flatten().cloned().collect();
        let incarnation = state.members[at].incarnation + 1;
        let process = self.start(at, incarnation, leases);
        let seen = state.log.len();
        let member = &mut state.members[at];
        (member.process, member.incarnation, member.seen) =
            (Some(Arc::new(process)), incarnation, seen);
    }

    fn tidy(state: &mut State) {
        let up = |m: &&mut Member| m.process.is_some();
        let seen = state.members.iter_mut().filter(up).map(|m| m.seen).min();
        let seen = seen.unwrap_or(state.log.len());
        state.log.drain(..seen);
        for member in state.members.iter_mut().filter(up) {
            member.seen -= seen;
        }
        for at in 0..state.members.len() {
            // A write that can't succeed any more is as good as none.
            let hopeless =
                state.members[at].late.as_ref().is_some_and(|w| !Self::holds(state, at, w.on));
            if hopeless {
                state.members[at].late = None;
            }
        }
    }

    fn member_actions(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let member = &state.members[at];
        if member.late.is_some() {
            actions.push(Action::ArriveLate(at));
        }
        let Some(process) = &member.process else {
            return actions.push(Action::Restart(at));
        };
        if state.crashes < self.crashes {
            actions.push(Action::Crash(at));
        }
        if member.seen < state.log.len() {
            actions.push(Action::See(at));
        }
        if process.deadline().is_some_and(|due| due == 0) {
            actions.push(Action::Wake(at));
        }
        match &member.outstanding {
            None => actions.extend((0..self.partitions).map(|p| Action::Want(at, p))),
            Some((_, Some(_))) => actions.push(Action::Answer(at)),
            Some((_, None)) => actions.push(Action::Commit(at)),
        }
        if member.outstanding.is_some() && state.losses < self.losses && member.late.is_none() {
            actions.push(Action::Lose(at));
        }
        let unreported = |p: &u32| process.unreported().contains(*p);
        actions.extend((0..self.partitions).filter(unreported).map(|p| Action::Stopped(at, p)));
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let member = |at| Member {
            process: Some(Arc::new(self.start(at, 0, vec![]))),
            incarnation: 0,
            outstanding: None,
            late: None,
            seen: 0,
        };
        let mut state = State {
            partitions: self.partitions,
            server: vec![None; self.members],
            log: vec![],
            members: (0..self.members).map(member).collect(),
            writes: 0,
            crashes: 0,
            losses: 0,
            last_owner: None,
            reached: [false; 3],
        };
        let unbounded = Self { writes: u8::MAX, ..*self };
        for action in self.after {
            state = unbounded.next_state(&state, action.clone()).expect("it can happen");
        }
        state.writes = 0;
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        (0..self.members).for_each(|at| self.member_actions(state, at, actions));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => {
                for process in state.members.iter_mut().filter_map(|m| m.process.as_mut()) {
                    Arc::make_mut(process).sleep(1);
                }
            }
            Action::Wake(at) => self.step(&mut state, at, Event::Tick),
            Action::Want(at, partition) => self.toggle(&mut state, at, partition)?,
            Action::Stopped(at, partition) => {
                self.step(&mut state, at, Event::Stopped([partition].into_iter().collect()));
            }
            Action::Commit(at) => Self::arrive(&mut state, at)?,
            Action::Answer(at) => {
                let (_, outcome) = state.members[at].outstanding.clone()?;
                self.answer(&mut state, at, outcome?);
            }
            Action::Lose(at) => {
                state.losses += 1;
                let (write, outcome) = state.members[at].outstanding.take()?;
                state.members[at].late = outcome.is_none().then_some(write);
                self.step(&mut state, at, Event::Failed);
            }
            Action::ArriveLate(at) => {
                let write = state.members[at].late.take()?;
                if Self::holds(&state, at, write.on) {
                    Self::commit(&mut state, at, write.record);
                }
            }
            Action::See(at) => {
                let lease = state.log.get(state.members[at].seen)?.clone();
                state.members[at].seen += 1;
                self.step(&mut state, at, Event::Seen(lease));
            }
            Action::Crash(at) => Self::crash(&mut state, at),
            Action::Restart(at) => self.restart(&mut state, at),
        }
        Self::tidy(&mut state);
        let undecided = |m: &Member| matches!(m.outstanding, Some((_, None)));
        let pending = |m: &Member| usize::from(undecided(m)) + usize::from(m.late.is_some());
        let all = usize::from(state.writes) + state.members.iter().map(pending).sum::<usize>();
        (all <= self.writes.into()).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        checks::properties(self.history)
    }
}
