//! The webhook's certificate by the real cert-manager, from the files in `certs/`.

use crate::support::*;
use base64::prelude::{BASE64_STANDARD, Engine};
use devcluster::{Level, SecretVolume};
use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    core::v1::Secret,
};
use ksm_scale_operator::{
    certificates::{
        pair::{certificates, provider},
        trust::Configures,
    },
    names::{
        CERT_MANAGER_CA, VALIDATING_WEBHOOK, WEBHOOK_CERTIFICATE, WEBHOOK_CERTIFICATE_SECRET,
        WEBHOOK_CONFIGURATION, webhook_server_name,
    },
    readiness::Readiness,
    telemetry::certificate_metrics::CertificateMetrics,
    webhook::{Serving, mounted, trust},
};
use kube::{Api, Client};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::CertificateDer};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

const CONFIGURATIONS: &str = r"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata:
  name: ksm-scale-operator
  annotations: {cert-manager.io/inject-ca-from: monitoring/ksm-scale-operator-webhook}
webhooks:
- name: mutate.ksmscales.monitor.example.com
  clientConfig: {service: {name: ksm-scale-operator-webhook, namespace: monitoring, path: /mutate}}
  rules: [{apiGroups: [monitor.example.com], apiVersions: [v1alpha1], resources: [ksmscales], operations: [CREATE]}]
  sideEffects: None
  admissionReviewVersions: [v1]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata:
  name: ksm-scale-operator
  annotations: {cert-manager.io/inject-ca-from: monitoring/ksm-scale-operator-webhook}
webhooks:
- name: validate.ksmscales.monitor.example.com
  clientConfig: {service: {name: ksm-scale-operator-webhook, namespace: monitoring, path: /validate}}
  rules: [{apiGroups: [monitor.example.com], apiVersions: [v1alpha1], resources: [ksmscales], operations: [CREATE]}]
  sideEffects: None
  admissionReviewVersions: [v1]
";

/// A replica in cert-manager mode, as far as certificates go: it serves TLS, and nothing else.
struct Replica {
    cluster: Cluster,
    address: SocketAddr,
    readiness: Readiness,
    serving: Serving,
    volume: SecretVolume,
    stop: CancellationToken,
    _dir: TempDir,
}

impl Replica {
    async fn start() -> Self {
        let cluster = Cluster::whole(Level::ApiServer).await;
        cluster.plane.start_cert_manager().await.expect("cert-manager");
        apply_yaml(&cluster.client, CONFIGURATIONS).await;
        let dir = tempfile::tempdir().expect("a directory");
        let (serving, readiness) = (Serving::default(), Readiness::default());
        let stop = CancellationToken::new();
        tokio::spawn(mounted::run(
            dir.path().to_owned(),
            webhook_server_name(),
            serving.clone(),
            clock,
            &readiness,
            CertificateMetrics::default(),
            stop.clone(),
        ));
        tokio::spawn(trust::run(
            cluster.client.clone(),
            serving.clone(),
            "see the cainjector",
            clock,
            &readiness,
            CertificateMetrics::default(),
            stop.clone(),
        ));
        let (address, _) = serve(serving.clone(), stop.clone()).await;
        let volume = SecretVolume::new(dir.path());
        Self { cluster, address, readiness, serving, volume, stop, _dir: dir }
    }

