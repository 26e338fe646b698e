//! When pods are created, as a watch of their metadata tells.

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
};

const DEADLINE: Duration = Duration::from_mins(2);

pub struct Pods {
    created: Mutex<mpsc::UnboundedReceiver<Instant>>,
    task: JoinHandle<()>,
}

impl Pods {
    /// Returns when the pods that are there are known.
    pub async fn watch(client: Client) -> Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (listed, first) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let (mut known, mut listed) = (HashSet::new(), Some(listed));
            let pods = Api::<PartialObjectMeta<Pod>>::all(client);
            let _ = watcher(pods, watcher::Config::default())
                .default_backoff()
                .try_for_each(|event| {
                    match event {
                        watcher::Event::InitApply(pod) => drop(known.insert(pod.uid())),
                        watcher::Event::Apply(pod) if known.insert(pod.uid()) => {
                            let _ = sender.send(Instant::now());
                        }
                        watcher::Event::InitDone => drop(listed.take().map(|l| l.send(()))),
                        _ => {}
                    }
                    std::future::ready(Ok(()))
                })
                .await;
        });
        first.await.context("the watch of pods ended")?;
        Ok(Self { created: Mutex::new(receiver), task })
    }

    /// When each of the next `count` pods is created, from the moment `cause` is begun.
    pub async fn next_created(
        &self,
        count: u32,
        cause: impl Future<Output = Result<()>>,
    ) -> Result<Vec<Instant>> {
        let mut created = self.created.lock().await;
        while created.try_recv().is_ok() {}
        let mut times = Vec::new();
        let collect = async {
            while times.len() < count as usize {
                times.push(created.recv().await.context("the watch of pods ended")?);
            }
            anyhow::Ok(())
        };
        let both = async { tokio::try_join!(cause, collect) };
        let done = tokio::time::timeout(DEADLINE, both).await;
        ensure!(done.is_ok(), "only {} of {count} pods were created in time", times.len());
        done??;
        Ok(times)
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.task.abort();
    }
}
