//! What the operator's process tells while it works: a collector gets its spans, and each log line of
//! a reconcile says which one it is of.

use crate::{
    served::{STRICT, until_judged},
    support::*,
};
use devcluster::{Fault, FaultProxy, SeenRequest};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{ResourceSpans, Span},
};
use prost::Message as _;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};

/// Takes traces as a collector does.
struct Collector {
    url: String,
    got: Arc<Mutex<Vec<ResourceSpans>>>,
    task: JoinHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let got = Arc::<Mutex<Vec<ResourceSpans>>>::default();
        let taken = Arc::clone(&got);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let taken = Arc::clone(&taken);
                let serve = service_fn(move |request| take(request, Arc::clone(&taken)));
                // Whoever goes away in the middle is no fault of a collector.
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), serve);
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        Self { url, got, task }
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().expect("no panic");
        let scopes = got.iter().flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(
    request: Request<Incoming>,
    taken: Arc<Mutex<Vec<ResourceSpans>>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let body = request.into_body().collect().await?.to_bytes();
    let spans = ExportTraceServiceRequest::decode(body).expect("OTLP").resource_spans;
    taken.lock().expect("no panic").extend(spans);
    Ok(Response::new(Full::default()))
}

/// Attributes as text.
fn attributes(all: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |value: &KeyValue| match value.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    all.iter().map(|attribute| (&*attribute.key, text(attribute))).collect()
}

/// The lines of a log, each of which is JSON.
fn lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Ids of the reconciles that a log tells of as ended.
fn ended(lines: &[Value]) -> BTreeSet<String> {
    let last = ["done", "failed, it is tried again", "ended: it may be another replica's"];
    let of_end = |line: &&Value| last.iter().any(|message| line["message"] == *message);
    lines.iter().filter(of_end).map(|line| line["span"]["reconcile_id"].to_string()).collect()
}

const JSON: [&str; 2] = ["--log-format", "json"];

/// The API server hears of the one configuration and of the other, and goes on without the mutating one.
async fn until_both_are_called(cluster: &Cluster, replica: &Replica) {
    let mutated = "ksm_scale_operator_webhook_requests_total{endpoint=\"mutate\",operation=\"CREATE\",verdict=\"allowed\",code=\"200\"}";
    eventually("both webhooks are called", SOON, || async {
        until_judged(cluster, &json!({"namespace": "kube-system"})).await;
        (replica.operator.metric(mutated).await > 0.0).then_some(())
    })
    .await
    .expect("calls");
}

/// The whole log of an operator, when it has ended well.
async fn whole_log(operator: Operator) -> Vec<Value> {
    let log = operator.log_path();
    let status = operator.terminate().await;
    assert!(status.success(), "{status}");
    lines(&std::fs::read_to_string(log).expect("its log"))
}

#[tokio::test]
async fn o7_a_collector_gets_a_span_of_every_reconcile_and_request_by_the_time_the_process_ends() {
    let collector = Collector::start().await;
    let cluster = Cluster::start(4).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let args = [&STRICT[..], &JSON, &["--otlp-endpoint", &collector.url]].concat();
    let replica = webhooks.replica(&args).await;
    until_both_are_called(&cluster, &replica).await;
    cluster.apply("x", json!({})).await;
    cluster.until_settled("x").await;
    let (name, log) = (replica.operator.name().to_owned(), replica.operator.log_path());
    webhooks.retire(replica).await;
    let lines = lines(&std::fs::read_to_string(log).expect("its log"));

    let spans = collector.spans();
    let of = |name: &str| -> Vec<&Span> { spans.iter().filter(|span| span.name == name).collect() };
    let reconciles = of("reconcile");
    let id = |span: &&Span| attributes(&span.attributes)["reconcile_id"].clone();
    let ids: BTreeSet<_> = reconciles.iter().map(id).collect();
    assert_eq!(ids, ended(&lines), "as in the log");
    assert_eq!(ids.len(), reconciles.len(), "each once");
    assert!(reconciles.iter().all(|s| attributes(&s.attributes)["ksmscale"] == "x"));
    assert!(reconciles.iter().all(|span| span.parent_span_id.is_empty()), "nothing is above them");
    // Or broken off, because a busy machine renewed its Lease late.
    let failed = |id: &str| {
        let is_of = |line: &&Value| line["span"]["reconcile_id"].to_string().as_str() == id;
        !lines.iter().filter(is_of).any(|line| line["message"] == "done")
    };
    let whole: BTreeSet<_> =
        ["observe", "plan", "prove", "audit", "apply", "publish"].into_iter().collect();
    for reconcile in &reconciles {
        let parts = spans.iter().filter(|span| span.parent_span_id == reconcile.span_id);
        let names: BTreeSet<_> = parts.clone().map(|span| &*span.name).collect();
        assert!(names == whole || failed(&id(reconcile)), "{names:?} of {}", id(reconcile));
        assert!(parts.clone().all(|part| part.trace_id == reconcile.trace_id));
    }
    assert!(!reconciles.is_empty());
    let requests = of("webhook");
    let told: BTreeSet<_> = requests
        .iter()
        .map(|span| attributes(&span.attributes))
        .map(|all| ["webhook", "operation", "ksmscale", "verdict"].map(|key| all[key].clone()))
        .collect();
    for expected in [
        ["mutate", "CREATE", "x", "allowed"],
        ["validate", "CREATE", "x", "allowed"],
        ["validate", "CREATE", "probe", "denied"],
    ] {
        assert!(told.contains(&expected.map(str::to_owned)), "{told:?}");
    }
    let got = collector.got.lock().expect("no panic");
    for resource in got.iter().map(|spans| spans.resource.as_ref().expect("a resource")) {
        let all = attributes(&resource.attributes);
        assert_eq!(all["service.name"], "ksm-scale-operator");
        assert_eq!(all["k8s.pod.name"], name);
        assert_eq!(all["k8s.namespace.name"], "monitoring");
    }
}

