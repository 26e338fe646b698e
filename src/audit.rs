//! Whether every node is exposed by the pods that it should be exposed by, and by no other (V3).
//!
//! Nodes stand for all objects: kube-state-metrics assigns them to shards as it does any other,
//! the operator knows them all by name and UID, and their series are few.
//!
//! Nothing counts that was seen only once. Nodes come and go while pods are looked at, and each
//! process learns of it in its own time: so a finding must be the same in two looks, and about a
//! node that was or was not there through both.

use crate::coverage::{Slice, shard_of};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};
use xxhash_rust::xxh3::xxh3_64;

/// Looks in a row that a pod has to fail, each confirmed by a second one, before it is replaced
/// (V5).
pub const STRIKES: u32 = 3;

/// Nodes by name, with their UIDs.
pub type Nodes = BTreeMap<String, String>;

/// What one pod answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod's UID.
    pub pod: String,
    /// Its name.
    pub name: String,
    /// What it was told to expose, by its arguments.
    pub told: Slice,
    /// What it says it exposes, on its telemetry port. `None` if it says nothing.
    pub says: Option<Slice>,
    /// The nodes it exposes, once for each time; or why that is not known.
    pub nodes: Result<Vec<String>, Silence>,
}

/// Why it is not known what a pod exposes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It cannot be reached from here, which is not its fault: the kubelet reaches it.
    Unreachable(String),
    /// It does not answer as a whole.
    NoAnswer,
}

/// What is wrong with a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It does not answer, or not as a whole.
    NoAnswer,
    /// It runs as another shard than its arguments say.
    OtherShard,
    /// It does not expose this node, which is its own.
    Missing(String),
    /// It exposes this node more than once.
    Repeated(String),
    /// It exposes this node, which is another shard's.
    Foreign(String),
    /// It exposes this node, which does not exist.
    Ghost(String),
}

impl Fault {
    /// The kind, for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoAnswer => "no_answer",
            Self::OtherShard => "other_shard",
            Self::Missing(_) => "missing",
            Self::Repeated(_) => "repeated",
            Self::Foreign(_) => "foreign",
            Self::Ghost(_) => "ghost",
        }
    }

    /// The node that it is about.
    fn node(&self) -> Option<&str> {
        match self {
            Self::NoAnswer | Self::OtherShard => None,
            Self::Missing(node)
            | Self::Repeated(node)
            | Self::Foreign(node)
            | Self::Ghost(node) => Some(node),
        }
    }
}

/// What is wrong in one look: faults by pod.
pub type Faults = BTreeMap<String, BTreeSet<Fault>>;

/// Nodes counted by how they are exposed (V4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Nodes there are.
    pub expected: u32,
    /// Of these, exposed by a pod of their shard.
    pub exposed: u32,
    /// Of these, not.
    pub missing: u32,
    /// Of these, more often than their shard has pods.
    pub duplicated: u32,
    /// Exposed by a pod of another shard, or not existing.
    pub foreign: u32,
}

/// What an audit has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The nodes, counted.
    pub exposure: Exposure,
    /// What is wrong, by the names of pods.
    pub faults: Vec<(String, BTreeSet<Fault>)>,
}

/// One look at all pods of a KSMScale, between two looks at the nodes.
#[derive(Clone, Debug)]
pub struct Look {
    /// The nodes before the first pod was asked.
    pub before: Nodes,
    /// The nodes after the last pod answered.
    pub after: Nodes,
    /// What the pods answered, one entry for each pod that should serve.
    pub answers: Vec<Answer>,
}

impl Look {
    /// Nodes that were there, as the same, all the time.
    fn steady(&self) -> impl Iterator<Item = (&String, &String)> {
        self.before.iter().filter(|(name, uid)| self.after.get(*name) == Some(uid))
    }

