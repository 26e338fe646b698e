//! The open connections: how long each may stay as it is, and which one goes when there are too
//! many.
//!
//! There is no bound for one address: behind a proxy every API server has the same, and a flood has
//! as many as it wants. Instead a new connection displaces the one that is missed least:
//!
//! 1. one on which no review was answered yet, before one that proved to be an API server's,
//! 2. of the address with the most connections,
//! 3. an idle one before one with a request that is still arriving,
//! 4. the one that has been as it is for the longest time.
//!
//! Never one whose request is being decided. A flood from anywhere so displaces itself.

use super::{Limits, metrics::Metrics};
use std::{
    cmp::Reverse,
    collections::HashMap,
    net::IpAddr,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::Notify, time::Instant};

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// TLS is being set up.
    Handshake,
    /// It waits for a request, or the client takes the last answer.
    Idle,
    /// A request has begun.
    Header,
    /// Its header is complete.
    Body,
    /// It is complete.
    Deciding,
    /// The server's end is closed.
    Closing,
}

/// Why a connection is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It has been silent for too long.
    Idle,
    /// A handshake, a header or the closing takes too long.
    Slow,
    /// Another needs its place.
    Displaced,
}

impl End {
    pub(super) const ALL: [Self; 3] = [Self::Idle, Self::Slow, Self::Displaced];

    /// The value of the metric label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Slow => "slow",
            Self::Displaced => "displaced",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    since: Instant,
    /// Whether a review was answered on it.
    reviewed: bool,
    end: Option<End>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    peer: IpAddr,
    state: Mutex<State>,
    told: Notify,
}

impl Connection {
    fn state(&self) -> MutexGuard<'_, State> {
        // A state is whole after every statement, so a panic elsewhere cannot have broken it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is in `phase` from now on.
    pub(super) fn enter(&self, phase: Phase) {
        let mut state = self.state();
        (state.phase, state.since) = (phase, Instant::now());
    }

    /// Something has arrived on it.
    pub(super) fn heard(&self) {
        let mut state = self.state();
        if state.phase == Phase::Idle {
            (state.phase, state.since) = (Phase::Header, Instant::now());
        }
    }

    /// A request was answered; `reviewed` if it was a review.
    pub(super) fn answered(&self, reviewed: bool) {
        let mut state = self.state();
        (state.phase, state.since) = (Phase::Idle, Instant::now());
        state.reviewed |= reviewed;
    }

    /// Waits until the connection is to be ended. Cancel safe.
    pub(super) async fn ended(&self) -> End {
        loop {
            self.told.notified().await;
            if let Some(end) = self.state().end.take() {
                return end;
            }
        }
    }

    fn end(&self, why: End) {
        self.state().end = Some(why);
        // Remembered for a task that does not wait at the moment.
        self.told.notify_one();
    }
}

impl State {
    /// Why it has to end at `now`, if it has to.
    fn overdue(&self, limits: &Limits, now: Instant) -> Option<End> {
        let (limit, end) = match self.phase {
            Phase::Handshake => (limits.handshake, End::Slow),
            Phase::Idle => (limits.idle, End::Idle),
            Phase::Header => (limits.header, End::Slow),
            Phase::Closing => (limits.closing, End::Slow),
            // Bounded where the request is handled, with an answer.
            Phase::Body | Phase::Deciding => return None,
        };
        (now.duration_since(self.since) > limit).then_some(end)
    }
}

/// Which of `open` is missed least; each with the number of connections of its address.
fn expendable<Id>(open: impl Iterator<Item = (Id, State, usize)>) -> Option<Id> {
    open.filter(|(_, state, _)| state.phase != Phase::Deciding)
        .max_by_key(|(_, state, of_peer)| {
            (!state.reviewed, *of_peer, state.phase == Phase::Idle, Reverse(state.since))
        })
        .map(|(id, ..)| id)
}

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    limits: Limits,
    metrics: Metrics,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    open: HashMap<u64, Arc<Connection>>,
    of_peer: HashMap<IpAddr, usize>,
}

impl Book {
    fn remove(&mut self, id: u64) -> Option<Arc<Connection>> {
        let gone = self.open.remove(&id)?;
        if let Some(count) = self.of_peer.get_mut(&gone.peer) {
            *count -= 1;
            if *count == 0 {
                self.of_peer.remove(&gone.peer);
            }
        }
        Some(gone)
    }
}

