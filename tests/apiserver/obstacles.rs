//! What stands in the way of a KSMScale: told in a condition and an Event, worked around where
//! that is right, and never met with force. When it is gone, work goes on by itself.

use crate::support::*;
use devcluster::{FaultProxy, SeenRequest};
use k8s_openapi::api::{
    core::v1::{Pod, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use ksm_scale_operator::api::KSMScaleStatus;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// UIDs of the pods that are there to stay, by name.
async fn uids(cluster: &Cluster, namespace: &str) -> BTreeMap<String, String> {
    let pods = cluster.pods(namespace).list(&ListParams::default()).await.expect("pods");
    let stay = pods.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none());
    stay.map(|p| (p.name_any(), p.uid().unwrap_or_default())).collect()
}

/// Waits until `Degraded` is True for this reason, with these words in its message.
async fn until_degraded(
    cluster: &Cluster,
    name: &str,
    reason: &str,
    words: &[&str],
) -> KSMScaleStatus {
    let status = cluster
        .until(&format!("Degraded with {reason}"), name, |status| {
            let (state, why, _) = condition(status, "Degraded");
            (state, why) == ("True", reason)
        })
        .await;
    let (_, _, message) = condition(&status, "Degraded");
    for word in words {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
    status
}

/// Waits for the Event that says it, and asserts that there is only one.
async fn one_event(cluster: &Cluster, name: &str, reason: &str) {
    eventually("an Event", SOON, || async {
        let events = cluster.events(name).await;
        events.iter().any(|(r, _)| r == reason).then_some(())
    })
    .await
    .expect("an Event");
    let events = cluster.events(name).await;
    assert_eq!(events.iter().filter(|(r, _)| r == reason).count(), 1, "{events:#?}");
}

#[tokio::test]
async fn r64_r71_a_missing_namespace_is_told_and_work_begins_when_it_is_there() {
    let cluster = Cluster::start(16).await;
    let operator = cluster.operator_with(&["--requeue-interval", "1s"]).await;
    cluster.apply("dev", json!({"namespace": "later"})).await;
    let words = ["namespace later does not exist", "kubectl create namespace later"];
    let status = until_degraded(&cluster, "dev", "NamespaceMissing", &words).await;
    let (ready, reason, _) = condition(&status, "NamespaceReady");
    assert_eq!((ready, reason), ("False", "NamespaceMissing"));
    assert_eq!(condition(&status, "ServiceAccountReady").0, "False");
    // Looked at again and again, told once, and nothing was tried.
    let looks = operator.metric("ksm_scale_operator_reconcile_duration_seconds_count").await;
    eventually("three more reconciles", SOON, || async {
        let now = operator.metric("ksm_scale_operator_reconcile_duration_seconds_count").await;
        (now >= looks + 3.0).then_some(())
    })
    .await
    .expect("reconciles");
    one_event(&cluster, "dev", "NamespaceMissing").await;
    assert!(!operator.log().contains("not applied"), "{}", operator.log());
    cluster.allow_namespace("later").await;
    cluster.until_settled("dev").await;
    let names = cluster.pod_names("later").await;
    assert_eq!(names, ["kube-state-metrics-dev-0", "kube-state-metrics-dev-1"]);
}

#[tokio::test]
async fn r84_missing_rights_are_told_and_tried_again_ever_more_slowly() {
    let cluster = Cluster::start(1).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let _operator = cluster.operator_via(&proxy, &[]).await;
    cluster.create_namespace("locked").await;
    let begun = tokio::time::Instant::now();
    cluster.apply("dev", json!({"namespace": "locked"})).await;
    let words = ["locked", "ksm-scale-operator-workload", "forbidden"];
    until_degraded(&cluster, "dev", "Forbidden", &words).await;
    let creates =
        |r: &SeenRequest| r.method == "POST" && r.path == "/api/v1/namespaces/locked/pods";
    eventually("four attempts", SOON, || async {
        (proxy.requests().iter().filter(|r| creates(r)).count() >= 4).then_some(())
    })
    .await
    .expect("attempts");
    // 0.5 s, 1 s and 2 s, less a quarter for the jitter.
    assert!(begun.elapsed() >= Duration::from_millis(2_600), "{:?}", begun.elapsed());
    one_event(&cluster, "dev", "Forbidden").await;
    cluster.allow_existing_namespace("locked").await;
    cluster.until_settled("dev").await;
    cluster.until_pods("locked", &["kube-state-metrics-dev-0"]).await;
}

#[tokio::test]
async fn r63_without_rights_on_service_accounts_pods_are_made_and_a_condition_says_so() {
    let cluster = Cluster::start(1).await;
    let roles: Api<k8s_openapi::api::rbac::v1::ClusterRole> = Api::all(cluster.client.clone());
    let whole = roles.get("ksm-scale-operator").await.expect("the role");
    let mut less = whole.clone();
    let is_access = |resource: &String| {
        matches!(resource.as_str(), "serviceaccounts" | "clusterrolebindings" | "clusterroles")
    };
    less.rules
        .iter_mut()
        .flatten()
        .for_each(|rule| rule.resources.iter_mut().for_each(|all| all.retain(|r| !is_access(r))));
    less.rules.iter_mut().for_each(|rules| {
        rules.retain(|rule| rule.resources.as_ref().is_some_and(|all| !all.is_empty()));
    });
    roles.replace(&less.name_any(), &PostParams::default(), &less).await.expect("the role");
    service_account(&cluster, &json!({})).await;
    let _operator = cluster.operator_with(&["--requeue-interval", "1s"]).await;
    cluster.apply("dev", json!({})).await;
    cluster.until_pods("monitoring", &["kube-state-metrics-dev-0"]).await;
    let status = until_degraded(&cluster, "dev", "Forbidden", &["serviceaccounts", "grant"]).await;
    let (ready, reason, message) = condition(&status, "ServiceAccountReady");
    assert_eq!((ready, reason), ("False", "Forbidden"));
    assert!(message.contains("--manage-service-account=false"), "{message}");
    cluster
        .until("it is served all the same", "dev", |s| condition(s, "Available").0 == "True")
        .await;
    one_event(&cluster, "dev", "Forbidden").await;
    let mut again = roles.get("ksm-scale-operator").await.expect("the role");
    again.rules = whole.rules;
    roles.replace(&again.name_any(), &PostParams::default(), &again).await.expect("the role");
    let status = cluster.until_settled("dev").await;
    assert_eq!(condition(&status, "ServiceAccountReady").0, "True");
}

async fn service_account(cluster: &Cluster, labels: &Value) -> ServiceAccount {
    let api: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "monitoring");
    let object = json!({"metadata": {"name": "kube-state-metrics", "labels": labels}});
    let object = serde_json::from_value(object).expect("JSON");
    api.create(&PostParams::default(), &object).await.expect("a ServiceAccount")
}

/// Allows so many pods in `monitoring`, of which so many are used: what the controller that is not
/// here would find.
async fn quota(cluster: &Cluster, hard: u32, used: u32) {
    let api: Api<k8s_openapi::api::core::v1::ResourceQuota> =
        Api::namespaced(cluster.client.clone(), "monitoring");
    let hard = json!({"pods": hard.to_string()});
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
        "spec": {"hard": hard}, "status": {"hard": hard, "used": {"pods": used.to_string()}},
    });
    let params = PatchParams::apply("test").force();
    api.patch("few", &params, &Patch::Apply(&quota)).await.expect("a quota");
    api.patch_status("few", &params, &Patch::Apply(&quota)).await.expect("a quota's status");
}

