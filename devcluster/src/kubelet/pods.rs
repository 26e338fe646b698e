//! The loop of a kubelet: one task for each pod, started anew whenever something changes.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::report::Shown;
use super::{Fate, Kubelet, PolicyCell};
use crate::pod_status;

/// Between two tries when the API server does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// A pod as last seen, and what is being done about it.
struct Tracked {
    pod: Pod,
    fate: Fate,
    since: Instant,
    ip: String,
    task: JoinHandle<()>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Looks after all pods until it is dropped.
pub(super) async fn look_after(client: Client, mut policy: watch::Receiver<PolicyCell>) {
    let events =
        watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff();
    pin_mut!(events);
    let mut pods = Pods { client, known: HashMap::new(), addresses: 0 };
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Apply(pod) | Event::InitApply(pod))) => {
                    pods.consider(pod, &policy.borrow().clone());
                }
                Some(Ok(Event::Delete(pod))) => pods.forget(&pod),
                // Errors are retried by the stream itself.
                Some(Ok(Event::Init | Event::InitDone) | Err(_)) => {}
                None => return,
            },
            changed = policy.changed() => {
                if changed.is_err() {
                    return;
                }
                let policy = policy.borrow_and_update().clone();
                pods.consider_all(&policy);
            }
        }
    }
}

struct Pods {
    client: Client,
    known: HashMap<String, Tracked>,
    addresses: u32,
}

impl Pods {
    fn consider(&mut self, pod: Pod, policy: &PolicyCell) {
        let uid = pod.uid().unwrap_or_default();
        let fate = (policy.0)(&pod);
        let (since, ip) = match self.known.remove(&uid) {
            Some(known) if known.fate == fate => (known.since, known.ip.clone()),
            Some(known) => (Instant::now(), known.ip.clone()),
            None => (Instant::now(), self.address(&pod)),
        };
        let task =
            Task { client: self.client.clone(), pod: pod.clone(), fate, since, ip: ip.clone() };
        let task = tokio::spawn(task.run());
        self.known.insert(uid, Tracked { pod, fate, since, ip, task });
    }

    fn consider_all(&mut self, policy: &PolicyCell) {
        let pods: Vec<Pod> = self.known.values().map(|known| known.pod.clone()).collect();
        for pod in pods {
            self.consider(pod, policy);
        }
    }

    fn forget(&mut self, pod: &Pod) {
        self.known.remove(&pod.uid().unwrap_or_default());
    }

    /// The address the pod has, or a new one in 127.64.0.0/10.
    fn address(&mut self, pod: &Pod) -> String {
        let present = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        present.unwrap_or_else(|| {
            self.addresses += 1;
            let [_, b, c, d] = self.addresses.to_be_bytes();
            format!("127.{}.{c}.{d}", 64 | (b & 63))
        })
    }
}

/// Everything that one look at a pod calls for.
struct Task {
    client: Client,
    pod: Pod,
    fate: Fate,
    since: Instant,
    ip: String,
}

impl Task {
    async fn run(self) {
        while let Err(error) = self.settle().await {
            let gone = error.downcast_ref::<kube::Error>().is_some_and(
                |error| matches!(error, kube::Error::Api(s) if s.is_not_found() || s.is_conflict()),
            );
            // Gone, replaced or changed: the watch brings what is there now, and a new task.
            if gone {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn settle(&self) -> Result<()> {
        if self.pod.metadata.deletion_timestamp.is_some() {
            return self.finish_deletion().await;
        }
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Failed" | "Succeeded")) {
            return Ok(());
        }
        if self.pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_none() {
            return self.bind().await;
        }
        match self.fate {
            Fate::Ready { after } => {
                let ready_at = self.since + after;
                if ready_at > Instant::now() {
                    self.show(Shown::NotReady).await?;
                    tokio::time::sleep_until(ready_at).await;
                }
                self.show(Shown::Ready).await
            }
            Fate::Pending { reason } => self.show(Shown::Waiting(reason)).await,
            Fate::RunningNotReady => self.show(Shown::NotReady).await,
            Fate::Failed => self.show(Shown::Failed).await,
        }
    }

    async fn finish_deletion(&self) -> Result<()> {
        // The server writes the grace period of zero first and deletes then. The write brings a new
        // task here and ends the one whose request it was, so the request is made again; only
        // finalizers, which are not our business, make a deletion wait.
        let waits = !self.pod.finalizers().is_empty();
        if waits && self.pod.metadata.deletion_grace_period_seconds == Some(0) {
            return Ok(());
        }
        let uid = Preconditions { uid: self.pod.uid(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(uid);
        self.api().delete(&self.pod.name_any(), &params).await?;
        Ok(())
    }

    async fn bind(&self) -> Result<()> {
        let name = self.pod.name_any();
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": name, "uid": self.pod.uid() },
            "target": { "apiVersion": "v1", "kind": "Node", "name": Kubelet::NODE },
        });
        let params = PostParams::default();
        let _: serde_json::Value =
            self.api().create_subresource("binding", &name, &params, &binding).await?;
        Ok(())
    }

    async fn show(&self, shown: Shown) -> Result<()> {
        let report = shown.report(&self.pod, &self.ip);
        let Some(status) = pod_status::change(&self.pod, &report)? else { return Ok(()) };
        // The uid makes the server refuse a namesake. Strategic, so that others' conditions stay.
        let patch = json!({ "metadata": { "uid": self.pod.uid() }, "status": status });
        let name = self.pod.name_any();
        self.api()
            .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .with_context(|| format!("the status of pod {name}"))?;
        Ok(())
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.pod.namespace().unwrap_or_default())
    }
}
