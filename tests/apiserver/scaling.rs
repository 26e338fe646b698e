//! Pods follow nodes.

use crate::support::*;
use ksm_scale_operator::api::Phase;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn sharded(count: u32) -> Value {
    json!({"sharding": {"enabled": true, "shardCount": count}})
}

/// Lets nodes join or leave until there are `to`.
async fn resize(cluster: &Cluster, from: u32, to: u32) {
    cluster.plane.add_nodes(from..to.max(from)).await.expect("nodes join");
    cluster.plane.remove_nodes(to..from.max(to)).await.expect("nodes leave");
}

#[tokio::test]
async fn r21_the_first_reconcile_creates_one_pod_and_tells_what_it_saw_before() {
    let cluster = Cluster::start(10).await;
    let operator = cluster.operator().await;
    let history = History::of(&cluster, "dev-ksm").await;
    cluster.apply("dev-ksm", json!({})).await;
    let last = cluster.until_settled("dev-ksm").await;
    let first = &history.statuses()[0];
    assert_eq!(
        (first.node_count, first.desired_replicas, first.current_replicas),
        (Some(10), Some(1), Some(0))
    );
    assert_eq!(first.phase, Some(Phase::Scaling));
    assert_eq!((last.current_replicas, last.phase), (Some(1), Some(Phase::Ready)));
    assert_eq!(last.sharding_status, None);
    cluster.until_pods("monitoring", &["kube-state-metrics-dev-ksm-0"]).await;
    assert!(operator.terminate().await.success());
}

#[tokio::test]
async fn r36_r35_a_sharded_ksmscale_is_incomplete_until_every_shard_has_a_ready_pod() {
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator().await;
    let history = History::of(&cluster, "test-sharded-ksm").await;
    cluster.apply("test-sharded-ksm", sharded(3)).await;
    let last = cluster.until_settled("test-sharded-ksm").await;
    let first = &history.statuses()[0];
    assert_eq!((first.desired_replicas, first.current_replicas), (Some(3), Some(0)));
    assert_eq!(first.phase, Some(Phase::Incomplete));
    assert_eq!(first.sharding_status.as_ref().map(|s| s.active_shards), Some(0));
    assert_eq!((last.node_count, last.phase), (Some(4), Some(Phase::Ready)));
    let sharding = last.sharding_status.clone().expect("a sharding status");
    assert_eq!((sharding.total_shards, sharding.active_shards), (3, 3));
    for (shard, status) in &sharding.shard_distribution {
        assert_eq!((status.replicas, status.ready), (1, 1), "shard {shard}");
        assert_eq!(status.pods, [format!("kube-state-metrics-test-sharded-ksm-{shard}")]);
    }
    assert_eq!(sharding.shard_distribution.keys().collect::<Vec<_>>(), ["0", "1", "2"]);
}

#[tokio::test]
async fn r43_r71_an_unfit_shard_count_is_told_in_status_condition_and_one_event() {
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator_with(&["--requeue-interval-sharded", "1s"]).await;
    cluster.apply("x", sharded(3)).await;
    let status = cluster.until_settled("x").await;
    let text =
        "Over-sharded: 3 shards for 4 nodes (1.3 nodes/shard). Consider reducing to 2 shards.";
    assert_eq!(status.sharding_status.as_ref().and_then(|s| s.warning.as_deref()), Some(text));
    assert_eq!(condition(&status, "ShardingEfficient"), ("False", "OverSharded", text));
    cluster.apply("x", sharded(2)).await;
    let status = cluster.until_settled("x").await;
    assert_eq!(status.sharding_status.as_ref().and_then(|s| s.warning.as_deref()), None);
    assert_eq!(condition(&status, "ShardingEfficient").1, "NoBetterShardCount");
    let events = cluster.events("x").await;
    let warnings: Vec<_> = events.iter().filter(|(reason, _)| reason == "OverSharded").collect();
    assert_eq!(warnings.len(), 1, "{events:?}");
    assert_eq!(warnings[0].1, text);
    assert!(
        events
            .iter()
            .any(|(reason, note)| reason == "Scaling"
                && note.contains("from 0 to 3 pods for 4 nodes")),
        "{events:?}"
    );
}

