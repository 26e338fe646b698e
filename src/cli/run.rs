//! `run`: the operator's process.

use super::{
    allowed::AllowedArgs,
    sharding::ShardingArgs,
    webhook::{Ended, Surroundings, WebhookArgs},
};
use crate::{
    controller::{self, Clients},
    membership,
    names::OPERATOR,
    plan::Settings,
    readiness::Readiness,
    server::{self, BindAddress},
    telemetry::{
        self, LogFormat,
        certificate_metrics::CertificateMetrics,
        metrics::Metrics,
        otlp::{Endpoint, Origin, Traces},
    },
    webhook,
};
use anyhow::Context as _;
use clap::Args;
use futures::{FutureExt as _, TryFutureExt as _, future};
use http::header::USER_AGENT;
use jiff::{SignedDuration, Timestamp};
use kube::{Client, Config};
use lease_sharding::Pod;
use prometheus_client::registry::Registry;
use std::time::Duration;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// How long a call may wait for the API server to answer. Above its own 60 s limit nothing would
/// come any more; a reconcile that waits longer than this is better tried again.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a watch may be silent. The API server sends a bookmark about every minute.
const WATCH_TIMEOUT: Duration = Duration::from_mins(3);

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Where to serve /metrics: host:port, or :port for every address.
    #[arg(long, env = "KSM_METRICS_BIND_ADDRESS", value_name = "ADDRESS", default_value = ":8080")]
    metrics_bind_address: BindAddress,
    /// Where to serve /healthz and /readyz.
    #[arg(
        long,
        env = "KSM_HEALTH_PROBE_BIND_ADDRESS",
        value_name = "ADDRESS",
        default_value = ":8081"
    )]
    health_probe_bind_address: BindAddress,
    /// How long a pod has to be Ready before it counts as serving. At least one scrape interval:
    /// kube-state-metrics is Ready before it serves anything.
    #[arg(long, env = "KSM_SETTLE_TIME", value_name = "DURATION", value_parser = duration, default_value = "30s")]
    settle_time: Duration,
    /// How long a pod may take to become Ready before its KSMScale is Degraded.
    #[arg(long, env = "KSM_PROGRESS_DEADLINE", value_name = "DURATION", value_parser = duration, default_value = "10m")]
    progress_deadline: Duration,
    /// Delete a pod only when others are seen to serve all its series. If false, it is deleted when
    /// its successors are Ready for the settle time.
    #[arg(long, env = "KSM_VERIFY_COVERAGE", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    verify_coverage: bool,
    /// How often to compare the nodes with what the pods expose, while nothing changes. 0s: never.
    #[arg(long, env = "KSM_AUDIT_INTERVAL", value_name = "DURATION", value_parser = duration, default_value = "60s")]
    audit_interval: Duration,
    /// How often to look at a KSMScale about which nothing is heard.
    #[arg(long, env = "KSM_REQUEUE_INTERVAL", value_name = "DURATION", value_parser = duration, default_value = "60s")]
    requeue_interval: Duration,
    /// The same for one with sharding.
    #[arg(
        long,
        env = "KSM_REQUEUE_INTERVAL_SHARDED", value_name = "DURATION", value_parser = duration, default_value = "120s"
    )]
    requeue_interval_sharded: Duration,
    /// Make the pods' ServiceAccount and its ClusterRoleBinding. If false, they have to exist.
    #[arg(long, env = "KSM_MANAGE_SERVICE_ACCOUNT", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    manage_service_account: bool,
    #[command(flatten)]
    allowed: AllowedArgs,
    #[command(flatten)]
    webhook: WebhookArgs,
    #[command(flatten)]
    sharding: ShardingArgs,
    /// How log lines look.
    #[arg(long, env = "KSM_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Which log lines to write, such as info or ksm_scale_operator=debug,kube=warn.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    log_filter: String,
    /// Send traces of reconciles and webhook requests to this collector, by OTLP over HTTP: for
    /// example http://localhost:4318. Without it there are none.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<Endpoint>,
}

impl Run {
    /// Where probes and metrics are asked for.
    fn listen(&self) -> anyhow::Result<[TcpListener; 2]> {
        let health = self.health_probe_bind_address.bind();
        let metrics = self.metrics_bind_address.bind();
        Ok([
            health.context("cannot listen on --health-probe-bind-address")?,
            metrics.context("cannot listen on --metrics-bind-address")?,
        ])
    }

    fn settings(&self) -> Settings {
        Settings {
            settle: self.settle_time,
            requeue: self.requeue_interval,
            requeue_sharded: self.requeue_interval_sharded,
            manage_access: self.manage_service_account,
            progress_deadline: self.progress_deadline,
            verify_coverage: self.verify_coverage,
            audit_interval: self.audit_interval,
        }
    }

    /// Runs until a signal.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.enable_all().on_thread_start(give_way).build()?;
        let pod = self.sharding.pod();
        let origin = Origin { pod: &pod.name, namespace: &pod.namespace };
        let handle = runtime.handle();
        let traces = self.otlp_endpoint.as_ref();
        let traces = traces.map(|to| Traces::start(to, handle.clone(), origin)).transpose();
        let traces = traces.context("cannot set up traces")?;
        telemetry::init(self.log_format, &self.log_filter, traces.as_ref())
            .context("cannot set up logging")?;
        let result = runtime.block_on(run(self, pod));
        if let Some(traces) = traces {
            traces.end();
        }
        // Not for a name that is still being looked up.
        runtime.shutdown_background();
        result
    }
}

