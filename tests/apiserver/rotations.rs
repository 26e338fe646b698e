//! No call is lost while leaves are renewed and CAs follow each other, whatever dies meanwhile (W7).

use crate::support::*;
use devcluster::{Fault, FaultProxy};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use ksm_scale_operator::{
    certificates::rotation::{Phase, State},
    names::{CA_SECRET, OPERATOR_NAMESPACE, WEBHOOK_CONFIGURATION},
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const KINDS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

/// A whole rotation takes twice the soak and once the leaf's life.
const ROTATION: Duration = Duration::from_mins(10);

/// Flags for short lives.
fn lives<'a>(leaf: &'a str, soak: &'a str) -> [&'a str; 6] {
    ["--webhook-cert-lifetime", leaf, "--webhook-ca-soak", soak, "--lame-duck", "0s"]
}

async fn leaves_are_renewed(renewals: usize, calls: u64) {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let args = lives("8s", "2s");
    let replicas = [webhooks.replica(&args).await, webhooks.replica(&args).await];
    let load = Load::start(&webhooks, &[Duration::ZERO]).await;
    let leaves = || replicas.each_ref().map(|r| r.operator.log().matches("new leaf").count());
    let before = leaves();
    eventually("leaves are renewed", SOON, || async {
        let renewed = leaves().iter().zip(before).all(|(now, before)| now - before >= renewals);
        renewed.then_some(())
    })
    .await
    .expect("renewals");
    load.more(10).await;
    load.until(calls).await;
    load.none_failed(&format!("{before:?} leaves became {:?}", leaves())).await;
}

#[tokio::test]
async fn w7_no_call_is_lost_while_leaves_are_renewed() {
    leaves_are_renewed(3, 1_000).await;
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn w7_soak_no_call_is_lost_while_leaves_are_renewed() {
    leaves_are_renewed(3, 50_000).await;
}

async fn state(cluster: &Cluster) -> Option<State> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    State::parse(&secrets.get_opt(CA_SECRET).await.ok()??.data?).ok()
}

/// Waits until nothing is left to write: one CA, of `generation` or a later one, in both bundles.
async fn until_at_rest(cluster: &Cluster, generation: u64) -> State {
    let found = eventually("a CA at rest", ROTATION, || async {
        let state = state(cluster).await?;
        let bundle = json!(ByteString(state.bundle().into_bytes()));
        for kind in KINDS {
            let api = cluster.dynamic("admissionregistration.k8s.io/v1", kind);
            let found = api.get(WEBHOOK_CONFIGURATION).await.ok()?;
            if found.data["webhooks"][0]["clientConfig"]["caBundle"] != bundle {
                return None;
            }
        }
        (state.generation >= generation && state.phase() == Phase::Steady).then_some(state)
    });
    match found.await {
        Ok(state) => state,
        Err(error) => panic!("{error}; it is {:#?}", state(cluster).await),
    }
}

/// `certs rotate`, as an administrator.
async fn rotate(cluster: &Cluster) {
    let status = tokio::process::Command::new(env!("CARGO_BIN_EXE_ksm-scale-operator"))
        .args(["certs", "rotate"])
        .env("KUBECONFIG", cluster.plane.kubeconfig())
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.await.expect("it runs").success());
}

/// The API servers of a cluster: one reads a bundle at once, one `lag` later.
async fn the_ca_is_replaced(leaf: &str, soak: &str, lag: Duration, calls: u64) {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let args = lives(leaf, soak);
    let _replicas = [webhooks.replica(&args).await, webhooks.replica(&args).await];
    let load = Load::start(&webhooks, &[Duration::ZERO, lag]).await;
    let generation = until_at_rest(&cluster, 0).await.generation;
    rotate(&cluster).await;
    let after = until_at_rest(&cluster, generation + 1).await;
    assert_eq!(after.generation, generation + 1);
    load.more(100).await;
    load.until(calls).await;
    load.none_failed(&format!("a CA rotation, soak {soak}, one API server {lag:?} late")).await;
}