#[tokio::test]
async fn r14_r18_r20_pods_follow_nodes_that_join_and_leave_without_other_input() {
    let cluster = Cluster::start(0).await;
    let _operator = cluster.operator().await;
    cluster.apply("dev", json!({})).await;
    cluster
        .until("no pods for no nodes", "dev", |s| {
            s.desired_replicas == Some(0) && s.phase == Some(Phase::Ready)
        })
        .await;
    let mut nodes = 0;
    for (next, desired) in [
        (1, 1),
        (15, 1),
        (16, 2),
        (30, 2),
        (31, 3),
        (45, 3),
        (30, 2),
        (16, 2),
        (15, 1),
        (1, 1),
        (0, 0),
    ] {
        resize(&cluster, nodes, next).await;
        nodes = next;
        cluster
            .until(&format!("{nodes} nodes are served by {desired} pods"), "dev", |s| {
                s.node_count == i32::try_from(nodes).ok()
                    && s.desired_replicas == Some(desired)
                    && s.current_replicas == Some(desired)
                    && s.phase == Some(Phase::Ready)
            })
            .await;
        let names: Vec<_> = (0..desired).map(|i| format!("kube-state-metrics-dev-{i}")).collect();
        assert_eq!(cluster.pod_names("monitoring").await, names);
    }
}

#[tokio::test]
async fn r18_r70_a_changed_ratio_rescales_both_ways_and_copies_of_series_are_told() {
    let cluster = Cluster::start(40).await;
    let _operator = cluster.operator().await;
    for (ratio, pods) in [(15, 3), (9, 5), (40, 1), (20, 2)] {
        cluster.apply("dev", json!({"nodesPerMonitor": ratio})).await;
        let status = cluster.until_settled("dev").await;
        assert_eq!(status.desired_replicas, Some(pods), "{ratio} nodes per pod");
        let duplicates = condition(&status, "DuplicateMetrics");
        assert_eq!(duplicates.0, if pods > 1 { "True" } else { "False" });
        assert!(
            pods == 1 || duplicates.2.contains(&format!("exists {pods} times")),
            "{}",
            duplicates.2
        );
        assert_eq!(cluster.pod_names("monitoring").await.len(), usize::try_from(pods).unwrap());
    }
}

#[tokio::test]
async fn r31_r32_shards_scale_with_nodes_between_their_bounds() {
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator().await;
    cluster.apply("s", sharded(3)).await;
    let mut nodes = 4;
    for (next, replicas) in [
        (4, [1, 1, 1]),
        (75, [2, 2, 1]),
        (90, [2, 2, 2]),
        (180, [4, 4, 4]),
        (300, [4, 4, 4]),
        (45, [1, 1, 1]),
        (0, [1, 1, 1]),
    ] {
        resize(&cluster, nodes, next).await;
        nodes = next;
        let status = cluster
            .until(&format!("{nodes} nodes"), "s", |s| {
                let shards = s.sharding_status.clone().unwrap_or_default().shard_distribution;
                let ready: Vec<_> = shards.values().map(|s| s.ready).collect();
                s.node_count == i32::try_from(nodes).ok()
                    && ready == replicas
                    && s.phase == Some(Phase::Ready)
            })
            .await;
        assert_eq!(status.desired_replicas, Some(replicas.iter().sum()));
    }
}

