//! The API server fails, at every kind of call and in every way: the operator gets there all the
//! same, without a restart and without a gap.

use crate::support::*;
use devcluster::{Fault, FaultProxy, Kubelet, SeenRequest};
use futures::future::join_all;
use k8s_openapi::{
    api::{core::v1::ServiceAccount, rbac::v1::ClusterRoleBinding},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use ksm_scale_operator::names::cluster_role_binding;
use kube::Api;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

fn sharded(namespace: &str, shards: u32) -> Value {
    json!({
        "namespace": namespace,
        "sharding": {"enabled": true, "shardCount": shards, "distribution": {"enablePDB": true}},
    })
}

/// The kind of a request: its verb and path, with `*` for every name.
fn kind(request: &SeenRequest) -> String {
    let verb = if request.watch { "WATCH" } else { request.method.as_str() };
    let mut path: Vec<_> = request.path.split('/').map(str::to_owned).collect();
    for parent in [
        "namespaces",
        "pods",
        "ksmscales",
        "poddisruptionbudgets",
        "serviceaccounts",
        "clusterrolebindings",
    ] {
        if let Some(at) = path.iter().position(|part| part == parent)
            && let Some(name) = path.get_mut(at + 1)
        {
            *name = "*".into();
        }
    }
    format!("{verb} {}", path.join("/"))
}

/// Calls of a change that are about one KSMScale, as their path or query tells.
const CALLS: &[&str] = &[
    "GET /apis/monitor.example.com/v1alpha1/ksmscales/*",
    "PATCH /apis/monitor.example.com/v1alpha1/ksmscales/*/status",
    "GET /api/v1/namespaces/*",
    "GET /api/v1/namespaces/*/pods",
    "POST /api/v1/namespaces/*/pods",
    "DELETE /api/v1/namespaces/*/pods/*",
    "GET /apis/policy/v1/poddisruptionbudgets",
    "PATCH /apis/policy/v1/namespaces/*/poddisruptionbudgets/*",
];

/// Calls that only a first reconcile makes, or that are about all KSMScales.
const SHARED_CALLS: &[&str] = &[
    "GET /api/v1/serviceaccounts",
    "GET /apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "POST /apis/events.k8s.io/v1/namespaces/*/events",
];

/// Calls of a first reconcile in a namespace.
const FIRST_CALLS: &[&str] = &[
    "GET /api/v1/namespaces/*/serviceaccounts/*",
    "GET /apis/policy/v1/namespaces/*/poddisruptionbudgets/*",
    "GET /apis/rbac.authorization.k8s.io/v1/clusterrolebindings/*",
    "POST /api/v1/namespaces/*/serviceaccounts",
];

/// Calls of a reconcile that is not the first in its namespace.
const JOINING_CALLS: &[&str] = &[
    "PATCH /api/v1/namespaces/*/serviceaccounts/*",
    "PATCH /apis/rbac.authorization.k8s.io/v1/clusterrolebindings/*",
];

/// Lists and watches, one pair for each kind that is watched.
const WATCHED: &[&str] = &[
    "/api/v1/nodes",
    "/api/v1/pods",
    "/apis/monitor.example.com/v1alpha1/ksmscales",
    "/apis/policy/v1/poddisruptionbudgets",
];

const FAULTS: &[Fault] = &[
    Fault::status(409),
    Fault::too_many_requests(Duration::from_secs(1)),
    Fault::status(500),
    Fault::status(503),
    Fault::Close,
    Fault::LoseAnswer,
];

const HANGING: &[Fault] = &[Fault::Hang];

/// It is tried again because it failed, and not because it is looked at from time to time.
const NO_BACKUP: &[&str] = &["--requeue-interval-sharded", "1h"];

/// A KSMScale, the call about it that fails, and how it fails at the first, the second, …
type Case = (String, &'static str, &'static [Fault]);

/// Every fault at every call: three after each other for one KSMScale, the rest for another.
fn cases(calls: &[&'static str]) -> Vec<Case> {
    let halves = || FAULTS.chunks(3).enumerate();
    let of_call = |(at, call): (usize, &&'static str)| {
        let call = *call;
        halves().map(move |(half, faults)| (format!("case-{at}-{half}"), call, faults))
    };
    calls.iter().enumerate().flat_map(of_call).collect()
}

fn fail_calls(proxy: &FaultProxy, cases: &[Case]) {
    for (name, call, faults) in cases {
        faults.iter().for_each(|fault| fail_call(proxy, call, name, *fault));
    }
}

/// Fails the next call of this kind about one KSMScale, whose name is also that of its namespace
/// and stands in the path or, in a list, at the end of the label selector.
fn fail_call(proxy: &FaultProxy, call: &'static str, name: &str, fault: Fault) {
    let (part, selector) = (name.to_owned(), format!("%3D{name}"));
    let about = move |r: &SeenRequest| {
        let ends_with_it = |pair: &str| pair.ends_with(&selector);
        kind(r) == call
            && (r.path.split(['/', ':']).any(|p| p == part) || r.query.split('&').any(ends_with_it))
    };
    proxy.fail_times(1, about, fault);
}

#[tokio::test]
async fn r84_every_call_of_a_change_may_fail_in_every_way() {
    let cluster = Cluster::start(4).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let mut cases = cases(CALLS);
    // These take fifteen seconds each, at the same time.
    for at in [1, 3, 4] {
        cases.push((format!("hanging-{at}"), CALLS[at], HANGING));
    }
    for (name, ..) in &cases {
        cluster.allow_namespace(name).await;
        cluster.apply(name, sharded(name, 2)).await;
    }
    let _operator = cluster.operator_via(&proxy, NO_BACKUP).await;
    join_all(cases.iter().map(|(name, ..)| cluster.until_settled_within(LATER, name))).await;
    let mut witnesses = Vec::new();
    for (name, ..) in &cases {
        let witness = Witness::of(&cluster.client, name).await;
        witness.watch();
        witnesses.push(witness);
    }
    proxy.reset_log();
    fail_calls(&proxy, &cases);
    for (name, ..) in &cases {
        cluster.apply(name, sharded(name, 3)).await;
    }
    join_all(cases.iter().map(|(name, ..)| cluster.until_settled_within(LATER, name))).await;
    witnesses.iter().for_each(Witness::saw_no_gap);
    assert_all_known(&proxy);
    let unmet = proxy.unmet();
    assert_eq!(unmet, 0, "{unmet} faults were never met");
}

/// Every kind of call that was made stands in one of the lists above.
fn assert_all_known(proxy: &FaultProxy) {
    let watched =
        |k: &String| WATCHED.iter().any(|p| *k == format!("GET {p}") || *k == format!("WATCH {p}"));
    let known = [CALLS, SHARED_CALLS, FIRST_CALLS, JOINING_CALLS].concat();
    // Calls about the own Lease fail in `sharding`.
    let requests = proxy.requests();
    let made: BTreeSet<_> = requests.iter().filter(|r| !r.is_lease()).map(kind).collect();
    let unknown: Vec<_> =
        made.iter().filter(|k| !known.contains(&k.as_str()) && !watched(k)).collect();
    assert!(unknown.is_empty(), "calls that no fault is tried at: {unknown:#?}");
}

#[tokio::test]
async fn r63_r84_every_call_of_a_first_reconcile_may_fail_in_every_way() {
    let cluster = Cluster::start(4).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let cases = cases(FIRST_CALLS);
    fail_calls(&proxy, &cases);
    for (name, ..) in &cases {
        cluster.allow_namespace(name).await;
        cluster.apply(name, sharded(name, 2)).await;
    }
    for call in SHARED_CALLS {
        for fault in FAULTS {
            proxy.fail_times(1, move |r| kind(r) == *call, *fault);
        }
    }
    let _operator = cluster.operator_via(&proxy, NO_BACKUP).await;
    join_all(cases.iter().map(|(name, ..)| cluster.until_settled_within(LATER, name))).await;
    assert_all_known(&proxy);
    let unmet = proxy.unmet();
    assert_eq!(unmet, 0, "{unmet} faults were never met");
}

#[tokio::test]
async fn r63_r84_those_who_come_at_once_all_share_whatever_fails() {
    let cluster = Cluster::start(4).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    for call in JOINING_CALLS {
        for fault in FAULTS {
            proxy.fail_times(1, move |r| kind(r) == *call, *fault);
        }
    }
    let names: Vec<_> = (0..9).map(|i| format!("scale-{i}")).collect();
    for name in &names {
        cluster.apply(name, json!({})).await;
    }
    let _operator = cluster.operator_via(&proxy, NO_BACKUP).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "monitoring");
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let owners = |meta: ObjectMeta| {
        let owners = meta.owner_references.unwrap_or_default().into_iter();
        let mut owners: Vec<_> = owners.map(|owner| owner.name).collect();
        owners.sort();
        owners
    };
    let all_own_both = || async {
        let account = accounts.get_opt("kube-state-metrics").await.ok()??;
        let binding = bindings.get_opt(&cluster_role_binding("monitoring")).await.ok()??;
        let found = [account.metadata, binding.metadata].map(owners);
        (found == [names.clone(), names.clone()]).then_some(())
    };
    eventually("all own both objects", LATER, all_own_both).await.expect("all of them");
    let unmet = proxy.unmet();
    assert_eq!(unmet, 0, "{unmet} faults were never met");
}

#[tokio::test]
async fn r47_lists_and_watches_may_fail_and_break() {
    let cluster = Cluster::start(16).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    for (at, path) in WATCHED.iter().enumerate() {
        for watch in [false, true] {
            let fault = FAULTS[(at + usize::from(watch)) % FAULTS.len()];
            proxy.fail_times(1, move |r| r.path == *path && r.watch == watch, fault);
        }
    }
    let operator = cluster.operator_via(&proxy, &[]).await;
    // Ready with the lists: the watches behind them may not have been asked for yet.
    eventually("every fault is met", SOON, || async { (proxy.unmet() == 0).then_some(()) })
        .await
        .expect("lists and watches");
    let witness = Witness::start(&cluster.client).await;
    cluster.apply("dev", sharded("monitoring", 3)).await;
    cluster.until_settled("dev").await;
    witness.watch();
    for shards in [5, 3, 4] {
        proxy.cut_watches();
        cluster.apply("dev", sharded("monitoring", shards)).await;
        proxy.cut_watches();
        cluster.until_settled("dev").await;
        proxy.cut_watches();
    }
    witness.saw_no_gap();
    assert!(operator.terminate().await.success());
}

#[tokio::test]
async fn r47_an_api_server_that_is_down_for_a_minute_costs_a_minute() {
    let mut cluster = Cluster::start(4).await;
    let _operator = cluster.operator().await;
    cluster.apply("dev", sharded("monitoring", 3)).await;
    cluster.until_settled("dev").await;
    let witness = Witness::start(&cluster.client).await;
    witness.watch();
    cluster.apply("dev", sharded("monitoring", 5)).await;
    // As the witness sees it, which may hear of it later than who asks.
    eventually("the change has begun", SOON, || async { (witness.most_pods() > 3).then_some(()) })
        .await
        .expect("a change");
    cluster.plane.stop_api_server().await.expect("an outage");
    witness.saw_no_gap();
    // Not waiting for anything: this is the outage.
    tokio::time::sleep(Duration::from_mins(1)).await;
    cluster.plane.start_api_server().await.expect("its end");
    // The old ones would go on backing off, longer than the operator does.
    cluster.kubelet = Some(Kubelet::start(cluster.client.clone(), Kubelet::always_ready()));
    let witness = Witness::start(&cluster.client).await;
    witness.watch();
    cluster.until_settled("dev").await;
    witness.saw_no_gap();
    assert_eq!(cluster.pod_names("monitoring").await.len(), 5);
}

#[tokio::test]
async fn r49_a_status_that_could_not_be_written_is_written_later() {
    let cluster = Cluster::start(4).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let _operator = cluster.operator_via(&proxy, &[]).await;
    cluster.apply("dev", json!({})).await;
    cluster.until_settled("dev").await;
    let writes = |r: &SeenRequest| r.path.ends_with("/ksmscales/dev/status");
    proxy.fail_times(2, writes, Fault::status(500));
    // One node more changes nothing but the status, and nothing else would bring it up again.
    cluster.plane.add_nodes(4..5).await.expect("a node");
    cluster.until("five nodes are told of", "dev", |s| s.node_count == Some(5)).await;
    assert_eq!(proxy.unmet(), 0);
}

#[tokio::test]
async fn r84_retry_after_is_obeyed() {
    let cluster = Cluster::start(1).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    // When they came, by the proxy's own look at them: only the first is failed.
    let lists = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&lists);
    let first = move |r: &SeenRequest| {
        let is_list = kind(r) == "GET /api/v1/namespaces/*/pods";
        let mut lists = seen.lock().expect("no panic");
        lists.extend(is_list.then(Instant::now));
        is_list && lists.len() == 1
    };
    proxy.fail(first, Fault::too_many_requests(Duration::from_secs(3)));
    let _operator = cluster.operator_via(&proxy, &[]).await;
    cluster.apply("dev", json!({})).await;
    let apart = eventually("two lists of pods", SOON, || async {
        let lists = lists.lock().expect("no panic");
        Some(*lists.get(1)? - lists[0])
    });
    let apart = apart.await.expect("two lists of pods");
    // Three seconds but for how clocks tick; without the header it would be half a second.
    assert!(apart > Duration::from_millis(2_900), "{apart:?}");
    cluster.until_settled("dev").await;
}

