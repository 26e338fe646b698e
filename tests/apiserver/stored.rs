//! Objects that an older CustomResourceDefinition let in.

use crate::support::*;
use ksm_scale_operator::{api::Phase, crd};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// Replaces the CRD's schema of the spec, and waits until it is in force.
async fn install(cluster: &Cluster, spec: Value) {
    let kind =
        kube::core::GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let crds: Api<DynamicObject> =
        Api::all_with(cluster.client.clone(), &ApiResource::from_gvk(&kind));
    let mut all = serde_json::to_value(crd::crd()).expect("JSON");
    all["apiVersion"] = json!("apiextensions.k8s.io/v1");
    all["kind"] = json!("CustomResourceDefinition");
    let schema = &mut all["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let strict = !spec.is_null();
    if strict {
        schema["properties"]["spec"] = spec;
    }
    let params = PatchParams::apply("test").force();
    crds.patch("ksmscales.monitor.example.com", &params, &Patch::Apply(&all)).await.expect("a CRD");
    let probe = |nodes: Value| {
        serde_json::from_value::<DynamicObject>(json!({
            "apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale",
            "metadata": {"name": "probe"}, "spec": {"nodesPerMonitor": nodes},
        }))
        .expect("an object")
    };
    let api = scales(cluster);
    eventually("the CRD is in force", SOON, || async {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let loose = api.create(&dry, &probe(json!("many"))).await.is_ok();
        (loose == strict).then_some(())
    })
    .await
    .expect("a CRD in force");
}

fn scales(cluster: &Cluster) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<ksm_scale_operator::api::KSMScale>(&());
    Api::all_with(cluster.client.clone(), &resource)
}

const MISFITS: [(&str, &str, [&str; 2]); 2] = [
    (
        "bounds",
        r#"{"nodesPerMonitor": 1, "monitorImage": "k/s:v1", "namespace": "monitoring",
            "sharding": {"enabled": true}}"#,
        ["spec.nodesPerMonitor", "spec.sharding.shardCount"],
    ),
    (
        "types",
        r#"{"nodesPerMonitor": "many", "monitorImage": 3, "namespace": "monitoring"}"#,
        ["spec.nodesPerMonitor", "spec.monitorImage"],
    ),
];

#[tokio::test]
async fn r11_r70_an_object_of_an_older_crd_is_reported_and_the_others_go_on() {
    let cluster = Cluster::start(16).await;
    install(&cluster, json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))
        .await;
    for (name, spec, _) in MISFITS {
        let spec: Value = serde_json::from_str(spec).expect("JSON");
        cluster.try_apply(name, spec).await.expect("the older CRD lets it in");
    }
    // One more that fits: it has to be served whatever the others are.
    let good = json!({"nodesPerMonitor": 15, "monitorImage": "k/s:v1", "namespace": "monitoring"});
    cluster.try_apply("good", good).await.expect("a valid KSMScale");
    install(&cluster, Value::Null).await;
    let operator = cluster.operator().await;
    for (name, _, fields) in MISFITS {
        let status = degraded_status(&cluster, name).await;
        for field in fields {
            assert!(status.contains(field), "{name}: {status}");
        }
    }
    eventually("the good one is served", SOON, || async {
        let status = cluster.scales().get_opt("good").await.ok()??.status?;
        (status.phase == Some(Phase::Ready) && status.current_replicas == Some(2)).then_some(())
    })
    .await
    .expect("the others go on");
    let names = cluster.pod_names("monitoring").await;
    assert_eq!(names, ["kube-state-metrics-good-0", "kube-state-metrics-good-1"]);
    let errors =
        operator.metric("ksm_scale_operator_reconcile_errors_total{kind=\"publish_status\"}");
    assert!(errors.await < 1.0, "a status could not be written:\n{}", operator.log());
    // Corrected, it is served.
    cluster.apply("bounds", json!({"nodesPerMonitor": 16, "sharding": {"enabled": false}})).await;
    cluster.until_settled("bounds").await;
}

/// The message of `Degraded`, once it says that the spec is not valid. Not through our types: they
/// cannot hold such an object.
async fn degraded_status(cluster: &Cluster, name: &str) -> String {
    let api = scales(cluster);
    let what = format!("{name} is reported");
    let found = eventually(&what, SOON, || async {
        let object = api.get(name).await.ok()?;
        let conditions = object.data["status"]["conditions"].as_array()?.clone();
        let degraded = conditions.into_iter().find(|c| c["type"] == "Degraded")?;
        (degraded["status"] == "True" && degraded["reason"] == "InvalidSpec")
            .then(|| degraded["message"].as_str().unwrap_or_default().to_owned())
    });
    match found.await {
        Ok(message) => message,
        Err(error) => panic!("{error}: {:#?}", api.get(name).await.map(|o| o.data)),
    }
}

/// What the webhook refuses may be stored all the same: it was off, or the flags were others.
#[tokio::test]
async fn w5_what_is_not_allowed_is_not_done_and_told_with_the_flag_that_allows_it() {
    let cluster = Cluster::start(30).await;
    cluster.allow_namespace("elsewhere").await;
    let flags = ["--allowed-namespaces", "monitoring", "--allowed-images", "k/s,ghcr.io/mine/*"];
    let operator = cluster.operator_with(&flags).await;
    cluster.apply("x", json!({"monitorImage": "k/s:v1"})).await;
    cluster.until_settled("x").await;
    let before = cluster.pod_names("monitoring").await;

    let degraded = |wanted: &'static str| {
        move |status: &ksm_scale_operator::api::KSMScaleStatus| {
            let (degraded, reason, message) = condition(status, "Degraded");
            degraded == "True" && reason == "NotAllowed" && message.contains(wanted)
        }
    };
    let both = json!({"monitorImage": "evil.example.com/x:v1", "namespace": "elsewhere"});
    cluster.apply("x", both).await;
    let status = cluster.until("it is told", "x", degraded("--allowed-namespaces")).await;
    assert!(degraded("--allowed-images")(&status), "{:?}", condition(&status, "Degraded"));
    // The Event follows the status.
    eventually("an Event says so", SOON, || async {
        cluster.events("x").await.iter().any(|(reason, _)| reason == "NotAllowed").then_some(())
    })
    .await
    .expect("an Event");
    // Nothing there, and nothing lost here.
    assert_eq!(cluster.pod_names("elsewhere").await, [""; 0]);
    assert_eq!(cluster.pod_names("monitoring").await, before);

    // Another administrator, another verdict.
    assert!(operator.terminate().await.success());
    let _operator = cluster.operator_with(&["--allowed-namespaces", "monitoring,else*"]).await;
    cluster.until_settled("x").await;
    assert_eq!(cluster.pod_names("elsewhere").await.len(), 2);
}