#[tokio::test]
async fn r22_r30_r46_r6_pods_look_as_specified_and_pass_pod_security_restricted() {
    let cluster = Cluster::start(4).await;
    apply_yaml(&cluster.client, "{apiVersion: v1, kind: Namespace, metadata: {name: monitoring, labels: {pod-security.kubernetes.io/enforce: restricted}}}").await;
    let _operator = cluster.operator().await;
    let mut spec = sharded(2);
    spec["monitorImage"] = json!("registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.13.0");
    spec["resources"] =
        json!({"requests": {"cpu": 1, "memory": "64Mi"}, "limits": {"memory": "128Mi"}});
    spec["sharding"]["distribution"] = json!({"spreadAcrossNodes": true});
    cluster.apply("x", spec).await;
    cluster.until_settled("x").await;
    let pod = cluster.pods("monitoring").get("kube-state-metrics-x-1").await.expect("a pod");
    let pod = serde_json::to_value(pod).expect("JSON");
    let meta = &pod["metadata"];
    for (label, value) in [
        ("app.kubernetes.io/name", "kube-state-metrics"),
        ("app.kubernetes.io/instance", "x"),
        ("app.kubernetes.io/component", "exporter"),
        ("ksmscale.example.com", "x"),
        ("index", "1"),
        ("pod-index", "1"),
        ("shard-id", "1"),
        ("shard-replica", "0"),
        ("total-shards", "2"),
        ("sharding-enabled", "true"),
    ] {
        assert_eq!(meta["labels"][label], value, "label {label}");
    }
    assert_eq!(meta["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"], "true");
    let owner = &meta["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["name"], &owner["controller"]),
        (&json!("KSMScale"), &json!("x"), &json!(true))
    );
    let spec = &pod["spec"];
    assert_eq!(spec["serviceAccountName"], "kube-state-metrics");
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let term =
        &spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(term["weight"], 100);
    assert_eq!(term["podAffinityTerm"]["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(
        term["podAffinityTerm"]["labelSelector"]["matchLabels"],
        json!({"ksmscale.example.com": "x", "shard-id": "1"})
    );
    r25_r26_r28_container_is_as_specified(&spec["containers"]);
}

/// R25–R28.
fn r25_r26_r28_container_is_as_specified(containers: &Value) {
    let [container] = containers.as_array().expect("containers").as_slice() else {
        panic!("one container, not {containers}")
    };
    assert_eq!(container["name"], "kube-state-metrics");
    assert_eq!(
        container["args"],
        json!([
            "--host=0.0.0.0",
            "--port=8080",
            "--telemetry-host=0.0.0.0",
            "--telemetry-port=8081",
            "--shard=1",
            "--total-shards=2"
        ])
    );
    let ports: Vec<_> = container["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .map(|p| (p["name"].clone(), p["containerPort"].clone()))
        .collect();
    assert_eq!(ports, [(json!("http-metrics"), json!(8080)), (json!("telemetry"), json!(8081))]);
    for (probe, path, port) in
        [("livenessProbe", "/healthz", 8080), ("readinessProbe", "/readyz", 8081)]
    {
        let probe = &container[probe];
        assert_eq!(
            (&probe["httpGet"]["path"], &probe["httpGet"]["port"]),
            (&json!(path), &json!(port))
        );
        assert_eq!(
            (&probe["initialDelaySeconds"], &probe["timeoutSeconds"]),
            (&json!(5), &json!(5))
        );
    }
    let security = &container["securityContext"];
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(
        ["allowPrivilegeEscalation", "readOnlyRootFilesystem", "runAsNonRoot", "runAsUser"]
            .map(|f| &security[f]),
        [&json!(false), &json!(true), &json!(true), &json!(65534)]
    );
    assert_eq!(
        container["resources"],
        json!({"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"memory": "128Mi"}})
    );
}

#[tokio::test]
async fn r49_r38_at_rest_nothing_is_written_although_it_is_looked_at_again() {
    let cluster = Cluster::start(20).await;
    let proxy = devcluster::FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let args = ["--requeue-interval", "1s", "--requeue-interval-sharded", "1s"];
    let operator = cluster.operator_via(&proxy, &args).await;
    cluster.apply("plain", json!({})).await;
    let mut spec = sharded(2);
    spec["sharding"]["distribution"] = json!({"enablePDB": true});
    cluster.apply("sharded", spec).await;
    cluster.until_settled("plain").await;
    cluster.until_settled("sharded").await;
    // The last writes of settling may be under way: rest begins when two rounds wrote nothing.
    let rounds = async |from: f64, n: f64| {
        eventually("more reconciles", SOON, || async {
            (operator.metric(RECONCILES).await >= from + n).then_some(())
        })
        .await
        .expect("the operator reconciles at its interval");
    };
    rounds(operator.metric(RECONCILES).await, 4.0).await;
    proxy.reset_log();
    rounds(operator.metric(RECONCILES).await, 8.0).await;
    let requests = proxy.requests();
    assert!(requests.iter().any(|r| r.path.ends_with("/pods")), "it did look: {requests:?}");
    let writes: Vec<_> = requests.iter().filter(|r| r.mutating && !r.is_lease()).collect();
    assert!(writes.is_empty(), "{writes:?}");
    assert!((operator.metric("ksm_scale_operator_ksmscales").await - 2.0).abs() < 0.1);
    assert!((operator.metric("ksm_scale_operator_managed_pods").await - 4.0).abs() < 0.1);
}

const RECONCILES: &str = "ksm_scale_operator_reconcile_duration_seconds_count";

#[tokio::test]
async fn r18_r47_node_heartbeats_cause_no_work() {
    let cluster = Cluster::start(10).await;
    let operator = cluster.operator().await;
    cluster.apply("dev", json!({})).await;
    cluster.until_settled("dev").await;
    // Whatever settling set off is over when a join has been counted.
    cluster.plane.add_nodes(10..11).await.expect("a node joins");
    cluster.until("a join is counted", "dev", |s| s.node_count == Some(11)).await;
    let before = operator.metric(RECONCILES).await;
    for round in 0..20 {
        for node in 0..10 {
            heartbeat(&cluster, node, round).await;
        }
    }
    // The watch is in order: when this join has arrived, so have all heartbeats before it.
    cluster.plane.add_nodes(11..12).await.expect("a node joins");
    cluster.until("the next join is counted", "dev", |s| s.node_count == Some(12)).await;
    let caused = operator.metric(RECONCILES).await - before;
    assert!(caused <= 2.0, "200 heartbeats and one join caused {caused} reconciles");
}

async fn heartbeat(cluster: &Cluster, node: u32, round: u32) {
    use kube::api::{Api, Patch, PatchParams};
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client.clone());
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "True", "reason": "KubeletReady",
        "lastHeartbeatTime": format!("2030-01-01T00:00:{round:02}Z"),
    }]}});
    let patch = Patch::Strategic(status);
    nodes
        .patch_status(&format!("node-{node}"), &PatchParams::default(), &patch)
        .await
        .expect("a heartbeat");
}

