//! No series goes missing: the operator looks at what pods serve. Pods are processes here, and an
//! independent sampler scrapes them twenty times a second.

use crate::support::*;
use devcluster::{
    Machines, Prometheus, Sampler,
    kube_state_metrics::{self, Cut, Faults},
    sampler::Kind,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

mod audits;
mod changes;
mod churn;

/// Probes are so many times faster than the pods say.
const PACE: u32 = 10;

/// With the one machine.
const NODES: usize = 25;

const SELECTOR: &str = "app.kubernetes.io/name=kube-state-metrics";

/// Deletes are proven; audits are off, unless a test is about them.
const VERIFY: &[&str] = &["--verify-coverage", "true"];

const RESOURCES: [&str; 5] = ["configmaps", "namespaces", "nodes", "pods", "secrets"];

/// A cluster whose pods of kube-state-metrics are processes, with the KSMScale `x`.
struct Site {
    // Dropped before the API server they talk to.
    operator: Operator,
    _machines: Machines,
    cluster: Cluster,
}

impl Site {
    /// With `x` at rest. Each pod starts with the faults that `faults` gives it by name.
    async fn start(
        args: &[&str],
        spec: Value,
        faults: impl Fn(&str) -> Faults + Send + Sync + 'static,
    ) -> Self {
        // Building the stand-in may take longer than anything that is waited for.
        let built = tokio::task::spawn_blocking(|| kube_state_metrics::program(None));
        built.await.expect("no panic").expect("a program");
        let cluster = Cluster::without_kubelet(24).await;
        let dir = cluster.plane.dir().to_owned();
        let programs = Arc::new(move |pod: &Pod| {
            let path = file(&dir, &pod.name_any());
            if !path.exists() {
                faults(&pod.name_any()).write(&path).expect("a file");
            }
            Some(kube_state_metrics::program(Some(&path)).expect("a program"))
        });
        let machines = Machines::start(&cluster.plane, 1, PACE, programs).await.expect("machines");
        let operator = cluster.operator_with(args).await;
        cluster.apply("x", spec).await;
        cluster.until_settled("x").await;
        Self { operator, _machines: machines, cluster }
    }

    /// A sampler, once everything is exposed.
    async fn sampler(&self) -> Sampler {
        let kinds = [Kind::Node, Kind::ConfigMap, Kind::Namespace, Kind::Secret];
        let slack = Duration::from_secs(3);
        let sampler = Sampler::start(self.cluster.client.clone(), SELECTOR, &kinds, slack).await;
        let sampler = sampler.expect("a sampler");
        eventually("everything is exposed", SOON, || async {
            let history = sampler.history();
            let last = history.samples().last()?;
            (last.missing.is_empty() && last.expected > NODES).then_some(())
        })
        .await
        .expect("everything");
        sampler.reset();
        sampler
    }

    /// Changes `x` and waits until it is so.
    async fn change(&self, spec: Value) {
        self.cluster.apply("x", spec).await;
        self.cluster.until_settled("x").await;
    }

    /// What is wrong with a pod from now on.
    fn set(&self, pod: &str, faults: &Faults) {
        faults.write(&file(self.cluster.plane.dir(), pod)).expect("a file");
    }

    /// Names of the pods, sorted.
    async fn pods(&self) -> Vec<String> {
        let mut pods = self.cluster.pod_names("monitoring").await;
        pods.sort_unstable();
        pods
    }

    /// How many looks of audits ended like this: `whole`, `faulty`, `look_again`.
    async fn audits(&self, result: &str) -> f64 {
        let name = format!("ksm_scale_operator_audits_total{{result=\"{result}\"}}");
        self.operator.metric(&name).await
    }

    /// Waits for an Event of this reason, and returns what it says.
    async fn event(&self, reason: &str) -> String {
        let what = format!("an Event {reason}");
        let found = eventually(&what, SOON, || async {
            let events = self.cluster.events("x").await;
            events.into_iter().rev().find(|event| event.0 == reason).map(|event| event.1)
        });
        match found.await {
            Ok(note) => note,
            Err(error) => {
                panic!("{error}: {:?}\n{}", self.cluster.events("x").await, self.operator.log())
            }
        }
    }
}

fn file(dir: &Path, pod: &str) -> PathBuf {
    dir.join(format!("{pod}.faults"))
}

fn sharded(count: u32) -> Value {
    json!({"sharding": {"enabled": true, "shardCount": count}})
}

/// Nothing is wrong with any pod.
fn sound(_: &str) -> Faults {
    Faults::default()
}

/// Each resource is listed up to `most` milliseconds late, which differs from pod to pod.
fn late(pod: &str, most: u64) -> Faults {
    let hash = |text: &str| {
        text.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
    };
    let late = RESOURCES
        .iter()
        .map(|resource| ((*resource).to_owned(), hash(&format!("{pod}{resource}")) % most));
    Faults { late: late.collect(), ..Faults::default() }
}

/// Nothing is listed for so many milliseconds.
fn all_late(milliseconds: u64) -> Faults {
    let late: BTreeMap<_, _> = RESOURCES.map(|r| (r.to_owned(), milliseconds)).into();
    Faults { late, ..Faults::default() }
}
