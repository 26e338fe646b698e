//! What `plan` and `validate` say before, and what happens then.

use crate::{
    corpus::{Case, bad, good},
    policies::with_schema,
    replayed::{stage::send, unruled},
    served::until_judged,
    support::*,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::{
    forecast::{Step, steps},
    names::LABEL_SCALE,
    observed::ObservedPod,
    plan::Change,
    validate::{Scale, Valid, validate},
};
use kube::{
    Api, Client, ResourceExt,
    api::DeleteParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{io::AsyncWriteExt as _, task::JoinHandle};

/// Where the random changes start from. The same ones in every run, until somebody wants others.
const SEED: u64 = 2_026;

/// Changes under way at a time.
const AT_ONCE: usize = 6;

/// `SplitMix64`, which needs no crate.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn up_to(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.up_to(100) < percent
    }
}

/// A spec of any mode. One shard is none.
fn spec(random: &mut Random) -> Value {
    let mut spec = json!({
        "nodesPerMonitor": 9 + random.up_to(20),
        "namespace": if random.chance(80) { "monitoring" } else { "elsewhere" },
        "monitorImage": format!("r.example/ksm:v2.{}.0", 18 + random.up_to(3)),
    });
    if random.chance(30) {
        spec["resources"] = json!({"requests": {"cpu": format!("{}m", 1 + random.up_to(2))}});
    }
    let shards = 1 + random.up_to(10);
    if shards > 1 {
        let min = 1 + u64::from(random.chance(20));
        spec["sharding"] = json!({
            "enabled": true,
            "shardCount": shards,
            "minReplicasPerShard": min,
            "maxReplicasPerShard": min + random.up_to(3),
            "distribution": {
                "spreadAcrossNodes": random.chance(50),
                "enablePDB": random.chance(30),
            },
        });
    }
    spec
}

/// A spec and what it is changed to: anything, or a field of it, as people do.
fn change(random: &mut Random) -> (Value, Value) {
    let (from, other) = (spec(random), spec(random));
    let fields = ["nodesPerMonitor", "namespace", "monitorImage", "resources", "sharding"];
    let mut to = other.clone();
    if random.chance(60) {
        to.clone_from(&from);
        let at = usize::try_from(random.up_to(5)).expect("small");
        to[fields[at]] = other[fields[at]].clone();
    }
    (from, to)
}

fn scale(name: &str, spec: &Value) -> Valid<Scale> {
    let object = json!({
        "apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale",
        "metadata": {"name": name, "uid": "u"}, "spec": without_nulls(spec),
    });
    validate(&object).expect("a valid spec")
}

