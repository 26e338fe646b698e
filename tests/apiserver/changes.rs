//! Changes of a live KSMScale. A witness that knows nothing of plans works out at every event of
//! a pod which objects are exposed, and finds none missing.

use crate::support::*;
use devcluster::Fate;
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::names::{LABEL_REVISION, LABEL_TOTAL_SHARDS};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

fn unsharded() -> Value {
    json!({})
}

fn sharded(count: u32) -> Value {
    json!({"sharding": {"enabled": true, "shardCount": count}})
}

fn with_image(mut spec: Value, image: &str) -> Value {
    spec["monitorImage"] = json!(image);
    spec
}

/// A cluster with the KSMScale `x` at rest, and a witness that watches from now on.
async fn at_rest(spec: Value) -> (Cluster, Operator, Witness) {
    let cluster = Cluster::start(4).await;
    let operator = cluster.operator().await;
    let witness = Witness::start(&cluster.client).await;
    cluster.apply("x", spec).await;
    cluster.until_settled("x").await;
    witness.watch();
    (cluster, operator, witness)
}

/// Changes the spec, waits until it is so, and finds no gap on the way. Returns the most pods
/// there were at a time.
async fn change(cluster: &Cluster, witness: &Witness, spec: Value) -> usize {
    let total = spec["sharding"]["shardCount"].as_u64();
    witness.watch();
    cluster.apply("x", spec).await;
    let status = cluster.until_settled("x").await;
    witness.saw_no_gap();
    let totals = labels(cluster, LABEL_TOTAL_SHARDS).await;
    assert!(totals.iter().all(|t| t.as_ref().and_then(|t| t.parse().ok()) == total), "{totals:?}");
    assert_eq!(
        status.sharding_status.map(|s| s.active_shards),
        total.and_then(|t| i32::try_from(t).ok())
    );
    witness.most_pods()
}

/// The fate of pods from now on; those that are there stay Ready.
async fn new_pods_become(cluster: &Cluster, fate: Fate) {
    let old = cluster.pod_names("monitoring").await;
    let policy = move |pod: &Pod| if old.contains(&pod.name_any()) { Fate::READY } else { fate };
    cluster.kubelet.as_ref().expect("a kubelet").set_policy(Arc::new(policy));
}

async fn labels(cluster: &Cluster, label: &str) -> Vec<Option<String>> {
    let pods = cluster.pods("monitoring").list(&ListParams::default()).await.expect("pods");
    let here = pods.items.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
    here.map(|p| p.labels().get(label).cloned()).collect()
}

#[tokio::test]
async fn r40_shards_grow_shrink_and_change_mode_without_a_gap() {
    let (cluster, _operator, witness) = at_rest(sharded(3)).await;
    // New shards stand beside the old ones, and one more pod is being replaced.
    assert_eq!(change(&cluster, &witness, sharded(5)).await, 6, "pods at most, 3 to 5");
    assert_eq!(change(&cluster, &witness, sharded(3)).await, 6, "pods at most, 5 to 3");
    change(&cluster, &witness, unsharded()).await;
    assert_eq!(cluster.pod_names("monitoring").await.len(), 1);
    assert_eq!(change(&cluster, &witness, sharded(3)).await, 4, "pods at most, 1 to 3");
}

#[tokio::test]
async fn r22_an_image_change_replaces_one_pod_at_a_time_beside_its_predecessor() {
    let (cluster, _operator, witness) = at_rest(sharded(3)).await;
    let before = labels(&cluster, LABEL_REVISION).await;
    let peak = change(&cluster, &witness, with_image(sharded(3), "r.example/ksm:v2.20.0")).await;
    assert_eq!(peak, 4, "one more than there should be");
    let names = cluster.pod_names("monitoring").await;
    for (index, name) in names.iter().enumerate() {
        let prefix = format!("kube-state-metrics-x-{index}-");
        assert_eq!(name.strip_prefix(&prefix).map(str::len), Some(5), "{name} is …-<index>-<rev5>");
    }
    let after = labels(&cluster, LABEL_REVISION).await;
    assert!(before.iter().all(|old| !after.contains(old)), "{before:?} {after:?}");
    let peak = change(&cluster, &witness, sharded(3)).await;
    assert_eq!(peak, 4);
    let names = cluster.pod_names("monitoring").await;
    assert_eq!(
        names,
        ["kube-state-metrics-x-0", "kube-state-metrics-x-1", "kube-state-metrics-x-2"]
    );
}

#[tokio::test]
async fn a_second_change_halfway_goes_on_from_what_is_there() {
    let (cluster, _operator, witness) = at_rest(sharded(3)).await;
    // Nothing new becomes Ready, so the change to 5 stops halfway.
    new_pods_become(&cluster, Fate::RunningNotReady).await;
    cluster.apply("x", sharded(5)).await;
    cluster
        .until("the change to 5 waits", "x", |s| {
            condition(s, "Progressing").1 == "PodNotReady" && s.current_replicas == Some(5)
        })
        .await;
    new_pods_become(&cluster, Fate::READY).await;
    cluster.apply("x", sharded(4)).await;
    cluster.until_settled("x").await;
    witness.saw_no_gap();
    assert_eq!(labels(&cluster, LABEL_TOTAL_SHARDS).await, vec![Some("4".to_owned()); 4]);
}