#[tokio::test]
async fn r84_an_exceeded_quota_keeps_what_serves_and_names_the_step() {
    let cluster = Cluster::start(31).await;
    let _operator = cluster.operator().await;
    let sharded = |image: &str| json!({"monitorImage": image, "sharding": {"enabled": true, "shardCount": 3}});
    cluster.apply("dev", sharded("k/s:v1")).await;
    cluster.until_settled("dev").await;
    let before = uids(&cluster, "monitoring").await;
    quota(&cluster, 3, 3).await;
    until_quota_counts(&cluster).await;
    cluster.apply("dev", sharded("k/s:v2")).await;
    let words = [
        "create pod monitoring/kube-state-metrics-dev-0-",
        "it replaces",
        "exceeded quota",
        "raise",
    ];
    let status = until_degraded(&cluster, "dev", "QuotaExceeded", &words).await;
    assert_eq!(condition(&status, "Available").0, "True");
    one_event(&cluster, "dev", "QuotaExceeded").await;
    assert_eq!(uids(&cluster, "monitoring").await, before);
    // Back again: at once, and nothing has moved.
    cluster.apply("dev", sharded("k/s:v1")).await;
    cluster.until_settled("dev").await;
    assert_eq!(uids(&cluster, "monitoring").await, before);
    // And on again, with room to come.
    cluster.apply("dev", sharded("k/s:v2")).await;
    until_degraded(&cluster, "dev", "QuotaExceeded", &words).await;
    quota(&cluster, 1_000, 3).await;
    cluster.until_settled("dev").await;
    let after = uids(&cluster, "monitoring").await;
    assert!(after.len() == 3 && after.values().all(|uid| !before.values().any(|old| old == uid)));
}

