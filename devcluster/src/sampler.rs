//! What is exposed, twenty times a second, by an observer that trusts nobody.

mod exposed;
mod history;

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures::{Stream, StreamExt as _, future, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep};

use crate::probe::http_get;
use crate::wait::eventually;
use exposed::Key;
pub use exposed::Kind;
pub use history::{History, Sample};

const PERIOD: Duration = Duration::from_millis(50);
/// What Prometheus would wait with an interval of a second.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Samples at a time: as many as can begin before the first one times out.
const AT_A_TIME: usize = 20;
const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_mins(1);
/// After an error of a watch. Who changes pods again sooner after an outage than the sampler hears of them
/// seems to lose what they serve.
const RETRY: Duration = Duration::from_millis(100);

/// Scrapes all pods of kube-state-metrics twenty times a second, and counts for each object of the
/// cluster how many of them expose it, for as long as this value lives.
///
/// It watches the API server for itself, and shares nothing with the operator. Scraped is every pod
/// with the labels that has an address and has not ended, Ready or not, as Prometheus does; one that
/// does not answer within a second exposes nothing in that sample. Objects that have just come or
/// gone, less than `slack` ago, count neither as missing nor as ghosts.
#[derive(Debug)]
pub struct Sampler {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    kinds: Vec<Kind>,
    slack: Duration,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<Key, Life>,
    synced: usize,
    /// By UID, the addresses of pods that are scraped.
    pods: HashMap<String, String>,
    history: History,
}

/// When an object was first and last seen.
#[derive(Debug, Clone, Copy)]
struct Life {
    since: Instant,
    gone: Option<Instant>,
}

/// What came of asking one pod.
enum Scrape {
    Answer(Vec<Key>),
    Failure,
    Late,
}

impl Sampler {
    /// Starts to sample, with the first sample when all objects are known. `pods` is the label
    /// selector of the pods to scrape.
    pub async fn start(
        client: Client,
        pods: &str,
        kinds: &[Kind],
        slack: Duration,
    ) -> Result<Self> {
        let state = Mutex::default();
        let start = Instant::now();
        let shared = Arc::new(Shared { kinds: kinds.to_vec(), slack, start, state });
        let mut tasks = JoinSet::new();
        for kind in kinds {
            tasks.spawn(follow_objects(Arc::clone(&shared), client.clone(), *kind));
        }
        tasks.spawn(follow_pods(Arc::clone(&shared), client, pods.to_owned()));
        eventually("the sampler knows all objects", DEADLINE, || async {
            (shared.lock().synced > kinds.len()).then_some(())
        })
        .await?;
        // What was there before counts at once.
        let long_ago = start.checked_sub(slack).unwrap_or(start);
        shared.lock().objects.values_mut().for_each(|life| life.since = long_ago);
        tasks.spawn(sample_for_ever(Arc::clone(&shared)));
        Ok(Self { shared, _tasks: tasks })
    }

    /// All samples so far.
    pub fn history(&self) -> History {
        self.shared.lock().history.clone()
    }

    /// Forgets all samples so far.
    pub fn reset(&self) {
        self.shared.lock().history = History::default();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Scrapes all pods once.
    async fn sample(&self) {
        let at = Instant::now();
        let addresses: Vec<String> = self.lock().pods.values().cloned().collect();
        let scrapes = addresses.iter().map(|address| async move {
            match tokio::time::timeout(TIMEOUT, http_get(address, "/metrics")).await {
                Ok(Ok((200, text))) => Scrape::Answer(exposed::keys(&self.kinds, &text)),
                Ok(_) => Scrape::Failure,
                Err(_) => Scrape::Late,
            }
        });
        let scrapes = future::join_all(scrapes).await;
        let count = |is: fn(&Scrape) -> bool| scrapes.iter().filter(|scrape| is(scrape)).count();
        let failed = count(|scrape| !matches!(scrape, Scrape::Answer(_)));
        let late = count(|scrape| matches!(scrape, Scrape::Late));
        let mut exposed = HashMap::new();
        let answers = scrapes.into_iter().filter_map(|scrape| match scrape {
            Scrape::Answer(keys) => Some(keys),
            Scrape::Failure | Scrape::Late => None,
        });
        for key in answers.flatten() {
            *exposed.entry(key).or_insert(0_usize) += 1;
        }
        let mut state = self.lock();
        let mut sample = state.compare(&exposed, at, self.slack);
        (sample.at, sample.pods) = (at.duration_since(self.start), addresses.len());
        (sample.failed, sample.late) = (failed, late);
        state.history.add(sample);
    }
}

impl State {
    /// Counts what a sample that was begun `at` has found.
    fn compare(&self, exposed: &HashMap<Key, usize>, at: Instant, slack: Duration) -> Sample {
        let mut sample = Sample::default();
        let settled = |life: &Life| life.gone.is_none() && life.since + slack <= at;
        for (key, _) in self.objects.iter().filter(|(_, life)| settled(life)) {
            sample.expected += 1;
            match exposed.get(key) {
                None => sample.missing.push(key.to_string()),
                Some(times) => sample.duplicated += times - 1,
            }
        }
        for key in exposed.keys() {
            let life = self.objects.get(key);
            if life.is_none_or(|life| life.gone.is_some_and(|gone| gone + slack <= at)) {
                sample.ghosts.push(key.to_string());
            }
        }
        sample
    }

