//! The admission policies in place of the webhooks. To see them decide and not the CRD, they stand
//! in front of an older one: with the types of ours, and without its bounds, rules and defaults.

use crate::{
    corpus::{bad, create, good},
    support::*,
};
use devcluster::Level;
use ksm_scale_operator::{
    allowed::Allowed,
    api::KSMScale,
    crd, manifests,
    rules::Reason,
    validate::{Violation, defaulted, validate},
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};
use serde_json::{Value, json};
use std::fmt::Write;

/// A cluster with the older CRD.
pub async fn older() -> Cluster {
    with_schema(loosen).await
}

/// A cluster with a CRD of another schema, which takes any KSMScale without a spec.
pub async fn with_schema(change: fn(&mut Value)) -> Cluster {
    let cluster = Cluster::whole(Level::ApiServer).await;
    let mut crd = serde_json::to_value(crd::crd()).expect("JSON");
    crd["apiVersion"] = json!("apiextensions.k8s.io/v1");
    crd["kind"] = json!("CustomResourceDefinition");
    change(&mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    apply_yaml(&cluster.client, &crd.to_string()).await;
    let probe = json!({"apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale", "metadata": {"name": "probe"}});
    eventually("the older CRD is in force", SOON, || async {
        create(&cluster.client, &probe).await.is_ok().then_some(())
    })
    .await
    .expect("a CRD in force");
    cluster
}

fn loosen(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    let bounds = ["minimum", "maximum", "minLength", "maxLength", "pattern", "format", "required"];
    for name in bounds.into_iter().chain(["default", "x-kubernetes-validations"]) {
        fields.remove(name);
    }
    for (name, part) in fields.iter_mut() {
        match (&**name, part) {
            // Types that Kubernetes knows stay as they are.
            ("properties", Value::Object(all)) => {
                all.iter_mut().filter(|(name, _)| *name != "status").for_each(|(_, s)| loosen(s));
            }
            ("items" | "additionalProperties", part) => loosen(part),
            _ => {}
        }
    }
}

/// Installs both policies, and waits until both are in force.
async fn install(cluster: &Cluster, allowed: &Allowed) {
    for manifest in manifests::policies(allowed).expect("manifests") {
        apply_yaml(&cluster.client, &manifest.text).await;
    }
    let wrong = scale("probe", &json!({"nodesPerMonitor": 1}));
    eventually("the validating policy is in force", SOON, || async {
        create(&cluster.client, &wrong).await.is_err().then_some(())
    })
    .await
    .expect("a policy in force");
    // Deletion is another policy. Nothing but it refuses this.
    let api = scales(&cluster.client);
    let spec = json!({"deletionProtection": true, "nodesPerMonitor": 20});
    cluster.apply("probe", spec).await;
    eventually("the policy on deletion is in force", SOON, || async {
        let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
        api.delete("probe", &dry).await.is_err().then_some(())
    })
    .await
    .expect("a policy in force");
    cluster.apply("probe", json!({"deletionProtection": false, "nodesPerMonitor": 20})).await;
    api.delete("probe", &DeleteParams::default()).await.expect("the probe is gone");
}

async fn until_defaults(cluster: &Cluster) {
    eventually("the mutating policy is in force", SOON, || async {
        let stored = create(&cluster.client, &scale("probe", &json!({}))).await.ok()?;
        (stored["spec"]["nodesPerMonitor"] == 15).then_some(())
    })
    .await
    .expect("a policy in force");
}

pub fn scale(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale", "metadata": {"name": name}, "spec": spec})
}

pub fn scales(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<KSMScale>(&()))
}

pub async fn merge(client: &Client, name: &str, patch: Value) -> Result<(), Box<Status>> {
    match scales(client).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status),
        Err(other) => panic!("{other}"),
    }
}

/// What the policy says, without what the API server says around it.
fn said(status: &Status) -> &str {
    let said = status
        .message
        .split_once("denied request: ")
        .filter(|(policy, _)| policy.contains("ValidatingAdmissionPolicy 'ksm-scale-operator"));
    said.map_or(&status.message, |(_, said)| said)
}