impl Connections {
    pub(super) fn new(limits: Limits, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { limits, metrics, book: Mutex::default() })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A lost entry would be one place less; counts are changed beside their entries.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a new connection, and displaces one if there are too many. `None` if each of them is
    /// needed more.
    pub(super) fn open(self: &Arc<Self>, peer: IpAddr) -> Option<Open> {
        let peer = peer.to_canonical();
        let mut book = self.book();
        if book.open.len() >= self.limits.connections {
            let of_peer = |peer| book.of_peer.get(peer).copied().unwrap_or_default();
            let open = book.open.iter().map(|(id, c)| (*id, *c.state(), of_peer(&c.peer)));
            let displaced = expendable(open).and_then(|id| book.remove(id));
            let Some(displaced) = displaced else {
                self.metrics.ended(End::Displaced);
                return None;
            };
            displaced.end(End::Displaced);
        }
        let state =
            State { phase: Phase::Handshake, since: Instant::now(), reviewed: false, end: None };
        let connection =
            Arc::new(Connection { peer, state: Mutex::new(state), told: Notify::new() });
        let id = book.next;
        book.next += 1;
        book.open.insert(id, Arc::clone(&connection));
        *book.of_peer.entry(peer).or_default() += 1;
        self.metrics.connections.inc();
        drop(book);
        Some(Open { id, connection, all: Arc::clone(self) })
    }

    /// Ends what is overdue at `now`. To be called again and again.
    pub(super) fn sweep(&self, now: Instant) {
        for connection in self.book().open.values() {
            let overdue = connection.state().overdue(&self.limits, now);
            if let Some(end) = overdue {
                connection.end(end);
            }
        }
    }
}

/// A connection's place among the others. Dropping it leaves the place to another.
#[derive(Debug)]
pub(super) struct Open {
    id: u64,
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Open {
    /// The connection, to be shared with its requests.
    pub(super) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }
}

impl Deref for Open {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.all.book().remove(self.id);
        self.all.metrics.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn state(phase: Phase, since: Instant, reviewed: bool) -> State {
        State { phase, since, reviewed, end: None }
    }

    #[test]
    fn w6_a_new_connection_displaces_the_one_that_is_missed_least() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        // From what is missed least to what is missed most.
        let order = [
            (state(Phase::Idle, start, false), 9),
            (state(Phase::Idle, later, false), 9),
            (state(Phase::Handshake, start, false), 9),
            (state(Phase::Body, later, false), 9),
            (state(Phase::Idle, start, false), 1),
            (state(Phase::Handshake, later, false), 1),
            (state(Phase::Idle, start, true), 9),
            (state(Phase::Header, start, true), 9),
            (state(Phase::Idle, start, true), 1),
            (state(Phase::Body, later, true), 1),
        ];
        let never = (state(Phase::Deciding, start, false), 99);
        for first in 0..order.len() {
            // Whatever the order in which they are looked at.
            let open = order[first..].iter().chain([&never]).rev().enumerate();
            let open: Vec<_> = open.map(|(i, (state, of_peer))| (i, *state, *of_peer)).collect();
            assert_eq!(expendable(open.clone().into_iter()), Some(open.len() - 1), "{first}");
            assert_eq!(expendable(open.into_iter().rev()), Some(order.len() - first), "{first}");
        }
        assert_eq!(expendable([(0, never.0, never.1)].into_iter()), None);
    }

    #[test]
    fn w6_only_what_has_taken_too_long_is_ended() {
        let (limits, start) = (Limits::default(), Instant::now());
        let at = |phase, seconds| {
            state(phase, start, true).overdue(&limits, start + Duration::from_secs(seconds))
        };
        assert_eq!((at(Phase::Handshake, 10), at(Phase::Handshake, 11)), (None, Some(End::Slow)));
        assert_eq!((at(Phase::Header, 10), at(Phase::Header, 11)), (None, Some(End::Slow)));
        // The API server keeps its end open for 90 s.
        assert_eq!((at(Phase::Idle, 120), at(Phase::Idle, 151)), (None, Some(End::Idle)));
        assert_eq!((at(Phase::Closing, 1), at(Phase::Closing, 2)), (None, Some(End::Slow)));
        assert_eq!((at(Phase::Body, 999), at(Phase::Deciding, 999)), (None, None));
    }

    #[tokio::test]
    async fn w6_a_flood_of_one_address_displaces_itself() {
        let limits = Limits { connections: 8, ..Limits::default() };
        let connections = Connections::new(limits, Metrics::default());
        let (friend, flood) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let served = connections.open(friend).unwrap();
        served.answered(true);
        let mut flooding: Vec<_> = (0..100).map(|_| connections.open(flood).unwrap()).collect();
        // One that is new, and has not asked for anything yet.
        let _new = connections.open(friend).unwrap();
        flooding.extend((0..100).map(|_| connections.open(flood).unwrap()));
        assert_eq!(connections.book().open.len(), 8);
        assert_eq!(connections.book().of_peer[&friend], 2);
        assert_eq!(flooding[0].ended().await, End::Displaced);
        drop(flooding);
        assert_eq!(connections.book().of_peer.len(), 1);
    }
}
