//! What is exposed, as Prometheus and the sampler see it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use devcluster::kube_state_metrics::{self, Faults};
use devcluster::sampler::{Kind, Sample};
use devcluster::{ControlPlane, Level, Machines, Prometheus, Sampler, eventually};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

/// Nothing here takes a tenth of it on a quiet machine.
const DEADLINE: Duration = Duration::from_mins(2);
const SELECTOR: &str = "app.kubernetes.io/name=kube-state-metrics";
const SLACK: Duration = Duration::from_secs(2);
/// With the one machine.
const NODES: usize = 31;

/// Three shards of kube-state-metrics over 31 nodes.
struct Site {
    // Dropped before the API server it talks to.
    _machines: Machines,
    pods: Api<Pod>,
    plane: ControlPlane,
}

impl Site {
    async fn start() -> Self {
        let plane = ControlPlane::start(Level::ApiServer).await.unwrap();
        plane.add_nodes(0..30).await.unwrap();
        let params = PostParams::default();
        let accounts: Api<ServiceAccount> = Api::default_namespaced(plane.admin());
        let account = json!({ "metadata": { "name": "default" } });
        accounts.create(&params, &serde_json::from_value(account).unwrap()).await.unwrap();
        let bindings: Api<ClusterRoleBinding> = Api::all(plane.admin());
        let binding = json!({
            "metadata": { "name": "everything" },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin",
            },
            "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": "default" }],
        });
        bindings.create(&params, &serde_json::from_value(binding).unwrap()).await.unwrap();
        let dir = plane.dir().to_owned();
        let programs = Arc::new(move |pod: &Pod| {
            let faults = dir.join(format!("{}.faults", pod.name_any()));
            Some(kube_state_metrics::program(Some(&faults)).unwrap())
        });
        let machines = Machines::start(&plane, 1, 10, programs).await.unwrap();
        let site =
            Self { _machines: machines, pods: Api::default_namespaced(plane.admin()), plane };
        for shard in 0..3 {
            site.create(&format!("shard-{shard}"), shard).await;
        }
        site
    }

    async fn create(&self, name: &str, shard: u32) {
        let pod = json!({
            "metadata": {
                "name": name,
                "labels": {
                    "app.kubernetes.io/name": "kube-state-metrics", "shard-id": shard.to_string(),
                },
            },
            "spec": { "containers": [{
                "name": "kube-state-metrics",
                "image": "stand-in",
                "args": [
                    "--host=0.0.0.0", "--telemetry-host=0.0.0.0",
                    format!("--shard={shard}"), "--total-shards=3",
                    "--resources=configmaps,namespaces,nodes,pods,secrets",
                ],
                "ports": [
                    { "name": "http-metrics", "containerPort": 8080 },
                    { "name": "telemetry", "containerPort": 8081 },
                ],
            }]},
        });
        let pod = serde_json::from_value(pod).unwrap();
        self.pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    async fn delete(&self, name: &str) {
        self.pods.delete(name, &DeleteParams::default()).await.unwrap();
    }

    fn faults(&self, name: &str) -> PathBuf {
        self.plane.dir().join(format!("{name}.faults"))
    }
}

/// Waits until the newest sample satisfies `wanted`.
async fn until(sampler: &Sampler, what: &str, wanted: impl Fn(&Sample) -> bool) {
    let found = eventually(what, DEADLINE, || async {
        sampler.history().samples().last().is_some_and(&wanted).then_some(())
    });
    if let Err(error) = found.await {
        panic!("{error}; the last sample is {:?}", sampler.history().samples().last());
    }
}

fn is_whole(sample: &Sample) -> bool {
    sample.pods >= 3 && sample.missing.is_empty() && sample.ghosts.is_empty()
}

