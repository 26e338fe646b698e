//! The task that tells the protocol what happened and does what it answers.

use super::{requests::Requests, watch::watch};
use crate::{
    clock::Clock,
    guard::{Ledger, PATIENCE},
    metrics::Metrics,
    partitions::PartitionSet,
    placement::{Placement, Roster},
    protocol::{Effect, Event, Lease, MemberName, Millis, Protocol, Stage},
    sharding::End,
};
use futures::future::{BoxFuture, FutureExt};
use std::{
    collections::{BTreeSet, VecDeque},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// How many Lease events may wait for their turn: more make the watch wait.
const NEWS: usize = 256;

/// What comes in.
pub(crate) struct Inputs {
    /// Partitions whose work has ended.
    pub(crate) ended: mpsc::UnboundedReceiver<u32>,
    /// Whether the process is about to end.
    pub(crate) leave: CancellationToken,
}

/// One member at work.
pub(crate) struct Driver {
    pub(crate) member: MemberName,
    pub(crate) protocol: Protocol,
    pub(crate) partitions: u32,
    pub(crate) placement: Placement,
    pub(crate) roster: Roster,
    pub(crate) requests: Requests,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) fence: Millis,
    pub(crate) state: State,
}

/// What the driver remembers between events.
#[derive(Default)]
pub(crate) struct State {
    write: Option<BoxFuture<'static, Event>>,
    /// The newest write's number in the Lease, and when it was sent.
    sent: (u64, Millis),
    /// Whether the own Lease says what is said once.
    introduced: bool,
    /// The Leases among which was placed last.
    grounds: Vec<Lease>,
    owners: Vec<MemberName>,
    /// Since when there are wanted partitions that this member doesn't have.
    wants_since: Option<Millis>,
    dissent: bool,
}

async fn answer(write: &mut Option<BoxFuture<'static, Event>>) -> Event {
    let Some(answer) = write else { return std::future::pending().await };
    let event = answer.await;
    *write = None;
    event
}

fn count(partitions: &PartitionSet) -> i64 {
    i64::try_from(partitions.len()).unwrap_or(i64::MAX)
}

