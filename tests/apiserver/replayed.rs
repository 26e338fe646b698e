//! The webhook before a CRD without any rules, so that it has to judge everything: the corpus, and
//! the cases of `tests/admission/`, by what a real API server makes of the answers.

use crate::{
    case::{Access, Case, Endpoint, cases},
    corpus::{bad, create, good},
    policies::with_schema,
    served::{causes, said, until_judged},
    support::*,
};
use devcluster::Balancer;
use jiff::Timestamp;
use ksm_scale_operator::{
    admission::Knowledge,
    allowed::Allowed,
    certificates::{Authority, LeafRequest, server_names},
    manifests,
    names::{OPERATOR_NAMESPACE, VALIDATING_WEBHOOK, WEBHOOK_SERVICE},
    readiness::Readiness,
    rules::Reason,
    server::BindAddress,
    validate::{Violation, defaulted, validate},
    webhook::{self, Limits, Metrics, Options, Server, Serving, TlsVersion},
};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Write,
    mem,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// A spec that no schema looks at.
fn unruled(schema: &mut Value) {
    let status = schema["properties"]["status"].take();
    let spec = json!({"x-kubernetes-preserve-unknown-fields": true});
    *schema = json!({"type": "object", "properties": {"spec": spec, "status": status}});
}

/// What the API server refuses whatever the schema says.
fn is_elementary(violation: &Violation) -> bool {
    violation.field == "metadata.name" && violation.reason != Reason::FieldValueTooLong
}