/// The admission plugin learns of a quota by its own watch.
async fn until_quota_counts(cluster: &Cluster) {
    refused(cluster, "exceeded quota", json!({})).await;
}

/// Waits until the API server refuses a pod with these labels for this cause.
async fn refused(cluster: &Cluster, cause: &str, labels: Value) {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "probe", "labels": labels},
        "spec": {"containers": [{"name": "a", "image": "b"}], "serviceAccountName": "kube-state-metrics"},
    }))
    .expect("JSON");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually(cause, SOON, || async {
        let answer = cluster.pods("monitoring").create(&dry, &pod).await;
        answer.err().filter(|error| error.to_string().contains(cause)).map(drop)
    })
    .await
    .expect("a refusal");
}

#[tokio::test]
async fn r84_a_policy_that_refuses_our_pods_is_named() {
    let cluster = Cluster::start(1).await;
    service_account(&cluster, &json!({})).await;
    apply_yaml(&cluster.client, POLICY).await;
    refused(&cluster, "no-ksm", json!({"ksmscale.example.com": "x"})).await;
    let _operator = cluster.operator().await;
    cluster.apply("dev", json!({})).await;
    let words = ["kube-state-metrics-dev-0", "no-ksm", "not on my cluster", "change the policy"];
    until_degraded(&cluster, "dev", "AdmissionDenied", &words).await;
    one_event(&cluster, "dev", "AdmissionDenied").await;
    let policies: Api<
        k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
    > = Api::all(cluster.client.clone());
    policies.delete("no-ksm", &DeleteParams::default()).await.expect("the policy is gone");
    cluster.until_settled("dev").await;
}

const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-ksm}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}
  validations:
  - expression: "!('ksmscale.example.com' in object.metadata.?labels.orValue({}))"
    message: not on my cluster
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-ksm}
spec: {policyName: no-ksm, validationActions: [Deny]}
"#;

