//! Nodes of the demo: one on which pods are processes, and others that are objects only.

use anyhow::Result;
use devcluster::{
    ControlPlane, Machines,
    kube_state_metrics::{self, Faults},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::json;
use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The node of [`Pods`].
pub const MACHINE: &str = "machine-0";

/// Probes are so many times as frequent as the pods say.
const PACE: u32 = 10;

/// The pods' processes: stand-ins for kube-state-metrics.
pub struct Pods {
    dir: PathBuf,
    /// Milliseconds after its start at which a process lists what it serves.
    late: Arc<AtomicU64>,
    _machines: Machines,
}

impl Pods {
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        // The first time it is built, which takes longer than anything that is waited for.
        tokio::task::spawn_blocking(|| kube_state_metrics::program(None)).await??;
        let late = Arc::new(AtomicU64::new(0));
        let (dir, by) = (plane.dir().to_owned(), Arc::clone(&late));
        let programs = Arc::new(move |pod: &Pod| {
            let file = file(&dir, &pod.name_any());
            let late = by.load(Ordering::Relaxed);
            let resources = ["configmaps", "namespaces", "nodes", "pods", "secrets"];
            let late = resources.map(|resource| (resource.to_owned(), late)).into();
            Faults { late, ..Faults::default() }.write(&file).ok()?;
            kube_state_metrics::program(Some(&file)).ok()
        });
        let machines = Machines::start(plane, 1, PACE, programs).await?;
        Ok(Self { dir: plane.dir().to_owned(), late, _machines: machines })
    }

    /// Those that start from now on list what they serve so many milliseconds late.
    pub fn list_late(&self, milliseconds: u64) {
        self.late.store(milliseconds, Ordering::Relaxed);
    }

    /// What is wrong with a pod from now on.
    pub fn set(&self, pod: &str, faults: &Faults) -> Result<()> {
        faults.write(&file(&self.dir, pod))
    }
}

fn file(dir: &Path, pod: &str) -> PathBuf {
    dir.join(format!("{pod}.faults"))
}

/// Makes nodes of kwok that take no pods: there is nobody at the addresses of its pods.
pub async fn add_nodes(plane: &ControlPlane, indexes: Range<u32>) -> Result<()> {
    let api = Api::<Node>::all(plane.admin());
    let creations = indexes.map(|index| {
        let api = api.clone();
        async move {
            let name = format!("node-{index}");
            let resources = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
            let node = serde_json::from_value(json!({
                "metadata": {
                    "name": name,
                    "annotations": { "kwok.x-k8s.io/node": "fake" },
                    "labels": { "kubernetes.io/hostname": name },
                },
                "spec": { "unschedulable": true },
                "status": { "allocatable": resources, "capacity": resources },
            }))?;
            api.create(&PostParams::default(), &node).await?;
            anyhow::Ok(())
        }
    });
    stream::iter(creations).buffer_unordered(16).try_collect().await
}
