//! Several replicas share the KSMScales: who works on what, while they start, stop, die, hang, are
//! cut off, and the API server goes away. A witness reads from the API server's audit log who wrote
//! what, and who was allowed to.
//!
//! The times are those of `TimingConfig::FAST`: a lease of 6 s, a fence of 4 s.

use crate::support::*;
use devcluster::{Fault, FaultProxy, Signal};
use ksm_scale_operator::names::{OPERATOR, OPERATOR_NAMESPACE};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use witness::Witness;

mod certificates;
mod witness;

/// KSMScales, of which the first few have pods that come and go with a node.
const SCALES: usize = 50;
const RESIZED: usize = 4;
const MEMBERS: &str = "sharding_ring_member_count";
const LEASE: Duration = Duration::from_secs(6);
/// Nobody takes over before that: the lease less the fence.
const UNTOUCHED: Duration = Duration::from_secs(2);
/// What a very busy machine adds to everything. A bound that holds there too tells whether it ends at
/// all; how long it takes is measured in `lease-sharding/BENCHMARKS.md`, and printed here.
const SLACK: Duration = Duration::from_secs(30);
/// How often the number of nodes changes, so that every KSMScale is written.
const PERIOD: Duration = Duration::from_secs(5);

/// A control plane with KSMScales, of which none has been worked on yet.
struct Stage {
    cluster: Cluster,
    witness: Witness,
    nodes: Option<JoinHandle<()>>,
}

impl Stage {
    async fn set() -> Self {
        let cluster = Cluster::start(9).await;
        let user = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}");
        let log = cluster.plane.audit(&user).await.expect("an audit log");
        // That 50 KSMScales join in one ServiceAccount is not what this is about.
        let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: kube-state-metrics, namespace: monitoring}}";
        apply_yaml(&cluster.client, account).await;
        for at in 0..SCALES {
            let nodes = if at < RESIZED { 9 } else { 100 };
            cluster.apply(&format!("scale-{at}"), json!({"nodesPerMonitor": nodes})).await;
        }
        Self { cluster, witness: Witness::new(log), nodes: None }
    }

    /// A stage on which replicas of these names share the work, and nothing is left to do.
    async fn at_rest(names: &[&str]) -> (Self, Vec<Operator>) {
        let stage = Self::set().await;
        let mut replicas = Vec::new();
        for name in names {
            replicas.push(stage.replica(name, &[]).await);
        }
        stage.until_shared_by(names).await;
        stage.until_settled().await;
        (stage, replicas)
    }

    /// The same, with work for all of them from now on.
    async fn at_work(names: &[&str]) -> (Self, Vec<Operator>) {
        let (mut stage, replicas) = Self::at_rest(names).await;
        stage.move_nodes();
        (stage, replicas)
    }

    async fn until_settled(&self) {
        let settled = eventually("all is done", 2 * SOON, || async {
            let scales = self.cluster.scales().list(&ListParams::default()).await.ok()?;
            let done = |scale: &ksm_scale_operator::api::KSMScale| {
                scale.status.as_ref().is_some_and(|status| {
                    condition(status, "Progressing").0 == "False"
                        && condition(status, "Available").0 == "True"
                        && status.node_count == Some(9)
                })
            };
            scales.items.iter().all(done).then_some(())
        });
        settled.await.expect("rest");
    }

    async fn kubeconfig(&self) -> PathBuf {
        let plane = &self.cluster.plane;
        let account = plane.service_account_kubeconfig(OPERATOR_NAMESPACE, OPERATOR).await;
        account.expect("a token")
    }

    /// A replica in a pod of this name.
    async fn replica(&self, name: &str, args: &[&str]) -> Operator {
        self.replica_by(&self.kubeconfig().await, name, args).await
    }

    async fn replica_by(&self, kubeconfig: &Path, name: &str, args: &[&str]) -> Operator {
        let pod = ["--pod-name", name, "--pod-uid", name];
        let all = [&pod, args, &["--manage-service-account", "false"]].concat();
        Operator::start(&self.cluster.plane, kubeconfig, &all).await
    }

    /// From now on a node joins and leaves again and again.
    fn move_nodes(&mut self) {
        let nodes = self.cluster.dynamic("v1", "Node");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "moving"}});
        let node: kube::api::DynamicObject = serde_json::from_value(node).expect("a node");
        self.nodes = Some(tokio::spawn(async move {
            loop {
                // The API server may be away.
                let _ = nodes.create(&PostParams::default(), &node).await;
                tokio::time::sleep(PERIOD).await;
                let _ = nodes.delete("moving", &DeleteParams::default()).await;
                tokio::time::sleep(PERIOD).await;
            }
        }));
    }

    /// The owner of each KSMScale, as its status says.
    async fn owners(&self) -> Option<BTreeMap<String, String>> {
        let scales = self.cluster.scales().list(&ListParams::default()).await.ok()?;
        let owner = |scale: ksm_scale_operator::api::KSMScale| {
            Some((scale.name_any(), scale.status?.owner?))
        };
        scales.items.into_iter().map(owner).collect()
    }

    /// Waits until every KSMScale has one of these as its owner, and each of them has some. Returns
    /// when that was.
    async fn until_shared_by(&self, names: &[&str]) -> Instant {
        let wanted: BTreeSet<&str> = names.iter().copied().collect();
        let what = format!("{names:?} share the work");
        let shared = eventually(&what, 2 * SOON, || async {
            let owners = self.owners().await?;
            let all: BTreeSet<&str> = owners.values().map(String::as_str).collect();
            (owners.len() == SCALES && all == wanted).then(Instant::now)
        });
        match shared.await {
            Ok(at) => at,
            Err(error) => panic!("{error}; they are {:?}", self.owners().await),
        }
    }

    /// How many KSMScales are a replica's.
    async fn share_of(&self, name: &str) -> usize {
        let owners = self.owners().await.expect("owners");
        owners.values().filter(|owner| *owner == name).count()
    }

    /// Ends with what every test ends with.
    fn end(&self, what: &str) {
        if let Some(nodes) = &self.nodes {
            nodes.abort();
        }
        println!("{what}: {}", self.witness.assert_one_owner());
    }
}