/// What the API server refuses by itself, whatever the CRD bounds.
fn is_elementary(violation: &Violation) -> bool {
    match violation.reason {
        Reason::FieldValueTypeInvalid | Reason::UnknownField => true,
        Reason::FieldValueTooLong => false,
        _ => violation.field == "metadata.name",
    }
}

/// Changes of an object with faults of its own, each with the one thing that is newly wrong.
pub fn new_faults() -> [(Value, &'static str); 4] {
    [
        (json!({"spec": {"nodesPerMonitor": 6}}), "spec.nodesPerMonitor: Invalid value: 6"),
        (json!({"spec": {"monitorImage": "evil/x:v2"}}), "spec.monitorImage: Forbidden"),
        (json!({"spec": {"namespace": "kube-system"}}), "spec.namespace: Forbidden"),
        (
            json!({"spec": {"sharding": {"maxReplicasPerShard": 5}}}),
            "spec.sharding.shardCount: Required",
        ),
    ]
}

#[tokio::test]
async fn w2_in_front_of_an_older_crd_the_policies_refuse_the_same_in_the_same_words() {
    let cluster = older().await;
    install(&cluster, &Allowed::everything()).await;
    let (mut differences, mut judged) = (String::new(), 0);
    for case in bad() {
        let here = validate(&case.object()).expect_err("a bad case");
        let there = match create(&cluster.client, &case.object()).await {
            Ok(_) => "accepted".to_owned(),
            Err(status) => said(&status).to_owned(),
        };
        let same = if here.0.iter().any(is_elementary) {
            there != "accepted"
        } else {
            judged += 1;
            there == here.to_string()
        };
        if !same {
            let _ = writeln!(differences, "{}\n  here:  {here}\n  there: {there}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(judged > 40, "the policies had to judge {judged} cases only");
}

#[tokio::test]
async fn w2_in_front_of_an_older_crd_the_policies_set_exactly_the_defaults_of_the_schema() {
    let cluster = older().await;
    install(&cluster, &Allowed::everything()).await;
    until_defaults(&cluster).await;
    let mut differences = String::new();
    for case in good() {
        let there = create(&cluster.client, &case.object()).await.map(|s| s["spec"].clone());
        let here = defaulted(&case.object())["spec"].clone();
        if there.as_ref().ok() != Some(&here) {
            let _ = writeln!(differences, "{}\n  here:  {here}\n  there: {there:?}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[tokio::test]
async fn w3_the_policies_hold_nothing_back_for_what_was_there_before_them() {
    let cluster = older().await;
    let spec = json!({
        "nodesPerMonitor": 5, "monitorImage": "evil/x:v1", "namespace": "elsewhere",
        "sharding": {"enabled": true, "minReplicasPerShard": 1, "maxReplicasPerShard": 4},
    });
    cluster.apply("old", spec).await;
    merge(&cluster.client, "old", json!({"metadata": {"finalizers": ["example.com/kept"]}}))
        .await
        .expect("a finalizer");
    install(&cluster, &Allowed::default()).await;
    let passes: [Value; 5] = [
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!({"spec": {"resources": {"requests": {"cpu": "1"}}}}),
        json!({"spec": {"nodesPerMonitor": 9}}),
        json!({"spec": {"monitorImage": "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0"}}),
        json!({"spec": {"sharding": {"shardCount": 3}}}),
    ];
    for (patch, field) in new_faults() {
        let status = merge(&cluster.client, "old", patch).await.expect_err(field);
        assert!(said(&status).starts_with(field), "{}", status.message);
        assert!(!said(&status).contains("; spec."), "only what is new: {}", status.message);
    }
    for patch in passes {
        let result = merge(&cluster.client, "old", patch.clone()).await;
        assert!(result.is_ok(), "{patch}: {result:?}");
    }
    // What is new is judged, however much of it was missing before.
    cluster.apply("bare", json!({"nodesPerMonitor": 20})).await;
    let patch = json!({"spec": {"sharding": {"shardCount": 3}}});
    let status = merge(&cluster.client, "bare", patch).await.expect_err("it lacks a field");
    assert_eq!(said(&status), "spec.sharding.enabled: Required value");
    // Being deleted, nothing about it is judged.
    let api = scales(&cluster.client);
    api.delete("old", &DeleteParams::default()).await.expect("its deletion begins");
    let last = json!({"metadata": {"finalizers": null}, "spec": {"nodesPerMonitor": 1}});
    merge(&cluster.client, "old", last).await.expect("the finalizer can be removed");
    assert!(api.get_opt("old").await.expect("an answer").is_none(), "it is gone");
}

#[tokio::test]
async fn r68_a_protected_scale_is_deleted_only_without_pods_and_the_refusal_says_how() {
    let cluster = Cluster::whole(Level::ApiServer).await;
    install(&cluster, &Allowed::default()).await;
    cluster.apply("dev", json!({"deletionProtection": true})).await;
    cluster.apply("free", json!({})).await;
    let api = scales(&cluster.client);
    let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
    api.delete("free", &dry).await.expect("without protection it can be deleted");
    // Unknown is not zero.
    for (pods, deletable) in [(Value::Null, false), (json!(2), false), (json!(0), true)] {
        let status = json!({"status": {"currentReplicas": pods}});
        let (patch, params) = (Patch::Merge(status), PatchParams::default());
        api.patch_status("dev", &params, &patch).await.expect("a status");
        match api.delete("dev", &dry).await {
            Ok(_) => assert!(deletable, "{pods} pods"),
            Err(kube::Error::Api(status)) => {
                assert!(!deletable && status.code == 403, "{pods} pods: {status:?}");
                let fix = r#"kubectl patch ksmscale dev --type=merge -p '{"spec":{"deletionProtection":false}}'"#;
                assert!(status.message.ends_with(fix), "{}", status.message);
            }
            Err(other) => panic!("{other}"),
        }
    }
    let status = json!({"status": {"currentReplicas": 2}});
    let patch = Patch::Merge(status);
    api.patch_status("dev", &PatchParams::default(), &patch).await.expect("a status");
    merge(&cluster.client, "dev", json!({"spec": {"deletionProtection": false}}))
        .await
        .expect("the fix");
    api.delete("dev", &DeleteParams::default()).await.expect("it can be deleted");
}

#[tokio::test]
async fn w5_the_policies_allow_the_namespaces_and_images_that_the_operator_allows() {
    let cluster = Cluster::whole(Level::ApiServer).await;
    let allowed = Allowed {
        namespaces: ["monitoring", "team-*"].map(|text| text.parse().expect("a pattern")).into(),
        images: ["ksm", "evil/*", "registry.example.com:5000/k8s/*", "localhost/one"]
            .map(|text| text.parse().expect("a pattern"))
            .into(),
    };
    install_with_image(&cluster, &allowed).await;
    let digest = format!("ksm:v1@sha256:{}", "0".repeat(64));
    let images = [
        "ksm",
        "ksm:v1",
        &digest,
        "docker.io/library/ksm:v1",
        "docker.io/ksm",
        "ksm2",
        "a/ksm",
        "evil/a:v1",
        "evil/a/b",
        "Evil/a",
        "docker.io/evil/a",
        "registry.example.com/evil/a",
        "registry.example.com:5000/k8s/ksm:v1",
        "registry.example.com:5000/k8sx/ksm",
        "registry.example.com:500/k8s/ksm",
        "localhost/one:v1",
        "localhost/two",
        "localhost:1/one",
    ];
    let with_image = |image: &&str| json!({"monitorImage": image});
    let with_namespace = |namespace: &str| json!({"monitorImage": "ksm", "namespace": namespace});
    let namespaces = ["monitoring", "team-a", "team", "kube-system", "monitoring2"];
    let both = json!({"monitorImage": "other", "namespace": "other"});
    let specs = images.iter().map(with_image).chain(namespaces.map(with_namespace)).chain([both]);
    let (mut refused, mut accepted) = (0, 0);
    for spec in specs {
        let object = scale("case", &spec);
        let here = allowed.check(validate(&object)).map(drop).map_err(|all| all.to_string());
        let there = create(&cluster.client, &object).await.map(drop);
        let there = there.map_err(|status| said(&status).to_owned());
        assert_eq!(here, there, "{spec}");
        *(if there.is_ok() { &mut accepted } else { &mut refused }) += 1;
    }
    assert!(refused > 8 && accepted > 8, "{refused} refused, {accepted} accepted");
}

/// As [`install`], where the default image is not allowed.
async fn install_with_image(cluster: &Cluster, allowed: &Allowed) {
    for manifest in manifests::policies(allowed).expect("manifests") {
        apply_yaml(&cluster.client, &manifest.text).await;
    }
    eventually("the policy is in force", SOON, || async {
        create(&cluster.client, &scale("probe", &json!({}))).await.is_err().then_some(())
    })
    .await
    .expect("a policy in force");
}

/// Somebody who may write KSMScales and nothing else.
pub const WRITER: &str = "
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: writer}, rules: [{apiGroups: [monitor.example.com], resources: [ksmscales], verbs: ['*']}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: writer}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: writer}, subjects: [{kind: User, name: dev, apiGroup: rbac.authorization.k8s.io}]}
";

/// Lets them create pods in `monitoring`.
pub const CREATOR: &str = "
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: creator, namespace: monitoring}, rules: [{apiGroups: [''], resources: [pods], verbs: [create]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: creator, namespace: monitoring}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: creator}, subjects: [{kind: User, name: dev, apiGroup: rbac.authorization.k8s.io}]}
";

pub async fn client_as(cluster: &Cluster, user: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.plane.kubeconfig()).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.expect("a configuration");
    config.auth_info.impersonate = Some(user.to_owned());
    Client::try_from(config).expect("a client")
}

#[tokio::test]
async fn w5_who_may_not_create_pods_may_not_have_the_operator_create_them() {
    let cluster = Cluster::whole(Level::ApiServer).await;
    let allowed = Allowed::everything();
    install(&cluster, &allowed).await;
    apply_yaml(&cluster.client, WRITER).await;
    cluster.apply("theirs", json!({"namespace": "kube-system"})).await;
    let dev = client_as(&cluster, "dev").await;
    eventually("their rights count", SOON, || async {
        merge(&dev, "theirs", json!({"metadata": {"labels": {"a": "b"}}})).await.ok()
    })
    .await
    .expect("the right to write KSMScales");
    // What changes neither place nor image asks for no right.
    merge(&dev, "theirs", json!({"spec": {"nodesPerMonitor": 20}}))
        .await
        .expect("no pods elsewhere");
    let ours = scale("ours", &json!({}));
    let refused = [
        create(&dev, &ours).await.map(drop),
        merge(&dev, "theirs", json!({"spec": {"monitorImage": "evil/x"}})).await,
        merge(&dev, "theirs", json!({"spec": {"namespace": "default"}})).await,
    ];
    for (result, namespace) in refused.into_iter().zip(["monitoring", "kube-system", "default"]) {
        let status = result.expect_err("no right to create pods");
        let cause = format!("user \"dev\" may not create pods in namespace {namespace:?}");
        assert!(status.code == 403 && said(&status).contains(&cause), "{status:?}");
    }
    apply_yaml(&cluster.client, CREATOR).await;
    eventually("their new right counts", SOON, || async { create(&dev, &ours).await.ok() })
        .await
        .expect("what they may do themselves");
    // A violation is told to them as to everybody.
    let status = create(&dev, &scale("ours", &json!({"nodesPerMonitor": 1}))).await.expect_err("8");
    assert!(status.message.contains("spec.nodesPerMonitor"), "{}", status.message);
}