#[tokio::test]
async fn w1_w2_the_webhook_refuses_and_completes_the_corpus_as_the_rules_do() {
    let cluster = with_schema(unruled).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let _replica = webhooks.replica(&["--lame-duck", "0s"]).await;
    until_judged(&cluster, &json!({"nodesPerMonitor": 1})).await;
    let (mut differences, mut judged) = (String::new(), 0);
    for case in bad() {
        let here = validate(&case.object()).expect_err("a bad case").0;
        let status = create(&cluster.client, &case.object()).await.err();
        let same = match &status {
            None => false,
            Some(_) if here.iter().any(is_elementary) => true,
            Some(status) => {
                judged += 1;
                let texts: Vec<_> = here.iter().map(ToString::to_string).collect();
                let words = said(status).unwrap_or_default();
                status.code == 422
                    && causes(status) == texts
                    && texts.iter().all(|text| words.contains(text))
            }
        };
        if !same {
            let _ = writeln!(differences, "{}\n  here:  {here:?}\n  there: {status:?}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(judged > 70, "the webhook had to judge {judged} cases only");
    for case in good() {
        let there = create(&cluster.client, &case.object()).await;
        // Taking away nulls is the schema's work, which is not there.
        let there = there.map(|stored| without_nulls(&stored["spec"]));
        let here = defaulted(&case.object())["spec"].clone();
        if there.as_ref().ok() != Some(&here) {
            let _ = writeln!(differences, "{}\n  here:  {here}\n  there: {there:?}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

fn without_nulls(value: &Value) -> Value {
    let Value::Object(fields) = value else { return value.clone() };
    let fields = fields.iter().filter(|(_, value)| !value.is_null());
    fields.map(|(name, value)| (name.clone(), without_nulls(value))).collect()
}

/// The operator's server, answering from the knowledge that a case gives it.
struct Stage<'c> {
    cluster: &'c Cluster,
    balancer: Balancer,
    serving: Serving,
    knowledge: Arc<Mutex<Knowledge>>,
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

async fn config(kubeconfig: &Path) -> Config {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.expect("a configuration")
}

impl<'c> Stage<'c> {
    async fn set(cluster: &'c Cluster) -> Self {
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
        Self { cluster, balancer, serving, knowledge: Arc::default() }
    }

    /// Serves until the token is cancelled.
    async fn serve(&self, allowed: Allowed, mut config: Config) -> CancellationToken {
        config.default_retry = false;
        let serving = self.serving.clone();
        let knowledge = Arc::clone(&self.knowledge);
        let knowledge = Arc::new(move |_: &str, _: &str| knowledge.lock().ok().map(|k| k.clone()));
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
        self.balancer.add(address.await.expect("an address"));
        end
    }

    /// Somebody of these groups.
    async fn client(&self, user: &str, groups: &[&str]) -> Client {
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
struct Told {
    code: u16,
    body: Value,
    warnings: Vec<String>,
}

const KSMSCALES: &str = "/apis/monitor.example.com/v1alpha1/ksmscales";

async fn send(client: &Client, method: &str, path: &str, body: Option<&Value>) -> Told {
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

impl Case {
    /// Whether an API server sends this when somebody writes or deletes an object: there is no
    /// other way for them to say anything.
    fn is_of_objects(&self) -> bool {
        let authored = |changes: &Value| {
            let fields = changes.as_object().map(|fields| fields.keys().map(String::as_str));
            let of_metadata = changes["metadata"].as_object();
            let of_metadata = of_metadata.map(|fields| fields.keys().map(String::as_str));
            (changes.is_null()
                || fields.is_some_and(|mut f| f.all(|f| ["metadata", "spec"].contains(&f))))
                && of_metadata.is_none_or(|mut f| f.all(|f| ["labels", "annotations"].contains(&f)))
        };
        let by_hand = self.body.is_some() || self.replace.is_some() || !self.review.is_null();
        self.live || (!by_hand && authored(&self.object) && authored(&self.old_object))
    }

    /// Which server answers it: what is allowed there, and whether it may ask about requesters.
    fn server(&self) -> (String, String, bool) {
        let powerless = self.access == Some(Access::Failed);
        (self.allowed.namespaces.clone(), self.allowed.images.clone(), powerless)
    }

    /// Sends it for nobody to keep.
    async fn play(&self, stage: &Stage<'_>) -> Told {
        let admin = &stage.cluster.client;
        let (others, other) = (self.knowledge.others.len(), self.knowledge.others.first().cloned());
        *stage.knowledge.lock().expect("one at a time") =
            Knowledge { nodes: self.knowledge.nodes, others, other, pods: self.knowledge.pods };
        let user = if self.endpoint == Endpoint::Mutate { "mary" } else { "jane" };
        let may = if self.access == Some(Access::Granted) { "creators" } else { "others" };
        let client = stage.client(user, &["writers", may]).await;
        let mut object = self.new_object();
        let told = if self.operation == "CREATE" {
            send(&client, "POST", "?dryRun=All", Some(&object)).await
        } else {
            let old = self.store(admin).await;
            if self.operation == "UPDATE" {
                object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
                object["metadata"]["uid"] = old["metadata"]["uid"].clone();
                object["metadata"]["finalizers"] = old["metadata"]["finalizers"].clone();
                send(&client, "PUT", "/case?dryRun=All", Some(&object)).await
            } else if self.review.is_null() {
                send(&client, "DELETE", "/case?dryRun=All", None).await
            } else {
                send(&client, "DELETE", "?dryRun=All", None).await
            }
        };
        if self.operation != "CREATE" {
            send(admin, "DELETE", "/case", None).await;
            let mut left = send(admin, "GET", "/case", None).await;
            if left.code == 200 {
                left.body["metadata"]["finalizers"] = Value::Null;
                left = send(admin, "PUT", "/case", Some(&left.body)).await;
            }
            assert!([200, 404].contains(&left.code), "{}: {left:?}", self.name);
        }
        told
    }

    /// Stores the object as it was.
    async fn store(&self, admin: &Client) -> Value {
        let mut old = self.previous_object();
        let is_deleting = !old["metadata"]["deletionTimestamp"].is_null();
        if is_deleting {
            old["metadata"]["finalizers"] = json!(["example.com/kept"]);
        }
        let stored = send(admin, "POST", "", Some(&old)).await;
        assert_eq!(stored.code, 201, "{}: {stored:?}", self.name);
        if is_deleting {
            send(admin, "DELETE", "/case", None).await;
        }
        send(admin, "GET", "/case", None).await.body
    }

    /// What is not as the case expects it.
    fn differs(&self, told: &Told) -> Option<String> {
        let expected = &self.expect;
        let refused = expected.code.is_some();
        let code = expected.code.map_or((200..300).contains(&told.code), |code| code == told.code);
        let reason = match expected.code {
            Some(422) => json!("Invalid"),
            Some(403) => json!("Forbidden"),
            Some(500) => json!("InternalError"),
            _ => Value::Null,
        };
        let message = told.body["message"].as_str().unwrap_or_default();
        let start = match (refused, expected.verdict.as_str()) {
            (true, "denied") => {
                format!("admission webhook {VALIDATING_WEBHOOK:?} denied the request: ")
            }
            (true, _) => format!(
                "Internal error occurred: failed calling webhook {VALIDATING_WEBHOOK:?}: failed to call webhook: "
            ),
            (false, _) => String::new(),
        };
        // A cluster gives other reasons than the case made up.
        let real = |text: &String| text.replace(" (no reason)", "").replace("no answer", "");
        let mut rest = message.strip_prefix(&start);
        for part in expected.message.iter().map(real) {
            rest = rest.and_then(|rest| Some(rest.split_once(&part)?.1));
        }
        let causes = told.body["details"]["causes"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let causes = causes.map(|c| format!("{}: {}", text(&c["field"]), text(&c["message"])));
        let by_webhook = expected.verdict == "denied";
        let wanted: Vec<_> = expected.causes.iter().map(real).collect();
        let same = code
            && (!refused || told.body["reason"] == reason)
            && (!refused || rest.is_some())
            && (!by_webhook || causes.eq(wanted))
            && told.warnings == expected.warnings
            && (refused || self.operation == "DELETE" || told.body["spec"] == self.completed());
        (!same).then(|| format!("{}: {told:#?}", self.name))
    }

    /// The spec as it is to be stored.
    fn completed(&self) -> Value {
        let mut object = self.new_object();
        for add in &self.expect.adds {
            let (at, value) = add.split_once(": ").expect("path and value");
            let value: Value = serde_json::from_str(value).expect("JSON");
            let add = json!([{"op": "add", "path": at, "value": value}]);
            let add: json_patch::Patch = serde_json::from_value(add).expect("a patch");
            json_patch::patch(&mut object, &add).expect("it fits");
        }
        object["spec"].take()
    }
}

#[tokio::test]
async fn w1_w3_w4_w5_w6_r68_the_api_server_understands_every_answer_as_the_cases_expect() {
    let cluster = with_schema(unruled).await;
    let stage = Stage::set(&cluster).await;
    let mut servers: BTreeMap<_, Vec<Case>> = BTreeMap::new();
    for case in cases().into_iter().filter(Case::is_of_objects) {
        servers.entry(case.server()).or_default().push(case);
    }
    let (mut wrong, mut replayed, mut end) = (Vec::new(), 0, CancellationToken::new());
    for ((namespaces, images, powerless), cases) in servers {
        mem::take(&mut end).cancel();
        let account = if powerless { "powerless" } else { "ksm-scale-operator" };
        let kubeconfig = cluster.plane.service_account_kubeconfig("monitoring", account).await;
        let allowed = Allowed {
            namespaces: vec![namespaces.parse().expect("a pattern")],
            images: vec![images.parse().expect("a pattern")],
        };
        end = stage.serve(allowed, config(&kubeconfig.expect("a token")).await).await;
        let jane = stage.client("jane", &["writers"]).await;
        let probe = json!({"apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale", "metadata": {"name": "probe"}, "spec": {"nodesPerMonitor": 1}});
        eventually("the server is asked", SOON, || async {
            let told = send(&jane, "POST", "?dryRun=All", Some(&probe)).await;
            (told.code == 422).then_some(())
        })
        .await
        .expect("a server that is asked");
        for case in cases {
            let told = case.play(&stage).await;
            wrong.extend(case.differs(&told));
            replayed += 1;
        }
    }
    end.cancel();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(replayed >= 60, "{replayed} cases were replayed");
}
