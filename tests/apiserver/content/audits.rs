//! Audits: what is wrong while nothing changes is found, named and healed (V3, V4, V5).

use super::*;
use devcluster::{Signal, probe::http_get};

/// Audits every four seconds.
const AUDIT: &[&str] = &["--verify-coverage", "true", "--audit-interval", "4s"];

/// So that three in a row are soon over. No node comes or goes.
const OFTEN: &[&str] = &["--verify-coverage", "true", "--audit-interval", "2s"];

/// So that three in a row take a while.
const SELDOM: &[&str] = &["--verify-coverage", "true", "--audit-interval", "8s"];

impl Site {
    /// The nodes that a pod exposes, or half exposes; `None` if it does not answer.
    async fn exposed(&self, pod: &str) -> Option<Vec<String>> {
        let pod = self.cluster.pods("monitoring").get(pod).await.ok()?;
        let address = format!("{}:8080", pod.status?.pod_ip?);
        let (_, text) = http_get(&address, "/metrics").await.ok()?;
        let nodes = text.lines().filter(|line| line.starts_with("kube_node_info{"));
        let mut nodes: Vec<String> = nodes.map(str::to_owned).collect();
        nodes.sort_unstable();
        Some(nodes)
    }

    async fn uids(&self) -> Vec<Option<String>> {
        let pods = self.cluster.pods("monitoring").list(&ListParams::default()).await;
        pods.expect("pods").iter().map(ResourceExt::uid).collect()
    }

    /// A pod becomes faulty: the second audit from then on says so, in status and Event.
    async fn found(&self, pod: &str, reason: &str, faults: &Faults, words: &[&str]) {
        let before = self.exposed(pod).await;
        self.set(pod, faults);
        if !faults.late.is_empty() {
            self.machines.signal("monitoring", pod, Signal::Kill).expect("a process");
        }
        let serves_nothing = !faults.late.is_empty() || !faults.emptied.is_empty();
        eventually("the fault is there", SOON, || async {
            let now = self.exposed(pod).await;
            let is = if serves_nothing { now == Some(Vec::new()) } else { now != before };
            is.then_some(())
        })
        .await
        .expect("a fault");
        let whole = self.audits("whole").await;
        let found = |status: &KSMScaleStatus| condition(status, "CoverageComplete").1 == reason;
        let status = self.cluster.until(&format!("{reason} is found"), "x", found).await;
        let missed = self.audits("whole").await - whole;
        assert!(missed < 1.5, "{missed} audits found nothing: one may have been under way");
        let (_, _, message) = condition(&status, "CoverageComplete");
        let words = [words, &[pod]].concat();
        for word in &words {
            assert!(message.contains(word), "{word} in {message}");
        }
        self.event(reason, &words).await;
    }

    /// All is well again, and said to be.
    async fn healed(&self) {
        let status = self.cluster.until("all is well again", "x", |status| {
            condition(status, "CoverageComplete").0 == "True"
                && condition(status, "Progressing").0 == "False"
        });
        let coverage = status.await.coverage.expect("counts");
        assert_eq!((coverage.expected, coverage.exposed), (25, 25));
        assert_eq!((coverage.missing, coverage.duplicated, coverage.foreign), (0, 0, 0));
        self.event("CoverageCompleteRecovered", &[]).await;
    }
}

