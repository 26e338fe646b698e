//! A webhook server to be called.

use crate::{apiserver::ApiServer, certificates::Authority};
use devcluster::eventually;
use ksm_scale_operator::{
    admission::{Knowledge, Need},
    allowed::Allowed,
    readiness::Readiness,
    server::BindAddress,
    telemetry,
    webhook::{self, Limits, Metrics, Options, Server, Serving, TlsVersion},
};
use prometheus_client::registry::Registry;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The name of a KSMScale at which the knowledge panics.
pub(crate) const PANICS: &str = "panics";

/// A running server on a thread of its own, which ends with this value.
pub(crate) struct Webhook {
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    pub(crate) serving: Serving,
    pub(crate) apiserver: ApiServer,
    pub(crate) readiness: Readiness,
    /// Whether the cluster is known.
    pub(crate) known: Arc<AtomicBool>,
    pub(crate) drain: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) ended: oneshot::Receiver<()>,
    telemetry: telemetry::metrics::Metrics,
}

/// With as little waiting as tests want.
pub(crate) fn options() -> Options {
    let limits = Limits { sweep: Duration::from_millis(20), ..Limits::default() };
    Options {
        min_tls_version: TlsVersion::V1_3,
        client_ca: None,
        client_names: Vec::new(),
        lame_duck: Duration::ZERO,
        limits,
    }
}

/// The options with other limits.
pub(crate) fn limits(change: impl FnOnce(&mut Limits)) -> Options {
    let mut options = options();
    change(&mut options.limits);
    options
}

impl Webhook {
    pub(crate) async fn start(options: Options) -> Self {
        Self::start_by(Authority::new("webhook-ca"), options).await
    }

    /// With a certificate by `authority`.
    pub(crate) async fn start_by(authority: Authority, options: Options) -> Self {
        let (apiserver, serving) = (ApiServer::start().await, Serving::default());
        serving.swap(authority.pair());
        let (readiness, known) = (Readiness::default(), Arc::new(AtomicBool::new(true)));
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        let metrics = Metrics::default();
        let telemetry = telemetry::metrics::Metrics::with(Registry::default(), |registry| {
            metrics.register(registry);
        });

        let mut config = kube::Config::new(apiserver.url.parse().unwrap());
        config.default_retry = false;
        let is_known = Arc::clone(&known);
        let knowledge = move |need: Need<'_>| {
            assert!(need != (Need::Surroundings { name: PANICS }), "on purpose");
            is_known.load(Ordering::SeqCst).then(Knowledge::default)
        };
        let (bound, address) = oneshot::channel();
        let server = {
            let address: BindAddress = "127.0.0.1:0".parse().unwrap();
            let (serving, metrics) = (serving.clone(), metrics);
            let (ready, drain, stop) =
                (readiness.require("the webhook"), drain.clone(), stop.clone());
            async move {
                let listener = address.bind().unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let client = kube::Client::try_from(config).unwrap();
                let (allowed, knowledge) = (Allowed::default(), Arc::new(knowledge));
                let server = Server { serving, options, knowledge, allowed, client, metrics };
                server.serve(listener, ready, drain, stop).await.unwrap();
            }
        };
        let ended = webhook::spawn(server).unwrap();
        let address = address.await.unwrap();
        eventually("it is ready", DEADLINE, || async { readiness.check().ok() }).await.unwrap();
        Self {
            address,
            authority,
            serving,
            apiserver,
            readiness,
            known,
            drain,
            stop,
            ended,
            telemetry,
        }
    }

    /// The value of a metric, by its name without prefix and with its labels; 0 if there is none.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.telemetry.text();
        let start = format!("ksm_scale_operator_webhook_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&start));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_becomes(&self, name: &str, value: u64) {
        let what = format!("{name} is {value}");
        eventually(&what, DEADLINE, || async { (self.metric(name) == value).then_some(()) })
            .await
            .unwrap_or_else(|error| {
                panic!("{error}: {}\n{}", self.metric(name), self.telemetry.text())
            });
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.drain.cancel();
        self.stop.cancel();
    }
}