    fn seen(&mut self, key: Key, now: Instant) {
        let life = self.objects.entry(key).or_insert(Life { since: now, gone: None });
        if life.gone.take().is_some() {
            life.since = now;
        }
    }

    fn seen_pod(&mut self, pod: &Pod) {
        let status = pod.status.as_ref();
        let has_ended = matches!(
            status.and_then(|status| status.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        let uid = pod.uid().unwrap_or_default();
        match status.and_then(|status| status.pod_ip.as_ref()) {
            Some(ip) if !has_ended => drop(self.pods.insert(uid, format!("{ip}:{PORT}"))),
            _ => drop(self.pods.remove(&uid)),
        }
    }
}

async fn sample_for_ever(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut samples = JoinSet::new();
    loop {
        ticks.tick().await;
        while samples.try_join_next().is_some() {}
        if samples.len() >= AT_A_TIME {
            samples.join_next().await;
        }
        let shared = Arc::clone(&shared);
        samples.spawn(async move { shared.sample().await });
    }
}

/// What a watch shows. It is restored after every error.
fn events<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config).filter_map(|event| async {
        if event.is_err() {
            sleep(RETRY).await;
        }
        event.ok()
    })
}

async fn follow_objects(shared: Arc<Shared>, client: Client, kind: Kind) {
    type Meta = PartialObjectMeta<DynamicObject>;
    let resource = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("", "v1", kind.name()));
    let api: Api<Meta> = Api::all_with(client, &resource);
    let events = events(api, watcher::Config::default());
    pin_mut!(events);
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        let now = Instant::now();
        let mut state = shared.lock();
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                let key = Key::of(kind, &object.metadata);
                listed.push(key.clone());
                state.seen(key, now);
            }
            Event::InitDone => {
                let known = std::mem::take(&mut listed);
                let known: HashSet<Key> = known.into_iter().collect();
                let objects = state.objects.iter_mut();
                for (_, life) in
                    objects.filter(|(key, _)| key.kind == kind && !known.contains(*key))
                {
                    life.gone.get_or_insert(now);
                }
                state.synced += 1;
            }
            Event::Apply(object) => state.seen(Key::of(kind, &object.metadata), now),
            Event::Delete(object) => {
                let key = Key::of(kind, &object.metadata);
                if let Some(life) = state.objects.get_mut(&key) {
                    life.gone = Some(now);
                }
            }
        }
    }
}

async fn follow_pods(shared: Arc<Shared>, client: Client, selector: String) {
    let config = watcher::Config::default().labels(&selector);
    let events = events(Api::<Pod>::all(client), config);
    pin_mut!(events);
    let mut listed = HashSet::new();
    while let Some(event) = events.next().await {
        let mut state = shared.lock();
        match event {
            // Until the list is there, pods are where they were.
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                listed.extend(pod.uid());
                state.seen_pod(&pod);
            }
            Event::InitDone => {
                state.pods.retain(|uid, _| listed.contains(uid));
                state.synced += 1;
            }
            Event::Apply(pod) => state.seen_pod(&pod),
            Event::Delete(pod) => drop(state.pods.remove(&pod.uid().unwrap_or_default())),
        }
    }
}