#[tokio::test]
async fn r15_the_first_list_of_nodes_is_awaited_and_no_failure() {
    let cluster = Cluster::start(31).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    cluster.apply("dev", json!({})).await;
    proxy.fail_times(1, |r| r.path == "/api/v1/nodes", Fault::Hang);
    let operator = cluster.spawn_via(&proxy, &["--log-filter", "debug"]).await;
    let awaited =
        || async { operator.log().contains("the first list of nodes is awaited").then_some(()) };
    eventually("a reconcile that has to wait", SOON, awaited).await.expect("it waits");
    proxy.end_hanging();
    cluster.until_settled("dev").await;
    let log = operator.log();
    let told = log.find("watch interrupted").expect("the list had to be asked for again");
    let failed = log.find("it is tried again");
    assert!(failed.is_none_or(|failed| failed > told), "{log}");
}

#[tokio::test]
async fn r15_without_a_list_of_nodes_nothing_is_written_and_readyz_says_why() {
    let cluster = Cluster::start(31).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let operator = cluster.operator_via(&proxy, &[]).await;
    cluster.apply("dev", json!({})).await;
    cluster.until_settled("dev").await;
    operator.kill();
    proxy.fail(|r| r.path == "/api/v1/nodes", Fault::status(403));
    proxy.reset_log();
    let operator = cluster.spawn_via(&proxy, &[]).await;
    cluster.apply("dev", json!({"monitorImage": "k/s:v2"})).await;
    let errors = "ksm_scale_operator_reconcile_errors_total{kind=\"nodes_unknown\"}";
    eventually("two reconciles that failed", SOON, || async {
        operator.ask("/metrics").await?;
        (operator.metric(errors).await >= 2.0).then_some(())
    })
    .await
    .expect("failed reconciles");
    let (code, text) = operator.ask("/readyz").await.expect("an answer");
    assert!(code == 503 && text.contains("waiting for the list of nodes"), "{code} {text}");
    let writes: Vec<_> =
        proxy.requests().into_iter().filter(|r| r.mutating && !r.is_lease()).collect();
    assert!(writes.is_empty(), "{writes:#?}");
    assert_eq!(cluster.pod_names("monitoring").await.len(), 3);
    proxy.clear();
    operator.until_ready().await;
    let status = cluster.until_settled("dev").await;
    assert_eq!(status.node_count, Some(31));
}