    /// kubectl, which has to succeed.
    async fn kubectl(&self, args: &[&str]) {
        let output = self.cluster.plane.kubectl().args(args).output().await.expect("kubectl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn until<T>(&self, what: &str, condition: impl AsyncFn() -> Option<T>) -> T {
        // Five programs are at work beside the API server.
        let met = eventually(what, 3 * SOON, || condition()).await;
        met.unwrap_or_else(|error| panic!("{error}; {:?}", self.readiness.check()))
    }

    async fn until_ready(&self) {
        self.until("the replica is ready", async || self.readiness.check().ok()).await;
    }

    async fn secret(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let secrets: Api<Secret> = Api::namespaced(self.cluster.client.clone(), "monitoring");
        let data = secrets.get_opt(name).await.expect("an answer")?.data?;
        Some(data.into_iter().map(|(name, value)| (name, value.0)).collect())
    }

    /// Has cert-manager renew a Certificate now. Returns its Secret before and after.
    async fn renew(&self, certificate: &str, secret: &str) -> [BTreeMap<String, Vec<u8>>; 2] {
        let before = self.secret(secret).await.expect("a Secret");
        let condition = r#"[{"op": "add", "path": "/status/conditions/-", "value": {"type": "Issuing",
            "status": "True", "reason": "ManuallyTriggered", "message": "by a test"}}]"#;
        let what = ["-n", "monitoring", "patch", "certificate", certificate];
        let how = ["--subresource=status", "--type=json", "-p", condition];
        self.kubectl(&[&what[..], &how].concat()).await;
        let after = self
            .until("the Secret is renewed", async || {
                self.secret(secret).await.filter(|now| now["tls.crt"] != before["tls.crt"])
            })
            .await;
        [before, after]
    }

    /// Brings the Secret into the mounted directory, and waits until it is served.
    async fn mount(&mut self) {
        let secret = self.secret(WEBHOOK_CERTIFICATE_SECRET).await.expect("a Secret");
        let files: Vec<_> = secret.iter().map(|(name, content)| (&**name, &**content)).collect();
        self.volume.write(&files).expect("written");
        let leaf = certificates(&secret["tls.crt"], "leaf").expect("PEM").remove(0);
        self.until("the leaf is served", async || {
            (*self.serving.current()?.leaf() == leaf).then_some(())
        })
        .await;
    }

    /// The kubelet is late: many calls come in before it brings the Secret, and after.
    async fn mount_late(&mut self, caller: &Caller) {
        self.until_calls(caller, 50).await;
        self.mount().await;
        self.until_calls(caller, 50).await;
        self.until_ready().await;
    }

    /// Has a client in Go connect, which verifies as the API server does: with the live bundle of the
    /// validating webhook. Returns how many handshakes it finished, and what it says.
    async fn met_by_go(&self) -> (usize, String) {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.cluster.client.clone());
        let configuration = api.get(WEBHOOK_CONFIGURATION).await.expect("a configuration");
        let bundle = self.cluster.plane.dir().join("bundle.pem");
        std::fs::write(&bundle, &configuration.webhooks()[0].bundle).expect("written");
        let (address, handshakes) = serve(self.serving.clone(), self.stop.clone()).await;
        let mut kubectl = self.cluster.plane.kubectl();
        kubectl.args(["get", "--raw", "/", "--server", &format!("https://{address}")]);
        kubectl.args(["--tls-server-name", &webhook_server_name(), "--certificate-authority"]);
        let output = kubectl.arg(bundle).output().await.expect("kubectl runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (handshakes.load(Ordering::SeqCst), said)
    }

    async fn until_calls(&self, caller: &Caller, more: usize) {
        let wanted = caller.calls.load(Ordering::SeqCst) + more;
        self.until("more calls", async || {
            (caller.calls.load(Ordering::SeqCst) >= wanted).then_some(())
        })
        .await;
    }

    /// Both live bundles, once each holds exactly these certificates.
    async fn until_bundles_are(&self, cas: &[&CertificateDer<'static>]) {
        self.until("the caBundles hold the CAs and no others", async || {
            let bundles = bundles(&self.cluster.client).await;
            let holds = |bundle: &Vec<CertificateDer<'static>>| {
                bundle.len() == cas.len() && cas.iter().all(|ca| bundle.contains(ca))
            };
            (bundles.len() == 2 && bundles.iter().all(holds)).then_some(())
        })
        .await;
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates of the real cert-manager are of now")]
fn clock() -> Timestamp {
    Timestamp::now()
}

/// Accepts connections, shakes hands and ends them. Counts the handshakes that the client finished,
/// which it does only with a certificate that it has verified.
async fn serve(serving: Serving, stop: CancellationToken) -> (SocketAddr, Arc<AtomicUsize>) {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(serving));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let handshakes = Arc::<AtomicUsize>::default();
    let finished = handshakes.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        while let Ok((connection, _)) = listener.accept().await {
            if acceptor.accept(connection).await.is_ok() {
                finished.fetch_add(1, Ordering::SeqCst);
            }
        }
    }));
    (address, handshakes)
}

/// The certificates in the `caBundle` of each webhook, as of now.
async fn bundles(client: &Client) -> Vec<Vec<CertificateDer<'static>>> {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let mutating = mutating.get(WEBHOOK_CONFIGURATION).await.expect("a configuration").webhooks();
    let validating = validating.get(WEBHOOK_CONFIGURATION).await.expect("one").webhooks();
    let webhooks = mutating.into_iter().chain(validating);
    webhooks.filter_map(|webhook| certificates(&webhook.bundle, "bundle").ok()).collect()
}

