//! The operator's server behind the shipped configurations, for requests of made-up users.

use crate::support::*;
use devcluster::Balancer;
use jiff::Timestamp;
use ksm_scale_operator::{
    admission::{Knowledge, Need},
    allowed::Allowed,
    certificates::{Authority, LeafRequest, server_names},
    manifests,
    names::{OPERATOR_NAMESPACE, WEBHOOK_SERVICE},
    readiness::Readiness,
    server::BindAddress,
    webhook::{self, Limits, Metrics, Options, Server, Serving, TlsVersion},
};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The operator's server, answering from the knowledge that a case gives it.
pub struct Stage<'c> {
    pub cluster: &'c Cluster,
    balancer: Balancer,
    /// Who is called.
    server: Mutex<Option<SocketAddr>>,
    serving: Serving,
    pub knowledge: Arc<Mutex<Knowledge>>,
}

/// Whoever sets the stage is not judged: only jane is, and only mary's objects are completed.
const USERS: [(&str, &str); 2] = [("Validating", "jane"), ("Mutating", "mary")];

/// They may write KSMScales, and create pods if they are of the group `creators`.
const RIGHTS: &str = "
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: creators}, rules: [{apiGroups: [''], resources: [pods], verbs: [create]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: creators}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: creators}, subjects: [{kind: Group, name: creators, apiGroup: rbac.authorization.k8s.io}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: writers}, rules: [{apiGroups: [monitor.example.com], resources: [ksmscales], verbs: ['*']}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: writers}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: writers}, subjects: [{kind: Group, name: writers, apiGroup: rbac.authorization.k8s.io}]}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: powerless, namespace: monitoring}}
";

pub async fn config(kubeconfig: &Path) -> Config {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.expect("a configuration")
}

impl<'c> Stage<'c> {
    pub async fn set(cluster: &'c Cluster) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an API server compares it with its clock")]
        let (now, life) = (Timestamp::now(), Duration::from_hours(1));
        let authority = Authority::generate(1, now, life).expect("a CA");
        let names = server_names(WEBHOOK_SERVICE, OPERATOR_NAMESPACE);
        let request = LeafRequest { names, life, jitter: 0 };
        let serving = Serving::default();
        serving.swap(authority.issue(&request, now).expect("a leaf").pair);
        let balancer = Balancer::start(Duration::ZERO).await.expect("a balancer");
        let port = balancer.address().port();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": WEBHOOK_SERVICE, "namespace": OPERATOR_NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        });
        apply_yaml(&cluster.client, &service.to_string()).await;
        apply_yaml(&cluster.client, RIGHTS).await;
        for manifest in manifests::webhooks().expect("manifests") {
            let mut configuration: Value = serde_saphyr::from_str(&manifest.text).expect("YAML");
            let kind = configuration["kind"].to_string();
            let (_, user) = USERS.iter().find(|(of, _)| kind.contains(of)).expect("a user");
            let webhook = &mut configuration["webhooks"][0];
            webhook["clientConfig"]["service"]["port"] = json!(port);
            let bundle = authority.certificate.pem();
            webhook["clientConfig"]["caBundle"] = json!(base64(&bundle));
            let only = format!("request.userInfo.username == '{user}'");
            let conditions = webhook["matchConditions"].as_array_mut().expect("conditions");
            conditions.push(json!({"name": "only-one", "expression": only}));
            apply_yaml(&cluster.client, &configuration.to_string()).await;
        }
        let server = Mutex::default();
        Self { cluster, balancer, server, serving, knowledge: Arc::default() }
    }

    /// Serves until the token is cancelled.
    pub async fn serve(&self, allowed: Allowed, mut config: Config) -> CancellationToken {
        config.default_retry = false;
        let serving = self.serving.clone();
        let knowledge = Arc::clone(&self.knowledge);
        let knowledge = Arc::new(move |_: Need<'_>| knowledge.lock().ok().map(|k| k.clone()));
        let options = Options {
            min_tls_version: TlsVersion::V1_3,
            client_ca: None,
            client_names: Vec::new(),
            lame_duck: Duration::ZERO,
            limits: Limits::default(),
        };
        let (end, ready) = (CancellationToken::new(), Readiness::default());
        let (stop, ready) = (end.clone(), ready.require("the webhook"));
        let (bound, address) = oneshot::channel();
        let serve = async move {
            let address: BindAddress = "127.0.0.1:0".parse().expect("an address");
            let listener = address.bind().expect("a port");
            bound.send(listener.local_addr().expect("an address")).expect("somebody waits");
            let client = Client::try_from(config).expect("a client");
            let metrics = Metrics::default();
            let server = Server { serving, options, knowledge, allowed, client, metrics };
            server.serve(listener, ready, stop.clone(), stop).await.expect("it serves");
        };
        drop(webhook::spawn(serve).expect("a thread"));
        let address = address.await.expect("an address");
        self.balancer.add(address);
        // Nobody is there any more, for whom a new connection could be meant.
        if let Some(before) = self.server.lock().expect("one at a time").replace(address) {
            self.balancer.withdraw(before);
        }
        end
    }

    /// Somebody of these groups.
    pub async fn client(&self, user: &str, groups: &[&str]) -> Client {
        let mut config = config(self.cluster.plane.kubeconfig()).await;
        config.auth_info.impersonate = Some(user.to_owned());
        let groups = groups.iter().map(|&group| group.to_owned());
        config.auth_info.impersonate_groups = Some(groups.collect());
        Client::try_from(config).expect("a client")
    }
}

fn base64(text: &str) -> String {
    use ::base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(text)
}

/// What a user gets.
#[derive(Debug)]
pub struct Told {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

const KSMSCALES: &str = "/apis/monitor.example.com/v1alpha1/ksmscales";

pub async fn send(client: &Client, method: &str, path: &str, body: Option<&Value>) -> Told {
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = hyper::Request::builder().method(method).uri(format!("{KSMSCALES}{path}"));
    let request = request.header("content-type", "application/json").body(Body::from(body));
    let answer = client.send(request.expect("a request")).await.expect("an answer");
    let code = answer.status().as_u16();
    let headers = answer.headers().get_all("warning").iter();
    let warnings = headers.map(|header| warning(header.as_bytes())).collect();
    let body = answer.into_body().collect_bytes().await.expect("a body");
    Told { code, body: serde_json::from_slice(&body).expect("JSON"), warnings }
}

/// The text of `299 - "text"`.
fn warning(header: &[u8]) -> String {
    let header = String::from_utf8(header.to_vec()).expect("text");
    let quoted = header.strip_prefix("299 - \"").and_then(|rest| rest.strip_suffix('"'));
    quoted.expect("a warning").replace("\\\"", "\"").replace("\\\\", "\\")
}
