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

/// Certificates that were taken from the mounted files.
const SWAPS: &str = "ksm_scale_operator_webhook_certificate_renewals_total{result=\"success\"}";

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

/// Fault 12: cert-manager renews the certificate, and the kubelet brings it so late.
async fn cert_manager_renews(times: usize, late: Duration, calls: u64) {
    let cluster = Cluster::start(20).await;
    cluster.plane.start_cert_manager().await.expect("cert-manager");
    apply_overlay(&cluster, "cert-manager").await;
    // A Service of this machine in place of one of a cluster network.
    kubectl(&cluster, &["delete", "service", "-n", "monitoring", "ksm-scale-operator-webhook"])
        .await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut volume = SecretVolume::new(dir.path());
    let mut mounted = mount(&cluster, &mut volume, b"").await;
    let folder = dir.path().to_string_lossy().into_owned();
    let flags = ["--webhook", "mounted", "--webhook-cert-dir", &folder, "--lame-duck", "0s"];
    let replica = webhooks.replica(&flags).await;
    until_called(&cluster).await;
    let load = Load::start(&webhooks, &[Duration::ZERO]).await;
    for _ in 0..times {
        let swaps = replica.operator.metric(SWAPS).await;
        renew(&cluster).await;
        load.more(100).await;
        tokio::time::sleep(late).await;
        mounted = mount(&cluster, &mut volume, &mounted).await;
        let served = eventually("the new certificate is served", SOON, || async {
            (replica.operator.metric(SWAPS).await > swaps).then_some(())
        });
        served.await.expect("served");
        load.more(100).await;
    }
    load.until(calls).await;
    load.none_failed(&format!("{times} renewals by cert-manager, mounted {late:?} late")).await;
}

#[tokio::test]
async fn t1_w7_cert_manager_renews_the_certificate_of_the_shipped_overlay_without_a_failed_call() {
    cert_manager_renews(1, Duration::ZERO, 1_000).await;
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn t1_w7_soak_cert_manager_renews_and_the_kubelet_is_late_without_a_failed_call() {
    cert_manager_renews(5, Duration::from_secs(80), 50_000).await;
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
    // Five programs are at work beside the API server.
    let data = eventually("the certificate is issued", 3 * SOON, || async {
        let data = secrets.get_opt(WEBHOOK_CERTIFICATE_SECRET).await.ok()??.data?;
        data.get("tls.crt").is_some_and(|crt| crt.0 != before).then_some(data)
    });
    let data = data.await.expect("a Secret");
    let files: Vec<_> = data.iter().map(|(name, value)| (name.as_str(), &*value.0)).collect();
    volume.write(&files).expect("written");
    data["tls.crt"].0.clone()
}
