//! The webhooks, served by the operator: what was there before them, who may ask for what, and what
//! is left to do when nobody serves them.

use crate::{
    corpus::create,
    kubectl::Terminal,
    policies::{CREATOR, WRITER, client_as, merge, new_faults, older, scale, scales},
    support::*,
};
use ksm_scale_operator::names::VALIDATING_WEBHOOK;
use kube::{
    api::{DeleteParams, Patch, PatchParams},
    core::Status,
};
use serde_json::{Value, json};
use std::time::Duration;

/// With nothing to wait for at the end, and with namespaces and images that are not allowed.
pub const STRICT: [&str; 6] = [
    "--lame-duck",
    "0s",
    "--allowed-namespaces",
    "monitoring,team-*",
    "--allowed-images",
    "registry.k8s.io/kube-state-metrics/kube-state-metrics",
];

/// Waits until the API server asks the webhook about a KSMScale of a spec that only it refuses.
pub async fn until_judged(cluster: &Cluster, spec: &Value) {
    let wrong = scale("probe", spec);
    eventually("the webhook judges", SOON, || async {
        let status = create(&cluster.client, &wrong).await.err()?;
        said(&status).is_some().then_some(())
    })
    .await
    .expect("a webhook in force");
}

/// What the webhook says, if it is the one that speaks.
pub fn said(status: &Status) -> Option<&str> {
    let denied = format!("admission webhook {VALIDATING_WEBHOOK:?} denied the request: ");
    status.message.strip_prefix(&denied)
}

/// `field: message` of each cause.
pub fn causes(status: &Status) -> Vec<String> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

/// A spec that no version of the rules would take today.
fn unlawful() -> Value {
    json!({
        "nodesPerMonitor": 5, "monitorImage": "evil/x:v1", "namespace": "elsewhere",
        "sharding": {"enabled": true, "minReplicasPerShard": 1, "maxReplicasPerShard": 4},
    })
}

async fn finalizer(cluster: &Cluster, name: &str) {
    merge(&cluster.client, name, json!({"metadata": {"finalizers": ["example.com/kept"]}}))
        .await
        .expect("a finalizer");
}

#[tokio::test]
async fn w3_what_was_there_before_the_webhooks_is_held_back_only_by_what_is_new() {
    let cluster = older().await;
    for name in ["old", "gone", "wrong"] {
        cluster.apply(name, unlawful()).await;
    }
    finalizer(&cluster, "old").await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let _replica = webhooks.replica(&STRICT).await;
    until_judged(&cluster, &json!({"nodesPerMonitor": 1})).await;
    // The operator writes the status of what it would refuse, and now knows of all three.
    for name in ["old", "gone", "wrong"] {
        cluster.until("a status is written", name, |s| s.observed_generation.is_some()).await;
    }
    for (patch, cause) in new_faults() {
        let status = merge(&cluster.client, "old", patch).await.expect_err(cause);
        let causes = causes(&status);
        assert!(causes.len() == 1 && causes[0].starts_with(cause), "only what is new: {causes:?}");
    }
    let mut terminal = Terminal::new(&cluster);
    for patch in [
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!({"spec": {"resources": {"requests": {"cpu": "1"}}}}),
        json!({"spec": {"nodesPerMonitor": 9}}),
        json!({"spec": {"sharding": {"shardCount": 3}}}),
    ] {
        let line = format!("kubectl patch ksmscale old --type=merge -p '{patch}'");
        assert_eq!(terminal.run(&line, None).await.0, Some(0), "{patch}");
    }
    let wrong = json!({"nodesPerMonitor": 5, "namespace": "Team", "sharding": {"enabled": true, "shardCount": 1}});
    let apply = "kubectl apply -f -";
    assert_eq!(terminal.run(apply, Some(&scale("new", &wrong))).await.0, Some(1));
    let delete = "kubectl delete ksmscale --wait=false";
    for name in ["gone", "old", "old"] {
        assert_eq!(terminal.run(&format!("{delete} {name}"), None).await.0, Some(0), "{name}");
    }
    terminal.golden("older-objects");
    let last = json!({"metadata": {"finalizers": null}, "spec": {"nodesPerMonitor": 1}});
    merge(&cluster.client, "old", last).await.expect("the finalizer can be removed");
    for name in ["gone", "old"] {
        let left = scales(&cluster.client).get_opt(name).await.expect("an answer");
        assert!(left.is_none(), "{name} is gone");
    }
}

