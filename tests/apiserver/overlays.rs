//! What is shipped to be applied, applied as it is.

use crate::support::*;
use devcluster::{Level, SecretVolume};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Secret},
};
use ksm_scale_operator::names::{WEBHOOK_CERTIFICATE, WEBHOOK_CERTIFICATE_SECRET};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(5);

async fn kubectl(cluster: &Cluster, args: &[&str]) {
    let mut command = cluster.plane.kubectl();
    let output = command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().await;
    let output = output.expect("kubectl runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The CRD comes with the overlay, and is there a moment later than what follows it.
async fn apply_overlay(cluster: &Cluster, name: &str) {
    kubectl(cluster, &["apply", "-k", &format!("deploy/overlays/{name}")]).await;
}

#[tokio::test]
async fn o4_t1_t2_every_overlay_is_applied_as_it_is_and_its_pod_fits_the_restricted_profile() {
    let cluster = Cluster::whole(Level::ApiServer).await;
    cluster.plane.start_cert_manager().await.expect("cert-manager");
    for overlay in ["policies", "self-managed", "cert-manager"] {
        apply_overlay(&cluster, overlay).await;
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        kubectl(&cluster, &["label", "--overwrite", "namespace", "monitoring", enforce]).await;
        let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "monitoring");
        let deployment = deployments.get("ksm-scale-operator").await.expect("a Deployment");
        let template = deployment.spec.expect("a spec").template;
        let mut pod = Pod { metadata: template.metadata.unwrap_or_default(), ..Pod::default() };
        pod.metadata.name = Some("operator".to_owned());
        pod.spec = template.spec;
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let created = cluster.pods("monitoring").create(&dry, &pod).await;
        assert!(created.is_ok(), "{overlay}: {created:?}");
    }
}

#[tokio::test]
async fn t1_w7_cert_manager_renews_the_certificate_of_the_shipped_overlay_without_a_failed_call() {
    let cluster = Cluster::start(20).await;
    cluster.plane.start_cert_manager().await.expect("cert-manager");
    apply_overlay(&cluster, "cert-manager").await;
    // A Service of this machine in place of one of a cluster network.
    kubectl(&cluster, &["delete", "service", "-n", "monitoring", "ksm-scale-operator-webhook"])
        .await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut volume = SecretVolume::new(dir.path());
    let first = mount(&cluster, &mut volume, b"").await;
    let folder = dir.path().to_string_lossy().into_owned();
    let flags = ["--webhook", "mounted", "--webhook-cert-dir", &folder, "--lame-duck", "0s"];
    let replica = webhooks.replica(&flags).await;

    let address = webhooks.balancer.address().to_string();
    let call = |connections| {
        Caller::start(cluster.client.clone(), &address, connections, 2, PAUSE, Duration::ZERO)
    };
    let (kept, fresh) = (call(Connections::KeptAlive).await, call(Connections::Fresh).await);
    let more = async |calls: u64| {
        let wanted = fresh.calls().answered() + calls;
        let met = eventually("more calls", SOON, || async {
            (fresh.calls().answered() >= wanted).then_some(())
        });
        met.await.unwrap_or_else(|error| panic!("{error}: {:?}", fresh.calls().failures()));
    };
    cluster.apply("x", json!({})).await;
    renew(&cluster).await;
    more(50).await;
    // The kubelet is late.
    mount(&cluster, &mut volume, &first).await;
    let renewals = "ksm_scale_operator_webhook_certificate_renewals_total{result=\"success\"}";
    let served = eventually("the new certificate is served", SOON, || async {
        (replica.operator.metric(renewals).await >= 2.0).then_some(())
    });
    served.await.expect("served");
    more(50).await;
    cluster.apply("x", json!({"nodesPerMonitor": 10})).await;
    let answered = kept.none_failed().await + fresh.none_failed().await;
    println!("{answered} calls, none failed");
}

/// Has cert-manager issue another certificate now, as `cmctl renew` does.
async fn renew(cluster: &Cluster) {
    let certificates = Api::<kube::api::DynamicObject>::namespaced_with(
        cluster.client.clone(),
        "monitoring",
        &kube::api::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(
            "cert-manager.io",
            "v1",
            "Certificate",
        )),
    );
    let condition = json!({"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "by a test"});
    let patch = serde_json::from_value(
        json!([{"op": "add", "path": "/status/conditions/-", "value": condition}]),
    );
    let patch = Patch::Json::<()>(patch.expect("a patch"));
    let params = PatchParams::default();
    certificates.patch_status(WEBHOOK_CERTIFICATE, &params, &patch).await.expect("renewed");
}

/// Brings the Secret to the folder, once it is another than `before`. Returns its certificate.
async fn mount(cluster: &Cluster, volume: &mut SecretVolume, before: &[u8]) -> Vec<u8> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "monitoring");
    let data = eventually("the certificate is issued", SOON, || async {
        let data = secrets.get_opt(WEBHOOK_CERTIFICATE_SECRET).await.ok()??.data?;
        data.get("tls.crt").is_some_and(|crt| crt.0 != before).then_some(data)
    });
    let data = data.await.expect("a Secret");
    let files: Vec<_> = data.iter().map(|(name, value)| (name.as_str(), &*value.0)).collect();
    volume.write(&files).expect("written");
    data["tls.crt"].0.clone()
}