#[tokio::test]
async fn r84_several_ksmscales_work_side_by_side_and_say_that_they_overlap() {
    let cluster = Cluster::start(31).await;
    let _operator = cluster.operator().await;
    cluster.apply("a", json!({})).await;
    cluster.apply("b", sharded(2)).await;
    let a = cluster.until_settled("a").await;
    assert_eq!(a.desired_replicas, Some(3));
    cluster
        .until("a says that b overlaps", "a", |s| {
            let (status, _, message) = condition(s, "ScopeOverlap");
            status == "True" && message.contains("KSMScale b;")
        })
        .await;
    cluster.until_settled("b").await;
    cluster
        .until_pods(
            "monitoring",
            &[
                "kube-state-metrics-a-0",
                "kube-state-metrics-a-1",
                "kube-state-metrics-a-2",
                "kube-state-metrics-b-0",
                "kube-state-metrics-b-1",
                "kube-state-metrics-b-2",
            ],
        )
        .await;
    cluster.scales().delete("b", &kube::api::DeleteParams::default()).await.expect("deleted");
    cluster.until("a is alone again", "a", |s| condition(s, "ScopeOverlap").0 == "False").await;
}

#[tokio::test]
async fn r84_a_ksmscale_that_comes_does_not_wake_all_others_at_once() {
    const MANY: u32 = 30;
    let cluster = Cluster::start(0).await;
    let operator = cluster.operator().await;
    // Each is reconciled before the next one comes, and there is nothing to do for any.
    let mut pauses = 0;
    for i in 0..MANY {
        let (name, begun) = (format!("scale-{i:02}"), Instant::now());
        cluster.apply(&name, json!({})).await;
        cluster.until("it is looked at", &name, |s| s.observed_generation == Some(1)).await;
        pauses += u32::from(begun.elapsed() > Duration::from_secs(1));
    }
    for name in ["scale-00", "scale-29"] {
        cluster
            .until("it counts all others", name, |s| {
                condition(s, "ScopeOverlap").2.contains("and 28 more;")
            })
            .await;
    }
    let reconciles = operator.metric(RECONCILES).await;
    // One for each and one when no more come, where one for all others each time would be 450. To a
    // machine that takes longer than two seconds for one of them, the burst is over each time.
    let bound = f64::from((5 + pauses) * MANY);
    assert!(reconciles <= bound, "{MANY} KSMScales, {pauses} pauses: {reconciles} reconciles");
}

#[tokio::test]
async fn o5_samples_are_valid_and_scale_as_they_say() {
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator().await;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/samples");
    for (file, name, pods) in [
        ("development", "dev-ksm", 1),
        ("sharded", "test-sharded-ksm", 3),
        ("production", "production", 3),
    ] {
        let text = std::fs::read_to_string(folder.join(format!("{file}.yaml"))).expect("a sample");
        apply_yaml(&cluster.client, &text).await;
        let status = cluster.until_settled(name).await;
        assert_eq!(status.desired_replicas, Some(pods), "{file}");
    }
}

#[tokio::test]
async fn o1_sigterm_stops_gracefully_and_healthz_answers_while_readyz_waits() {
    let cluster = Cluster::start(1).await;
    let operator = cluster.operator().await;
    assert_eq!(operator.ask("/healthz").await.map(|a| a.0), Some(200));
    assert_eq!(operator.ask("/readyz").await.map(|a| a.1).as_deref(), Some("ok\n"));
    assert!(operator.terminate().await.success());

    let proxy = devcluster::FaultProxy::start(&cluster.plane).await.expect("a proxy");
    proxy.fail(|request| request.path == "/api/v1/nodes", devcluster::Fault::status(503));
    let url = proxy.url();
    let kubeconfig = cluster
        .plane
        .service_account_kubeconfig_via(&url, "monitoring", "ksm-scale-operator")
        .await
        .expect("a token");
    let operator = Operator::spawn(&cluster.plane, &kubeconfig, &[]).await;
    let waiting = eventually("readyz says what it waits for", SOON, || async {
        let (code, text) = operator.ask("/readyz").await?;
        (code == 503
            && text.starts_with("waiting for the list of nodes: ")
            && !text.contains("not complete yet")
            && text.lines().count() == 1)
            .then_some(text)
    });
    waiting.await.expect("only nodes are waited for");
    assert_eq!(operator.ask("/healthz").await.map(|a| a.0), Some(200));
    proxy.clear();
    operator.until_ready().await;
    assert!(operator.log().contains("watch interrupted"));
}
