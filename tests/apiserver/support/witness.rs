//! Who looks on: at pods, and at the statuses of a KSMScale.

use super::Cluster;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::{api::KSMScaleStatus, coverage::shard_of, observed::ObservedPod};
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::task::JoinHandle;

/// Follows every pod of the cluster and works out, at each of their changes, which objects the
/// Ready ones expose: by hashing the UIDs of 2,000 made-up objects, knowing nothing of plans.
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    pods: BTreeMap<String, Pod>,
    /// Changes of pods since the witness was asked to watch.
    changes: usize,
    /// The most objects that nobody exposed, and the pods at that moment.
    worst: (usize, String),
    most_pods: usize,
}

const OBJECTS: u32 = 2_000;

impl Witness {
    pub async fn start(client: &Client) -> Self {
        Self::start_with(client, watcher::Config::default()).await
    }

    /// Follows the pods of one KSMScale only.
    pub async fn of(client: &Client, scale: &str) -> Self {
        let labels = format!("ksmscale.example.com={scale}");
        Self::start_with(client, watcher::Config::default().labels(&labels)).await
    }

    async fn start_with(client: &Client, config: watcher::Config) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (writer, pods) = (seen.clone(), Api::<Pod>::all(client.clone()));
        let (listed, first) = tokio::sync::oneshot::channel();
        let mut listed = Some(listed);
        let uids: Vec<String> = (0..OBJECTS)
            .map(|i| format!("{:08x}-0000-4000-8000-{i:012x}", i.wrapping_mul(2_654_435_761)))
            .collect();
        let task = tokio::spawn(async move {
            let events = watcher(pods, config).default_backoff();
            let _ = events
                .try_for_each(|event| {
                    let mut seen = writer.lock().expect("no panic");
                    match event {
                        watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                            seen.pods.insert(pod.uid().unwrap_or_default(), pod);
                        }
                        watcher::Event::Delete(pod) => {
                            seen.pods.remove(&pod.uid().unwrap_or_default());
                        }
                        watcher::Event::InitDone => {
                            listed.take().map(|listed| listed.send(()));
                        }
                        watcher::Event::Init => {}
                    }
                    seen.look(&uids);
                    std::future::ready(Ok(()))
                })
                .await;
        });
        first.await.expect("a first list");
        Self { seen, task }
    }

    /// Forgets what was; from now on every object has to be exposed.
    pub fn watch(&self) {
        let mut seen = self.seen.lock().expect("no panic");
        (seen.changes, seen.worst, seen.most_pods) = (0, (0, String::new()), 0);
    }

    /// Panics if since [`Witness::watch`] an object was ever exposed by no Ready pod, or if pods
    /// have not changed at all.
    pub fn saw_no_gap(&self) {
        let seen = self.seen.lock().expect("no panic");
        assert!(seen.changes > 0, "no pod changed, so nothing was proven");
        let (missing, at) = &seen.worst;
        assert_eq!(*missing, 0, "of {OBJECTS} objects were exposed by nobody, with pods {at}");
    }

    /// The most pods there were at a time since [`Witness::watch`].
    pub fn most_pods(&self) -> usize {
        self.seen.lock().expect("no panic").most_pods
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn look(&mut self, uids: &[String]) {
        let pods: Vec<_> = self.pods.values().map(ObservedPod::new).collect();
        let serving: Vec<_> = pods.iter().filter(|p| p.is_ready()).collect();
        let exposed = |uid: &&String| {
            serving
                .iter()
                .filter_map(|p| p.slice())
                .any(|s| shard_of(uid, s.total()) == s.ordinal())
        };
        let missing = uids.iter().filter(|uid| !exposed(uid)).count();
        self.changes += 1;
        self.most_pods = self.most_pods.max(pods.iter().filter(|p| !p.terminating).count());
        if missing > self.worst.0 {
            let names: Vec<_> = serving.iter().map(|p| p.name.clone()).collect();
            self.worst = (missing, names.join(", "));
        }
    }
}

/// Every status that a KSMScale had, in order, from the moment of the call.
pub struct History {
    statuses: Arc<Mutex<Vec<KSMScaleStatus>>>,
    task: JoinHandle<()>,
}

impl History {
    pub async fn of(cluster: &Cluster, name: &str) -> Self {
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let (writer, api) = (statuses.clone(), cluster.scales());
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let (listed, first) = tokio::sync::oneshot::channel();
        let mut listed = Some(listed);
        let task = tokio::spawn(async move {
            watcher(api, config)
                .default_backoff()
                .for_each(|event| {
                    match event {
                        Ok(watcher::Event::Apply(scale) | watcher::Event::InitApply(scale)) => {
                            let mut statuses = writer.lock().expect("no panic");
                            if let Some(status) =
                                scale.status.filter(|s| statuses.last() != Some(s))
                            {
                                statuses.push(status);
                            }
                        }
                        Ok(watcher::Event::InitDone) => {
                            listed.take().map(|listed| listed.send(()));
                        }
                        _ => {}
                    }
                    std::future::ready(())
                })
                .await;
        });
        first.await.expect("a first list");
        Self { statuses, task }
    }

    pub fn statuses(&self) -> Vec<KSMScaleStatus> {
        self.statuses.lock().expect("no panic").clone()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}
