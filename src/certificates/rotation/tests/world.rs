//! A cluster in which rotation happens: one Secret, two bundles, and replicas that take one call at
//! a time, in any order, and may stop after each.

use super::super::*;
use crate::certificates::LeafRequest;
use std::time::Duration;

pub(super) const SOAK: i64 = 60;
pub(super) const LEAF: i64 = 600;
pub(super) const CA: i64 = 4_000;

/// How far an API server may lag behind the stored bundles, and a clock be off; twice the one and
/// the other are within the soak.
const LAG: i64 = 30;
pub(super) const SKEW: i64 = 10;

/// When every history begins.
pub(super) const EPOCH: i64 = 1_800_000_000;

pub(super) fn lifetimes() -> Lifetimes {
    let seconds = |s: i64| Duration::from_secs(s.unsigned_abs());
    Lifetimes::new(seconds(CA), seconds(LEAF), seconds(SOAK)).unwrap()
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(EPOCH + seconds).unwrap()
}

type Content = Result<Option<State>, Damage>;

struct Bundle {
    version: u64,
    trusted: Vec<Certificate>,
    /// By somebody else's hand, so that no promise holds.
    foreign: bool,
}

/// A bundle that API servers which lag may still have.
struct Past {
    until: i64,
    trusted: Vec<Certificate>,
}

#[derive(Default)]
pub(super) struct Replica {
    pub(super) clock: i64,
    remembered: Option<State>,
    pub(super) leaf: Option<Leaf>,
    established: bool,
    pub(super) ready: bool,
    pass: Option<Pass>,
}

/// A pass under way: what was read so far, and what is to be written.
struct Pass {
    begun: i64,
    live: Vec<(u64, Vec<Certificate>)>,
    stored: Option<(u64, Content)>,
    writes: Vec<Write>,
}

enum Write {
    Store(Box<State>),
    Set(usize, Vec<Certificate>),
}

pub(super) struct World {
    pub(super) now: i64,
    versions: u64,
    secret: (u64, Content),
    rotate: bool,
    /// Whether replicas tell each other which CA they serve.
    pub(super) acknowledges: bool,
    /// Who makes what can wait; `None`: everybody.
    pub(super) duty: Option<usize>,
    bundles: [Bundle; 2],
    past: Vec<Past>,
    pub(super) replicas: Vec<Replica>,
    pub(super) switches: usize,
    pub(super) generations: std::collections::BTreeSet<u64>,
}

impl World {
    pub(super) fn new(replicas: usize) -> Self {
        let bundle = || Bundle { version: 0, trusted: Vec::new(), foreign: true };
        Self {
            now: 0,
            versions: 0,
            secret: (0, Ok(None)),
            rotate: false,
            acknowledges: false,
            duty: None,
            bundles: [bundle(), bundle()],
            past: Vec::new(),
            replicas: (0..replicas).map(|_| Replica::default()).collect(),
            switches: 0,
            generations: std::collections::BTreeSet::new(),
        }
    }

    pub(super) fn state(&self) -> Option<&State> {
        self.secret.1.as_ref().ok()?.as_ref()
    }

    pub(super) fn bundle(&self, which: usize) -> &[Certificate] {
        &self.bundles[which].trusted
    }

    fn version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    fn write_secret(&mut self, content: Content) {
        if let Ok(Some(state)) = &content {
            self.generations.insert(state.generation);
            let before = self.state().map(|before| before.ca().clone());
            self.switches += usize::from(before.is_some_and(|before| before != *state.ca()));
        }
        self.secret = (self.version(), content);
    }

    pub(super) fn delete_secret(&mut self) {
        self.write_secret(Ok(None));
    }

    pub(super) fn damage_secret(&mut self) {
        if self.state().is_some() {
            self.write_secret(Err(Damage { key: "ca.key", cause: "is missing".into() }));
        }
    }

    pub(super) fn ask_for_rotation(&mut self) {
        self.rotate = true;
    }

    pub(super) fn edit_bundle(&mut self, which: usize, trusted: Vec<Certificate>) {
        let version = self.version();
        self.bundles[which] = Bundle { version, trusted, foreign: true };
    }

    pub(super) fn crash(&mut self, r: usize) {
        self.replicas[r] = Replica { clock: self.replicas[r].clock, ..Replica::default() };
    }

    pub(super) fn abandon(&mut self, r: usize) {
        self.replicas[r].pass = None;
    }

    /// A whole pass, or the rest of one, without anybody in between.
    pub(super) fn pass(&mut self, r: usize) {
        self.call(r);
        while self.replicas[r].pass.is_some() {
            self.call(r);
        }
    }

    /// Passes of all in turn, until nothing is left to do but wait.
    pub(super) fn settle(&mut self) {
        for _ in 0..10 {
            (0..self.replicas.len()).for_each(|r| self.pass(r));
        }
    }