#[tokio::test]
async fn w7_t2_no_call_is_lost_while_the_ca_is_replaced() {
    the_ca_is_replaced("10s", "5s", Duration::from_secs(3), 1_000).await;
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn w7_t2_soak_no_call_is_lost_while_the_ca_is_replaced() {
    the_ca_is_replaced("80s", "40s", Duration::from_secs(30), 50_000).await;
}

/// The only replica dies in each phase, cut off after so many writes that it can go no further:
/// nobody but its successor can end the rotation.
async fn replicas_die_in_each_phase(leaf: &str, soak: &str, lag: Duration, calls: u64) {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let args = lives(leaf, soak);
    let mut proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let mut serving = webhooks.spawn_via(&proxy, &args).await;
    webhooks.admit(&serving).await;
    let load = Load::of_callers(&webhooks, &[Duration::ZERO, lag]).await;
    // The writes of a rotation: announce, two bundles, soak, switch, retire, two bundles.
    let phases = [(Phase::Steady, 0), (Phase::Announce, 1), (Phase::Soak, 4), (Phase::Retire, 5)];
    for (phase, writes) in phases {
        let before = until_at_rest(&cluster, 0).await.generation;
        proxy.cut_after_mutations(writes);
        rotate(&cluster).await;
        if writes == 0 {
            proxy.first_refusal().await;
        } else {
            proxy.cut_reached().await;
        }
        assert_eq!(state(&cluster).await.map(|state| state.phase()), Some(phase));
        load.more(10).await;
        let death = load.pause().await;
        webhooks.balancer.withdraw(serving.address);
        serving.operator.kill();
        proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
        serving = webhooks.spawn_via(&proxy, &args).await;
        webhooks.admit(&serving).await;
        drop(death);
        until_at_rest(&cluster, before + 1).await;
        until_called(&cluster).await;
    }
    load.until(calls).await;
    load.none_failed(&format!("a replica killed in each phase, one API server {lag:?} late")).await;
}

#[tokio::test]
async fn w7_t2_a_rotation_goes_on_in_whatever_phase_a_replica_is_killed() {
    replicas_die_in_each_phase("6s", "3s", Duration::from_secs(1), 1_000).await;
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn w7_t2_soak_a_rotation_goes_on_in_whatever_phase_a_replica_is_killed() {
    replicas_die_in_each_phase("30s", "15s", Duration::from_secs(10), 50_000).await;
}

#[tokio::test]
async fn w7_t2_a_replica_that_misses_a_switch_is_trusted_as_long_as_its_leaf_lives() {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    // Nothing here waits for the end of a leaf, which a busy machine must not come to.
    let args = lives("10m", "2s");
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let cut_off = webhooks.spawn_via(&proxy, &args).await;
    webhooks.admit(&cut_off).await;
    let other = webhooks.replica(&args).await;
    until_at_rest(&cluster, 1).await;
    proxy.fail(|_| true, Fault::Close);
    proxy.cut_watches();
    let load = Load::of_callers(&webhooks, &[Duration::ZERO]).await;
    rotate(&cluster).await;
    let switched =
        |replica: &Replica| replica.operator.log().contains("new leaf ca=ksm-scale-operator CA 2-");
    eventually("the other switches", SOON, || async { switched(&other).then_some(()) })
        .await
        .expect("a new leaf");
    load.more(500).await;
    assert!(!switched(&cut_off), "it is cut off");
    proxy.clear();
    eventually("the late one switches", SOON, || async { switched(&cut_off).then_some(()) })
        .await
        .expect("a new leaf");
    load.more(100).await;
    load.none_failed("a replica was cut off from a rotation").await;
}

/// Fault 11: the API server is down for so long at least, in the middle of a rotation. A leaf is
/// renewed with half of its life to go, so that is what it outlives: a CA that can't be read may have
/// been replaced by now, and signs nothing.
async fn the_api_server_is_down(outage: Duration, leaf: &str) {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let replica = webhooks.replica(&lives(leaf, "4s")).await;
    let generation = until_at_rest(&cluster, 1).await.generation;
    until_called(&cluster).await;
    let load = Load::of_callers(&webhooks, &[Duration::ZERO]).await;
    rotate(&cluster).await;
    let soaking = async || state(&cluster).await.filter(|state| state.phase() == Phase::Soak);
    eventually("the next CA soaks", SOON, soaking).await.expect("a phase that ends by itself");
    cluster.plane.stop_api_server().await.expect("it stops");
    eventually("the replica notices", SOON, || async {
        let log = replica.operator.log();
        (log.contains("watch interrupted") && log.contains("a pass failed")).then_some(())
    })
    .await
    .expect("both lines in the log");
    let (begun, mut looks) = (Instant::now(), 0);
    while looks < 10 || begun.elapsed() < outage {
        load.more(50).await;
        let ready = replica.operator.ask("/readyz").await;
        assert_eq!(ready.map(|(code, _)| code), Some(200));
        looks += 1;
    }
    let outage = begun.elapsed();
    cluster.plane.start_api_server().await.expect("it starts");
    eventually("the rotation goes on", SOON, || async {
        state(&cluster).await.filter(|state| state.generation > generation)
    })
    .await
    .expect("a switch");
    until_called(&cluster).await;
    load.more(100).await;
    load.none_failed(&format!("the API server was down for {outage:?}")).await;
}

#[tokio::test]
async fn w7_calls_are_answered_while_the_api_server_is_down_in_a_rotation_and_after() {
    // Long enough for a busy machine to start it again.
    the_api_server_is_down(Duration::ZERO, "10m").await;
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn w7_soak_calls_are_answered_while_the_api_server_is_down_for_ten_minutes() {
    the_api_server_is_down(Duration::from_mins(10), "30m").await;
}

/// What somebody else owns of a configuration, and the bundle.
async fn webhooks_of(api: &Api<DynamicObject>) -> Value {
    let found = api.get(WEBHOOK_CONFIGURATION).await.expect("a configuration");
    json!([found.metadata.labels, found.metadata.annotations, found.data["webhooks"]])
}

/// Waits until a configuration is as it was, and the API server is answered again.
async fn until_repaired(cluster: &Cluster, api: &Api<DynamicObject>, before: &Value, what: &str) {
    let begun = Instant::now();
    eventually(what, SOON, || async { (webhooks_of(api).await == *before).then_some(()) })
        .await
        .expect("a repair");
    let after = begun.elapsed();
    println!("{what} after {after:?}");
    // Without the watch it would take until the next look at the clock, 30 s after the one before.
    assert!(after < Duration::from_secs(20), "{what} after {after:?}");
    until_called(cluster).await;
}

#[tokio::test]
async fn t2_w7_a_bundle_that_somebody_breaks_is_right_again_and_the_api_server_answered() {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let _replicas = [webhooks.replica(&[]).await, webhooks.replica(&[]).await];
    let stranger = std::fs::read(cluster.plane.ca_path()).expect("a CA");
    for kind in KINDS {
        let api = cluster.dynamic("admissionregistration.k8s.io/v1", kind);
        let before = webhooks_of(&api).await;
        for bundle in [Value::Null, json!(ByteString(stranger.clone()))] {
            let op = if bundle.is_null() { "remove" } else { "replace" };
            let patch = json!([
                {"op": op, "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}
            ]);
            let patch = Patch::Json::<()>(serde_json::from_value(patch).expect("a patch"));
            api.patch(WEBHOOK_CONFIGURATION, &PatchParams::default(), &patch).await.expect("sent");
            until_repaired(&cluster, &api, &before, "a broken bundle is right").await;
        }
        api.delete(WEBHOOK_CONFIGURATION, &DeleteParams::default()).await.expect("deleted");
        webhooks.configure().await;
        until_repaired(&cluster, &api, &before, "a new configuration has its bundle").await;
    }
}
