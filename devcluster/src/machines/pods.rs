//! The loop over pods: each gets a task of its own.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::Site;
use super::life::Life;

/// A pod as last seen, and the task that makes it so.
struct Tracked {
    pod: watch::Sender<Arc<Pod>>,
    task: JoinHandle<()>,
}

impl Drop for Tracked {
    /// Its process is killed with it.
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Pods {
    site: Arc<Site>,
    known: HashMap<String, Tracked>,
    /// By node, how many pods it has had.
    started: Vec<u32>,
    bindings: JoinSet<()>,
    bound: usize,
}

/// Looks after the pods of the site's nodes until it is dropped.
pub(super) async fn look_after(site: Arc<Site>) {
    let api = Api::<Pod>::all(site.client.clone());
    let events = watcher(api, watcher::Config::default()).default_backoff();
    pin_mut!(events);
    let started = vec![0; site.nodes.len()];
    let bindings = JoinSet::new();
    let mut pods = Pods { site, known: HashMap::new(), started, bindings, bound: 0 };
    let mut listed = Vec::new();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(pod))) => {
                    listed.extend(pod.uid());
                    pods.consider(pod);
                }
                // Those that went while nobody watched.
                Some(Ok(Event::InitDone)) => pods.known.retain(|uid, _| listed.contains(uid)),
                Some(Ok(Event::Apply(pod))) => pods.consider(pod),
                Some(Ok(Event::Delete(pod))) => {
                    pods.known.remove(&pod.uid().unwrap_or_default());
                }
                // Errors are retried by the stream itself.
                Some(Err(_)) => {}
                None => return,
            },
            Some(_) = pods.bindings.join_next() => {}
        }
    }
}

impl Pods {
    fn consider(&mut self, pod: Pod) {
        let uid = pod.uid().unwrap_or_default();
        if let Some(tracked) = self.known.get(&uid) {
            tracked.pod.send_replace(Arc::new(pod));
            return;
        }
        let Some(name) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
            return self.bind(&pod);
        };
        let Some(at) = self.site.nodes.iter().position(|node| node.name == name) else { return };
        self.started[at] += 1;
        let node = &self.site.nodes[at];
        let (ip, host_ip) = (node.pod_ip(self.started[at]).to_string(), node.ip().to_string());
        let (signals, receiver) = mpsc::unbounded_channel();
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        self.site.signals.lock().unwrap_or_else(PoisonError::into_inner).insert(key, signals);
        let (sender, pod) = watch::channel(Arc::new(pod));
        let life = Life::new(Arc::clone(&self.site), pod, ip, host_ip, receiver);
        self.known.insert(uid, Tracked { pod: sender, task: tokio::spawn(life.run()) });
    }

    /// What a scheduler does, where there is none.
    fn bind(&mut self, pod: &Pod) {
        if !self.site.binds || self.site.nodes.is_empty() {
            return;
        }
        let node = &self.site.nodes[self.bound % self.site.nodes.len()];
        self.bound += 1;
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": name, "uid": pod.uid() },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node.name },
        });
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.site.client.clone(), &namespace);
        self.bindings.spawn(async move {
            let params = PostParams::default();
            // Refused if it is gone or bound. When the API server is away, the watch breaks too, and
            // brings the pod again.
            let _: Result<serde_json::Value, _> =
                api.create_subresource("binding", &name, &params, &binding).await;
        });
    }
}
