//! Audits: what is wrong while nothing changes is found, named and healed (V3, V4, V5).

use super::*;
use kube::api::ListParams;

/// Audits every four seconds.
const AUDIT: &[&str] = &["--verify-coverage", "true", "--audit-interval", "4s"];

/// A pod becomes faulty: the audit says so in these words, and the pod is replaced by one that is
/// as it should be.
async fn found_and_healed(site: &Site, reason: &str, faults: &Faults, words: &[&str]) {
    let pod = &site.pods().await[0];
    let uid = site.cluster.pods("monitoring").get(pod).await.expect("the pod").uid();
    site.set(pod, faults);
    let status = site
        .cluster
        .until(&format!("{reason} is found"), "x", |status| {
            condition(status, "CoverageComplete").1 == reason
        })
        .await;
    let (_, _, message) = condition(&status, "CoverageComplete");
    for word in words.iter().chain([&&**pod]) {
        assert!(message.contains(word), "{word} in {message}");
    }
    let said = site.event(reason).await;
    assert!(said.contains(words[0]), "{said}");
    eventually("the pod is replaced", SOON, || async {
        let pods = site.cluster.pods("monitoring").list(&ListParams::default()).await.ok()?;
        pods.iter().all(|pod| pod.uid() != uid).then_some(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", site.operator.log()));
    let status = site
        .cluster
        .until("all is well again", "x", |status| {
            condition(status, "CoverageComplete").0 == "True"
                && condition(status, "Progressing").0 == "False"
        })
        .await;
    let coverage = status.coverage.expect("counts");
    assert_eq!((coverage.expected, coverage.exposed), (25, 25));
    assert_eq!((coverage.missing, coverage.duplicated, coverage.foreign), (0, 0, 0));
    site.event("CoverageCompleteRecovered").await;
}

#[tokio::test]
async fn v3_v4_v5_a_ghost_is_found_named_and_healed() {
    let site = Site::start(AUDIT, sharded(2), sound).await;
    let ghost = Faults { ghosts: vec!["nobody".to_owned()], ..Faults::default() };
    found_and_healed(&site, "NodesForeign", &ghost, &["does not exist, node nobody"]).await;
}

#[tokio::test]
async fn v3_v4_v5_a_pod_that_runs_as_another_shard_is_found_named_and_healed() {
    let site = Site::start(AUDIT, sharded(2), sound).await;
    let other = Faults { shard: Some(1), ..Faults::default() };
    let words = ["runs as another shard than its arguments say", "does not expose node"];
    found_and_healed(&site, "NodesMissing", &other, &words).await;
}

#[tokio::test]
async fn v3_v4_v5_a_page_that_was_dropped_is_found_named_and_healed() {
    let site = Site::start(AUDIT, sharded(2), sound).await;
    let dropped = Faults { truncated: [("nodes".to_owned(), 3)].into(), ..Faults::default() };
    found_and_healed(&site, "NodesMissing", &dropped, &["does not expose node"]).await;
}

#[tokio::test]
async fn v3_v4_nodes_that_come_and_go_raise_no_alarm_and_nothing_is_written_at_rest() {
    let site = Site::start(AUDIT, sharded(2), sound).await;
    let whole = |status: &ksm_scale_operator::api::KSMScaleStatus| {
        condition(status, "CoverageComplete").0 == "True"
    };
    site.cluster.until("an audit", "x", whole).await;
    let audits = || site.operator.metric("ksm_scale_operator_audits_total{result=\"whole\"}");
    let until_audits = async |more: f64| {
        let wanted = audits().await + more;
        eventually("more audits", SOON, || async { (audits().await >= wanted).then_some(()) })
            .await
            .expect("audits");
    };
    let version = async || site.cluster.scales().get("x").await.expect("x").resource_version();
    let before = version().await;
    until_audits(2.0).await;
    assert_eq!(version().await, before, "nothing is written at rest");
    for round in 0..4 {
        let nodes = 100 + 10 * round..110 + 10 * round;
        site.cluster.plane.add_nodes(nodes.clone()).await.expect("nodes");
        until_audits(1.0).await;
        site.cluster.plane.remove_nodes(nodes).await.expect("nodes");
    }
    until_audits(1.0).await;
    let faulty = site.operator.metric("ksm_scale_operator_audits_total{result=\"faulty\"}").await;
    assert!(faulty < 1.0, "{faulty} false alarms");
    let events = site.cluster.events("x").await;
    assert!(events.iter().all(|event| !event.0.starts_with("Nodes")), "{events:?}");
}