    /// The next call of a replica's pass; the first begins one.
    pub(super) fn call(&mut self, r: usize) {
        let now = self.now + self.replicas[r].clock;
        let Some(mut pass) = self.replicas[r].pass.take() else {
            let replica = &mut self.replicas[r];
            replica.ready &= replica.leaf.as_ref().is_some_and(|leaf| leaf.is_valid(at(now)));
            let pass = Pass { begun: now, live: Vec::new(), stored: None, writes: Vec::new() };
            self.replicas[r].pass = Some(pass);
            return;
        };
        if let Some(bundle) = self.bundles.get(pass.live.len()) {
            pass.live.push((bundle.version, bundle.trusted.clone()));
        } else if pass.stored.is_none() {
            pass.stored = Some(self.secret.clone());
            self.decide(r, now, &mut pass);
        } else if let Some(write) = pass.writes.pop() {
            self.write(now, &pass, write);
        }
        let more = pass.stored.is_none() || !pass.writes.is_empty();
        self.replicas[r].pass = more.then_some(pass);
    }

    /// What `webhook::self_managed` does in a pass, as calls still to be made.
    fn decide(&mut self, r: usize, now: i64, pass: &mut Pass) {
        let (now, lifetimes) = (at(now), lifetimes());
        let Some((_, content)) = &pass.stored else { return };
        let live: Vec<_> = pass.live.iter().map(|(_, bundle)| bundle.clone()).collect();
        let everyone_serves = self.everyone_serves().filter(|_| self.acknowledges);
        let replica = &mut self.replicas[r];
        if let Ok(Some(state)) = content {
            replica.remembered = Some(state.clone());
        }
        let serving = replica.leaf.clone();
        let seen = Seen {
            stored: content.as_ref().map(Option::as_ref),
            remembered: replica.remembered.as_ref(),
            live: &live,
            serving: serving.as_ref(),
            rotate: self.rotate,
            everyone_serves: everyone_serves.as_deref(),
        };
        let next = step(&seen, now, &lifetimes).unwrap();
        let due = leaf_is_due(&seen, now, &lifetimes);
        let acts = self.duty.is_none_or(|duty| duty == r) || is_urgent(&seen, now);
        if let Ok(Some(state)) = content {
            if due {
                let names = vec!["webhook.monitoring.svc".to_owned()];
                let request = LeafRequest { names, life: lifetimes.leaf(), jitter: 7 };
                let leaf = state.active.authority.issue(&request, at(pass.begun)).unwrap();
                replica.leaf = Some(leaf);
            }
            if let Some(leaf) = &replica.leaf {
                let before = replica.established;
                replica.established = state.is_established(leaf, before, now, &lifetimes);
                let trusted = live.iter().all(|bundle| bundle.contains(&leaf.issuer));
                replica.ready = replica.established && trusted;
            }
        }
        if !acts {
            return;
        }
        if let Some(next) = next {
            pass.writes = vec![Write::Store(Box::new(next))];
            return;
        }
        let Ok(Some(state)) = content else { panic!("a step for what is not there") };
        let wanted: Vec<_> = state.trusted().cloned().collect();
        pass.writes = (0..2)
            .filter(|&which| live[which] != wanted)
            .map(|which| Write::Set(which, wanted.clone()))
            .collect();
    }

    fn write(&mut self, now: i64, pass: &Pass, write: Write) {
        match write {
            Write::Store(state) => {
                let (version, content) = pass.stored.clone().unwrap();
                // Creating has no version to compare, only that there is nothing.
                let unchanged = version == self.secret.0
                    || matches!((&content, &self.secret.1), (Ok(None), Ok(None)));
                if unchanged && now - pass.begun < SOAK / 2 {
                    self.rotate &= state.next.is_none();
                    self.write_secret(Ok(Some(*state)));
                }
            }
            Write::Set(which, trusted) => {
                if pass.live[which].0 == self.bundles[which].version {
                    let version = self.version();
                    let bundle = Bundle { version, trusted, foreign: false };
                    let before = std::mem::replace(&mut self.bundles[which], bundle);
                    // While nobody was accepted there was nothing to keep.
                    if !before.foreign && self.accepted().next().is_some() {
                        self.past.push(Past { until: self.now, trusted: before.trusted });
                    }
                }
            }
        }
    }

    /// What all replicas serve. One that crashed says nothing until it serves again.
    fn everyone_serves(&self) -> Option<String> {
        let mut said = self.replicas.iter().map(|r| r.leaf.as_ref().map(|l| &l.issuer.name));
        let first = said.next()??;
        said.all(|ca| ca == Some(first)).then(|| first.clone())
    }

    /// The replicas that are ready, with what they serve.
    fn accepted(&self) -> impl Iterator<Item = (usize, &Leaf)> {
        let ready = self.replicas.iter().enumerate().filter(|(_, replica)| replica.ready);
        let serving = ready.filter_map(|(r, replica)| Some((r, replica.leaf.as_ref()?)));
        serving.filter(|(_, leaf)| leaf.is_valid(at(self.now)))
    }

    /// The invariant: every API server, also one that lags, accepts every replica that is ready.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let now = self.now;
        self.past.retain(|past| now - past.until < LAG);
        let past = self.past.iter().map(|past| &past.trusted);
        let current = self.bundles.iter().filter(|b| !b.foreign).map(|b| &b.trusted);
        let known: Vec<_> = current.chain(past).collect();
        for (r, leaf) in self.accepted() {
            if let Some(bundle) = known.iter().find(|bundle| !bundle.contains(&leaf.issuer)) {
                return Err(format!(
                    "at {now} replica {r} serves a leaf of {:?}, and a bundle holds {bundle:?}",
                    leaf.issuer
                ));
            }
        }
        Ok(())
    }
}
