//! `plan()` for 40 pods. Goal: under 100 µs, so that planning is never what a reconcile waits for.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::{
    observed::{Life, Observed, ObservedPod},
    plan::{Change, Settings, plan},
    validate::{Scale, Valid, validate},
};
use serde_json::json;

fn main() {
    divan::main();
}

/// A KSMScale with `shards` shards of `replicas` pods each.
fn scale(shards: u32, replicas: u32, image: &str) -> Valid<Scale> {
    validate(&json!({
        "apiVersion": "monitor.example.com/v1alpha1",
        "kind": "KSMScale",
        "metadata": {"name": "bench", "uid": "scale-uid", "generation": 1},
        "spec": {
            "monitorImage": image,
            "sharding": {
                "enabled": true,
                "shardCount": shards,
                "minReplicasPerShard": replicas,
                "maxReplicasPerShard": replicas,
                "distribution": {"spreadAcrossNodes": true, "enablePDB": true},
            },
        },
    }))
    .expect("a valid spec")
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

/// The cluster in which every pod of `scale` has been serving for an hour.
fn at_rest(scale: &Valid<Scale>) -> Observed {
    let mut seen = Observed { nodes: 600, ..Observed::default() };
    for change in plan(scale, &seen, now(), &Settings::default()).changes {
        match change {
            Change::CreatePod(pod, _) => seen.pods.push(serving(*pod, seen.pods.len())),
            Change::ApplyServiceAccount(account) => seen.service_accounts.push(*account),
            Change::ApplyBinding(binding) => seen.bindings.push(*binding),
            Change::ApplyBudget(budget) => seen.budgets.push(*budget),
            other => unreachable!("{other} in an empty cluster"),
        }
    }
    assert_eq!(seen.pods.len(), 40, "the figure is for 40 pods");
    seen
}

fn serving(mut pod: Pod, number: usize) -> ObservedPod {
    pod.metadata.uid = Some(format!("uid-{number}"));
    let since = now() - SignedDuration::from_hours(1);
    ObservedPod {
        life: Life::Running,
        created: since,
        ready_since: Some(since),
        ..ObservedPod::new(&pod)
    }
}

fn run(bencher: divan::Bencher, before: &Valid<Scale>, after: &Valid<Scale>, changes: bool) {
    let seen = at_rest(before);
    let settings = Settings::default();
    let first = plan(after, &seen, now(), &settings);
    assert_eq!(!first.changes.is_empty(), changes, "{:?}", first.changes);
    bencher.bench_local(|| plan(after, divan::black_box(&seen), now(), &settings));
}

const OLD: &str = "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.19.0";
const NEW: &str = "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0";

/// What happens at almost every reconcile: nothing is to be done.
#[divan::bench]
fn nothing_to_do(bencher: divan::Bencher) {
    let scale = scale(10, 4, NEW);
    run(bencher, &scale, &scale, false);
}

/// The first step of replacing every pod.
#[divan::bench]
fn new_image(bencher: divan::Bencher) {
    run(bencher, &scale(10, 4, OLD), &scale(10, 4, NEW), true);
}

/// The first step to another number of shards, where coverage has two families to look at.
#[divan::bench]
fn other_shard_count(bencher: divan::Bencher) {
    run(bencher, &scale(8, 5, NEW), &scale(10, 4, NEW), true);
}