fn without_nulls(spec: &Value) -> Value {
    let fields = spec.as_object().expect("fields").iter().filter(|(_, value)| !value.is_null());
    fields.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn told(verb: &str, pod: &ObservedPod) -> String {
    let shard = pod.slice().map_or_else(|| "?".to_owned(), |slice| slice.to_string());
    format!("{verb} {}/{} of shard {shard}", pod.namespace, pod.name)
}

/// The forecast in the words of the witness.
fn foretold(before: &[ObservedPod], steps: &[Step]) -> Vec<String> {
    let mut known: BTreeMap<_, _> =
        before.iter().map(|pod| ((pod.namespace.clone(), pod.name.clone()), pod.clone())).collect();
    let mut lines = Vec::new();
    for step in steps {
        match &step.change {
            Change::CreatePod(pod, _) => {
                let pod = ObservedPod::new(pod);
                lines.push(told("create", &pod));
                known.insert((pod.namespace.clone(), pod.name.clone()), pod);
            }
            Change::DeletePod(gone, _) => {
                let pod = known.remove(&(gone.namespace.clone(), gone.name.clone()));
                lines.push(told("delete", &pod.expect("a pod that is there")));
            }
            other => unreachable!("{other} is no step of a pod"),
        }
    }
    lines
}

/// Creations and deletions of all pods, in the order of the API server, by KSMScale.
struct Seen {
    lines: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    task: JoinHandle<()>,
}

impl Seen {
    async fn start(client: &Client) -> Self {
        let lines = Arc::<Mutex<BTreeMap<String, Vec<String>>>>::default();
        let (writer, pods) = (Arc::clone(&lines), Api::<Pod>::all(client.clone()));
        let (listed, first) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let (mut there, mut listed) = (BTreeSet::new(), Some(listed));
            let events = watcher(pods, watcher::Config::default()).default_backoff();
            let all = events.try_for_each(|event| {
                let (watcher::Event::Apply(pod) | watcher::Event::Delete(pod)) = event else {
                    if matches!(event, watcher::Event::InitDone) {
                        let listed =
                            listed.take().expect("the watch goes on and is never begun anew");
                        listed.send(()).expect("somebody waits");
                    }
                    return std::future::ready(Ok(()));
                };
                let (uid, going) = (pod.uid(), pod.metadata.deletion_timestamp.is_some());
                let verb = match (there.contains(&uid), going) {
                    (false, false) => there.insert(uid).then_some("create"),
                    (true, true) => there.remove(&uid).then_some("delete"),
                    _ => None,
                };
                if let (Some(verb), Some(name)) = (verb, pod.labels().get(LABEL_SCALE)) {
                    let line = told(verb, &ObservedPod::new(&pod));
                    writer.lock().expect("no panic").entry(name.clone()).or_default().push(line);
                }
                std::future::ready(Ok(()))
            });
            all.await.expect("a watch that only waits after errors");
        });
        first.await.expect("a first list");
        Self { lines, task }
    }

    /// What was seen of a KSMScale so far.
    fn of(&self, name: &str) -> Vec<String> {
        self.lines.lock().expect("no panic").get(name).cloned().unwrap_or_default()
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One KSMScale, from nothing to rest and through one change. What is not as forecast.
async fn play(
    cluster: &Cluster,
    seen: &Seen,
    name: &str,
    nodes: u32,
    (from, to): &(Value, Value),
) -> Option<String> {
    cluster.apply(name, without_nulls(from)).await;
    cluster.until_settled_within(LATER, name).await;
    let before = ksm_scale_operator::forecast::at_rest(&scale(name, from), nodes);
    let steps = steps(&scale(name, from), &scale(name, to), nodes);
    let mut expected: Vec<_> = before.iter().map(|pod| told("create", pod)).collect();
    expected.extend(foretold(&before, &steps));
    cluster.apply(name, without_nulls(to)).await;
    cluster.until_settled_within(LATER, name).await;
    // The watch may lag behind, by less than this.
    let same = eventually("the forecast comes true", SOON, || async {
        (seen.of(name).len() >= expected.len()).then_some(())
    });
    let _ = same.await;
    let there = seen.of(name);
    let difference = format!(
        "seed {SEED}, {nodes} nodes, {name}:\n{from}\n{to}\nforecast: {expected:#?}\nseen: {there:#?}"
    );
    cluster.scales().delete(name, &DeleteParams::default()).await.expect("it is deleted");
    (there != expected).then_some(difference)
}

/// Plays `count` random changes on clusters of several sizes.
async fn changes_are_as_forecast(count: u32) {
    println!("{count} random changes from seed {SEED}");
    let cluster = Cluster::start(0).await;
    cluster.allow_namespace("elsewhere").await;
    let operator = cluster.operator().await;
    let seen = Seen::start(&cluster.client).await;
    let (mut random, mut there, mut wrong, mut played) = (Random(SEED), 0, Vec::new(), 0_u32);
    for more in [3, 30, 57] {
        cluster.plane.add_nodes(there..there + more).await.expect("nodes");
        there += more;
        eventually("the operator has counted them", SOON, || async {
            let counted = operator.metric("ksm_scale_operator_nodes").await;
            (counted >= f64::from(there)).then_some(())
        })
        .await
        .expect("the number of nodes");
        let here = if there == 90 { count - played } else { count / 3 };
        let changes: Vec<_> =
            (played..played + here).map(|i| (format!("c{i}"), change(&mut random))).collect();
        played += here;
        let (cluster, seen) = (&cluster, &seen);
        let results: Vec<_> = stream::iter(&changes)
            .map(|(name, change)| play(cluster, seen, name, there, change))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        wrong.extend(results.into_iter().flatten());
    }
    assert_eq!(played, count);
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn o2_the_operator_makes_the_steps_that_plan_shows_in_25_random_changes() {
    changes_are_as_forecast(25).await;
}

#[tokio::test]
#[ignore = "make soak: several minutes"]
async fn soak_o2_the_operator_makes_the_steps_that_plan_shows_in_100_random_changes() {
    changes_are_as_forecast(100).await;
}

/// What `validate` finds in an object: exit code, errors and warnings as the API server's user sees
/// them.
async fn validated(object: &Value) -> (Option<i32>, Vec<String>, Vec<String>) {
    let args = ["validate", "-f", "-", "--nodes", "4", "-o", "json"];
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_ksm-scale-operator"))
        .args(args)
        .args(["--allowed-namespaces", "*", "--allowed-images", "*"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(object.to_string().as_bytes()).await.expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let of = |severity: &str| {
        let found = findings.iter().filter(|f| f["severity"] == severity);
        let text = |f: &Value, key: &str| f[key].as_str().expect("text").to_owned();
        found.map(|f| format!("{}: {}", text(f, "field"), text(f, "message"))).collect()
    };
    (output.status.code(), of("error"), of("warning"))
}

/// The same from the API server, which asks the webhook. `None` where it refuses by itself what it
/// refuses of any object, such as a name.
async fn judged(
    client: &Client,
    object: &Value,
) -> Option<(Option<i32>, Vec<String>, Vec<String>)> {
    let told = send(client, "POST", "?dryRun=All&fieldValidation=Ignore", Some(object)).await;
    let message = told.body["message"].as_str().unwrap_or_default();
    let by_webhook = message.starts_with("admission webhook ");
    if told.code != 201 && !by_webhook {
        return None;
    }
    let causes = told.body["details"]["causes"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let causes = causes.map(|c| format!("{}: {}", text(&c["field"]), text(&c["message"])));
    let code = i32::from(by_webhook);
    Some((Some(code), causes.collect(), told.warnings))
}

#[tokio::test]
async fn o2_w2_validate_says_what_the_webhook_says_of_the_whole_corpus() {
    let cluster = with_schema(unruled).await;
    cluster.plane.add_nodes(0..4).await.expect("nodes");
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let replica = webhooks.replica(&["--lame-duck", "0s"]).await;
    until_judged(&cluster, &json!({"nodesPerMonitor": 1})).await;
    eventually("the nodes are counted", SOON, || async {
        (replica.operator.metric("ksm_scale_operator_nodes").await >= 4.0).then_some(())
    })
    .await
    .expect("four nodes");
    let (mut differences, mut compared) = (String::new(), 0);
    let cases: Vec<Case> = bad().into_iter().chain(good()).collect();
    for case in &cases {
        let object = case.object();
        let (here, there) = tokio::join!(validated(&object), judged(&cluster.client, &object));
        let same = match &there {
            Some(there) => *there == here,
            None => here.0 == Some(1) && !here.1.is_empty(),
        };
        compared += usize::from(there.is_some());
        if !same {
            let _ = writeln!(differences, "{}\n  here:  {here:?}\n  there: {there:?}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
    let alone = cases.len() - compared;
    assert!(alone < 10, "the webhook was not asked about {alone} of {} cases", cases.len());
}
