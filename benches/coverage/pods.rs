//! Pods as a watch sees them: how many there are, and how long each takes to become Ready.

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::observed::ObservedPod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// A pod.
#[derive(Clone)]
struct There {
    terminating: bool,
    /// Since when, if it is not Ready yet and its start is measured.
    since: Option<Instant>,
}

pub struct Pods {
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

/// Since the watch began.
#[derive(Clone, Default)]
pub struct Seen {
    /// The most pods at a time that were not being deleted.
    pub most: usize,
    /// The most pods at a time, with those that were.
    pub most_with_terminating: usize,
    /// Pods that have gone.
    pub gone: usize,
    /// From creation to Ready, of each pod that was created.
    pub starts: Vec<Duration>,
    /// By UID.
    there: HashMap<String, There>,
}

impl Pods {
    /// Returns when the pods that are there are known.
    pub async fn watch(client: Client) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (listed, first) = tokio::sync::oneshot::channel();
        let (shared, mut listed) = (Arc::clone(&seen), Some(listed));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let pods = Api::<Pod>::all(client);
            let _ = watcher(pods, watcher::Config::default())
                .default_backoff()
                .try_for_each(|event| {
                    let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    match event {
                        watcher::Event::Apply(pod) => seen.take(&ObservedPod::new(&pod)),
                        watcher::Event::InitApply(pod) => {
                            let pod = ObservedPod::new(&pod);
                            let there = There { terminating: pod.terminating, since: None };
                            seen.there.insert(pod.uid, there);
                        }
                        watcher::Event::InitDone => drop(listed.take().map(|l| l.send(()))),
                        watcher::Event::Delete(pod) => {
                            seen.there.remove(&ObservedPod::new(&pod).uid);
                            seen.gone += 1;
                        }
                        watcher::Event::Init => {}
                    }
                    let staying = seen.there.values().filter(|pod| !pod.terminating).count();
                    seen.most = seen.most.max(staying);
                    seen.most_with_terminating = seen.most_with_terminating.max(seen.there.len());
                    std::future::ready(Ok(()))
                })
                .await;
        });
        first.await.context("the watch of pods ended")?;
        Ok(Self { seen, _task: task })
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Seen {
    fn take(&mut self, pod: &ObservedPod) {
        let new = || There { terminating: false, since: Some(Instant::now()) };
        let there = self.there.entry(pod.uid.clone()).or_insert_with(new);
        there.terminating = pod.terminating;
        if pod.is_ready()
            && let Some(since) = there.since.take()
        {
            self.starts.push(since.elapsed());
        }
    }
}
