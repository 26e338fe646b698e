//! Changes: a pod goes when others have been seen to serve what it serves (V1, V2, V6).

use super::*;

/// Makes each of the changes in turn, and finds nothing missing in any sample.
async fn lose_nothing(site: &Site, specs: &[Value]) {
    let sampler = site.sampler().await;
    for spec in specs {
        sampler.reset();
        site.change(spec.clone()).await;
        let history = sampler.history();
        let worst = history.worst().expect("samples");
        assert!(
            worst.missing.is_empty(),
            "to {spec}: {worst:?}\n{}\n{}",
            history.csv(),
            site.operator.log()
        );
    }
}

#[tokio::test]
async fn v1_no_sample_lacks_an_object_while_3_shards_become_5_and_5_become_3_whenever_they_sync() {
    let site = Site::start(VERIFY, sharded(3), |pod| late(pod, 3_000)).await;
    lose_nothing(&site, &[sharded(5), sharded(3)]).await;
    assert!(site.operator.metric("ksm_scale_operator_deletes_held_back_total").await > 0.0);
}

/// The sampler sees what is lost: it would see it above.
#[tokio::test]
async fn v1_without_the_look_the_same_change_loses_objects() {
    let trusting = ["--verify-coverage", "false"];
    let site = Site::start(&trusting, sharded(3), |pod| late(pod, 3_000)).await;
    let sampler = site.sampler().await;
    site.change(sharded(5)).await;
    let history = sampler.history();
    let worst = history.worst().expect("samples");
    assert!(!worst.missing.is_empty(), "{}", history.csv());
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn v1_soak_no_sample_lacks_an_object_in_any_of_the_90_changes_of_1_to_10_shards() {
    let spec = |shards| if shards == 1 { json!({}) } else { sharded(shards) };
    let site = Site::start(VERIFY, spec(1), |pod| late(pod, 5_000)).await;
    for from in 1..=10 {
        for to in (1..=10).filter(|to| *to != from) {
            site.change(spec(from)).await;
            lose_nothing(&site, &[spec(to)]).await;
        }
    }
}

#[tokio::test]
async fn v1_no_sample_lacks_an_object_while_the_mode_the_image_and_the_namespace_change() {
    let site = Site::start(VERIFY, json!({}), |pod| late(pod, 2_000)).await;
    site.cluster.allow_namespace("elsewhere").await;
    let image = "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0";
    let mut moved = sharded(2);
    moved["monitorImage"] = json!(image);
    let updated = moved.clone();
    moved["namespace"] = json!("elsewhere");
    lose_nothing(&site, &[sharded(2), updated, moved, json!({})]).await;
}

#[tokio::test]
async fn v1_v6_a_pod_stays_while_its_successor_serves_nothing_and_the_status_says_so() {
    // The first to come beside a pod that serves is one of the new layout.
    let never = |pod: &str| match pod {
        "kube-state-metrics-x-0" | "kube-state-metrics-x-1" => Faults::default(),
        _ => all_late(3_600_000),
    };
    let site = Site::start(VERIFY, sharded(2), never).await;
    let sampler = site.sampler().await;
    site.cluster.apply("x", sharded(3)).await;
    let status = site
        .cluster
        .until("it waits for series", "x", |status| {
            condition(status, "Progressing").2.contains("served by no other pod")
        })
        .await;
    let (_, _, message) = condition(&status, "Progressing");
    assert!(message.contains("keeping pod monitoring/kube-state-metrics-x-"), "{message}");
    assert!(message.contains("such as kube_"), "{message}");
    let change = status.change.clone().expect("a change under way");
    assert_eq!((change.from, change.to), (2, 3));
    assert!(change.step > 1 && change.step <= change.of, "{change:?}");
    assert!(change.waiting_for.is_some_and(|text| text.contains("served by no other pod")));
    assert_eq!(condition(&status, "CoverageVerified").0, "True");

    // The spec goes back, and so do the pods: those that serve are still there.
    site.change(sharded(2)).await;
    let pods = site.pods().await;
    assert_eq!(pods, ["kube-state-metrics-x-0", "kube-state-metrics-x-1"]);
    let status = site.cluster.until_settled("x").await;
    assert_eq!(status.change, None);
    let history = sampler.history();
    assert!(history.worst().expect("samples").missing.is_empty(), "{}", history.csv());
}

#[tokio::test]
async fn v1_a_survivor_whose_answer_is_cut_short_counts_as_serving_nothing() {
    let site = Site::start(VERIFY, sharded(3), sound).await;
    let sampler = site.sampler().await;
    let cut = Faults { cut: Some(Cut::Tail), ..Faults::default() };
    site.cluster.apply("x", sharded(2)).await;
    // Whichever comes: what it serves is never known as a whole.
    let successors = eventually("a successor", SOON, || async {
        let pods = site.pods().await;
        let new: Vec<_> = pods.into_iter().filter(|pod| pod.len() > 22).collect();
        (!new.is_empty()).then_some(new)
    });
    for pod in successors.await.expect("a successor") {
        site.set(&pod, &cut);
    }
    let status = site
        .cluster
        .until("it waits for series", "x", |status| {
            condition(status, "Progressing").2.contains("as a whole")
        })
        .await;
    assert!(condition(&status, "Progressing").2.contains("served by no other pod"));
    for pod in site.pods().await {
        site.set(&pod, &Faults::default());
    }
    site.cluster.until_settled("x").await;
    let history = sampler.history();
    let worst = history.samples().iter().filter(|sample| sample.failed == 0);
    let worst = worst.max_by_key(|sample| sample.missing.len()).expect("samples");
    assert!(worst.missing.is_empty(), "{worst:?}");
}

#[tokio::test]
async fn v2_where_pods_cannot_be_reached_changes_go_on_and_the_status_says_that_nothing_is_proven()
{
    // These pods are Ready, and nobody is at their addresses.
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator_with(VERIFY).await;
    cluster.apply("x", sharded(2)).await;
    cluster.until_settled("x").await;
    cluster.apply("x", sharded(3)).await;
    let status = cluster.until_settled("x").await;
    let (verified, reason, message) = condition(&status, "CoverageVerified");
    assert_eq!((verified, reason), ("False", "PodsUnreachable"), "{message}");
    assert!(message.contains("cannot connect to") && message.contains("8081"), "{message}");
    let events = cluster.events("x").await;
    assert!(events.iter().any(|event| event.0 == "PodsUnreachable"), "{events:?}");
}

#[tokio::test]
async fn v1_in_prometheus_the_number_of_nodes_never_falls_while_3_shards_become_5() {
    // It takes Prometheus five seconds to hear of a pod, and one more to scrape it.
    let settled = [VERIFY, &["--settle-time", "8s"]].concat();
    let site = Site::start(&settled, sharded(3), |pod| late(pod, 3_000)).await;
    let prometheus = Prometheus::start(&site.cluster.plane).await.expect("Prometheus");
    let nodes = "count(count by (node) (kube_node_info))";
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let all = NODES as f64;
    eventually("all nodes are there", SOON, || async {
        let series = prometheus.query(nodes).await.ok()?;
        (series.first()?.values[0].1 >= all).then_some(())
    })
    .await
    .expect("all nodes");
    site.cluster.apply("x", sharded(5)).await;
    eventually("five shards", 3 * SOON, || async {
        let status = site.cluster.scales().get("x").await.ok()?.status?;
        (status.current_replicas == Some(5)
            && status.change.is_none()
            && status.desired_replicas == Some(5))
        .then_some(())
    })
    .await
    .expect("five shards");
    let range = prometheus.query_range(nodes, 3 * SOON).await.expect("a range");
    let [series] = &range[..] else { panic!("one series: {range:?}") };
    let values: Vec<f64> = series.values.iter().map(|(_, value)| *value).collect();
    let complete: Vec<f64> = values.iter().copied().skip_while(|value| *value < all).collect();
    assert!(complete.len() > 3 && complete.iter().all(|value| *value >= all), "{values:?}");
}
