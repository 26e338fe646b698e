//! The cluster on which all ways are measured.

use crate::record::Samples;
use anyhow::{Context as _, Result, ensure};
use devcluster::{
    ControlPlane, Level, Machines, Program, Sampler, eventually,
    kube_state_metrics::{self, Faults},
    sampler::Kind,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub const NAMESPACE: &str = "monitoring";
/// Of all pods of kube-state-metrics.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/name", "kube-state-metrics");

/// Long enough for what takes a minute on a quiet machine.
pub const DEADLINE: Duration = Duration::from_mins(8);
/// Before a change and after it.
const CALM: Duration = Duration::from_secs(3);
/// An object counts when it is there for so long.
const SLACK: Duration = Duration::from_secs(3);
/// From the binding of a pod to the start of its process.
const PULL: Duration = Duration::from_secs(1);
/// Milliseconds from the start of a process, or from the moment at which it shares out anew, to
/// its list of a resource. A big cluster takes longer.
const LISTED: [(&str, u64); 5] = [
    ("namespaces", 2_000),
    ("secrets", 3_000),
    ("nodes", 6_000),
    ("pods", 8_000),
    ("configmaps", 10_000),
];

pub struct Site {
    // Dropped before the API server they talk to.
    sampler: Sampler,
    _machines: Machines,
    pub client: Client,
    pub plane: ControlPlane,
}

impl Site {
    /// A cluster with controllers and a scheduler, and one node on which pods are processes.
    pub async fn start(nodes: u32, config_maps: u32) -> Result<Self> {
        // Building the stand-in may take longer than anything that is waited for.
        tokio::task::spawn_blocking(|| kube_state_metrics::program(None)).await??;
        let plane = ControlPlane::start(Level::Nodes).await?;
        let client = plane.admin();
        plane.add_kwok_nodes(0..nodes).await?;
        plane.nodes_ready(0..nodes).await?;
        plane.cordon_nodes(0..nodes).await?;
        install(&plane).await?;
        make_config_maps(&client, config_maps).await?;
        let dir = plane.dir().to_owned();
        let programs = Arc::new(move |pod: &Pod| program(&dir, pod).ok());
        let machines = Machines::start(&plane, 1, 1, programs).await?;
        let kinds = [Kind::Node, Kind::ConfigMap, Kind::Namespace, Kind::Secret];
        let selector = format!("{}={}", LABEL.0, LABEL.1);
        let sampler = Sampler::start(client.clone(), &selector, &kinds, SLACK).await?;
        Ok(Self { sampler, _machines: machines, client, plane })
    }

    /// The samples around a change to `shards`, once before it everything was exposed once, and
    /// until after it everything is exposed once.
    pub async fn watch(
        &self,
        shards: u32,
        change: impl Future<Output = Result<()>>,
    ) -> Result<Samples> {
        self.until_whole(None).await?;
        self.sampler.reset();
        tokio::time::sleep(CALM).await;
        let begun = self.now()?;
        change.await?;
        let done = self.now()?;
        self.until_whole(Some(shards)).await?;
        tokio::time::sleep(CALM).await;
        let all = self.sampler.history().samples().to_vec();
        Ok(Samples { all, begun, done })
    }

    /// As the sampler counts.
    fn now(&self) -> Result<Duration> {
        let history = self.sampler.history();
        Ok(history.samples().last().context("the sampler has no samples")?.at)
    }

    async fn until_whole(&self, pods: Option<u32>) -> Result<()> {
        let wanted = pods.map(|pods| pods as usize);
        let found = eventually("everything is exposed once", DEADLINE, async || {
            let history = self.sampler.history();
            let last = history.samples().last()?;
            let whole = last.expected > 0 && last.missing.is_empty() && last.duplicated == 0;
            (whole && wanted.is_none_or(|pods| pods == last.pods)).then_some(())
        });
        found.await.with_context(|| format!("{:?}", self.sampler.history().samples().last()))
    }

    pub async fn until_no_pods(&self) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), NAMESPACE);
        let selector = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let gone = eventually("all pods are gone", DEADLINE, async || {
            pods.list(&selector).await.ok()?.items.is_empty().then_some(())
        });
        gone.await
    }

    /// Tells the process of a pod which shard it is, as autosharding does. One that runs shares out
    /// anew, and serves nothing of a resource until it has listed that again.
    pub fn reshard(&self, pod: &str, (shard, total): (u32, u32), runs: bool) -> Result<()> {
        let mut faults =
            Faults { shard: Some(shard), total_shards: Some(total), ..Faults::default() };
        *(if runs { &mut faults.emptied } else { &mut faults.late }) = listed();
        faults.write(&file(self.plane.dir(), pod))
    }
}