#[tokio::test]
async fn r29_foreign_pods_with_our_names_are_neither_adopted_nor_deleted() {
    let cluster = Cluster::start(16).await;
    service_account(&cluster, &json!({})).await;
    let ours = json!({
        "app.kubernetes.io/name": "kube-state-metrics", "ksmscale.example.com": "dev", "index": "0",
    });
    for (name, labels) in
        [("kube-state-metrics-dev-0", json!({})), ("kube-state-metrics-dev-1", ours)]
    {
        foreign_pod(&cluster, name, &labels).await;
    }
    let before = identities(&cluster).await;
    let _operator = cluster.operator().await;
    cluster.apply("dev", json!({})).await;
    let words = ["kube-state-metrics-dev-0", "already exists", "does not belong to this KSMScale"];
    let status = until_degraded(&cluster, "dev", "NameTaken", &words).await;
    assert_eq!(status.current_replicas, Some(0));
    one_event(&cluster, "dev", "NameTaken").await;
    assert_eq!(identities(&cluster).await, before);
    for name in ["kube-state-metrics-dev-0", "kube-state-metrics-dev-1"] {
        kill_pod(&cluster.pods("monitoring"), name).await;
    }
    cluster.until_settled("dev").await;
}

async fn foreign_pod(cluster: &Cluster, name: &str, labels: &Value) {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "a", "image": "b"}], "serviceAccountName": "kube-state-metrics"},
    }))
    .expect("JSON");
    let pods = cluster.pods("monitoring");
    pods.create(&PostParams::default(), &pod).await.expect("a pod");
    // Until it has come to rest, its resourceVersion says nothing.
    eventually("the pod is Ready", SOON, || async {
        let status = pods.get(name).await.ok()?.status?;
        status.conditions?.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
    })
    .await
    .expect("a Ready pod");
}

/// UID and resourceVersion of every pod: what changes with any write.
async fn identities(cluster: &Cluster) -> Vec<(String, Option<String>, Option<String>)> {
    let pods = cluster.pods("monitoring").list(&ListParams::default()).await.expect("pods");
    pods.iter().map(|p| (p.name_any(), p.uid(), p.resource_version())).collect()
}

#[tokio::test]
async fn r29_r37_r63_foreign_budgets_and_accounts_with_our_names_are_left_as_they_are() {
    let cluster = Cluster::start(1).await;
    let labels = json!({
        "app.kubernetes.io/name": "kube-state-metrics", "app.kubernetes.io/managed-by": "Helm",
    });
    let account = service_account(&cluster, &labels).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), "monitoring");
    let mut before = Vec::new();
    for (scale, labels) in [("a", json!({})), ("b", json!({"ksmscale.example.com": "b"}))] {
        let budget = serde_json::from_value(json!({
            "metadata": {"name": format!("ksm-{scale}-shards"), "labels": labels},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "theirs"}}},
        }));
        let budget = budget.expect("JSON");
        before.push(budgets.create(&PostParams::default(), &budget).await.expect("a budget"));
    }
    let _operator = cluster.operator().await;
    for name in ["a", "b"] {
        let sharding = json!({
            "enabled": true, "shardCount": 2, "distribution": {"enablePDB": true},
        });
        cluster.apply(name, json!({"sharding": sharding})).await;
        let words =
            [&*format!("ksm-{name}-shards"), "does not belong to this KSMScale", "delete it"];
        let status = until_degraded(&cluster, name, "NameTaken", &words).await;
        assert_eq!(condition(&status, "ServiceAccountReady").1, "Provided");
        one_event(&cluster, name, "NameTaken").await;
        cluster.until("its pods serve", name, |s| condition(s, "Available").0 == "True").await;
        // Its deletion of the option must not take theirs away either.
        cluster.apply(name, json!({"sharding": {"enabled": true, "shardCount": 2}})).await;
        cluster.until_settled(name).await;
    }
    let after = budgets.list(&ListParams::default()).await.expect("budgets").items;
    let identity = |b: &PodDisruptionBudget| (b.uid(), b.resource_version());
    assert_eq!(
        before.iter().map(identity).collect::<Vec<_>>(),
        after.iter().map(identity).collect::<Vec<_>>()
    );
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "monitoring");
    let now = accounts.get("kube-state-metrics").await.expect("the ServiceAccount");
    assert_eq!((now.uid(), now.resource_version()), (account.uid(), account.resource_version()));
}
