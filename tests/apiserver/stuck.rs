//! Pods that do not start, fail, vanish or are edited by hand.

use crate::support::*;
use devcluster::{Fate, Kubelet};
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::api::KSMScaleStatus;
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

async fn uids(cluster: &Cluster) -> BTreeMap<String, String> {
    let pods = cluster.pods("monitoring").list(&ListParams::default()).await.expect("pods");
    let stay = pods.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none());
    stay.map(|p| (p.name_any(), p.uid().unwrap_or_default())).collect()
}

fn sharded(image: &str) -> Value {
    json!({
        "monitorImage": image,
        "sharding": {"enabled": true, "shardCount": 3, "distribution": {"enablePDB": true}},
    })
}

fn kubelet(cluster: &Cluster) -> &Kubelet {
    cluster.kubelet.as_ref().expect("a kubelet")
}

/// Pods of the image `k/s:bad` meet this fate, all others are Ready.
fn set_fate(cluster: &Cluster, fate: Fate) {
    let is_bad = |pod: &Pod| {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        containers.into_iter().any(|c| c.image.as_deref() == Some("k/s:bad"))
    };
    kubelet(cluster).set_policy(Arc::new(move |pod| if is_bad(pod) { fate } else { Fate::READY }));
}

/// A change whose first successor meets `fate`: nothing that serves goes, the condition says why,
/// the way back is free, and it goes on when the cause is gone.
async fn survives(fate: Fate, reason: &str, words: &[&str]) {
    let cluster = Cluster::start(4).await;
    let flags = ["--progress-deadline", "1s", "--requeue-interval-sharded", "1s"];
    let _operator = cluster.operator_with(&flags).await;
    let witness = Witness::start(&cluster.client).await;
    cluster.apply("dev", sharded("k/s:good")).await;
    cluster.until_settled("dev").await;
    let before = uids(&cluster).await;
    witness.watch();
    for way_back in [true, false] {
        set_fate(&cluster, fate);
        cluster.apply("dev", sharded("k/s:bad")).await;
        let status = cluster
            .until("Degraded", "dev", |status| {
                let (state, why, _) = condition(status, "Degraded");
                (state, why) == ("True", reason)
            })
            .await;
        let (_, _, message) = condition(&status, "Degraded");
        let successor = "waiting for pod monitoring/kube-state-metrics-dev-0-";
        for word in words.iter().chain(&[successor, "which replaces kube-state-metrics-dev-0"]) {
            assert!(message.contains(word), "{word} is not in: {message}");
        }
        assert_eq!(condition(&status, "Progressing").0, "True");
        assert_eq!(condition(&status, "Available").0, "True");
        let now = uids(&cluster).await;
        assert_eq!(now.len(), 4, "one successor at a time: {now:?}");
        assert!(before.iter().all(|(name, uid)| now.get(name) == Some(uid)), "{now:?}");
        if way_back {
            cluster.apply("dev", sharded("k/s:good")).await;
            cluster.until_settled("dev").await;
            assert_eq!(uids(&cluster).await, before);
        }
    }
    kubelet(&cluster).set_policy(Kubelet::always_ready());
    cluster.until_settled("dev").await;
    let after = uids(&cluster).await;
    assert!(after.len() == 3 && after.values().all(|uid| !before.values().any(|old| old == uid)));
    witness.saw_no_gap();
    assert_eq!(witness.most_pods(), 4);
}

#[tokio::test]
async fn r34_r72_an_image_that_cannot_be_pulled_costs_nothing_that_serves() {
    let fate = Fate::Pending { reason: "ImagePullBackOff" };
    survives(fate, "PodCannotStart", &["ImagePullBackOff", "to start"]).await;
}

#[tokio::test]
async fn r34_r72_a_pod_that_never_becomes_ready_costs_nothing_that_serves() {
    survives(Fate::RunningNotReady, "ProgressDeadlineExceeded", &["to become Ready"]).await;
}

#[tokio::test]
async fn r39_deleted_and_failed_pods_are_made_again_from_the_watch() {
    let cluster = Cluster::start(4).await;
    // The backup requeue is two minutes away, longer than any wait here.
    let _operator = cluster.operator().await;
    cluster.apply("dev", sharded("k/s:good")).await;
    cluster.until_settled("dev").await;
    let first = uids(&cluster).await;
    kill_pod(&cluster.pods("monitoring"), "kube-state-metrics-dev-1").await;
    let second = until_replaced(&cluster, &first, "kube-state-metrics-dev-1").await;
    let doomed = second["kube-state-metrics-dev-2"].clone();
    let policy = move |pod: &Pod| match pod.uid() {
        Some(uid) if uid == doomed => Fate::Failed,
        _ => Fate::READY,
    };
    kubelet(&cluster).set_policy(Arc::new(policy));
    until_replaced(&cluster, &second, "kube-state-metrics-dev-2").await;
}