/// One after the other: the fault is found, and the pod is replaced by one that is as it should be.
async fn found_and_replaced(site: &Site, reason: &str, faults: &Faults, words: &[&str]) {
    let pod = &site.pods().await[0];
    let uid = site.cluster.pods("monitoring").get(pod).await.expect("the pod").uid();
    site.found(pod, reason, faults, words).await;
    eventually("the pod is replaced", SOON, || async {
        (!site.uids().await.contains(&uid)).then_some(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", site.operator().log()));
    // Its name is free for another one.
    site.set(pod, &Faults::default());
    site.healed().await;
}

#[tokio::test]
async fn v3_v4_v5_a_ghost_and_a_wrong_shard_are_found_named_and_healed() {
    let site = Site::start(OFTEN, sharded(2), sound).await;
    let ghost = Faults { ghosts: vec!["nobody".to_owned()], ..Faults::default() };
    found_and_replaced(&site, "NodesForeign", &ghost, &["does not exist, node nobody"]).await;
    let words = ["runs as another shard than its arguments say", "does not expose node"];
    let ordinal = Faults { shard: Some(1), ..Faults::default() };
    found_and_replaced(&site, "NodesMissing", &ordinal, &words).await;
    let total = Faults { total_shards: Some(3), ..Faults::default() };
    found_and_replaced(&site, "NodesMissing", &total, &words).await;
}

#[tokio::test]
async fn v3_v4_v5_lists_and_answers_that_are_not_whole_are_found_named_and_healed() {
    let site = Site::start(OFTEN, sharded(2), sound).await;
    let page = Faults { truncated: [("nodes".to_owned(), 3)].into(), ..Faults::default() };
    found_and_replaced(&site, "NodesMissing", &page, &["does not expose node"]).await;
    for cut in [Cut::Tail, Cut::Connection] {
        let answer = Faults { cut: Some(cut), ..Faults::default() };
        let words = ["does not answer as a whole"];
        found_and_replaced(&site, "NodesMissing", &answer, &words).await;
    }
    // It starts again, is Ready, and has not listed them.
    let late = Faults { late: [("nodes".to_owned(), 3_600_000)].into(), ..Faults::default() };
    found_and_replaced(&site, "NodesMissing", &late, &["does not expose node"]).await;
}

/// Others in their place would be no better, and would be as late.
#[tokio::test]
async fn v3_v5_a_relist_slow_answers_and_a_crash_replace_nobody() {
    let site = Site::start(SELDOM, sharded(2), sound).await;
    let (pod, uids) = (&site.pods().await[0], site.uids().await);
    let relist = Faults { emptied: [("nodes".to_owned(), 3_600_000)].into(), ..Faults::default() };
    site.found(pod, "NodesMissing", &relist, &["does not expose node"]).await;
    site.set(pod, &Faults::default());
    site.healed().await;

    // They are whole: an audit takes the time it takes.
    let (whole, faulty) = (site.audits("whole").await, site.audits("faulty").await);
    site.set(pod, &Faults { slow: 1_500, ..Faults::default() });
    eventually("two more audits", SOON, || async {
        (site.audits("whole").await >= whole + 2.0).then_some(())
    })
    .await
    .expect("audits");
    assert!(site.audits("faulty").await < faulty + 0.5, "{}", site.operator().log());

    // No audit is needed to see it: the pod is not Ready, and the kubelet starts it again.
    site.set(pod, &Faults { crash: true, ..Faults::default() });
    let status = site
        .cluster
        .until("the crash is told", "x", |status| condition(status, "Degraded").0 == "True")
        .await;
    let (_, reason, message) = condition(&status, "Degraded");
    let words = ["CrashLoopBackOff: the container exits with code 1", pod];
    assert!(reason == "PodCannotStart" && words.iter().all(|w| message.contains(w)), "{message}");
    assert_eq!(condition(&status, "Available").1, "ObjectsMissing");
    site.event("PodCannotStart", &words).await;
    site.set(pod, &Faults::default());
    site.until_settled().await;
    site.event("DegradedRecovered", &[]).await;
    assert_eq!(site.uids().await, uids, "nobody was replaced");
}

#[tokio::test]
async fn v3_v4_nodes_that_come_and_go_raise_no_alarm_and_nothing_is_written_at_rest() {
    let site = Site::start(AUDIT, sharded(2), sound).await;
    let whole = |status: &KSMScaleStatus| condition(status, "CoverageComplete").0 == "True";
    site.cluster.until("an audit", "x", whole).await;
    let until_audits = async |more: f64| {
        let wanted = site.audits("whole").await + more;
        let enough = || async { (site.audits("whole").await >= wanted).then_some(()) };
        eventually("more audits", SOON, enough).await.expect("audits");
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
    let faulty = site.audits("faulty").await;
    assert!(faulty < 1.0, "{faulty} false alarms");
    let events = site.cluster.events("x").await;
    assert!(events.iter().all(|event| !event.0.starts_with("Nodes")), "{events:?}");
}
