//! No series goes missing: the operator looks at what pods serve. Pods are processes here, and an
//! independent sampler scrapes them twenty times a second.

use crate::support::*;
use devcluster::{
    Machines, Prometheus, Sampler,
    kube_state_metrics::{self, Cut, Faults},
    sampler::Kind,
};
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::api::KSMScaleStatus;
use kube::{Api, ResourceExt, api::ListParams};
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
mod halfway;
mod liars;
mod planned;

/// Probes are so many times faster than the pods say.
const PACE: u32 = 10;

/// What a change of many pods that sync late may take.
const LONG: Duration = Duration::from_mins(5);

/// With the one machine.
const NODES: usize = 25;

const SELECTOR: &str = "app.kubernetes.io/name=kube-state-metrics";

/// Deletes are proven; audits are off, unless a test is about them. The settle time is as long as the
/// sampler takes for one sample at the most, as it should be for whoever scrapes.
const VERIFY: &[&str] = &["--verify-coverage", "true", "--settle-time", "1s"];

const RESOURCES: [&str; 5] = ["configmaps", "namespaces", "nodes", "pods", "secrets"];

/// A cluster whose pods of kube-state-metrics are processes, with the KSMScale `x`.
pub struct Site {
    // Dropped before the API server they talk to.
    pub operators: Vec<Operator>,
    machines: Machines,
    pub cluster: Cluster,
}

impl Site {
    /// With `x` at rest. Each pod starts with the faults that `faults` gives it by name.
    async fn start(
        args: &[&str],
        spec: Value,
        faults: impl Fn(&str) -> Faults + Send + Sync + 'static,
    ) -> Self {
        let mut site = Self::without_operator(faults).await;
        site.operators.push(site.cluster.operator_with(args).await);
        site.change(spec).await;
        site
    }

    pub async fn without_operator(faults: impl Fn(&str) -> Faults + Send + Sync + 'static) -> Self {
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
        Self { operators: Vec::new(), machines, cluster }
    }

    /// The one that is there, or was first.
    fn operator(&self) -> &Operator {
        self.operators.first().expect("an operator")
    }

    /// A sampler, once everything is exposed.
    async fn sampler(&self) -> Sampler {
        let kinds = [Kind::Node, Kind::ConfigMap, Kind::Namespace, Kind::Secret];
        let slack = Duration::from_secs(3);
        let sampler = Sampler::start(self.cluster.client.clone(), SELECTOR, &kinds, slack).await;
        let sampler = sampler.expect("a sampler");
        self.watch(&sampler).await;
        sampler
    }

    /// From now on nothing may be missing. It begins when everything is exposed, and by nobody who
    /// is gone.
    async fn watch(&self, sampler: &Sampler) {
        let pods: Api<Pod> = Api::all(self.cluster.client.clone());
        let pods = pods.list(&ListParams::default()).await.expect("pods").items.len();
        eventually("everything is exposed", LONG, || async {
            let history = sampler.history();
            let last = history.samples().last()?;
            let whole = last.missing.is_empty() && last.failed == 0 && last.expected > NODES;
            (whole && last.pods == pods).then_some(())
        })
        .await
        .expect("everything");
        sampler.reset();
    }

    /// Changes `x` and waits until it is so.
    pub async fn change(&self, spec: Value) {
        self.cluster.apply("x", spec).await;
        self.until_settled().await;
    }

    /// Waits until `x` is at rest, and pods that were deleted are gone.
    pub async fn until_settled(&self) -> KSMScaleStatus {
        let settled = eventually("x settles", LONG, || async {
            let scale = self.cluster.scales().get("x").await.ok()?;
            let status = scale.status?;
            let wanted = status.observed_generation == scale.metadata.generation
                && condition(&status, "Progressing").0 == "False"
                && condition(&status, "Available").0 == "True"
                && status.current_replicas == status.desired_replicas;
            let pods: Api<Pod> = Api::all(self.cluster.client.clone());
            let pods = pods.list(&ListParams::default()).await.ok()?.items.len();
            (wanted && i32::try_from(pods).ok() == status.desired_replicas).then_some(status)
        });
        match settled.await {
            Ok(status) => status,
            Err(error) => {
                let status = self.cluster.scales().get("x").await.map(|scale| scale.status);
                panic!("{error}: {status:#?}\n{}", self.operator().log())
            }
        }
    }

    /// Waits until so many steps of a change are done.
    async fn until_step(&self, step: i32) -> KSMScaleStatus {
        let what = format!("the change is at step {step}");
        let at = |status: &KSMScaleStatus| status.change.as_ref().is_some_and(|c| c.step >= step);
        self.cluster.until(&what, "x", at).await
    }

    /// What is wrong with a pod from now on.
    fn set(&self, pod: &str, faults: &Faults) {
        stand_in_only();
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
        self.operator().metric(&name).await
    }

    /// Waits for an Event of this reason that says all this.
    async fn event(&self, reason: &str, words: &[&str]) {
        let what = format!("an Event {reason} with {words:?}");
        let says = |event: &(String, String)| {
            event.0 == reason && words.iter().all(|word| event.1.contains(word))
        };
        let found = eventually(&what, SOON, || async {
            self.cluster.events("x").await.iter().any(says).then_some(())
        });
        if let Err(error) = found.await {
            panic!("{error}: {:?}\n{}", self.cluster.events("x").await, self.operator().log());
        }
    }
}

fn file(dir: &Path, pod: &str) -> PathBuf {
    dir.join(format!("{pod}.faults"))
}

fn sharded(count: u32) -> Value {
    json!({"sharding": {"enabled": true, "shardCount": count}})
}

/// For what is about faults. Without them pods may sync as late as they like.
fn stand_in_only() {
    let real = kube_state_metrics::real();
    assert_eq!(real, None, "KSM_BINARY has no faults to switch on: leave this test out");
}

/// Nothing is wrong with any pod.
pub fn sound(_: &str) -> Faults {
    Faults::default()
}

/// Nothing was missing in any sample.
fn nothing_was_missing(sampler: &Sampler, what: &str) {
    let history = sampler.history();
    let worst = history.worst().expect("samples");
    assert!(worst.missing.is_empty(), "{what}: {worst:?}\n{}", history.csv());
}

/// Each resource is listed up to `most` milliseconds late and a little, which differs from pod to pod.
fn late(pod: &str, most: u64) -> Faults {
    let hash = |text: &str| {
        text.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
    };
    let late = RESOURCES
        .iter()
        .map(|resource| ((*resource).to_owned(), 200 + hash(&format!("{pod}{resource}")) % most));
    Faults { late: late.collect(), ..Faults::default() }
}

/// Nothing is listed for so many milliseconds.
fn all_late(milliseconds: u64) -> Faults {
    let late: BTreeMap<_, _> = RESOURCES.map(|r| (r.to_owned(), milliseconds)).into();
    Faults { late, ..Faults::default() }
}