/// Waits until all is well, with another pod for this one and the others as they were.
async fn until_replaced(
    cluster: &Cluster,
    before: &BTreeMap<String, String>,
    name: &str,
) -> BTreeMap<String, String> {
    let changed = |now: &BTreeMap<String, String>| {
        let index = |name: &str| name.split('-').nth(4).map(str::to_owned);
        let kept = before.iter().filter(|(_, uid)| now.values().any(|n| n == *uid));
        let gone: Vec<_> = before.iter().filter(|(n, _)| *n == name).map(|(_, uid)| uid).collect();
        kept.count() == before.len() - 1
            && now.len() == before.len()
            && !now.values().any(|uid| gone.contains(&uid))
            && now.keys().any(|n| index(n) == index(name))
    };
    let now = eventually("the pod is replaced", SOON, || async {
        let now = uids(cluster).await;
        changed(&now).then_some(now)
    });
    let now = match now.await {
        Ok(now) => now,
        Err(error) => panic!("{error}: {before:?} became {:?}", uids(cluster).await),
    };
    cluster.until_settled("dev").await;
    now
}

async fn edit_labels(cluster: &Cluster, name: &str, labels: Value) {
    let patch = json!({"metadata": {"labels": labels}});
    let pods = cluster.pods("monitoring");
    pods.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("an edit");
}

#[tokio::test]
async fn r34_a_pod_with_edited_labels_is_replaced_without_a_gap() {
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator().await;
    let witness = Witness::start(&cluster.client).await;
    cluster.apply("dev", sharded("k/s:good")).await;
    cluster.until_settled("dev").await;
    witness.watch();
    let mut before = uids(&cluster).await;
    for (at, labels) in [
        ("kube-state-metrics-dev-0", json!({"shard-id": "2"})),
        ("kube-state-metrics-dev-1", json!({"total-shards": null})),
        ("kube-state-metrics-dev-2", json!({"monitor.example.com/revision": "other"})),
    ] {
        edit_labels(&cluster, at, labels).await;
        before = until_replaced(&cluster, &before, at).await;
    }
    // A label that is not ours is nobody's business.
    let name = before.keys().next().expect("a pod").clone();
    edit_labels(&cluster, &name, json!({"team": "a"})).await;
    cluster.until_settled("dev").await;
    assert_eq!(uids(&cluster).await, before);
    witness.saw_no_gap();
}

#[tokio::test]
async fn r29_a_pod_that_lost_the_labels_that_make_it_ours_is_told_of_and_left_alone() {
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator().await;
    cluster.apply("dev", sharded("k/s:good")).await;
    cluster.until_settled("dev").await;
    let before = uids(&cluster).await;
    let name = "kube-state-metrics-dev-0";
    edit_labels(&cluster, name, json!({"ksmscale.example.com": null})).await;
    let status = cluster
        .until("Degraded", "dev", |status| condition(status, "Degraded").1 == "NameTaken")
        .await;
    assert!(condition(&status, "Degraded").2.contains(name), "{status:?}");
    assert_eq!(uids(&cluster).await, before);
    // With its label back it is ours again, and the right one.
    edit_labels(&cluster, name, json!({"ksmscale.example.com": "dev"})).await;
    cluster.until_settled("dev").await;
    assert_eq!(uids(&cluster).await, before);
}

#[tokio::test]
async fn r39_a_pod_that_turns_ready_late_is_waited_for() {
    let cluster = Cluster::start(4).await;
    let _operator = cluster.operator().await;
    // Not before it is told: how long the operator takes to look again is the machine's business.
    kubelet(&cluster).set_policy(Arc::new(|_| Fate::RunningNotReady));
    cluster.apply("dev", sharded("k/s:good")).await;
    let waits = |status: &KSMScaleStatus| condition(status, "Progressing").1 == "PodNotReady";
    let status = cluster.until("it waits", "dev", waits).await;
    assert_eq!(condition(&status, "Available").0, "False");
    let late = Fate::Ready { after: Duration::from_millis(500) };
    kubelet(&cluster).set_policy(Arc::new(move |_| late));
    cluster.until_settled("dev").await;
}