fn assert_no_failure(replicas: &[Operator]) {
    for replica in replicas {
        let (name, log) = (replica.name(), replica.log());
        // An API server that is too busy to answer is another thing, and so is one that has given the
        // Leases before the nodes.
        let others = ["no answer to a write", "the nodes are not known"];
        let failed = log.lines().find(|line| {
            line.contains("failed, it is tried again") && !others.iter().any(|o| line.contains(o))
        });
        assert_eq!(failed, None, "{name}: another's KSMScale is no failure");
    }
}

#[tokio::test]
async fn s2_s3_what_a_killed_replica_had_is_taken_over_after_its_lease_and_worked_on_at_once() {
    let (stage, mut replicas) = Stage::at_rest(&["a", "b", "c"]).await;
    let share = stage.share_of("c").await;
    replicas.pop().expect("c").kill();
    let killed = Instant::now();
    let gap = stage.until_shared_by(&["a", "b"]).await - killed;
    stage.end("SIGKILL");
    println!("SIGKILL: {share} KSMScales without an owner for at most {gap:?}");
    assert!(gap < LEASE + SLACK, "{gap:?}");
    assert!(gap > UNTOUCHED, "{gap:?}: nobody else may act before");
    assert_no_failure(&replicas);
    // What has no status of its own may come a moment later, and so do metrics.
    let until = async |metric: &str, wanted: &dyn Fn(&[f64]) -> bool| {
        let seen = std::cell::RefCell::default();
        let found = eventually(metric, SOON, || async {
            let mut all = Vec::new();
            for replica in &replicas {
                all.push(replica.metric(metric).await);
            }
            let right = wanted(&all);
            seen.replace(all);
            right.then_some(())
        });
        if let Err(error) = found.await {
            panic!("{error}: {:?}", seen.borrow());
        }
    };
    for (metric, total) in [("ksmscales", 50.0), ("nodes", 9.0)] {
        let metric = format!("ksm_scale_operator_{metric}");
        until(&metric, &|all| (all.iter().sum::<f64>() - total).abs() < 0.1).await;
    }
    until(MEMBERS, &|all| all.iter().all(|n| (n - 2.0).abs() < 0.1)).await;
}

