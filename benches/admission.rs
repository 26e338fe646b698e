//! From the bytes of a review to those of its answer. Goal: 10 µs for an update of 4.4 kB, so that
//! the rules cost no more than TLS and HTTP around them.
//!
//! CPU time as Linux counts it for this thread, so that a busy machine changes little; and the
//! number of instructions, as valgrind counts them, which it does not change at all.

#![allow(clippy::panic, reason = "a bench fails by panicking")]

use ksm_scale_operator::{
    admission::{Answer, Decision, Endpoint, Knowledge, Verdict, parse},
    allowed::Allowed,
};
use serde_json::{Value, json};
use std::{hint::black_box, process::Command, time::Duration};

/// Each sample is the mean over so long; the clock moves on every few milliseconds.
const SAMPLE: Duration = Duration::from_millis(200);
const SAMPLES: usize = 15;

/// Calls whose instructions are counted. What a process does besides is the same in both, and so
/// falls out of their difference.
const FEW: u64 = 100;
const MANY: u64 = 600;

/// Of these cases.
const COUNTED: [&str; 4] = ["update, no change", "update", "update, three causes", "mutate, patch"];

/// A request, and what is to become of it.
struct Case {
    name: &'static str,
    endpoint: Endpoint,
    body: Vec<u8>,
    verdict: Verdict,
    rules: usize,
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let cases = cases();
    if let [name, calls] = &arguments[..] {
        let case = cases.iter().find(|case| case.name == name).expect("a case of this name");
        return run(case, calls.parse().expect("a number of calls"));
    }
    println!("parse, decide and answer; CPU time per call, of {SAMPLES} samples");
    for case in &cases {
        measure(case);
    }
    println!("\ninstructions per call");
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("  not counted: there is no valgrind (Debian: apt-get install valgrind)");
        return;
    }
    for case in cases.iter().filter(|case| COUNTED.contains(&case.name)) {
        let each = (instructions(case, MANY) - instructions(case, FEW)) / (MANY - FEW);
        println!("  {:24} {:>9} bytes  {each:>9}", case.name, case.body.len());
    }
}

/// Instructions of a process that answers the request so many times.
fn instructions(case: &Case, calls: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("this program"))
        .args([case.name, &calls.to_string()])
        .output()
        .expect("valgrind");
    let text = String::from_utf8_lossy(&output.stderr);
    let count =
        text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.unwrap_or_else(|| panic!("valgrind counted nothing: {text}"))
}

fn measure(case: &Case) {
    let mut calls = 1;
    while taken(case, calls) < SAMPLE {
        calls *= 2;
    }
    let mut samples: Vec<_> = (0..SAMPLES).map(|_| taken(case, calls) / calls).collect();
    samples.sort_unstable();
    let [fastest, median, slowest] = [0, SAMPLES / 2, SAMPLES - 1].map(|i| samples[i].as_nanos());
    println!(
        "  {:24} {:>9} bytes  median {median:>9} ns, fastest {fastest:>9} ns, slowest {slowest:>9} ns",
        case.name,
        case.body.len()
    );
}

fn taken(case: &Case, calls: u32) -> Duration {
    let begun = cpu_time();
    run(case, calls);
    cpu_time().saturating_sub(begun)
}

/// Answers the request so many times, and looks at every answer.
fn run(case: &Case, calls: u32) {
    let (knowledge, allowed) = (knowledge(), Allowed::default());
    for _ in 0..calls {
        let answer = answer(case.endpoint, black_box(&case.body), &knowledge, &allowed);
        let record = &answer.record;
        assert_eq!(
            (record.verdict, record.rules.len(), answer.status, record.uid.len()),
            (case.verdict, case.rules, 200, 36),
            "{}: {}",
            case.name,
            String::from_utf8_lossy(&answer.body)
        );
        black_box(answer);
    }
}

fn answer(endpoint: Endpoint, body: &[u8], knowledge: &Knowledge, allowed: &Allowed) -> Answer {
    match parse(endpoint, body).map(|review| review.decide(knowledge, allowed)) {
        Ok(Decision::Final(answer)) | Err(answer) => answer,
        Ok(Decision::NeedsAccess(access)) => access.granted(),
    }
}

fn knowledge() -> Knowledge {
    Knowledge { nodes: Some(200), others: 1, other: Some("other".to_owned()), pods: 4 }
}

/// The CPU time that this thread has used.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = text.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanos.expect("nanoseconds"))
}

