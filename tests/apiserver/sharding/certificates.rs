//! An old CA goes when every replica has said that it serves the new one (T2).

use crate::support::*;
use devcluster::Signal;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use ksm_scale_operator::{
    certificates::rotation::{Phase, State},
    names::{ANNOTATION_ROTATE, CA_SECRET, OPERATOR_NAMESPACE},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::time::Duration;

/// Longer than a rotation takes in which all answer: two soaks and what a busy machine adds.
const LEAF: &str = "40s";
const SOAK: &str = "2s";

fn secrets(cluster: &Cluster) -> Api<Secret> {
    Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE)
}

async fn until(cluster: &Cluster, what: &str, wanted: impl Fn(&State) -> bool) -> State {
    let state = eventually(what, 2 * SOON, || async {
        let secret = secrets(cluster).get_opt(CA_SECRET).await.ok()??;
        State::parse(&secret.data?).ok().filter(|state| wanted(state))
    });
    state.await.expect(what)
}

/// Asks for a new CA, waits until the old one is gone, and returns by how much that was before its
/// last leaf could be dead. Not positive: nobody waited for less.
async fn rotate(cluster: &Cluster) -> i64 {
    let patch = json!({"metadata": {"annotations": {ANNOTATION_ROTATE: "now"}}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
    secrets(cluster).patch(CA_SECRET, &params, &patch).await.expect("annotated");
    let retiring = until(cluster, "a switch", |state| state.phase() == Phase::Retire).await;
    until(cluster, "one CA", |state| state.phase() == Phase::Steady).await;
    #[expect(clippy::disallowed_methods, reason = "tests run on the real clock")]
    let now = Timestamp::now();
    retiring.old[0].until.duration_since(now).as_secs()
}

#[tokio::test]
async fn t2_s7_an_old_ca_waits_for_every_replica_and_for_one_that_is_silent_until_its_leaf_is_dead()
{
    let cluster = Cluster::start(4).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let args = ["--webhook-cert-lifetime", LEAF, "--webhook-ca-soak", SOAK, "--lame-duck", "0s"];
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(webhooks.replica(&args).await);
    }
    until(&cluster, "a CA at rest", |state| state.phase() == Phase::Steady).await;
    let early = rotate(&cluster).await;
    println!("all three answer: the old CA went {early} s before its last leaf could be dead");
    assert!(early > 5, "{early}");
    replicas[2].operator.signal(Signal::Stop);
    let early = rotate(&cluster).await;
    println!("one is frozen: the old CA went {} s after its last leaf could be alive", -early);
    assert!(early <= 0, "{early}");
    let writers = replicas.iter().filter(|r| r.operator.log().contains("CA state stored")).count();
    println!("{writers} of three stored the steps");
    replicas[2].operator.signal(Signal::Cont);
}
