//! Nodes without machines.

use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::ControlPlane;

/// Requests at a time.
const CONCURRENCY: usize = 32;
/// kwok makes about 50 nodes Ready in a second.
const READY_DEADLINE: Duration = Duration::from_mins(4);
const READY_POLL: Duration = Duration::from_millis(200);

impl ControlPlane {
    /// Makes the nodes `node-<i>` for kwok, which keeps them Ready and runs their pods (at
    /// [`Level::Nodes`](super::Level::Nodes)). Returns when they exist, which is before they are
    /// Ready. A node that exists already is an error.
    pub async fn add_kwok_nodes(&self, indexes: Range<u32>) -> Result<()> {
        self.create_nodes(indexes, true).await
    }

    /// Makes the nodes `node-<i>` as objects that say Ready and that nobody looks after. Fine at
    /// [`Level::ApiServer`](super::Level::ApiServer); a controller-manager declares them
    /// unreachable after 40 s. A node that exists already is an error.
    pub async fn add_nodes(&self, indexes: Range<u32>) -> Result<()> {
        self.create_nodes(indexes, false).await
    }

    /// Deletes the nodes `node-<i>`; those that are gone already are fine.
    pub async fn remove_nodes(&self, indexes: Range<u32>) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.admin());
        let deletions = indexes.map(|index| {
            let nodes = nodes.clone();
            async move {
                match nodes.delete(&name(index), &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                    result => result.map(drop).with_context(|| format!("deleting {}", name(index))),
                }
            }
        });
        stream::iter(deletions).buffer_unordered(CONCURRENCY).try_collect().await
    }

    /// Keeps the scheduler from the nodes `node-<i>`, as `kubectl cordon` does.
    pub async fn cordon_nodes(&self, indexes: Range<u32>) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.admin());
        let cordons = indexes.map(|index| {
            let nodes = nodes.clone();
            async move {
                let patch = Patch::Merge(json!({ "spec": { "unschedulable": true } }));
                let patched = nodes.patch(&name(index), &PatchParams::default(), &patch).await;
                patched.map(drop).with_context(|| format!("cordoning {}", name(index)))
            }
        });
        stream::iter(cordons).buffer_unordered(CONCURRENCY).try_collect().await
    }

    /// Waits until the nodes `node-<i>` exist and are Ready.
    pub async fn nodes_ready(&self, indexes: Range<u32>) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.admin());
        let start = Instant::now();
        loop {
            let list = nodes.list(&ListParams::default()).await?;
            let ready: HashSet<String> =
                list.iter().filter(|node| is_ready(node)).map(ResourceExt::name_any).collect();
            let missing = indexes.clone().filter(|index| !ready.contains(&name(*index))).count();
            if missing == 0 {
                return Ok(());
            }
            if start.elapsed() > READY_DEADLINE {
                let deadline = READY_DEADLINE.as_secs();
                bail!("{missing} of {} nodes are not Ready after {deadline} s", indexes.len());
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    async fn create_nodes(&self, indexes: Range<u32>, kwok: bool) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.admin());
        let creations = indexes.map(|index| {
            let nodes = nodes.clone();
            async move {
                let node = node(index, kwok)?;
                let created = nodes.create(&PostParams::default(), &node).await;
                created.map(drop).with_context(|| format!("creating {}", name(index)))
            }
        });
        stream::iter(creations).buffer_unordered(CONCURRENCY).try_collect().await
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn name(index: u32) -> String {
    format!("node-{index}")
}

/// A new node keeps the status it is created with: a kubelet registers itself in the same way.
fn node(index: u32, kwok: bool) -> serde_json::Result<Node> {
    let name = name(index);
    let resources = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
    let mut node = json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
            },
        },
        "status": { "allocatable": resources, "capacity": resources },
    });
    if kwok {
        node["metadata"]["annotations"] = json!({ "kwok.x-k8s.io/node": "fake" });
    } else {
        node["status"]["conditions"] = json!([{
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "made by devcluster",
        }]);
    }
    serde_json::from_value(node)
}