#[tokio::test]
async fn w5_who_may_not_create_pods_may_not_have_the_operator_create_them() {
    let cluster = Cluster::start(4).await;
    apply_yaml(&cluster.client, WRITER).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let _replica = webhooks.replica(&STRICT).await;
    until_judged(&cluster, &json!({"namespace": "kube-system"})).await;
    cluster.apply("theirs", json!({"namespace": "team-a"})).await;
    cluster.until("the operator knows of it", "theirs", |s| s.observed_generation.is_some()).await;
    let dev = client_as(&cluster, "dev").await;
    eventually("their rights count", SOON, || async {
        merge(&dev, "theirs", json!({"metadata": {"labels": {"a": "b"}}})).await.ok()
    })
    .await
    .expect("the right to write KSMScales");
    merge(&dev, "theirs", json!({"spec": {"nodesPerMonitor": 20}}))
        .await
        .expect("the pods stay where they are");
    let upstream = "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0";
    let ours = scale("ours", &json!({}));
    let refused = [
        create(&dev, &ours).await.map(drop),
        merge(&dev, "theirs", json!({"spec": {"monitorImage": upstream}})).await,
        merge(&dev, "theirs", json!({"spec": {"namespace": "team-b"}})).await,
    ];
    for (result, namespace) in refused.into_iter().zip(["monitoring", "team-a", "team-b"]) {
        let status = result.expect_err("no right to create pods");
        let text = format!(
            "spec.namespace: Forbidden: user \"dev\" may not create pods in namespace {namespace:?}, and a KSMScale runs its pods there: ask for a Role in {namespace:?} with the verb create on pods, or set spec.namespace to a namespace where you may create them"
        );
        assert_eq!((status.code, said(&status)), (403, Some(&*text)));
        assert_eq!(causes(&status), [text]);
    }
    let mut terminal = Terminal::new(&cluster);
    let create_as = "kubectl create --as=dev --dry-run=server -f -";
    assert_eq!(terminal.run(create_as, Some(&ours)).await.0, Some(1));
    terminal.golden("requester");
    apply_yaml(&cluster.client, CREATOR).await;
    eventually("their new right counts", SOON, || async { create(&dev, &ours).await.ok() })
        .await
        .expect("what they may do themselves");
    // What the operator may not do, nobody's right makes possible.
    let forbidden = json!({"namespace": "kube-system", "monitorImage": "evil/x:v1"});
    for client in [&dev, &cluster.client] {
        let status = create(client, &scale("ours", &forbidden)).await.expect_err("forbidden");
        let fields = causes(&status);
        assert!(
            status.code == 422
                && fields.len() == 2
                && fields[0].starts_with("spec.namespace: Forbidden")
                && fields[1].starts_with("spec.monitorImage: Forbidden"),
            "{status:?}"
        );
    }
}

#[tokio::test]
async fn w3_t2_without_an_answer_a_scale_can_still_go_and_have_a_status() {
    let cluster = Cluster::start(4).await;
    for name in ["kept", "going"] {
        cluster.apply(name, json!({})).await;
    }
    finalizer(&cluster, "going").await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let replica = webhooks.replica(&STRICT).await;
    let forbidden = json!({"namespace": "kube-system"});
    until_judged(&cluster, &forbidden).await;
    webhooks.retire(replica).await;

    let new = scale("new", &json!({}));
    let changed = json!({"spec": {"nodesPerMonitor": 20}});
    let refused = [
        create(&cluster.client, &new).await.map(drop),
        merge(&cluster.client, "kept", changed.clone()).await,
    ];
    // The mutating webhook was called before, and ignored.
    let cause = format!("Internal error occurred: failed calling webhook {VALIDATING_WEBHOOK:?}: ");
    for status in refused.map(|result| result.expect_err("nobody judges it")) {
        assert!(status.code == 500 && status.message.starts_with(&cause), "{status:?}");
    }
    merge(&cluster.client, "kept", json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .expect("the spec is the same");
    let status = Patch::Merge(json!({"status": {"nodeCount": 7}}));
    let api = cluster.scales();
    api.patch_status("kept", &PatchParams::default(), &status).await.expect("a status");
    api.delete("going", &DeleteParams::default()).await.expect("its deletion begins");
    let last = json!({"metadata": {"finalizers": null}});
    merge(&cluster.client, "going", last).await.expect("the finalizer can be removed");
    assert!(api.get_opt("going").await.expect("an answer").is_none(), "it is gone");

    let _replica = webhooks.replica(&STRICT).await;
    until_judged(&cluster, &forbidden).await;
    create(&cluster.client, &new).await.expect("it is judged again");
    merge(&cluster.client, "kept", changed).await.expect("so is this");
}
