//! `plan()` for 40 pods. Goal: under 100 µs, so that planning is never what a reconcile waits for.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::{
    observed::{Life, Observed, ObservedPod},
    plan::{Change, Settings, plan},
    validate::{Scale, Valid, validate},
};
use serde_json::json;
use std::{hint::black_box, time::Instant};

/// Each sample is the mean of so many calls, far above what a clock can tell apart.
const CALLS: u32 = 100;
const SAMPLES: usize = 100;

const OLD: &str = "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.19.0";
const NEW: &str = "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0";

// A loop of its own: the bench crates turn on clap's `wrap_help`, and with it the operator's help
// would depend on the terminal in every test build.
fn main() {
    println!("plan() for 40 pods, of {SAMPLES} samples of {CALLS} calls; the goal is 100 µs");
    let wanted = scale(10, 4, NEW);
    // What happens at almost every reconcile.
    measure("nothing to do", &wanted, &wanted, false);
    // The first step of replacing every pod.
    measure("another image", &scale(10, 4, OLD), &wanted, true);
    // The first step from 8 to 10 shards, where coverage has two families to look at.
    measure("another shard count", &scale(8, 5, NEW), &wanted, true);
}

/// Prints how long planning from the pods of `before` to those of `after` takes.
fn measure(what: &str, before: &Valid<Scale>, after: &Valid<Scale>, changes: bool) {
    let (seen, settings) = (at_rest(before), Settings::default());
    let first = plan(after, &seen, now(), &settings);
    assert_eq!(!first.changes.is_empty(), changes, "{:?}", first.changes);
    let sample = |_| {
        let begun = Instant::now();
        for _ in 0..CALLS {
            black_box(plan(after, black_box(&seen), now(), &settings));
        }
        begun.elapsed() / CALLS
    };
    let mut samples: Vec<_> = (0..SAMPLES).map(sample).collect();
    samples.sort_unstable();
    let [fastest, median, slowest] = [0, SAMPLES / 2, SAMPLES - 1].map(|i| samples[i].as_micros());
    println!("  {what:20} median {median:4} µs, fastest {fastest:4} µs, slowest {slowest:4} µs");
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
