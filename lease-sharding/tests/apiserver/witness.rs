//! Reconstructs who acted when, and who was allowed to, from what the API server has stored.
//!
//! It shares no code with the members but the hash of keys: Leases are read as documented.

use crate::stage::{NAMESPACE, key, maps};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::watcher::{self, Event, watcher},
};
use lease_sharding::keys::Keyspace;
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

#[derive(Debug, Clone)]
enum What {
    Worked {
        map: String,
        worker: String,
    },
    /// A bitmap.
    Claims {
        member: String,
        claims: Vec<u8>,
    },
    Gone {
        member: String,
    },
}

/// By revision: etcd has one sequence of them for all objects.
type History = BTreeMap<u64, (Instant, What)>;

pub struct Witness {
    history: Arc<Mutex<History>>,
    _watches: JoinSet<()>,
}

fn revision<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).expect("a revision")
}

async fn record<K, F>(client: Client, history: Arc<Mutex<History>>, read: F)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    F: Fn(&K, bool) -> Option<What>,
{
    let mut events = watcher(Api::<K>::all(client), watcher::Config::default()).boxed();
    loop {
        let (object, gone) = match events.try_next().await {
            Ok(Some(Event::Apply(object) | Event::InitApply(object))) => (object, false),
            Ok(Some(Event::Delete(object))) => (object, true),
            Ok(_) => continue,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Some(what) = read(&object, gone) {
            let mut history = history.lock().expect("the history");
            history.entry(revision(&object)).or_insert((Instant::now(), what));
        }
    }
}

fn worked(map: &ConfigMap, gone: bool) -> Option<What> {
    let worker = map.annotations().get("worker").filter(|_| !gone)?;
    Some(What::Worked { map: map.name_any(), worker: worker.clone() })
}

fn claims(lease: &Lease, gone: bool) -> Option<What> {
    if lease.namespace().as_deref() != Some(NAMESPACE) {
        return None;
    }
    let member = lease.name_any().strip_prefix("configmaps.")?.to_owned();
    if gone {
        return Some(What::Gone { member });
    }
    let claims = lease.annotations().get("lease-sharding/claims").expect("claims");
    Some(What::Claims { member, claims: STANDARD.decode(claims).expect("base64") })
}

impl Witness {
    pub fn start(client: &Client) -> Self {
        let history = Arc::new(Mutex::new(History::new()));
        let mut watches = JoinSet::new();
        watches.spawn(record(client.clone(), history.clone(), worked));
        watches.spawn(record(client.clone(), history.clone(), claims));
        Self { history, _watches: watches }
    }

    /// Who worked last on each object, and when.
    pub fn latest(&self) -> HashMap<String, (String, Instant)> {
        let history = self.history.lock().expect("the history");
        let worked = history.values().filter_map(|(at, what)| match what {
            What::Worked { map, worker } => Some((map.clone(), (worker.clone(), *at))),
            _ => None,
        });
        worked.collect()
    }

    /// Whether every object was worked on after this revision.
    pub fn all_since(&self, revision: u64) -> bool {
        let history = self.history.lock().expect("the history");
        let worked: BTreeSet<&String> = history
            .range(revision + 1..)
            .filter_map(|(_, (_, what))| match what {
                What::Worked { map, .. } => Some(map),
                _ => None,
            })
            .collect();
        maps().all(|map| worked.contains(&map))
    }

    /// The longest time between two pieces of work on the same object, of those that end after
    /// `start`.
    pub fn longest_gap(&self, start: Instant) -> Duration {
        let history = self.history.lock().expect("the history");
        let mut last: HashMap<&str, Instant> = HashMap::new();
        let mut longest = Duration::ZERO;
        for (at, what) in history.values() {
            let What::Worked { map, .. } = what else { continue };
            if let Some(before) = last.insert(map, *at)
                && *at > start
            {
                longest = longest.max(at.duration_since(before));
            }
        }
        longest
    }

    /// How often somebody worked on an object that was not its, which must be never.
    ///
    /// Several members can claim an object. It is that one's whose claim, as the Leases were then,
    /// is the oldest: nobody who came later may act before it has withdrawn.
    pub fn assert_one_owner(&self) {
        let keys = Keyspace::default();
        let partitions: HashMap<String, u32> =
            maps().map(|map| (map.clone(), keys.partition_of(&key(&map)))).collect();
        let mut since: BTreeMap<(u32, String), u64> = BTreeMap::new();
        let (mut works, mut wrong) = (0, vec![]);
        for (revision, (_, what)) in &*self.history.lock().expect("the history") {
            match what {
                What::Gone { member } => since.retain(|(_, claimant), _| claimant != member),
                What::Claims { member, claims } => {
                    for &partition in partitions.values() {
                        let byte = claims.get(partition as usize / 8).copied().unwrap_or_default();
                        let place = (partition, member.clone());
                        if byte >> (partition % 8) & 1 == 1 {
                            since.entry(place).or_insert(*revision);
                        } else {
                            since.remove(&place);
                        }
                    }
                }
                What::Worked { map, worker } => {
                    works += 1;
                    let of = |((p, _), _): &(&(u32, String), &u64)| *p == partitions[map];
                    let owner = since.iter().filter(of).min_by_key(|(_, since)| **since);
                    let owner = owner.map(|((_, member), _)| member);
                    if owner != Some(worker) {
                        wrong.push(format!("{revision}: {worker} worked on {map} of {owner:?}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {works} pieces of work: {wrong:#?}", wrong.len());
        println!("{works} pieces of work, each by the owner");
    }
}