#[tokio::test]
async fn r64_a_changed_namespace_leaves_nothing_behind() {
    let mut spec = sharded(2);
    spec["sharding"]["distribution"] = json!({"enablePDB": true});
    let (cluster, _operator, witness) = at_rest(spec.clone()).await;
    cluster.allow_namespace("elsewhere").await;
    // What several KSMScales share stays while one of them uses it.
    cluster.apply("other", json!({})).await;
    cluster.until_settled("other").await;
    spec["namespace"] = json!("elsewhere");
    cluster.apply("x", spec.clone()).await;
    cluster.until_settled("x").await;
    witness.saw_no_gap();
    cluster.until_pods("monitoring", &["kube-state-metrics-other-0"]).await;
    cluster.until_pods("elsewhere", &["kube-state-metrics-x-0", "kube-state-metrics-x-1"]).await;
    assert_eq!(leftovers(&cluster, "elsewhere").await, ["binding", "budget", "account"]);
    until_leftovers(&cluster, "monitoring", &["binding", "account"]).await;
    cluster.apply("other", json!({"namespace": "elsewhere"})).await;
    until_leftovers(&cluster, "monitoring", &[]).await;
    cluster.until_pods("monitoring", &[]).await;
}

async fn until_leftovers(cluster: &Cluster, namespace: &str, wanted: &[&str]) {
    let what = format!("in {namespace} only {wanted:?} is left");
    eventually(&what, SOON, || async {
        (leftovers(cluster, namespace).await == wanted).then_some(())
    })
    .await
    .expect("nothing else stays");
}

/// What the operator made for a namespace, beside pods.
async fn leftovers(cluster: &Cluster, namespace: &str) -> Vec<&'static str> {
    use k8s_openapi::api::{
        core::v1::ServiceAccount, policy::v1::PodDisruptionBudget, rbac::v1::ClusterRoleBinding,
    };
    let mut left = Vec::new();
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let binding = ksm_scale_operator::names::cluster_role_binding(namespace);
    left.extend(bindings.get_opt(&binding).await.expect("an answer").map(|_| "binding"));
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), namespace);
    left.extend(
        budgets.list(&ListParams::default()).await.expect("budgets").items.iter().map(|_| "budget"),
    );
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    left.extend(
        accounts.get_opt("kube-state-metrics").await.expect("an answer").map(|_| "account"),
    );
    left
}

#[tokio::test]
async fn a_predecessor_goes_only_when_its_successor_was_ready_for_the_settle_time() {
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator_with(&["--settle-time", "3s"]).await;
    cluster.apply("x", json!({})).await;
    cluster.until_settled("x").await;
    let history = History::of(&cluster, "x").await;
    let pods = cluster.pods("monitoring");
    cluster.apply("x", with_image(json!({}), "r.example/ksm:v2.20.0")).await;
    // Look as often as possible: whenever the predecessor is gone, the successor had its time.
    let gone = eventually("the predecessor goes", SOON, || async {
        let all = pods.list(&ListParams::default()).await.expect("pods").items;
        let here = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
        let names: BTreeMap<_, _> =
            all.iter().filter(here).map(|p| (p.name_any(), p.clone())).collect();
        (!names.contains_key("kube-state-metrics-x-0")).then_some(names)
    });
    let left = gone.await.expect("the change completes");
    let now = jiff_now();
    let [successor] = left.values().collect::<Vec<_>>()[..] else {
        panic!("one pod, not {:?}", left.keys())
    };
    let ready =
        ksm_scale_operator::observed::ObservedPod::new(successor).ready_since.expect("Ready");
    assert!(
        now.duration_since(ready) >= jiff::SignedDuration::from_secs(3),
        "Ready since {ready}, now {now}"
    );
    cluster.until_settled("x").await;
    let reasons: Vec<_> =
        history.statuses().iter().map(|s| condition(s, "Progressing").1.to_owned()).collect();
    assert!(reasons.contains(&"PodSettling".to_owned()), "{reasons:?}");
}

#[expect(clippy::disallowed_methods, reason = "compared with the time in a pod's status")]
fn jiff_now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[tokio::test]
async fn resharding_waits_for_slow_pods_one_after_the_other() {
    let (cluster, _operator, witness) = at_rest(sharded(2)).await;
    let slowly = Fate::Ready { after: Duration::from_millis(300) };
    new_pods_become(&cluster, slowly).await;
    assert_eq!(change(&cluster, &witness, sharded(4)).await, 5);
}