/// What a pod runs. Its file is there already if it does not start in the usual way.
fn program(dir: &Path, pod: &Pod) -> Result<Program> {
    let path = file(dir, &pod.name_any());
    if !path.exists() {
        Faults { late: listed(), ..Faults::default() }.write(&path)?;
    }
    Ok(Program { pull: PULL, ..kube_state_metrics::program(Some(&path))? })
}

/// The pod of the operator for a shard, for others that make pods of the same kind.
pub fn pod_spec(shard: Option<(u32, u32)>) -> Result<PodSpec> {
    let mut args = vec!["--host=0.0.0.0".to_owned(), "--telemetry-host=0.0.0.0".to_owned()];
    if let Some((shard, total)) = shard {
        args.extend([format!("--shard={shard}"), format!("--total-shards={total}")]);
    }
    let probe = |path: &str, port: u16| {
        json!({
            "httpGet": { "path": path, "port": port },
            "initialDelaySeconds": 5, "timeoutSeconds": 5,
        })
    };
    let spec = json!({
        "serviceAccountName": "kube-state-metrics-as-it-is",
        "containers": [{
            "name": LABEL.1,
            "image": operator_image(),
            "args": args,
            "ports": [
                { "name": "http-metrics", "containerPort": 8080 },
                { "name": "telemetry", "containerPort": 8081 },
            ],
            "livenessProbe": probe("/healthz", 8080),
            "readinessProbe": probe("/readyz", 8081),
        }],
    });
    Ok(serde_json::from_value(spec)?)
}

/// A version whose readiness probe asks `/readyz`.
pub fn operator_image() -> &'static str {
    "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0"
}

fn listed() -> BTreeMap<String, u64> {
    LISTED.map(|(resource, after)| (resource.to_owned(), after)).into()
}

fn file(dir: &Path, pod: &str) -> PathBuf {
    dir.join(format!("{pod}.faults"))
}

/// CRD and rights, as a user does; and rights for the pods that the operator does not make.
pub async fn install(plane: &ControlPlane) -> Result<()> {
    for args in [
        "apply -f crds/ksmscales.monitor.example.com.yaml -f deploy/base/rbac.yaml",
        "wait --for=condition=Established crd/ksmscales.monitor.example.com",
        "create serviceaccount -n monitoring kube-state-metrics-as-it-is",
        "create clusterrolebinding kube-state-metrics-as-it-is --clusterrole=cluster-admin \
         --serviceaccount=monitoring:kube-state-metrics-as-it-is",
    ] {
        let mut kubectl = plane.kubectl();
        let kubectl = kubectl.args(args.split_whitespace());
        let output = kubectl.current_dir(env!("CARGO_MANIFEST_DIR")).output().await?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "kubectl {args}: {error}");
    }
    Ok(())
}

async fn make_config_maps(client: &Client, count: u32) -> Result<()> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let creations = (0..count).map(|i| {
        let api = api.clone();
        async move {
            let object = json!({ "metadata": { "name": format!("object-{i}") } });
            let object: ConfigMap = serde_json::from_value(object)?;
            api.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        }
    });
    stream::iter(creations).buffer_unordered(16).try_collect().await
}
