//! Reconstructs who acted when, and who was allowed to, from the API server's audit log.
//!
//! It shares no code with the replicas but the hash of keys: Leases are read as documented.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ksm_scale_operator::{api::KSMScale, names::LABEL_SCALE};
use kube::Resource;
use lease_sharding::{
    hash::KeyHash,
    keys::{Key, Keyspace},
};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

/// What somebody wrote.
enum What {
    /// On behalf of a KSMScale.
    Worked { scale: String, member: String, what: String },
    /// Its own Lease, or another's: what is claimed from now on, and under which keyspace.
    Claims { member: String, keyspace: String, claims: Vec<u8> },
}

pub struct Witness {
    log: PathBuf,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The pod in a User-Agent.
fn member(event: &Value) -> String {
    let agent = text(&event["userAgent"]);
    agent.split(['(', ')']).nth(1).unwrap_or_default().to_owned()
}

fn claims(object: &Value) -> Option<What> {
    let name = text(&object["metadata"]["name"]);
    let member = name.strip_prefix("ksm-scale-operator.")?.to_owned();
    let annotations = &object["metadata"]["annotations"];
    let keyspace = text(&annotations["lease-sharding/keyspace"]);
    let claims = BASE64_STANDARD.decode(text(&annotations["lease-sharding/claims"]));
    Some(What::Claims { member, keyspace, claims: claims.expect("base64") })
}

fn worked(event: &Value, object: &Value) -> Option<What> {
    let reference = &event["objectRef"];
    let labels = &object["metadata"]["labels"];
    let resource = text(&reference["resource"]);
    let scale = match &*resource {
        "ksmscales" => text(&reference["name"]),
        "pods" => text(&labels[LABEL_SCALE]),
        // Of the others some are shared, and an Event stands for nothing.
        _ => return None,
    };
    let what = format!("{} {resource} {}", text(&event["verb"]), text(&reference["name"]));
    Some(What::Worked { scale, member: member(event), what })
}

impl Witness {
    pub fn new(log: PathBuf) -> Self {
        Self { log }
    }

    /// Every write that was made, by its revision: etcd has one sequence of them for all objects.
    fn history(&self) -> BTreeMap<u64, What> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut history = BTreeMap::new();
        for line in log.lines() {
            // The last line may not be complete yet.
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            if event["responseStatus"]["code"].as_u64().is_none_or(|code| code >= 300) {
                continue;
            }
            let object = &event["responseObject"];
            let version = text(&object["metadata"]["resourceVersion"]);
            let Ok(version) = version.parse::<u64>() else { continue };
            let what = match &*text(&event["objectRef"]["resource"]) {
                "leases" => claims(object),
                _ => worked(&event, object),
            };
            // A write that changes nothing has the revision of the one before.
            if let Some(what) = what {
                history.entry(version).or_insert(what);
            }
        }
        history
    }

    /// How often each replica wrote on behalf of a KSMScale.
    pub fn writes_by_member(&self) -> BTreeMap<String, usize> {
        let mut writes = BTreeMap::new();
        for what in self.history().into_values() {
            if let What::Worked { member, .. } = what {
                *writes.entry(member).or_default() += 1;
            }
        }
        writes
    }

    /// How often each KSMScale went from one replica to another.
    pub fn moves(&self) -> BTreeMap<String, usize> {
        let (mut moves, mut last) = (BTreeMap::new(), BTreeMap::new());
        for what in self.history().into_values() {
            let What::Worked { scale, member, .. } = what else { continue };
            let before = last.insert(scale.clone(), member.clone());
            if before.is_some_and(|before| before != member) {
                *moves.entry(scale).or_default() += 1;
            }
        }
        moves
    }

    /// Panics if somebody wrote on behalf of a KSMScale that was not its own. Says how many writes
    /// there were.
    ///
    /// Several can claim a KSMScale, or have claims under different keyspaces. It is that one's
    /// whose claim is older than all others that stand against it: nobody who came later may act
    /// before those are withdrawn.
    pub fn assert_one_owner(&self) -> String {
        let mut since: BTreeMap<String, Claims> = BTreeMap::new();
        let (mut works, mut wrong) = (0, Vec::new());
        for (revision, what) in self.history() {
            match what {
                What::Claims { member, keyspace, claims } => {
                    since.entry(member).or_default().see(revision, keyspace, &claims);
                }
                What::Worked { scale, member, what } => {
                    works += 1;
                    let none = Claims::default();
                    let own = since.get(&member).unwrap_or(&none);
                    let others = since.iter().filter(|(other, _)| **other != member);
                    let older: Vec<_> = others
                        .filter(|(_, claims)| {
                            claims.against(own, &scale).is_some_and(|theirs| {
                                own.of(&scale).is_none_or(|ours| theirs < ours)
                            })
                        })
                        .map(|(other, _)| other)
                        .collect();
                    if own.of(&scale).is_none() || !older.is_empty() {
                        wrong
                            .push(format!("{revision}: {member}: {what} for {scale} of {older:?}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {works} writes: {wrong:#?}", wrong.len());
        assert!(works > 0, "nothing was written");
        format!("{works} writes for KSMScales, each by the owner")
    }
}

/// A replica's claims, each with the revision since when it stands.
#[derive(Default)]
struct Claims {
    keyspace: String,
    since: BTreeMap<u32, u64>,
}

impl Claims {
    fn see(&mut self, revision: u64, keyspace: String, claims: &[u8]) {
        if self.keyspace != keyspace {
            *self = Self { keyspace, since: BTreeMap::new() };
        }
        let bit = |p: u32| claims.get(p as usize / 8).is_some_and(|byte| byte >> (p % 8) & 1 == 1);
        self.since.retain(|partition, _| bit(*partition));
        // As many as there can be: a Lease holds no more.
        for partition in (0..1 << 16).filter(|p| bit(*p)) {
            self.since.entry(partition).or_insert(revision);
        }
    }

    /// Since when a KSMScale is claimed.
    fn of(&self, scale: &str) -> Option<u64> {
        let keys = [4_096, 509].map(|partitions| Keyspace::new(KeyHash::default(), partitions));
        let mine = |keys: &Keyspace| format!("{:016x}", keys.fingerprint()) == self.keyspace;
        let keys = keys.into_iter().find(mine)?;
        let (group, kind) = (KSMScale::group(&()), KSMScale::kind(&()));
        let partition = keys.partition_of(&Key::new(&group, &kind, "", scale));
        self.since.get(&partition).copied()
    }

    /// Since when there is a claim that stands in another's way: to the same, or under another
    /// keyspace to anything.
    fn against(&self, other: &Self, scale: &str) -> Option<u64> {
        if self.keyspace == other.keyspace {
            self.of(scale)
        } else {
            self.since.values().min().copied()
        }
    }
}
