//! With every controller of a real cluster: garbage collection, disruption, scheduling, and nodes
//! by kwok.

use crate::support::*;
use devcluster::Level;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, EvictParams, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

#[tokio::test]
async fn o9_a_live_cluster_of_four_nodes_shows_what_kubectl_users_expect() {
    let cluster = Cluster::whole(Level::Nodes).await;
    cluster.plane.add_kwok_nodes(0..4).await.expect("nodes");
    let operator = cluster.operator().await;
    cluster.apply("dev-ksm", json!({})).await;
    cluster.until_settled("dev-ksm").await;
    assert_eq!(columns(&cluster, "dev-ksm").await, ["dev-ksm", "4", "1", "1", "Ready"]);
    cluster.scales().delete("dev-ksm", &DeleteParams::default()).await.expect("deleted");
    let spec = json!({"sharding": {"enabled": true, "shardCount": 3, "distribution": {"enablePDB": true}}});
    cluster.apply("test-sharded-ksm", spec).await;
    cluster.until_settled("test-sharded-ksm").await;
    assert_eq!(
        columns(&cluster, "test-sharded-ksm").await,
        ["test-sharded-ksm", "4", "3", "3", "Ready"]
    );
    r37_the_budget_lets_one_pod_go_at_a_time(&cluster, operator).await;
}

/// The columns of `kubectl get` without the age.
async fn columns(cluster: &Cluster, name: &str) -> Vec<String> {
    let output =
        cluster.plane.kubectl().args(["get", "ksmscale", name, "--no-headers"]).output().await;
    let output = output.expect("kubectl runs");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_whitespace().take(5).map(str::to_owned).collect()
}

async fn r37_the_budget_lets_one_pod_go_at_a_time(cluster: &Cluster, operator: Operator) {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), "monitoring");
    let allowed = || async {
        let status = budgets.get("ksm-test-sharded-ksm-shards").await.ok()?.status?;
        (status.disruptions_allowed == 1
            && status.expected_pods == 3
            && status.desired_healthy == 2)
            .then_some(())
    };
    eventually("the budget allows one disruption of three pods", SOON, allowed)
        .await
        .expect("a working budget");
    // A refused eviction is a 429, which the usual client would try again for minutes.
    let file = Kubeconfig::read_from(cluster.plane.kubeconfig()).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let mut config = config.expect("a configuration");
    config.default_retry = false;
    let client = kube::Client::try_from(config).expect("a client");
    let pods: Api<Pod> = Api::namespaced(client, "monitoring");
    let evict = async |name: String| pods.evict(&name, &EvictParams::default()).await;
    // Nobody replaces the first pod before the second is tried.
    assert!(operator.terminate().await.success());
    evict("kube-state-metrics-test-sharded-ksm-0".into()).await.expect("one may go");
    let refused = evict("kube-state-metrics-test-sharded-ksm-1".into()).await;
    let refused = refused.expect_err("a second may not");
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 429), "{refused}");
    assert!(refused.to_string().contains("disruption budget"), "{refused}");
    let _operator = cluster.operator().await;
    cluster.until_settled("test-sharded-ksm").await;
    eventually("the budget allows the next one", SOON, allowed).await.expect("a working budget");
    evict("kube-state-metrics-test-sharded-ksm-1".into()).await.expect("the next may go");
    cluster.until_settled("test-sharded-ksm").await;
}

#[tokio::test]
async fn r75_r63_deletion_leaves_nothing_and_what_is_shared_goes_with_the_last() {
    let cluster = Cluster::whole(Level::Nodes).await;
    cluster.plane.add_kwok_nodes(0..2).await.expect("nodes");
    let _operator = cluster.operator().await;
    let spec = json!({"sharding": {"enabled": true, "shardCount": 2, "distribution": {"enablePDB": true}}});
    for name in ["a", "b"] {
        cluster.apply(name, spec.clone()).await;
        let status = cluster.until_settled(name).await;
        assert_eq!(condition(&status, "ServiceAccountReady").1, "Managed");
    }
    let a = cluster.scales().get("a").await.expect("a");
    assert_eq!(a.metadata.finalizers, None, "nothing can block its deletion");
    cluster.scales().delete("a", &DeleteParams::default()).await.expect("deleted");
    until_objects(&cluster, &["ServiceAccount", "budget of b", "pod of b", "pod of b", "binding"])
        .await;
    cluster.scales().delete("b", &DeleteParams::default()).await.expect("deleted");
    until_objects(&cluster, &[]).await;
}

async fn until_objects(cluster: &Cluster, wanted: &[&str]) {
    let found = eventually("objects", SOON, || async {
        let found = objects(cluster).await;
        (found == wanted).then_some(())
    });
    let found = found.await;
    assert!(found.is_ok(), "there should be {wanted:?}, and there is {:?}", objects(cluster).await);
}

/// Everything that the operator made, in all namespaces.
async fn objects(cluster: &Cluster) -> Vec<String> {
    use k8s_openapi::api::{core::v1::ServiceAccount, rbac::v1::ClusterRoleBinding};
    let client = || cluster.client.clone();
    let all = ListParams::default();
    let ours = all.clone().labels("app.kubernetes.io/managed-by=ksm-scale-operator");
    let mut found = Vec::new();
    let accounts = Api::<ServiceAccount>::all(client()).list(&ours).await.expect("accounts");
    found.extend(accounts.iter().map(|_| "ServiceAccount".to_owned()));
    let of = |object: &dyn Fn(&str) -> Option<String>| {
        object("ksmscale.example.com").unwrap_or_default()
    };
    let budgets = Api::<PodDisruptionBudget>::all(client()).list(&all).await.expect("budgets");
    found.extend(
        budgets.iter().map(|o| format!("budget of {}", of(&|l| o.labels().get(l).cloned()))),
    );
    let pods = Api::<Pod>::all(client()).list(&all).await.expect("pods");
    found.extend(pods.iter().map(|o| format!("pod of {}", of(&|l| o.labels().get(l).cloned()))));
    let bindings = Api::<ClusterRoleBinding>::all(client()).list(&ours).await.expect("bindings");
    found.extend(bindings.iter().map(|_| "binding".to_owned()));
    found
}
