//! Plays an API server that calls the webhook without a pause: it keeps idle connections, opens
//! fresh ones, verifies every handshake against the `caBundle` it last saw (late, if asked), asks
//! again after `Retry-After`, and forgives nothing else. Every call is counted.

use futures::{StreamExt, future};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{OwnedRwLockWriteGuard, RwLock, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

type Connection = SendRequest<Full<Bytes>>;

/// `timeoutSeconds` of the shipped configuration.
const DEADLINE: Duration = Duration::from_secs(5);

/// What one kind of load does.
#[derive(Clone, Copy)]
pub enum Connections {
    /// Idle connections are used again, as the API server does.
    KeptAlive,
    /// A handshake for every call.
    Fresh,
}

/// The counters of all calls.
#[derive(Default)]
pub struct Calls {
    answered: AtomicU64,
    asked_again: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Calls {
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fail(&self, error: String) {
        self.failures.lock().expect("no panic").push(error);
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no panic").clone()
    }
}

/// No call begins while it is held.
pub type Pause = OwnedRwLockWriteGuard<()>;

/// A caller in the background. It stops when dropped.
pub struct Caller {
    calls: Arc<Calls>,
    /// Read while a call is under way.
    gate: Arc<RwLock<()>>,
    tasks: JoinSet<()>,
}

impl Caller {
    /// Starts `workers` that call the validating webhook at `address`, each as soon as the one
    /// before is answered and `pause` is over. The bundle is the one of the live configuration,
    /// `lag` later.
    pub async fn start(
        client: Client,
        address: &str,
        connections: Connections,
        workers: usize,
        pause: Duration,
        lag: Duration,
    ) -> Self {
        let (calls, gate) = (Arc::new(Calls::default()), Arc::new(RwLock::new(())));
        let mut tasks = JoinSet::new();
        let (sender, mut bundle) = watch::channel(Vec::new());
        tasks.spawn(follow_bundle(client, sender, lag));
        bundle.wait_for(|bundle| !bundle.is_empty()).await.expect("a caBundle");
        for worker in 0..workers {
            let (calls, bundle, address) = (calls.clone(), bundle.clone(), address.to_owned());
            let gate = Arc::clone(&gate);
            tasks.spawn(async move {
                let mut seat = Seat { address, bundle, connections, idle: None };
                for number in 0_u64.. {
                    let uid = format!("{worker}-{number}");
                    let under_way = gate.read().await;
                    match timeout(DEADLINE, seat.call(&uid, &calls)).await {
                        Ok(Ok(())) => calls.answer(),
                        Ok(Err(error)) => calls.fail(error),
                        Err(_) => calls.fail("no answer within the deadline".into()),
                    }
                    drop(under_way);
                    tokio::time::sleep(pause).await;
                }
            });
        }
        Self { calls, gate, tasks }
    }

    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Waits until no call is under way; none begins while the result is held.
    pub async fn pause(&self) -> Pause {
        Arc::clone(&self.gate).write_owned().await
    }

    /// Stops, and says how many calls were answered. Panics if one was not.
    pub async fn none_failed(mut self) -> u64 {
        self.tasks.shutdown().await;
        let (failures, answered) = (self.calls.failures(), self.calls.answered());
        assert!(failures.is_empty(), "{} of {answered} failed: {failures:#?}", failures.len());
        assert!(answered > 0, "nothing was called");
        answered
    }
}

/// The `caBundle` of the live configuration, passed on `lag` after it was seen.
async fn follow_bundle(client: Client, sender: watch::Sender<Vec<u8>>, lag: Duration) {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let events = watcher(api, watcher::Config::default()).default_backoff().applied_objects();
    let mut delayed = JoinSet::new();
    let mut events = std::pin::pin!(events.filter_map(|event| future::ready(event.ok())));
    while let Some(configuration) = events.next().await {
        let webhooks = configuration.webhooks.unwrap_or_default();
        let bundle = webhooks.into_iter().next().and_then(|w| w.client_config.ca_bundle);
        let Some(bundle) = bundle.filter(|bundle| !bundle.0.is_empty()) else { continue };
        let (sender, first) = (sender.clone(), sender.borrow().is_empty());
        delayed.spawn(async move {
            tokio::time::sleep(if first { Duration::ZERO } else { lag }).await;
            sender.send_replace(bundle.0);
        });
    }
}

/// One worker: at most one connection at a time, for one bundle.
struct Seat {
    address: String,
    bundle: watch::Receiver<Vec<u8>>,
    connections: Connections,
    idle: Option<Connection>,
}

impl Seat {
    /// As client-go does: 429 and 5xx are asked again if they say when, at most ten times.
    async fn call(&mut self, uid: &str, calls: &Calls) -> Result<(), String> {
        for _ in 0..=10 {
            match self.once(uid).await? {
                None => return Ok(()),
                Some(wait) => {
                    calls.asked_again.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(wait).await;
                }
            }
        }
        Err("still told to wait after ten attempts".into())
    }

    async fn once(&mut self, uid: &str) -> Result<Option<Duration>, String> {
        // A changed bundle makes a new client, and that a new handshake.
        if self.bundle.has_changed().unwrap_or(false)
            || matches!(self.connections, Connections::Fresh)
        {
            self.idle = None;
        }
        let mut connection = match self.idle.take().filter(|idle| !idle.is_closed()) {
            Some(idle) => idle,
            None => self.connect().await?,
        };
        let request =
            Request::post(format!("{}?timeout=5s", ksm_scale_operator::names::VALIDATE_PATH))
                .header(header::HOST, ksm_scale_operator::names::webhook_server_name())
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(review(uid))))
                .expect("a request");
        connection.ready().await.map_err(|error| format!("the connection is gone: {error}"))?;
        let response = connection.send_request(request).await;
        let response = response.map_err(|error| format!("no response: {error:?}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| format!("cut short: {error}"))?.to_bytes();
        let closing = head.headers.get(header::CONNECTION).is_some_and(|value| value == "close");
        self.idle = (!closing).then_some(connection);
        if head.status != StatusCode::OK {
            let wait =
                head.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
            let text = format!("{}: {}", head.status, String::from_utf8_lossy(&body));
            return wait.map(|seconds| Some(Duration::from_secs(seconds))).ok_or(text);
        }
        let answer: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let response = &answer["response"];
        match (response["uid"].as_str(), response["allowed"].as_bool()) {
            (Some(echoed), Some(true)) if echoed == uid => Ok(None),
            _ => Err(format!("a wrong answer: {answer}")),
        }
    }

    async fn connect(&mut self) -> Result<Connection, String> {
        let mut roots = RootCertStore::empty();
        let bundle = self.bundle.borrow_and_update().clone();
        let found = ksm_scale_operator::certificates::pair::certificates(&bundle, "CA bundle");
        roots.add_parsable_certificates(found.map_err(|error| error.to_string())?);
        let mut config =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(&self.address).await.map_err(|e| format!("connect: {e}"))?;
        let name =
            ServerName::try_from(ksm_scale_operator::names::webhook_server_name()).expect("a name");
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        let io = TokioIo::new(tls.map_err(|error| format!("handshake: {error}"))?);
        let (sender, connection) = handshake(io).await.map_err(|e| format!("connect: {e}"))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// An update that changes the spec without touching what access is asked for.
fn review(uid: &str) -> Vec<u8> {
    let object = |nodes: u32| {
        json!({
            "apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale",
            "metadata": {"name": "load", "uid": "1"},
            "spec": {"nodesPerMonitor": nodes, "namespace": "monitoring",
                "monitorImage": ksm_scale_operator::api::DEFAULT_MONITOR_IMAGE},
        })
    };
    let kind = json!({"group": "monitor.example.com", "version": "v1alpha1", "kind": "KSMScale"});
    let resource =
        json!({"group": "monitor.example.com", "version": "v1alpha1", "resource": "ksmscales"});
    serde_json::to_vec(&json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": uid, "kind": kind, "resource": resource, "requestKind": kind,
            "requestResource": resource, "name": "load", "operation": "UPDATE",
            "userInfo": {"username": "load"}, "object": object(20), "oldObject": object(15),
            "dryRun": false, "options": {"apiVersion": "meta.k8s.io/v1", "kind": "UpdateOptions"},
        },
    }))
    .expect("JSON")
}
