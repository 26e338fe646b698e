//! Changes: a pod goes when others have been seen to serve what it serves (V1, V2, V6).

use super::*;
use std::{collections::BTreeSet, time::Instant};

/// Makes each of the changes in turn, the first of `specs` being what is there: nothing is missing in
/// any sample, and no more is exposed twice than `plan` says.
async fn lose_nothing(site: &Site, specs: &[Value]) {
    let sampler = site.sampler().await;
    let uids = planned::objects(&site.cluster).await;
    for (number, change) in specs.windows(2).enumerate() {
        let [from, to] = change else { panic!("two of them") };
        site.watch(&sampler).await;
        site.change(to.clone()).await;
        nothing_was_missing(&sampler, &format!("{from} to {to}\n{}", site.operator().log()));
        let history = sampler.history();
        let (most, planned) =
            (history.most_duplicated(), planned::most_duplicates(from, to, &uids));
        let text = format!("{most} of {planned} planned duplicates");
        assert!(most <= planned, "{from} to {to}: {text}\n{}", history.csv());
        println!(
            "change {} of {}, {from} to {to}: nothing missing in {} samples, {text}",
            number + 1,
            specs.len() - 1,
            history.samples().len()
        );
    }
}

#[tokio::test]
async fn v1_no_sample_lacks_an_object_while_3_shards_become_5_and_5_become_3_whenever_they_sync() {
    let site = Site::start(VERIFY, sharded(3), |pod| late(pod, 3_000)).await;
    lose_nothing(&site, &[sharded(3), sharded(5), sharded(3)]).await;
    if kube_state_metrics::real().is_none() {
        let held_back = "ksm_scale_operator_deletes_held_back_total";
        assert!(site.operator().metric(held_back).await > 0.0);
    }
}

/// The sampler sees what is lost: it would see it above.
#[tokio::test]
async fn v1_without_the_look_the_same_change_loses_objects() {
    stand_in_only();
    let trusting = ["--verify-coverage", "false"];
    // Later than any machine takes from Ready to the delete.
    let site = Site::start(&trusting, sharded(3), |pod| late(pod, 10_000)).await;
    let sampler = site.sampler().await;
    site.change(sharded(5)).await;
    let history = sampler.history();
    let worst = history.worst().expect("samples");
    assert!(!worst.missing.is_empty(), "{}", history.csv());
}