    /// What seems wrong. It counts once [`History::record`] confirms it.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let all = self.answers.iter().map(|answer| (answer.pod.clone(), self.faults_of(answer)));
        all.filter(|(_, faults)| !faults.is_empty()).collect()
    }

    fn faults_of(&self, answer: &Answer) -> BTreeSet<Fault> {
        let nodes = match &answer.nodes {
            Ok(nodes) => nodes,
            Err(Silence::NoAnswer) => return [Fault::NoAnswer].into(),
            Err(Silence::Unreachable(_)) => return BTreeSet::new(),
        };
        let mut faults = BTreeSet::new();
        if answer.says.is_some_and(|says| says != answer.told) {
            faults.insert(Fault::OtherShard);
        }
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for node in nodes {
            *times.entry(node).or_default() += 1;
        }
        for (name, uid) in self.steady() {
            let own = shard_of(uid, answer.told.total()) == answer.told.ordinal();
            match (own, times.get(&**name)) {
                (true, None) => faults.insert(Fault::Missing(name.clone())),
                (true, Some(2..)) => faults.insert(Fault::Repeated(name.clone())),
                (false, Some(_)) => faults.insert(Fault::Foreign(name.clone())),
                (true, Some(_)) | (false, None) => false,
            };
        }
        let known = |name: &str| self.before.contains_key(name) || self.after.contains_key(name);
        let ghosts = times.into_keys().filter(|name| !known(name));
        faults.extend(ghosts.map(|name| Fault::Ghost(name.to_owned())));
        faults
    }

    /// Why a pod cannot be reached, if so.
    #[must_use]
    pub fn unreachable(&self) -> Option<&str> {
        self.answers.iter().find_map(|answer| match &answer.nodes {
            Err(Silence::Unreachable(cause)) => Some(&**cause),
            _ => None,
        })
    }

    /// Whether no pod can be reached, so that this look says nothing.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        self.answers.iter().all(|a| matches!(a.nodes, Err(Silence::Unreachable(_))))
    }

    /// What an audit has found, with those faults that are confirmed.
    #[must_use]
    pub fn report(&self, confirmed: &Faults) -> Report {
        let of = |answer: &Answer| Some((answer.name.clone(), confirmed.get(&answer.pod)?.clone()));
        Report {
            exposure: self.exposure(confirmed),
            faults: self.answers.iter().filter_map(of).collect(),
        }
    }

    /// How the nodes are exposed, with those faults that are confirmed: what is not counts as if
    /// it were right.
    #[must_use]
    pub fn exposure(&self, confirmed: &Faults) -> Exposure {
        let mut exposure = Exposure::default();
        let has = |pod: &str, fault: &Fault| confirmed.get(pod).is_some_and(|f| f.contains(fault));
        for (name, uid) in self.steady() {
            exposure.expected += 1;
            let own =
                |answer: &&Answer| shard_of(uid, answer.told.total()) == answer.told.ordinal();
            let lacks = |answer: &&Answer| {
                has(&answer.pod, &Fault::NoAnswer)
                    || has(&answer.pod, &Fault::Missing(name.clone()))
            };
            if self.answers.iter().filter(own).all(|answer| lacks(&answer)) {
                exposure.missing += 1;
            } else {
                exposure.exposed += 1;
            }
            let twice = Fault::Repeated(name.clone());
            exposure.duplicated +=
                u32::from(self.answers.iter().any(|answer| has(&answer.pod, &twice)));
        }
        let strangers = confirmed.values().flatten().filter_map(|fault| match fault {
            Fault::Foreign(name) | Fault::Ghost(name) => Some(name),
            _ => None,
        });
        exposure.foreign = count(strangers.collect::<BTreeSet<_>>().len());
        exposure
    }
}

/// What is remembered of a KSMScale from one look to the next. Forgetting it costs time only.
#[derive(Clone, Debug, Default)]
pub struct History {
    suspected: Option<Faults>,
    strikes: BTreeMap<String, u32>,
}

/// What a look has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something may be wrong: the next look tells.
    LookAgain,
    /// An audit is over. No faults means that all is well.
    Audited(Faults),
}

impl History {
    /// Takes in the next look.
    ///
    /// What is wrong with all of several pods is not theirs (a version that shares objects out by
    /// another hash, say): others in their place would be no better, so it counts against none.
    pub fn record(&mut self, look: &Look) -> Verdict {
        let faults = look.faults();
        let confirmed = match self.suspected.take() {
            None if faults.is_empty() => Faults::new(),
            None => {
                self.suspected = Some(faults);
                return Verdict::LookAgain;
            }
            Some(before) => both(&before, &faults),
        };
        let common = look.answers.len() > 1 && confirmed.len() == look.answers.len();
        self.strikes.retain(|pod, _| confirmed.contains_key(pod) && !common);
        for pod in confirmed.keys().filter(|_| !common) {
            *self.strikes.entry(pod.clone()).or_default() += 1;
        }
        Verdict::Audited(confirmed)
    }

    /// Pods, by UID, that failed so often that they are to be replaced.
    pub fn condemned(&self) -> impl Iterator<Item = &str> {
        let failed = self.strikes.iter().filter(|(_, strikes)| **strikes >= STRIKES);
        failed.map(|(pod, _)| pod.as_str())
    }
}

/// Faults that are in both looks.
fn both(before: &Faults, now: &Faults) -> Faults {
    let common = now.iter().filter_map(|(pod, now)| {
        let both: BTreeSet<_> = before.get(pod)?.intersection(now).cloned().collect();
        (!both.is_empty()).then(|| (pod.clone(), both))
    });
    common.collect()
}

/// One pod's faults in words that are short however many there are.
#[must_use]
pub fn describe(faults: &BTreeSet<Fault>) -> String {
    let mut parts = Vec::new();
    if faults.contains(&Fault::NoAnswer) {
        parts.push("does not answer as a whole".to_owned());
    }
    if faults.contains(&Fault::OtherShard) {
        parts.push("runs as another shard than its arguments say".to_owned());
    }
    let kinds = [
        ("does not expose", "missing"),
        ("exposes more than once", "repeated"),
        ("exposes, of other shards,", "foreign"),
        ("exposes, though it does not exist,", "ghost"),
    ];
    for (what, kind) in kinds {
        let of_kind = faults.iter().filter(|fault| fault.label() == kind);
        let mut nodes = of_kind.filter_map(Fault::node);
        if let Some(first) = nodes.next() {
            let more = match nodes.count() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            parts.push(format!("{what} node {first}{more}"));
        }
    }
    parts.join("; ")
}

/// How long to wait from one audit to the next: less than `interval` by up to a quarter, which
/// differs from one KSMScale to another, so that not all are looked at together.
#[must_use]
pub fn pause(name: &str, interval: Duration) -> Duration {
    let jitter = u32::try_from(xxh3_64(name.as_bytes()) % 256).unwrap_or(0);
    interval * (1024 - jitter) / 1024
}

/// How long to wait before something that may be wrong is looked at again: as long as pods may
/// take to hear of a node, but short against `interval`.
#[must_use]
pub fn recheck(interval: Duration) -> Duration {
    (interval / 4).min(Duration::from_secs(15))
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, exposed, missing, duplicated, foreign } = self;
        write!(
            f,
            "{exposed} of {expected} nodes exposed, {missing} missing, {duplicated} duplicated, \
             {foreign} foreign"
        )
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