impl Driver {
    /// Runs until the member has left, or could not hand over for its whole fence time.
    pub(crate) async fn run(mut self, mut inputs: Inputs) -> End {
        let (sender, mut news) = mpsc::channel(NEWS);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(self.requests.clone(), sender));
        self.handle(Event::Ready, &mut tasks);
        let (leave, longest) = (inputs.leave.clone(), Duration::from_millis(self.fence));
        let mut gives_up = pin!(async {
            leave.cancelled().await;
            tokio::time::sleep(longest).await;
        });
        let mut leaving = false;
        let end = loop {
            let wait = self.until_deadline();
            let event = tokio::select! {
                biased;
                () = inputs.leave.cancelled(), if !leaving => {
                    leaving = true;
                    Event::Leave
                }
                () = &mut gives_up => break End::Expired,
                Some(partition) = inputs.ended.recv() => {
                    let more = std::iter::from_fn(|| inputs.ended.try_recv().ok());
                    Event::Stopped(std::iter::once(partition).chain(more).collect())
                }
                event = answer(&mut self.state.write) => event,
                Some(event) = news.recv() => event,
                Some(_) = tasks.join_next() => continue,
                () = wait => Event::Tick,
            };
            if let Some(end) = self.handle(event, &mut tasks) {
                break end;
            }
        };
        self.ledger.close();
        end
    }

    /// Waits until something is due without any event.
    fn until_deadline(&self) -> impl Future<Output = ()> + use<> {
        let due = self.protocol.deadline().into_iter().chain(self.roster.deadline()).min();
        let wait = due.map(|due| due.saturating_sub(self.clock.now().steady).max(1));
        async move {
            match wait {
                Some(wait) => tokio::time::sleep(Duration::from_millis(wait)).await,
                None => std::future::pending().await,
            }
        }
    }

    fn handle(&mut self, event: Event, tasks: &mut JoinSet<()>) -> Option<End> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.observe(&event);
            let effects = self.protocol.step(self.clock.now(), event);
            let leases = self.protocol.leases().cloned().collect();
            self.ledger.renew(self.protocol.valid_until(), leases);
            for effect in effects {
                match effect {
                    Effect::Left => return Some(End::Left),
                    Effect::Superseded => return Some(End::Superseded),
                    effect => events.extend(self.apply(effect, tasks)),
                }
            }
            if events.is_empty() {
                events.extend(self.place().map(Event::Want));
            }
        }
        self.metrics.owned.set(count(self.protocol.active()));
        None
    }

    /// What an event means for the metrics and for what is remembered.
    fn observe(&mut self, event: &Event) {
        let now = self.clock.now().steady;
        let (seq, sent) = self.state.sent;
        match event {
            Event::Written(_) => {
                self.state.introduced = true;
                self.metrics.renewed(sent);
            }
            Event::Refused(_) | Event::Failed => {
                self.state.introduced &= matches!(event, Event::Failed);
                self.metrics.heartbeat_failures.inc();
            }
            Event::Seen(lease) if lease.member == self.member && lease.record.seq == seq => {
                self.metrics.echoed(now.saturating_sub(sent));
            }
            Event::Want(wanted) if !wanted.is_subset(self.protocol.active()) => {
                self.state.wants_since.get_or_insert(now);
            }
            Event::Want(_) => self.state.wants_since = None,
            _ => {}
        }
    }

    /// Places the partitions anew if members came, went or changed. Returns what to want then.
    fn place(&mut self) -> Option<PartitionSet> {
        if self.protocol.stage() > Stage::Active {
            return None;
        }
        let active = self.protocol.members().map(|lease| lease.member.clone()).collect();
        self.roster.see(self.clock.now().steady, active);
        let placed = self.protocol.members().filter(|lease| self.roster.contains(&lease.member));
        let grounds: Vec<Lease> = placed.cloned().collect();
        let essence = |lease: &Lease| {
            (lease.member.clone(), lease.record.claims.clone(), lease.record.generation)
        };
        if grounds.iter().map(essence).eq(self.state.grounds.iter().map(essence)) {
            return None;
        }
        let roster = &self.roster;
        let assignment = self
            .placement
            .assign(self.partitions, &self.protocol, |member| roster.contains(member));
        let wanted = assignment.share(&self.member);
        let owners: Vec<MemberName> = assignment.owners().map(Into::into).collect();
        self.report(&grounds, &owners);
        (self.state.grounds, self.state.owners) = (grounds, owners);
        (wanted != *self.protocol.wanted()).then_some(wanted)
    }

    fn report(&mut self, grounds: &[Lease], owners: &[MemberName]) {
        let names = |leases: &[Lease]| -> BTreeSet<MemberName> {
            leases.iter().map(|lease| lease.member.clone()).collect()
        };
        let (before, now) = (names(&self.state.grounds), names(grounds));
        if before != now {
            let moved = self.state.owners.iter().zip(owners).filter(|(a, b)| a != b).count();
            let moved = u32::try_from(moved).unwrap_or(u32::MAX);
            self.metrics.placed(&before, &now, (moved, self.partitions));
            tracing::info!(members = ?now, "partitions are placed anew");
        }
        let dissenters: Vec<_> = self.protocol.dissenters().collect();
        if !dissenters.is_empty() && !self.state.dissent {
            tracing::warn!(
                ?dissenters,
                "members place differently: safe, but work moves to and fro until all are the same"
            );
        }
        self.state.dissent = !dissenters.is_empty();
    }

    /// Does one thing. Returns what has happened by that.
    fn apply(&mut self, effect: Effect, tasks: &mut JoinSet<()>) -> Option<Event> {
        match effect {
            Effect::Write(write) => {
                self.state.sent = (write.record.seq, self.clock.now().steady);
                self.metrics.claimed.set(count(&write.record.claims));
                let request = self.requests.clone().write(write, !self.state.introduced);
                self.state.write = Some(request.boxed());
            }
            Effect::Tombstone(lease) => {
                let (requests, metrics) = (self.requests.clone(), self.metrics.clone());
                tasks.spawn(async move {
                    if requests.bury(lease).await {
                        metrics.tombstones.inc();
                    }
                });
            }
            Effect::Forget(member, version) => {
                tasks.spawn(self.requests.clone().forget(member, version));
            }
            Effect::Gained(partitions) => {
                if let Some(since) = self.state.wants_since.take() {
                    self.metrics.handed_over(self.clock.now().steady.saturating_sub(since));
                }
                tracing::info!(partitions = partitions.len(), "partitions gained");
                self.ledger.gain(&partitions);
            }
            Effect::Stop(partitions) => {
                tracing::info!(partitions = partitions.len(), "partitions given away");
                let (idle, works) = self.ledger.stop(&partitions);
                let _ = tasks.spawn(async move {
                    tokio::time::sleep(PATIENCE).await;
                    works.iter().for_each(CancellationToken::cancel);
                });
                return Some(Event::Stopped(idle));
            }
            Effect::Revoked(partitions) => {
                tracing::warn!(
                    partitions = partitions.len(),
                    "partitions lost: the Lease was taken away or deleted"
                );
                return Some(Event::Stopped(self.ledger.revoke(&partitions)));
            }
            Effect::Fenced => {
                tracing::warn!(
                    "the Lease could not be renewed for too long: nothing is written until it is"
                );
                self.metrics.fences.inc();
            }
            Effect::Resumed => {
                tracing::info!("the Lease is renewed again, and nothing was lost");
                self.ledger.resume();
            }
            Effect::Left | Effect::Superseded => {}
        }
        None
    }
}