#[tokio::test]
async fn the_sampler_sees_what_is_missing_doubled_or_made_up() {
    let site = Site::start().await;
    let kinds = [Kind::Node, Kind::Pod, Kind::ConfigMap, Kind::Namespace];
    let sampler = Sampler::start(site.plane.admin(), SELECTOR, &kinds, SLACK).await.unwrap();
    until(&sampler, "everything is exposed", is_whole).await;
    sampler.reset();
    eventually("there are twenty samples", DEADLINE, || async {
        (sampler.history().samples().len() >= 20).then_some(())
    })
    .await
    .unwrap();
    let history = sampler.history();
    let worst = history.worst().unwrap();
    assert!(is_whole(worst) && worst.expected > NODES, "{worst:?}");
    assert_eq!(history.most_duplicated(), 0);
    assert_eq!(history.csv().lines().count(), history.samples().len() + 1);

    // The real one has no faults.
    if kube_state_metrics::real().is_none() {
        let ghosts = Faults { ghosts: vec!["ghost".to_owned()], ..Faults::default() };
        ghosts.write(&site.faults("shard-0")).unwrap();
        until(&sampler, "there is a ghost", |sample| sample.ghosts == ["Node ghost"]).await;
        Faults::default().write(&site.faults("shard-0")).unwrap();
        until(&sampler, "the ghost is gone", is_whole).await;
    }
    site.create("double", 0).await;
    until(&sampler, "shard 0 is there twice", |sample| sample.duplicated > 0).await;
    site.delete("double").await;
    until(&sampler, "it is there once", |sample| sample.duplicated == 0).await;

    // What comes and goes is not missing, and no ghost.
    sampler.reset();
    site.plane.add_nodes(100..110).await.unwrap();
    site.plane.remove_nodes(100..110).await.unwrap();
    site.plane.add_nodes(200..205).await.unwrap();
    until(&sampler, "the new nodes count", |sample| {
        sample.missing.is_empty() && sample.expected >= worst.expected + 5
    })
    .await;
    let history = sampler.history();
    assert!(is_whole(history.worst().unwrap()), "{:?}", history.worst());

    site.delete("shard-1").await;
    until(&sampler, "a third is missing", |sample| sample.missing.len() > 3).await;
    let history = sampler.history();
    let worst = history.worst().unwrap();
    assert!(worst.missing.iter().any(|name| name.starts_with("Node ")), "{worst:?}");
}

#[tokio::test]
async fn prometheus_keeps_what_the_pods_say_and_names_their_shards() {
    let site = Site::start().await;
    let prometheus = Prometheus::start(&site.plane).await.unwrap();
    let nodes = "count(count by (node) (kube_node_info))";
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let all = NODES as f64;
    let values = async || {
        let range = prometheus.query_range(nodes, Duration::from_mins(1)).await.unwrap();
        let values = range.first().map(|series| series.values.clone()).unwrap_or_default();
        values.into_iter().map(|(_, value)| value).collect::<Vec<_>>()
    };
    eventually("all nodes are there", DEADLINE, || async {
        values().await.contains(&all).then_some(())
    })
    .await
    .unwrap();
    // A scrape may take too long on a busy machine: then a pod is not up for a second.
    eventually("each shard is up under its name", DEADLINE, || async {
        let up = prometheus.query("up == 1").await.unwrap();
        let shards: BTreeSet<_> =
            up.iter().map(|series| series.labels["shard"].as_str().unwrap()).collect();
        (shards == BTreeSet::from(["0", "1", "2"])).then_some(())
    })
    .await
    .unwrap();
    // honor_labels: these are the pods that are told of, and not those that tell.
    eventually("a pod is told of", DEADLINE, || async {
        let told = prometheus.query("kube_pod_info{pod=\"shard-2\", exported_pod=\"\"}").await;
        (told.unwrap().len() == 1).then_some(())
    })
    .await
    .unwrap();

    site.delete("shard-1").await;
    eventually("nodes are missing", DEADLINE, || async {
        let gone = prometheus.query("up{shard=\"1\"}").await.unwrap().is_empty();
        let fewer = values().await.last().is_some_and(|value| *value < all);
        (gone && fewer).then_some(())
    })
    .await
    .unwrap();
    let error = prometheus.query("nothing(").await.unwrap_err();
    assert!(format!("{error:#}").contains("parse error"), "{error:#}");
}