/// Lowers the priority of the calling thread, so that reconciles don't keep the webhook waiting for a core.
/// Nice by 5, they still get a quarter of a core that both want. It counts within a container only: the shares
/// of pods are the kubelet's.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 5) {
        tracing::debug!(%error, "cannot lower the priority of a thread");
    }
}

/// A duration as Go and Kubernetes write it, such as 1m30s.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration =
        text.parse().map_err(|error| format!("{error}; write it like 30s or 1m30s"))?;
    Duration::try_from(duration).map_err(|_| "must not be negative".into())
}

async fn run(args: Run, pod: Pod) -> anyhow::Result<()> {
    let name = pod.name.clone();
    let config = cluster(&name).await?;
    let settings = args.settings();
    let allowed = args.allowed.allowed();
    let (requests, certificates) = (webhook::Metrics::default(), CertificateMetrics::default());
    let mut sharding = Registry::default();
    let member = args.sharding.builder(config.clone(), pod)?.metrics(&mut sharding);
    let metrics = Metrics::with(sharding, |registry| {
        requests.register(registry);
        certificates.register(registry);
    });
    let readiness = Readiness::default();
    let [health, scrape] = args.listen()?;
    let stop = stop_on_signal()?;
    // The servers outlive the controller: whoever asks during the shutdown gets an answer.
    let servers = CancellationToken::new();
    let scrape =
        tokio::spawn(server::serve(scrape, server::metrics(metrics.clone()), servers.clone()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?settings, "started");
    #[expect(clippy::disallowed_methods, reason = "the one place where the clock is handed out")]
    let clock = Timestamp::now;
    let (membership, member) = membership::membership(&name, member);
    let joined = readiness.wait_for("the list of the replicas' Leases");
    let around = controller::Surroundings {
        clients: clients(config.clone())?,
        membership: membership.clone(),
        settings,
        allowed: allowed.clone(),
        clock,
        metrics,
        readiness: &readiness,
    };
    let (view, controller) = controller::controller(around, &stop);
    let idle = CancellationToken::new();
    let webhook = args.webhook.start(Surroundings {
        config,
        view,
        membership,
        allowed,
        clock,
        readiness: &readiness,
        metrics: requests,
        certificates,
        drain: stop.clone(),
        stop: idle.clone(),
    })?;
    // Not before the webhook's thread has begun, which would inherit it.
    give_way();
    // Not before all parts have said what they wait for: until then nothing seems to be waited for.
    let health =
        tokio::spawn(server::serve(health, server::health(readiness.clone()), servers.clone()));
    // The work is handed over while the controller ends, and both before the webhook does.
    let work = future::try_join(controller.map(Ok), member.run(joined, stop.clone()));
    run_both(Box::pin(work.map_ok(drop)), webhook, &idle).await?;
    servers.cancel();
    health.await??;
    scrape.await??;
    tracing::info!("stopped");
    Ok(())
}

/// Where the cluster is. Each request says which replica it was, for an audit log.
async fn cluster(name: &str) -> anyhow::Result<Config> {
    let mut config = Config::infer()
        .await
        .context("cannot find a cluster: set KUBECONFIG, or run in a pod with a ServiceAccount")?;
    let agent = format!("{OPERATOR}/{} ({name})", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, agent.parse().context("--pod-name is no name")?));
    Ok(config)
}

/// The controller's work, and the webhook until it has ended after it. The webhook has no reason to
/// end before, so the process ends with its error.
async fn run_both(
    work: impl Future<Output = Result<(), membership::Error>>,
    webhook: Option<Ended>,
    idle: &CancellationToken,
) -> anyhow::Result<()> {
    let Some(mut webhook) = webhook else {
        return Ok(work.await?);
    };
    let ended = tokio::select! {
        ended = &mut webhook => ended,
        worked = work => {
            worked?;
            idle.cancel();
            webhook.await
        }
    };
    ended.context("the webhook's thread panicked")?.context("the webhook has ended")
}

/// Retrying is left to the controller: it backs off for each object, and tells about it.
pub(super) fn clients(mut config: Config) -> anyhow::Result<Clients> {
    config.default_retry = false;
    config.connect_timeout = Some(CALL_TIMEOUT);
    config.write_timeout = Some(CALL_TIMEOUT);
    config.read_timeout = Some(CALL_TIMEOUT);
    let calls =
        Client::try_from(config.clone()).context("cannot use the cluster's configuration")?;
    config.read_timeout = Some(WATCH_TIMEOUT);
    let watches = Client::try_from(config).context("cannot use the cluster's configuration")?;
    Ok(Clients { calls, watches })
}

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancel = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::info!("stopping: finishing what is under way");
        cancel.cancel();
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        #[expect(clippy::disallowed_methods, clippy::exit, reason = "asked twice, so at once")]
        std::process::exit(130);
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o1_durations_are_written_as_kubernetes_writes_them_and_nothing_else_is_taken() {
        let millis = |text| duration(text).map(|duration| duration.as_millis());
        for (text, expected) in
            [("30s", 30_000), ("1m30s", 90_000), ("1.5s", 1_500), ("168h", 604_800_000), ("0s", 0)]
        {
            assert_eq!(millis(text), Ok(expected), "{text}");
        }
        let endless = format!("{}h", "9".repeat(40));
        for text in ["", "30", "-30s", "thirty", &endless] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