/// It takes connections and nothing else.
#[tokio::test]
async fn o7_a_collector_that_does_not_answer_delays_neither_the_work_nor_the_end() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let cluster = Cluster::start(4).await;
    let operator = cluster.operator_with(&[&JSON[..], &["--otlp-endpoint", &url]].concat()).await;
    cluster.apply("x", json!({})).await;
    cluster.until_settled("x").await;
    eventually("it is told that traces get lost", SOON, || async {
        let lost = "the collector does not take traces, they are dropped";
        operator.log().contains(lost).then_some(())
    })
    .await
    .expect("a line in the log");
    cluster.apply("x", json!({"sharding": {"enabled": true, "shardCount": 2}})).await;
    cluster.until_settled("x").await;
    let status = operator.terminate().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn o7_every_log_line_of_a_reconcile_says_which_one_it_is_of() {
    let cluster = Cluster::start(4).await;
    // With the libraries' lines too: their spans must not come between.
    let filter = ["--log-filter", "info,ksm_scale_operator=debug,kube=debug"];
    let operator = cluster.operator_with(&[&JSON[..], &filter[..]].concat()).await;
    cluster.apply("x", json!({})).await;
    cluster.until_settled("x").await;
    cluster.apply("x", json!({"sharding": {"enabled": true, "shardCount": 3}})).await;
    cluster.until_settled("x").await;
    cluster.apply("x", json!({"namespace": "nowhere"})).await;
    cluster.until("the namespace is missed", "x", |s| condition(s, "Degraded").0 == "True").await;
    let lines = whole_log(operator).await;
    let ids = ended(&lines);
    assert!(ids.len() >= 3 && !ids.contains("null"), "{ids:?}");
    // Watches and the loop around reconciles are of none.
    let outside = ["ksm_scale_operator::controller::watches"];
    let of_reconciles: Vec<_> = lines
        .iter()
        .filter(|line| {
            let target = line["target"].as_str().unwrap_or_default();
            target.starts_with("ksm_scale_operator::controller")
                && !outside.contains(&target)
                && line["message"] != "controller"
        })
        .collect();
    for line in &of_reconciles {
        let span = &line["span"];
        assert_eq!(
            (&span["name"], &span["ksmscale"]),
            (&json!("reconcile"), &json!("x")),
            "{line}"
        );
        assert!(span["reconcile_id"].is_u64(), "{line}");
    }
    let applied = of_reconciles.iter().filter(|line| line["message"] == "applied").count();
    assert!(applied > 4, "{applied} changes");
    let mut libraries = lines.iter().filter(|line| line["message"] == "requesting");
    assert!(libraries.any(|line| line["span"]["reconcile_id"].is_u64()), "a call is a line of it");
}

#[tokio::test]
async fn o7_a_filter_takes_no_id_from_the_lines_that_it_lets_through() {
    let cluster = Cluster::without_kubelet(4).await;
    let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
    let is_create =
        |request: &SeenRequest| request.method == "POST" && request.path.ends_with("/pods");
    proxy.fail(is_create, Fault::status(500));
    let args = [&JSON[..], &["--log-filter", "warn"]].concat();
    let operator = cluster.operator_via(&proxy, &args).await;
    cluster.apply("x", json!({})).await;
    eventually("a reconcile fails", SOON, || async {
        operator.log().contains("failed, it is tried again").then_some(())
    })
    .await
    .expect("a warning");
    let lines = whole_log(operator).await;
    let failed = lines.iter().filter(|line| line["message"] == "failed, it is tried again");
    for line in failed {
        assert!(line["span"]["reconcile_id"].is_u64(), "{line}");
    }
}
