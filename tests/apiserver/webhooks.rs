//! The webhooks' configurations as the API server understands them. Nobody serves the webhooks
//! here, so a request that comes through is one for which they are not called.

use crate::{corpus::create, support::*};
use devcluster::Level;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use ksm_scale_operator::{
    api::KSMScale,
    manifests,
    names::{self, MUTATING_WEBHOOK, VALIDATING_WEBHOOK},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

async fn install(cluster: &Cluster) {
    for manifest in manifests::webhooks().expect("manifests") {
        apply_yaml(&cluster.client, &manifest.text).await;
    }
}

/// The one webhook of a configuration, as it is stored.
async fn stored<K>(cluster: &Cluster) -> Value
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + serde::Serialize,
{
    let api: Api<K> = Api::all(cluster.client.clone());
    let stored = api.get(names::WEBHOOK_CONFIGURATION).await.expect("a configuration");
    let stored = serde_json::to_value(stored).expect("JSON");
    let [webhook] = stored["webhooks"].as_array().expect("webhooks").as_slice() else {
        panic!("one webhook: {stored}")
    };
    webhook.clone()
}

#[tokio::test]
async fn w1_w3_the_webhooks_are_called_for_our_kind_only_and_fail_as_they_should() {
    let cluster = Cluster::whole(Level::ApiServer).await;
    install(&cluster).await;
    let mutating = stored::<MutatingWebhookConfiguration>(&cluster).await;
    let validating = stored::<ValidatingWebhookConfiguration>(&cluster).await;
    let expected = [
        (&mutating, MUTATING_WEBHOOK, names::MUTATE_PATH, "Ignore", json!(["CREATE", "UPDATE"])),
        (
            &validating,
            VALIDATING_WEBHOOK,
            names::VALIDATE_PATH,
            "Fail",
            json!(["CREATE", "UPDATE", "DELETE"]),
        ),
    ];
    for (webhook, name, path, failure_policy, operations) in expected {
        assert_eq!(webhook["name"], name);
        let service = json!({"name": names::WEBHOOK_SERVICE, "namespace": names::OPERATOR_NAMESPACE, "path": path, "port": 443});
        // Whoever knows the certificate authority adds it; an empty one would be theirs to fight.
        assert_eq!(webhook["clientConfig"], json!({"service": service}));
        let rule = json!({"apiGroups": ["monitor.example.com"], "apiVersions": ["v1alpha1"], "operations": operations, "resources": ["ksmscales"], "scope": "Cluster"});
        assert_eq!(webhook["rules"], json!([rule]));
        assert_eq!(webhook["failurePolicy"], failure_policy);
        assert_eq!(webhook["matchPolicy"], "Equivalent");
        assert_eq!(webhook["sideEffects"], "None");
        assert_eq!(webhook["admissionReviewVersions"], json!(["v1"]));
        assert!(webhook["timeoutSeconds"].as_u64().is_some_and(|seconds| seconds <= 5));
        for selector in ["namespaceSelector", "objectSelector"] {
            assert_eq!(webhook[selector], json!({}), "nobody opts out by a label");
        }
    }
    assert_eq!(mutating["reinvocationPolicy"], "IfNeeded");
}

#[tokio::test]
async fn w3_r68_the_webhooks_are_not_called_for_what_they_would_let_pass() {
    let cluster = Cluster::whole(Level::ApiServer).await;
    for (name, protected) in [("kept", true), ("going", false), ("free", false)] {
        cluster.apply(name, json!({"deletionProtection": protected})).await;
    }
    let api: Api<KSMScale> = cluster.scales();
    let merge = async |name: &str, patch: Value| {
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    };
    merge("going", json!({"metadata": {"finalizers": ["example.com/kept"]}}))
        .await
        .expect("a finalizer");
    install(&cluster).await;
    let new = json!({"apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale", "metadata": {"name": "new"}, "spec": {}});
    let status = eventually("the validator is called", SOON, || async {
        create(&cluster.client, &new).await.err()
    })
    .await
    .expect("a refusal");
    assert!(status.message.contains("failed calling webhook"), "{}", status.message);
    assert!(status.message.contains(VALIDATING_WEBHOOK), "{}", status.message);
    let calls = |result: kube::Result<()>| {
        result.err().is_some_and(|error| error.to_string().contains(VALIDATING_WEBHOOK))
    };
    let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
    assert!(calls(merge("free", json!({"spec": {"nodesPerMonitor": 20}})).await), "a new spec");
    assert!(calls(api.delete("kept", &dry).await.map(drop)), "a protected deletion");
    merge("free", json!({"metadata": {"labels": {"a": "b"}}})).await.expect("the spec is the same");
    let status = Patch::Merge(json!({"status": {"nodeCount": 4}}));
    api.patch_status("free", &PatchParams::default(), &status).await.expect("our own write");
    api.delete("free", &DeleteParams::default()).await.expect("nothing protects it");
    api.delete("going", &DeleteParams::default()).await.expect("its deletion begins");
    let last = json!({"metadata": {"finalizers": null}, "spec": {"nodesPerMonitor": 20}});
    merge("going", last).await.expect("the finalizer can be removed");
}

/// The objects that `kubectl apply -k` would apply.
async fn kustomized(cluster: &Cluster, folder: &str) -> Vec<Value> {
    let path = format!("{}/webhook-config/{folder}", env!("CARGO_MANIFEST_DIR"));
    let output = cluster.plane.kubectl().args(["kustomize", &path]).output().await;
    let output = output.expect("kubectl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    objects(&String::from_utf8(output.stdout).expect("text"))
}

fn objects(text: &str) -> Vec<Value> {
    let documents = text.split("---\n").filter(|document| !document.trim().is_empty());
    let mut objects: Vec<Value> =
        documents.map(|document| serde_saphyr::from_str(document).expect("YAML")).collect();
    objects.sort_by_key(|object| format!("{}{}", object["kind"], object["metadata"]["name"]));
    objects
}

#[tokio::test]
async fn t1_t2_both_forms_of_certificates_come_from_the_same_configurations() {
    let cluster = Cluster::whole(Level::ApiServer).await;
    let text = |all: Vec<manifests::Manifest>| {
        all.into_iter().map(|m| m.text).collect::<Vec<_>>().join("---\n")
    };
    let mut webhooks = objects(&text(manifests::webhooks().expect("manifests")));
    assert_eq!(kustomized(&cluster, "base").await, webhooks);
    for webhook in &mut webhooks {
        let inject = json!({"cert-manager.io/inject-ca-from": format!("monitoring/{}", names::WEBHOOK_CERTIFICATE)});
        webhook["metadata"]["annotations"] = inject;
    }
    assert_eq!(kustomized(&cluster, "cert-manager").await, webhooks);
    let policies = manifests::policies(&ksm_scale_operator::allowed::Allowed::default());
    assert_eq!(
        kustomized(&cluster, "policies").await,
        objects(&text(policies.expect("manifests")))
    );
}