/// Calls the replica all the time as the API server does: a new connection, verified by the live
/// bundle of each webhook.
struct Caller {
    calls: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Caller {
    fn start(client: Client, address: SocketAddr) -> Self {
        let (calls, failures) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (counted, told) = (calls.clone(), failures.clone());
        let task = tokio::spawn(async move {
            loop {
                for bundle in bundles(&client).await {
                    if let Err(error) = call(address, bundle).await {
                        told.lock().expect("no panic").push(error.to_string());
                    }
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { calls, failures, task }
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no panic").clone()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn call(address: SocketAddr, bundle: Vec<CertificateDer<'static>>) -> std::io::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(bundle);
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = webhook_server_name().try_into().expect("a name");
    let connection = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(name, connection).await.map(drop)
}

/// Fault 12: a Secret is renewed, and the kubelet brings it late.
#[tokio::test]
async fn t1_w7_no_call_fails_while_cert_manager_renews_leaf_and_ca_and_the_kubelet_is_late() {
    let mut replica = Replica::start().await;
    let text = replica.readiness.check().expect_err("nothing is mounted");
    assert!(text.contains("the webhook's certificate"), "{text}");
    replica.kubectl(&["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/certs")]).await;
    let leaf = format!("certificate/{WEBHOOK_CERTIFICATE}");
    let ready = ["wait", "--for=condition=Ready", "--timeout=5m", "-n", "monitoring", &leaf];
    replica.kubectl(&ready).await;
    replica.mount().await;
    replica.until_ready().await;
    let caller = Caller::start(replica.cluster.client.clone(), replica.address);

    let ca = |secret: &BTreeMap<String, Vec<u8>>, file: &str| {
        certificates(&secret[file], "CA").expect("PEM").remove(0)
    };
    let first = ca(&replica.secret(CERT_MANAGER_CA).await.expect("a Secret"), "tls.crt");
    for _ in 0..2 {
        let [before, after] = replica.renew(WEBHOOK_CERTIFICATE, WEBHOOK_CERTIFICATE_SECRET).await;
        assert_ne!(before["tls.key"], after["tls.key"], "every leaf has a key of its own");
        assert_eq!(before["ca.crt"], after["ca.crt"]);
        replica.mount_late(&caller).await;
    }
    replica.until_bundles_are(&[&first]).await;

    // The CA is renewed: the same key, so that what it signed before is verified by either.
    let [before, after] = replica.renew(CERT_MANAGER_CA, CERT_MANAGER_CA).await;
    assert_eq!(before["tls.key"], after["tls.key"]);
    let second = ca(&after, "tls.crt");
    replica.until_calls(&caller, 20).await;
    let [_, leaf] = replica.renew(WEBHOOK_CERTIFICATE, WEBHOOK_CERTIFICATE_SECRET).await;
    assert_eq!(ca(&leaf, "ca.crt"), second);
    replica.until_bundles_are(&[&first, &second]).await;
    replica.mount_late(&caller).await;

    // The CA gets another key: the bundle holds old and new before the kubelet brings the leaf.
    let always = r#"{"spec": {"privateKey": {"rotationPolicy": "Always"}}}"#;
    let certificate = ["patch", "certificate", CERT_MANAGER_CA, "-n", "monitoring"];
    replica.kubectl(&[&certificate[..], &["--type=merge", "-p", always]].concat()).await;
    let [before, after] = replica.renew(CERT_MANAGER_CA, CERT_MANAGER_CA).await;
    assert_ne!(before["tls.key"], after["tls.key"]);
    let third = ca(&after, "tls.crt");
    replica.renew(WEBHOOK_CERTIFICATE, WEBHOOK_CERTIFICATE_SECRET).await;
    replica.until_bundles_are(&[&first, &second, &third]).await;
    replica.mount_late(&caller).await;
    assert_eq!(caller.failures(), [""; 0]);
    // The handshake is all there is, so that what follows is an error of whatever words.
    let (handshakes, said) = replica.met_by_go().await;
    assert!(handshakes > 0, "{said}");

    w7_the_replica_is_ready_only_while_every_live_bundle_verifies_what_it_serves(&replica, &caller)
        .await;
}

async fn w7_the_replica_is_ready_only_while_every_live_bundle_verifies_what_it_serves(
    replica: &Replica,
    caller: &Caller,
) {
    let kind = "validatingwebhookconfiguration";
    let annotate = ["annotate", kind, WEBHOOK_CONFIGURATION, "--overwrite"];
    let nobody = ["cert-manager.io/inject-ca-from-"];
    replica.kubectl(&[&annotate[..], &nobody].concat()).await;
    let stranger = BASE64_STANDARD.encode(replica.cluster.plane.ca_pem().expect("a CA"));
    let bundle = "/webhooks/0/clientConfig/caBundle";
    let patch = format!(r#"[{{"op": "replace", "path": "{bundle}", "value": "{stranger}"}}]"#);
    let patched = ["patch", kind, WEBHOOK_CONFIGURATION, "--type=json", "-p", &patch];
    replica
        .until("readiness names the webhook whose bundle is not ours", async || {
            // Again and again: the cainjector may have been at work when its annotation went.
            replica.kubectl(&patched).await;
            let text = replica.readiness.check().err()?;
            let cause = format!("caBundle of webhook {VALIDATING_WEBHOOK} does not verify");
            (text.contains(&cause) && text.contains("see the cainjector")).then_some(())
        })
        .await;
    let noticed = async || (!caller.failures().is_empty()).then_some(());
    replica.until("the caller notices what the replica notices", noticed).await;
    let (handshakes, said) = replica.met_by_go().await;
    assert!(handshakes == 0 && said.contains("x509: "), "{handshakes} handshakes: {said}");
    let ours = [&*format!("cert-manager.io/inject-ca-from=monitoring/{WEBHOOK_CERTIFICATE}")];
    replica.kubectl(&[&annotate[..], &ours].concat()).await;
    replica.until_ready().await;
}