fn cases() -> Vec<Case> {
    let (old, mut new, mut bad) = (object(0), object(0), object(0));
    new["spec"]["nodesPerMonitor"] = json!(25);
    bad["spec"]["nodesPerMonitor"] = json!(1);
    bad["spec"]["namespace"] = json!("A");
    bad["spec"]["sharding"]["shardCount"] = json!(1);
    let mut sparse = object(0);
    sparse["spec"] = json!({"sharding": {"enabled": true, "shardCount": 3}});
    let touched = |object: &Value| {
        let mut object = object.clone();
        object["metadata"]["labels"]["touched"] = json!("yes");
        object
    };
    let case = |name, endpoint, object: &Value, old: Option<&Value>, verdict, rules| Case {
        name,
        endpoint,
        body: review(object, old),
        verdict,
        rules,
    };
    let (validate, mutate) = (Endpoint::Validate, Endpoint::Mutate);
    let allowed = Verdict::Allowed;
    let (large, huge) = (object(48_000), object(698_000));
    vec![
        case("update, no change", validate, &touched(&old), Some(&old), allowed, 0),
        case("update", validate, &new, Some(&old), allowed, 0),
        case("create", validate, &new, None, allowed, 0),
        case("update, three causes", validate, &bad, Some(&old), Verdict::Denied, 1),
        case("mutate, no patch", mutate, &new, Some(&old), allowed, 0),
        case("mutate, patch", mutate, &sparse, None, Verdict::Patched, 0),
        case("update, 100 kB", validate, &touched(&large), Some(&large), allowed, 0),
        case("update, 1.4 MB", validate, &touched(&huge), Some(&huge), allowed, 0),
    ]
}

/// A KSMScale as the API server holds it, with so many more bytes in an annotation.
fn object(more: usize) -> Value {
    let fields = json!({
        "f:metadata": {"f:annotations": {".": {}, "f:example.com/owner": {}}, "f:labels": {".": {}, "f:app.kubernetes.io/part-of": {}}},
        "f:spec": {".": {}, "f:monitorImage": {}, "f:namespace": {}, "f:nodesPerMonitor": {}, "f:resources": {".": {}, "f:limits": {".": {}, "f:cpu": {}, "f:memory": {}}, "f:requests": {".": {}, "f:cpu": {}, "f:memory": {}}}, "f:sharding": {".": {}, "f:distribution": {".": {}, "f:enablePDB": {}, "f:maxUnavailable": {}, "f:spreadAcrossNodes": {}}, "f:enabled": {}, "f:maxReplicasPerShard": {}, "f:minReplicasPerShard": {}, "f:shardCount": {}}},
    });
    json!({
        "apiVersion": "monitor.example.com/v1alpha1",
        "kind": "KSMScale",
        "metadata": {
            "name": "production",
            "uid": "0d9d0b0e-6d3c-4a0f-9f0b-1f5d6a3c2b1a",
            "resourceVersion": "123456",
            "generation": 7,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/part-of": "monitoring"},
            "annotations": {"example.com/owner": "x".repeat(more)},
            "managedFields": [
                {"manager": "kubectl-client-side-apply", "operation": "Update", "apiVersion": "monitor.example.com/v1alpha1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields},
                {"manager": "ksm-scale-operator", "operation": "Update", "apiVersion": "monitor.example.com/v1alpha1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "subresource": "status", "fieldsV1": {"f:status": {".": {}, "f:conditions": {}, "f:currentReplicas": {}, "f:desiredReplicas": {}, "f:lastUpdated": {}, "f:nodeCount": {}, "f:phase": {}}}},
            ],
        },
        "spec": {
            "nodesPerMonitor": 20,
            "deletionProtection": false,
            "monitorImage": "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0",
            "namespace": "monitoring",
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "sharding": {"enabled": true, "shardCount": 5, "minReplicasPerShard": 1, "maxReplicasPerShard": 4, "distribution": {"spreadAcrossNodes": true, "enablePDB": true, "maxUnavailable": 1}},
        },
        "status": {"nodeCount": 200, "desiredReplicas": 10, "currentReplicas": 10, "phase": "Ready", "observedGeneration": 7},
    })
}

fn review(object: &Value, old: Option<&Value>) -> Vec<u8> {
    let (kind, resource) = (
        json!({"group": "monitor.example.com", "version": "v1alpha1", "kind": "KSMScale"}),
        json!({"group": "monitor.example.com", "version": "v1alpha1", "resource": "ksmscales"}),
    );
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": kind, "requestKind": kind, "resource": resource, "requestResource": resource,
            "name": "production",
            "operation": if old.is_some() { "UPDATE" } else { "CREATE" },
            "userInfo": {"username": "system:serviceaccount:gitops:deployer", "uid": "9c0f7a3a-1f2e-4d5c-8b6a-7e8d9c0b1a2f", "groups": ["system:serviceaccounts", "system:serviceaccounts:gitops", "system:authenticated"], "extra": {"authentication.kubernetes.io/credential-id": ["JTI=5f8b9c3e"]}},
            "object": object,
            "oldObject": old,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "UpdateOptions", "fieldManager": "deployer"},
        },
    });
    serde_json::to_vec(&review).expect("JSON")
}
