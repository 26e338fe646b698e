//! Three processes share work and are stopped, killed, frozen and cut off.
//!
//! The example's times are [`TimingConfig::FAST`]. Gaps are between two pieces of work on an object
//! and include the example's period.

use crate::stage::{NAMESPACE, SOON, Stage};
use devcluster::{Fault, Process, Signal, eventually};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::ListParams};
use lease_sharding::protocol::TimingConfig;
use std::time::{Duration, Instant};

const FAST: TimingConfig = TimingConfig::FAST;
/// What a very busy machine adds to everything. A bound that holds there too tells whether it ends at
/// all; how long it takes is measured in `BENCHMARKS.md`, and printed here.
const SLACK: Duration = Duration::from_secs(30);

fn millis(time: u64) -> Duration {
    Duration::from_millis(time)
}

async fn three() -> (Stage, [Process; 3]) {
    let stage = Stage::set().await;
    let workers = ["a", "b", "c"].map(|name| stage.worker(name));
    stage.until_shared_by(&["a", "b", "c"]).await;
    (stage, workers)
}

/// Ends with the checks that every test ends with. Returns the longest gap since `start`.
fn gap(what: &str, stage: &Stage, start: Instant) -> Duration {
    let gap = stage.witness.longest_gap(start);
    println!("{what}: longest gap {gap:?}");
    stage.witness.assert_one_owner();
    gap
}

#[tokio::test]
async fn s7_an_operator_of_less_than_100_lines_shares_work_among_three_processes() {
    assert!(include_str!("../../examples/configmaps.rs").lines().count() < 100);
    let (stage, _workers) = three().await;
    stage.witness.assert_one_owner();
}

#[tokio::test]
async fn s2_a_process_that_is_asked_to_end_hands_over_in_well_under_a_second() {
    let (stage, [_a, _b, mut c]) = three().await;
    let start = Instant::now();
    let status = c.terminate(SOON).await.expect("it ends");
    println!("SIGTERM: ended after {:?}", start.elapsed());
    assert!(status.success(), "{status}: {}", c.log_tail(20));
    stage.until_shared_by(&["a", "b"]).await;
    let gap = gap("SIGTERM", &stage, start);
    assert!(gap < SLACK, "{gap:?}");
}

#[tokio::test]
async fn s2_a_rolling_update_has_one_owner_at_a_time() {
    let (stage, mut old) = three().await;
    let start = Instant::now();
    let mut new = vec![];
    for (at, name) in ["d", "e", "f"].into_iter().enumerate() {
        new.push(stage.worker(name));
        eventually("the new one works", SOON, || async {
            stage.witness.latest().values().any(|(who, _)| who == name).then_some(())
        })
        .await
        .expect("work");
        old[at].terminate(SOON).await.expect("it ends");
    }
    stage.until_shared_by(&["d", "e", "f"]).await;
    let gap = gap("rolling update", &stage, start);
    assert!(gap < SLACK, "{gap:?}");
}

#[tokio::test]
async fn s2_a_killed_process_is_replaced_after_its_lease_time() {
    let (stage, [_a, _b, mut c]) = three().await;
    let start = Instant::now();
    c.kill().expect("it can be killed");
    stage.until_shared_by(&["a", "b"]).await;
    let gap = gap("SIGKILL", &stage, start);
    assert!(gap < millis(FAST.lease) + SLACK, "{gap:?}");
    let taken_over = start.elapsed();
    assert!(taken_over > millis(FAST.lease - FAST.fence), "{taken_over:?}: nobody may act before");
}

#[tokio::test]
async fn s2_a_frozen_process_that_wakes_up_does_nothing_that_is_not_its_any_more() {
    let (stage, [_a, _b, mut c]) = three().await;
    let start = Instant::now();
    c.signal(Signal::Stop).expect("it can be stopped");
    stage.until_shared_by(&["a", "b"]).await;
    let gap_while = stage.witness.longest_gap(start);
    assert!(gap_while < millis(FAST.lease) + SLACK, "{gap_while:?}");
    c.signal(Signal::Cont).expect("it can go on");
    stage.until_shared_by(&["a", "b", "c"]).await;
    gap("SIGSTOP", &stage, start);
}

#[tokio::test]
async fn s2_a_process_that_is_cut_off_stops_before_others_take_over() {
    let stage = Stage::set().await;
    let (proxy, kubeconfig) = stage.proxy().await;
    let _others = ["a", "b"].map(|name| stage.worker(name));
    let _cut_off = stage.worker_as("c", "c", &kubeconfig);
    stage.until_shared_by(&["a", "b", "c"]).await;
    let start = Instant::now();
    // What is under way arrives, and nothing is ever answered again.
    proxy.fail(|request| request.mutating, Fault::LoseAnswer);
    proxy.fail(|_| true, Fault::Hang);
    proxy.cut_watches();
    eventually("c stops, and nobody takes over from one that renews", SOON, || async {
        let latest = stage.witness.latest();
        let mut of_c = latest.values().filter(|(who, _)| who == "c").peekable();
        of_c.peek()?;
        of_c.all(|(_, at)| at.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await
    .expect("c stops");
    proxy.clear();
    stage.until_shared_by(&["a", "b", "c"]).await;
    gap("answers lost", &stage, start);
    let start = Instant::now();
    proxy.fail(|_| true, Fault::Hang);
    proxy.cut_watches();
    stage.until_shared_by(&["a", "b"]).await;
    let gap_while = stage.witness.longest_gap(start);
    assert!(gap_while < millis(FAST.lease) + SLACK, "{gap_while:?}");
    proxy.clear();
    stage.until_shared_by(&["a", "b", "c"]).await;
    gap("cut off", &stage, start);
}

#[tokio::test]
async fn s2_an_outage_of_the_api_server_moves_nothing() {
    let (stage, _workers) = three().await;
    let owners = || {
        let mut owners: Vec<_> =
            stage.witness.latest().into_iter().map(|(map, (who, _))| (map, who)).collect();
        owners.sort();
        owners
    };
    let before = owners();
    stage.plane.stop_api_server().await.expect("it stops");
    // Longer than the fence and the lease.
    tokio::time::sleep(millis(FAST.lease + FAST.fence)).await;
    stage.plane.start_api_server().await.expect("it starts");
    let up = Instant::now();
    let at = stage.until_shared_by(&["a", "b", "c"]).await;
    println!("outage: all work again {:?} after the API server was ready", at - up);
    assert_eq!(owners(), before);
    let leases: Api<Lease> = Api::namespaced(stage.client.clone(), NAMESPACE);
    for lease in leases.list(&ListParams::default()).await.expect("leases") {
        assert_eq!(lease.spec.and_then(|spec| spec.lease_transitions), Some(0));
    }
}

#[tokio::test]
async fn s2_a_restarted_container_takes_its_lease_over_at_once_and_another_pod_of_the_name_waits() {
    let stage = Stage::set().await;
    let mut first = stage.worker("a");
    stage.until_shared_by(&["a"]).await;
    let start = Instant::now();
    first.kill().expect("it can be killed");
    let mut second = stage.worker("a");
    stage.until_shared_by(&["a"]).await;
    gap("container restart", &stage, start);
    second.kill().expect("it can be killed");
    let stored = stage.revision().await;
    let start = Instant::now();
    let _third = stage.worker_as("a", "another pod", &stage.kubeconfig);
    eventually("work goes on", SOON, || async { stage.witness.all_since(stored).then_some(()) })
        .await
        .expect("work");
    let waited = start.elapsed();
    assert!(waited > millis(FAST.lease), "{waited:?}: the other pod may still work");
    gap("another pod of the same name", &stage, start);
}
