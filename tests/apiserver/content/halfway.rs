//! Something happens in the middle of a change: another change, the end of the operator, of the API
//! server or of a pod. Nothing goes missing but what a pod took with it that died (V1).

use super::*;
use devcluster::FaultProxy;
use ksm_scale_operator::coverage::shard_of;

/// Pods that sync within a second and a half.
fn soon(pod: &str) -> Faults {
    late(pod, 1_300)
}

#[tokio::test]
async fn v1_no_sample_lacks_an_object_when_3_shards_that_become_5_are_to_be_4_halfway() {
    let site = Site::start(VERIFY, sharded(3), soon).await;
    let sampler = site.sampler().await;
    site.cluster.apply("x", sharded(5)).await;
    site.until_step(4).await;
    site.change(sharded(4)).await;
    let status = site.until_settled().await;
    assert_eq!(status.current_replicas, Some(4));
    nothing_was_missing(&sampler, "3 to 5 to 4");
}

#[tokio::test]
async fn v1_no_sample_lacks_an_object_while_the_operator_is_killed_after_each_write() {
    let mut site = Site::without_operator(soon).await;
    let proxy = FaultProxy::start(&site.cluster.plane).await.expect("a proxy");
    site.operators.push(site.cluster.operator_via(&proxy, VERIFY).await);
    site.change(sharded(3)).await;
    let sampler = site.sampler().await;
    for spec in [sharded(5), sharded(3)] {
        site.watch(&sampler).await;
        proxy.cut_after_mutations(1);
        site.cluster.apply("x", spec.clone()).await;
        let mut kills = 0;
        loop {
            tokio::select! {
                biased;
                () = proxy.cut_reached() => {}
                _ = site.until_settled() => break,
            }
            site.operators.pop().expect("an operator").kill();
            kills += 1;
            proxy.cut_after_mutations(1);
            site.operators.push(site.cluster.operator_via(&proxy, VERIFY).await);
        }
        proxy.clear();
        nothing_was_missing(&sampler, &format!("to {spec}, killed {kills} times"));
        // Of eight pods, five of which come and three go, or the other way round.
        assert!(kills >= 8, "a change takes more than {kills} writes");
        println!("to {spec}: the operator was killed after each of {kills} writes");
    }
}

#[tokio::test]
async fn v1_no_sample_lacks_an_object_while_one_operator_hands_over_to_another_or_dies() {
    let mut site = Site::without_operator(soon).await;
    let args = |name| [VERIFY, &["--pod-name", name, "--pod-uid", name]].concat();
    for name in ["a", "b"] {
        site.operators.push(site.cluster.operator_with(&args(name)).await);
    }
    site.change(sharded(3)).await;
    let sampler = site.sampler().await;
    for (spec, dies, next) in [(sharded(5), false, "c"), (sharded(3), true, "d")] {
        site.watch(&sampler).await;
        site.cluster.apply("x", spec.clone()).await;
        let owner = site.until_step(4).await.owner.expect("an owner");
        let at = site.operators.iter().position(|operator| operator.name() == owner);
        let operator = site.operators.remove(at.expect("one of them"));
        if dies {
            operator.kill();
        } else {
            assert!(operator.terminate().await.success());
        }
        let status = site.until_settled().await;
        assert_ne!(status.owner, Some(owner), "another one went on");
        nothing_was_missing(&sampler, &format!("to {spec}"));
        site.operators.push(site.cluster.operator_with(&args(next)).await);
    }
}

#[tokio::test]
async fn v1_no_sample_lacks_an_object_while_the_api_server_is_away_halfway() {
    let site = Site::start(VERIFY, sharded(3), soon).await;
    let sampler = site.sampler().await;
    site.cluster.apply("x", sharded(5)).await;
    site.until_step(4).await;
    site.cluster.plane.stop_api_server().await.expect("an outage");
    let before = sampler.history().samples().len();
    eventually("a hundred samples", LONG, || async {
        (sampler.history().samples().len() > before + 100).then_some(())
    })
    .await
    .expect("samples");
    site.cluster.plane.start_api_server().await.expect("the end of it");
    let status = site.until_settled().await;
    assert_eq!(status.current_replicas, Some(5));
    nothing_was_missing(&sampler, "an outage halfway");
}

#[tokio::test]
async fn v1_when_a_pod_dies_halfway_only_what_it_served_is_missing_and_the_status_says_so() {
    let site = Site::start(VERIFY, sharded(3), soon).await;
    let uids = planned::objects(&site.cluster).await;
    let sampler = site.sampler().await;
    site.cluster.apply("x", sharded(5)).await;
    site.until_step(4).await;
    // The last of those that are replaced.
    let dead = "kube-state-metrics-x-2";
    site.set(dead, &Faults { crash: true, ..Faults::default() });
    let status = site
        .cluster
        .until("the loss is told", "x", |status| {
            condition(status, "Available").1 == "ObjectsMissing"
        })
        .await;
    let message = condition(&status, "Available").2;
    assert!(message.contains("% of the objects are exposed by no pod that serves"), "{message}");
    site.until_settled().await;
    let history = sampler.history();
    assert!(!history.worst().expect("samples").missing.is_empty(), "it has died");
    for name in history.samples().iter().flat_map(|sample| &sample.missing) {
        let uid = uids.get(name).unwrap_or_else(|| panic!("an object named {name}"));
        assert_eq!(shard_of(uid, 3), 2, "{name} was not the dead pod's\n{}", history.csv());
    }
}