#[tokio::test]
async fn s2_s3_sigterm_hands_over_in_well_under_a_second() {
    let (stage, mut replicas) = Stage::at_rest(&["a", "b", "c"]).await;
    let share = stage.share_of("c").await;
    let terminated = Instant::now();
    let status = replicas.pop().expect("c").terminate().await;
    println!("SIGTERM: ended after {:?}", terminated.elapsed());
    assert!(status.success(), "{status}");
    let gap = stage.until_shared_by(&["a", "b"]).await - terminated;
    stage.end("SIGTERM");
    println!("SIGTERM: {share} KSMScales without an owner for at most {gap:?}");
    assert!(gap < Duration::from_secs(1) + SLACK, "{gap:?}");
    assert_no_failure(&replicas);
}

#[tokio::test]
async fn s2_a_frozen_replica_that_wakes_up_writes_nothing_that_is_anothers() {
    let (stage, mut replicas) = Stage::at_work(&["a", "b", "c"]).await;
    replicas[2].signal(Signal::Stop);
    let stopped = Instant::now();
    let gap = stage.until_shared_by(&["a", "b"]).await - stopped;
    println!("SIGSTOP: taken over after {gap:?}");
    assert!(gap < LEASE + SLACK, "{gap:?}");
    replicas[2].signal(Signal::Cont);
    stage.until_shared_by(&["a", "b", "c"]).await;
    stage.end("SIGSTOP");
}

#[tokio::test]
async fn s2_a_replica_that_is_cut_off_stops_before_others_take_over() {
    let (stage, _others) = Stage::at_work(&["a", "b"]).await;
    let proxy = FaultProxy::start(&stage.cluster.plane).await.expect("a proxy");
    let plane = &stage.cluster.plane;
    let account =
        plane.service_account_kubeconfig_via(&proxy.url(), OPERATOR_NAMESPACE, OPERATOR).await;
    let _cut_off = stage.replica_by(&account.expect("a token"), "c", &[]).await;
    stage.until_shared_by(&["a", "b", "c"]).await;
    // What is under way arrives, and nothing is ever answered.
    proxy.fail(|request| request.mutating, Fault::LoseAnswer);
    proxy.fail(|_| true, Fault::Hang);
    proxy.cut_watches();
    stage.until_shared_by(&["a", "b"]).await;
    proxy.clear();
    stage.until_shared_by(&["a", "b", "c"]).await;
    proxy.fail(|_| true, Fault::Hang);
    proxy.cut_watches();
    let cut = Instant::now();
    let gap = stage.until_shared_by(&["a", "b"]).await - cut;
    println!("cut off: taken over after {gap:?}");
    assert!(gap < LEASE + SLACK, "{gap:?}");
    proxy.clear();
    stage.until_shared_by(&["a", "b", "c"]).await;
    stage.end("cut off");
}

/// A minute is ten times the lease.
#[tokio::test]
async fn s2_an_outage_of_the_api_server_moves_nothing() {
    let (stage, replicas) = Stage::at_work(&["a", "b", "c"]).await;
    let before = stage.owners().await;
    stage.cluster.plane.stop_api_server().await.expect("it stops");
    tokio::time::sleep(Duration::from_mins(1)).await;
    stage.cluster.plane.start_api_server().await.expect("it starts");
    let up = Instant::now();
    let writes = stage.witness.writes_by_member();
    let works = eventually("all write again", SOON, || async {
        let now = stage.witness.writes_by_member();
        let more = |name: &&str| now.get(*name) > writes.get(*name);
        ["a", "b", "c"].iter().all(more).then(Instant::now)
    });
    let works = works.await.expect("writes");
    println!("outage: all write {:?} after the API server was ready", works - up);
    assert_eq!(stage.owners().await, before);
    assert!(replicas.iter().all(|replica| !replica.log().contains("partitions lost")));
    stage.end("outage");
}