/// Each change from one of `from..=10` to another once, and each begins where the one before ends.
fn tour(from: u32) -> Vec<u32> {
    let mut tour = vec![from];
    if from < 10 {
        tour.extend(self::tour(from + 1));
        tour.push(from);
    }
    tour.extend((from + 2..=10).flat_map(|other| [other, from]));
    tour
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn v1_soak_no_sample_lacks_an_object_in_any_of_the_90_changes_of_1_to_10_shards() {
    let tour = tour(1);
    let changes: BTreeSet<_> = tour.windows(2).map(|change| (change[0], change[1])).collect();
    assert_eq!((changes.len(), tour.len()), (90, 91), "{tour:?}");
    let spec = |shards: &u32| match shards {
        1 => json!({"nodesPerMonitor": 50}),
        _ => sharded(*shards),
    };
    let specs: Vec<Value> = tour.iter().map(spec).collect();
    let site = Site::start(VERIFY, specs[0].clone(), |pod| late(pod, 5_000)).await;
    lose_nothing(&site, &specs).await;
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
    lose_nothing(&site, &[json!({}), sharded(2), updated, moved, json!({})]).await;
}

/// None of the old can go before all of the new are there, which is found out by waiting.
#[tokio::test]
#[ignore = "long: make soak"]
async fn v1_soak_no_sample_lacks_an_object_while_another_hash_comes_with_a_new_image() {
    stand_in_only();
    let old = ["kube-state-metrics-x-0", "kube-state-metrics-x-1", "kube-state-metrics-x-2"];
    let faults = move |pod: &str| Faults { rehashed: !old.contains(&pod), ..late(pod, 2_000) };
    let site = Site::start(VERIFY, sharded(3), faults).await;
    let sampler = site.sampler().await;
    let mut updated = sharded(3);
    updated["monitorImage"] =
        json!("registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0");
    site.change(updated).await;
    assert!(!site.pods().await.iter().any(|pod| old.contains(&&**pod)));
    nothing_was_missing(&sampler, "another hash");
}

#[tokio::test]
async fn v1_no_sample_lacks_an_object_while_replicas_and_nodes_go() {
    let replicas = |most: u32| {
        let mut spec = sharded(2);
        spec["sharding"]["minReplicasPerShard"] = json!(most);
        spec["sharding"]["maxReplicasPerShard"] = json!(most);
        spec
    };
    let site = Site::start(VERIFY, replicas(2), |pod| late(pod, 2_000)).await;
    lose_nothing(&site, &[replicas(2), replicas(1), json!({})]).await;
    let sampler = site.sampler().await;
    site.cluster.plane.remove_nodes(10..24).await.expect("fewer nodes");
    site.cluster.until("one pod is enough", "x", |s| s.desired_replicas == Some(1)).await;
    site.until_settled().await;
    assert_eq!(site.pods().await.len(), 1);
    nothing_was_missing(&sampler, "fewer nodes");
}

/// What was scraped nowhere else would be missing in Prometheus for a while.
#[tokio::test]
async fn v1_a_pod_goes_when_others_have_served_all_of_it_for_the_settle_time() {
    const SETTLE: Duration = Duration::from_secs(6);
    let args = ["--verify-coverage", "true", "--settle-time", "6s"];
    let first = "kube-state-metrics-x-0";
    let faults =
        move |pod: &str| if pod == first { Faults::default() } else { all_late(3_600_000) };
    let site = Site::start(&args, json!({"nodesPerMonitor": 50}), faults).await;
    let image = "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0";
    site.cluster.apply("x", json!({"nodesPerMonitor": 50, "monitorImage": image})).await;
    let settling = |status: &KSMScaleStatus| condition(status, "Progressing").1 == "PodSettling";
    site.cluster.until("the successor settles", "x", settling).await;
    // It is looked at from then on.
    let whole = "ksm_scale_operator_pod_scrapes_total{result=\"whole\"}";
    let wanted = site.operator().metric(whole).await + 8.0;
    eventually("it is looked at", SOON, || async {
        (site.operator().metric(whole).await >= wanted).then_some(())
    })
    .await
    .expect("looks");
    let pods = site.pods().await;
    let successor = pods.iter().find(|pod| **pod != first).expect("a successor");
    let released = Instant::now();
    site.set(successor, &Faults::default());
    eventually("its predecessor goes", LONG, || async {
        (!site.pods().await.iter().any(|pod| pod == first)).then_some(())
    })
    .await
    .expect("it goes");
    assert!(released.elapsed() >= SETTLE, "{:?}\n{}", released.elapsed(), site.operator().log());
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
    site.until_settled().await;
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
    let settled = ["--verify-coverage", "true", "--settle-time", "8s"];
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
    site.change(sharded(5)).await;
    let range =
        async |expression: &str| prometheus.query_range(expression, LONG).await.expect("a range");
    // As with the sampler: an answer that comes late, as on a busy machine, is no loss. Who is gone
    // refuses the connection at once.
    let late = range("up == 0 and scrape_duration_seconds > 0.9").await;
    let late: Vec<f64> = late.iter().flat_map(|series| &series.values).map(|(at, _)| *at).collect();
    let range = range(nodes).await;
    let [series] = &range[..] else { panic!("one series: {range:?}") };
    let is_certain = |at: f64| !late.iter().any(|late| (late - at).abs() < 1.5);
    let values = series.values.iter().filter(|(at, _)| is_certain(*at));
    let values: Vec<f64> = values.map(|(_, value)| *value).collect();
    let complete: Vec<f64> = values.iter().copied().skip_while(|value| *value < all).collect();
    assert!(complete.len() > 3 && complete.iter().all(|value| *value >= all), "{values:?}");
}
