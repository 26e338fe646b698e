//! A node: its network, its object and its heartbeat.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::Site;
use crate::pod_status;

/// The kubelet's port. Whoever listens on it owns the network around the address, so that test
/// processes that run at the same time never give one address to two pods.
const PORT: u16 = 10_250;
const ATTEMPTS: u32 = 1000;
/// The kubelet's; a controller-manager misses a node after 40 s.
const HEARTBEAT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    network: [u8; 2],
    _claim: TcpListener,
}

impl Node {
    /// A node with a network that nobody else has.
    pub(super) fn claim(index: u32) -> Result<Self> {
        let random = RandomState::new();
        for attempt in 0..ATTEMPTS {
            let [b, c, ..] = random.hash_one(attempt).to_le_bytes();
            // 127.0.0.0/9 is for others.
            let network = [b | 128, c];
            let address = Ipv4Addr::new(127, network[0], network[1], 1);
            if let Ok(claim) = TcpListener::bind((address, PORT)) {
                return Ok(Self { name: format!("machine-{index}"), network, _claim: claim });
            }
        }
        bail!("no free network in 127.128.0.0/9 for machine-{index}")
    }

    /// The node's own address.
    pub(super) fn ip(&self) -> Ipv4Addr {
        self.pod_ip(0)
    }

    /// The address of the `n`th pod. There are 253; others had them before.
    pub(super) fn pod_ip(&self, n: u32) -> Ipv4Addr {
        let host = if n == 0 { 1 } else { 2 + u8::try_from((n - 1) % 253).unwrap_or_default() };
        Ipv4Addr::new(127, self.network[0], self.network[1], host)
    }

    /// Creates the Node, Ready and with room for 110 pods.
    pub(super) async fn register(&self, client: &Client) -> Result<()> {
        let resources = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
        let node: core::Node = serde_json::from_value(json!({
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/hostname": self.name,
                    "kubernetes.io/arch": "amd64",
                    "kubernetes.io/os": "linux",
                },
            },
            "status": {
                "addresses": [
                    { "type": "InternalIP", "address": self.ip().to_string() },
                    { "type": "Hostname", "address": self.name },
                ],
                "allocatable": resources,
                "capacity": resources,
                "conditions": [{
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "its pods are processes",
                    "lastHeartbeatTime": pod_status::now(),
                    "lastTransitionTime": pod_status::now(),
                }],
            },
        }))?;
        let nodes: Api<core::Node> = Api::all(client.clone());
        let created = nodes.create(&PostParams::default(), &node).await;
        created.map(drop).with_context(|| format!("creating node {}", self.name))
    }
}

/// Renews the Leases of all nodes, for ever.
pub(super) async fn keep_alive(site: Arc<Site>) {
    let leases: Api<Lease> = Api::namespaced(site.client.clone(), "kube-node-lease");
    loop {
        for node in &site.nodes {
            let now = pod_status::now();
            let now = now.as_str().unwrap_or_default().replace('Z', ".000000Z");
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": node.name },
                "spec": {
                    "holderIdentity": node.name,
                    "leaseDurationSeconds": 40,
                    "renewTime": now,
                },
            });
            let params = PatchParams::apply("machines").force();
            // A beat may be missed: the next one comes in time.
            let _ = leases.patch(&node.name, &params, &Patch::Apply(lease)).await;
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}