#[tokio::test]
async fn s2_replicas_come_and_go_from_one_to_five_to_two() {
    let (stage, mut replicas) = Stage::at_work(&["a"]).await;
    for name in ["b", "c", "d", "e"] {
        replicas.push(stage.replica(name, &[]).await);
    }
    stage.until_shared_by(&["a", "b", "c", "d", "e"]).await;
    for replica in replicas.drain(..3) {
        assert!(replica.terminate().await.success());
    }
    stage.until_shared_by(&["d", "e"]).await;
    assert_no_failure(&replicas);
    stage.end("1, 5 and 2 replicas");
}

/// A Deployment's update: a new replica is ready before an old one goes, and for so long
/// (`minReadySeconds`) that the others have seen it.
async fn roll(
    stage: &Stage,
    mut old: Vec<Operator>,
    names: &[&str],
    args: &[&str],
) -> Vec<Operator> {
    let mut new = Vec::new();
    for name in names {
        new.push(stage.replica(name, args).await);
        // Replicas of another number of partitions are no members to each other.
        let old_members = if args.contains(&"--sharding-partitions") { 0 } else { old.len() };
        let members = (old_members + new.len()).to_string();
        for replica in &new {
            let seen = async || (replica.metric_text(MEMBERS).await? == members).then_some(());
            eventually("the new ones see each other", SOON, seen).await.expect("members");
        }
        assert!(old.remove(0).terminate().await.success());
    }
    stage.until_shared_by(names).await;
    new
}

#[tokio::test]
async fn s2_a_rolling_update_has_one_owner_at_a_time_and_moves_each_ksmscale_once() {
    let mut stage = Stage::set().await;
    let names = ["a", "b", "c"];
    let mut old = Vec::new();
    for name in names {
        old.push(stage.replica(name, &["--pod-template-hash", "old"]).await);
    }
    stage.until_shared_by(&names).await;
    stage.until_settled().await;
    let before = stage.witness.moves();
    stage.move_nodes();
    let _new = roll(&stage, old, &["d", "e", "f"], &["--pod-template-hash", "new"]).await;
    let mut moves = stage.witness.moves();
    for (scale, moves) in &mut moves {
        *moves -= before.get(scale).unwrap_or(&0);
    }
    let often: Vec<_> = moves.iter().filter(|(_, moves)| **moves != 1).collect();
    println!("rolling update: {} of {} moved not just once: {often:?}", often.len(), moves.len());
    assert!(often.is_empty() && moves.len() == SCALES, "{moves:?}");
    stage.end("rolling update");
}

#[tokio::test]
async fn s6_the_number_of_partitions_changes_in_a_rolling_update_without_two_owners() {
    let (stage, old) = Stage::at_work(&["a", "b", "c"]).await;
    let args = ["--pod-template-hash", "new", "--sharding-partitions", "509"];
    let new = roll(&stage, old, &["d", "e", "f"], &args).await;
    assert_no_failure(&new);
    stage.end("another number of partitions");
}

#[tokio::test]
async fn s6_unsafe_times_and_a_name_that_is_taken_end_the_process_with_the_cause() {
    let cluster = Cluster::start(1).await;
    let operator = cluster.operator().await;
    let account = cluster.plane.service_account_kubeconfig(OPERATOR_NAMESPACE, OPERATOR).await;
    let account = account.expect("a token");
    let unsafe_times = ["--sharding-renew-deadline", "6s"];
    let refused = Operator::spawn(&cluster.plane, &account, &unsafe_times).await;
    let (status, log) = refused.ended().await;
    assert!(!status.success() && log.contains("fence * (1 + clock error) <= lease"), "{log}");
    // The same pod, as if its container were restarted: the first process is gone, or should be.
    let second = Operator::start(&cluster.plane, &account, &[]).await;
    let (status, log) = operator.ended().await;
    assert!(!status.success(), "{status}");
    assert!(log.contains("another process runs under this one's name, operator"), "{log}");
    assert!(second.terminate().await.success());
}
