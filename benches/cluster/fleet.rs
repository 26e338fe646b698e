//! Many nodes, many KSMScales.

use anyhow::{Context as _, Result, ensure};
use devcluster::{ControlPlane, eventually};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use ksm_scale_operator::api::KSMScale;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

const DEADLINE: Duration = Duration::from_mins(10);

/// Pods of each KSMScale: as many nodes as there are make this number exactly, so that one node
/// more makes one pod more.
const PODS: u32 = 5;

pub struct Fleet<'p> {
    plane: &'p ControlPlane,
    pub nodes: u32,
    pub scales: u32,
    /// Of heartbeats: a patch that changes nothing is no write.
    rounds: AtomicU32,
}

impl<'p> Fleet<'p> {
    /// Installs CRD and rights, as a user does.
    pub async fn prepare(plane: &'p ControlPlane, nodes: u32, scales: u32) -> Result<Self> {
        ensure!(
            nodes >= 9 * PODS && nodes.is_multiple_of(PODS),
            "take a multiple of {PODS} nodes from 45"
        );
        for args in [
            "apply -f crds/ksmscales.monitor.example.com.yaml -f deploy/base/rbac.yaml",
            "wait --for=condition=Established crd/ksmscales.monitor.example.com",
        ] {
            let mut kubectl = plane.kubectl();
            let kubectl = kubectl.args(args.split(' ')).current_dir(env!("CARGO_MANIFEST_DIR"));
            let output = kubectl.output().await?;
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "kubectl {args}: {error}");
        }
        Ok(Self { plane, nodes, scales, rounds: AtomicU32::new(0) })
    }

    pub async fn make_nodes(&self) -> Result<()> {
        self.plane.add_nodes(0..self.nodes).await
    }

    /// The node beyond all others.
    pub fn one_more(&self) -> Range<u32> {
        self.nodes..self.nodes + 1
    }

    /// Makes the KSMScales, every second one with shards, and waits until they are at rest.
    pub async fn make_scales(&self) -> Result<()> {
        let api = self.api();
        for i in 0..self.scales {
            let sharding = json!({"enabled": i % 2 == 1, "shardCount": PODS});
            let scale = serde_json::from_value(json!({
                "apiVersion": "monitor.example.com/v1alpha1",
                "kind": "KSMScale",
                "metadata": {"name": format!("bench-{i}")},
                "spec": {"nodesPerMonitor": self.nodes / PODS, "sharding": sharding},
            }))?;
            api.create(&PostParams::default(), &scale).await?;
        }
        self.until_settled().await
    }

    /// Waits until every KSMScale has its pods for the nodes there are, and nothing to do.
    pub async fn until_settled(&self) -> Result<()> {
        let (api, nodes) = (self.api(), i32::try_from(self.nodes)?);
        let settled = |scale: &KSMScale| {
            scale.status.as_ref().is_some_and(|status| {
                let at_rest = status
                    .conditions
                    .iter()
                    .any(|c| c.type_ == "Progressing" && c.status == "False");
                at_rest
                    && status.node_count == Some(nodes)
                    && status.current_replicas == status.desired_replicas
            })
        };
        eventually("every KSMScale is at rest", DEADLINE, async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let scales = api.list(&ListParams::default()).await.ok()?.items;
            scales.iter().all(settled).then_some(())
        })
        .await
    }

    /// One heartbeat of each node, spread over `time`: what a kubelet sends every five minutes
    /// while nothing changes. Returns when `time` is over.
    pub async fn heartbeats(&self, time: Duration) -> Result<()> {
        const CONCURRENCY: usize = 4;
        let nodes = Api::<Node>::all(self.plane.admin());
        let round = self.rounds.fetch_add(1, Ordering::Relaxed);
        let at = Timestamp::from_second(1_800_000_000 + i64::from(round))?;
        let start = tokio::time::Instant::now();
        let beats = (0..self.nodes).map(|i| {
            let nodes = nodes.clone();
            async move {
                tokio::time::sleep_until(start + time / self.nodes * i).await;
                let patch = json!({"status": {"conditions": [{
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "made by devcluster",
                    "lastHeartbeatTime": at,
                }]}});
                let name = format!("node-{i}");
                let params = PatchParams::default();
                let beat = nodes.patch_status(&name, &params, &Patch::Merge(patch)).await;
                beat.map(drop).with_context(|| format!("heartbeat of {name}"))
            }
        });
        stream::iter(beats).buffered(CONCURRENCY).try_collect::<()>().await?;
        tokio::time::sleep_until(start + time).await;
        Ok(())
    }

    fn api(&self) -> Api<KSMScale> {
        Api::all(self.plane.admin())
    }
}
