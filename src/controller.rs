//! The controller: observe, plan, apply, publish.

use crate::{
    allowed::Allowed,
    api::KSMScale,
    plan::{Settings, plan},
    readiness::Readiness,
    status::{self, Inputs, Outcome},
    telemetry::{chain, metrics::Metrics, panic_text},
    validate::validate,
};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use watches::Count;

mod apply;
pub mod backoff;
mod observe;
mod publish;
mod view;
pub mod watches;

pub use view::View;

/// Reconciles at a time. Each holds one connection to the API server; beyond a few they only wait
/// for each other there.
const CONCURRENCY: u16 = 8;

/// Triggers for one object that come within this time cause one reconcile: ten pods that become
/// Ready together are one event. Small against the second in which pods have to follow nodes.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// What every reconcile needs.
pub struct Context {
    client: Client,
    settings: Settings,
    allowed: Allowed,
    clock: fn() -> Timestamp,
    nodes: watch::Receiver<Count>,
    scales: Store<PartialObjectMeta<KSMScale>>,
    pods: Store<PartialObjectMeta<Pod>>,
    metrics: Metrics,
    /// Failures in a row, by the name of the KSMScale.
    failures: Mutex<HashMap<String, u32>>,
    reconciles: AtomicU64,
}

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nodes cannot be counted, so nothing was changed.
    #[error("the nodes are not known, so nothing is changed: {0}")]
    NodesUnknown(String),
    /// A read failed.
    #[error("cannot read {what}")]
    Read {
        /// The kind of object.
        what: &'static str,
        /// What the API server answered.
        source: kube::Error,
    },
    /// Some of the changes could not be made. The status says which.
    #[error("{first} (and {} more)", .failed - 1)]
    Apply {
        /// How many.
        failed: usize,
        /// The first of them.
        first: String,
        /// How long the API server asked us to wait.
        retry_after: Option<Duration>,
    },
    /// The status could not be written. The work was done.
    #[error("cannot write the status")]
    PublishStatus(#[source] kube::Error),
    /// A defect in the operator.
    #[error("the reconcile panicked: {0}")]
    Panic(String),
}

impl Error {
    /// The kind, for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NodesUnknown(_) => "nodes_unknown",
            Self::Read { .. } => "read",
            Self::Apply { .. } => "apply",
            Self::PublishStatus(_) => "publish_status",
            Self::Panic(_) => "panic",
        }
    }

    /// How long the API server asked us to wait.
    fn retry_after(&self) -> Duration {
        let asked = match self {
            Self::Read { source, .. } | Self::PublishStatus(source) => apply::retry_after(source),
            Self::Apply { retry_after, .. } => *retry_after,
            Self::NodesUnknown(_) | Self::Panic(_) => None,
        };
        asked.unwrap_or_default()
    }

    fn apply(outcome: &Outcome) -> Option<Self> {
        let first = outcome.failed.first()?;
        Some(Self::Apply {
            failed: outcome.failed.len(),
            first: first.to_string(),
            retry_after: outcome.failed.iter().filter_map(|f| f.retry_after).max(),
        })
    }
}

/// The clients of the controller. Both leave retrying to it.
#[derive(Clone)]
pub struct Clients {
    /// For reads and writes: every one is answered or fails within seconds.
    pub calls: Client,
    /// For watches, which stay open for minutes.
    pub watches: Client,
}

/// The controller, which does nothing until it is polled, and what its watches know meanwhile.
///
/// It runs until `stop`, and then finishes the reconciles that are under way.
pub fn controller(
    clients: Clients,
    settings: Settings,
    allowed: Allowed,
    clock: fn() -> Timestamp,
    metrics: Metrics,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> (View, impl Future<Output = ()> + Send + use<>) {
    let Clients { calls, watches } = clients;
    let config = watcher::Config::default();
    let node_events =
        watches::events::<Node>(watches.clone(), config, readiness.wait_for("the list of nodes"));
    let (nodes, count) = watches::count_nodes(node_events);
    let (scale_stream, scales, number) = watches::scales(
        watches.clone(),
        readiness.wait_for("the list of KSMScales (is the CRD installed?)"),
    );
    let (pod_stream, pods) = watches::pods(watches.clone(), readiness.wait_for("the list of pods"));
    let budgets = watches::budgets(watches, readiness.wait_for("the list of PodDisruptionBudgets"));
    let view = View { nodes: nodes.clone(), scales: scales.clone(), pods: pods.clone() };
    let context = Arc::new(Context {
        client: calls,
        settings,
        allowed,
        clock,
        nodes: nodes.clone(),
        scales: scales.clone(),
        pods: pods.clone(),
        metrics,
        failures: Mutex::default(),
        reconciles: AtomicU64::new(0),
    });
    let controller = Controller::for_stream(scale_stream, scales)
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY))
        .watches_stream(pod_stream, watches::owners)
        .watches_stream(budgets, watches::owners)
        .reconcile_all_on(watches::changes(nodes))
        .reconcile_all_on(watches::bursts(number))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(reconcile, error_policy, context)
        .for_each(|result| async move {
            // Reconciles log their own errors. An object that is gone is no error.
            if let Err(error) = result {
                tracing::debug!(%error, "controller");
            }
        });
    let run = async {
        tokio::select! {
            () = controller => {}
            () = count => {}
        }
    };
    (view, run)
}

/// One reconcile, with everything around it: an id on every log line, its metrics, and a wall
/// around a panic.
async fn reconcile(
    object: Arc<PartialObjectMeta<KSMScale>>,
    ctx: Arc<Context>,
) -> Result<Action, Error> {
    let name = object.name_any();
    let id = ctx.reconciles.fetch_add(1, Ordering::Relaxed);
    let span = tracing::info_span!("reconcile", ksmscale = name, reconcile_id = id);
    let started = Instant::now();
    let result = survive(work(&ctx, &name).instrument(span.clone())).await;
    let _entered = span.enter();
    match &result {
        Ok(_) => tracing::debug!(duration_seconds = started.elapsed().as_secs_f64(), "done"),
        Err(error) => {
            tracing::warn!(kind = error.label(), error = chain(error), "failed, it is tried again");
        }
    }
    let metrics = &ctx.metrics;
    metrics.reconciled(started.elapsed(), result.as_ref().err().map(Error::label));
    metrics.scales.set(gauge(ctx.scales.len()));
    metrics.managed_pods.set(gauge(ctx.pods.len()));
    if let Count::Known(nodes) = *ctx.nodes.borrow() {
        metrics.nodes.set(nodes.into());
    }
    if result.is_ok() {
        ctx.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
    }
    result
}

/// The wall around a panic: it costs this reconcile, and is an error like any other.
async fn survive(work: impl Future<Output = Result<Action, Error>>) -> Result<Action, Error> {
    let result = AssertUnwindSafe(work).catch_unwind().await;
    result.unwrap_or_else(|panic| Err(Error::Panic(panic_text(&*panic))))
}

async fn work(ctx: &Context, name: &str) -> Result<Action, Error> {
    let Some(stored) = observe::stored(ctx, name).await? else {
        ctx.metrics.conditions.forget(name);
        return Ok(Action::await_change());
    };
    let now = (ctx.clock)();
    let uid = stored.json["metadata"]["uid"].as_str().unwrap_or_default();
    let scale = match ctx.allowed.check(validate(&stored.json)) {
        Ok(scale) => scale,
        Err(violations) => {
            let new = status::rejected(&stored.status, stored.generation, &violations, now);
            ctx.metrics.conditions.observed(name, &new.conditions);
            publish::status(&ctx.client, name, &stored.status, &new)
                .await
                .map_err(Error::PublishStatus)?;
            let notes = status::events::transitions(&stored.status, &new);
            publish::events(&ctx.client, name, uid, notes).await;
            return Ok(Action::await_change());
        }
    };
    let seen = observe::observe(ctx, &scale).await?;
    let plan = plan(&scale, &seen, now, &ctx.settings);
    let outcome = apply::apply(&ctx.client, &ctx.metrics, &plan.changes).await;
    let settings = &ctx.settings;
    let inputs =
        Inputs { scale: &scale, seen: &seen, plan: &plan, outcome: &outcome, settings, now };
    let new = status::status(&stored.status, &inputs);
    ctx.metrics.conditions.observed(name, &new.conditions);
    let published = publish::status(&ctx.client, name, &stored.status, &new).await;
    let notes = status::events::notes(&stored.status, &new, &inputs);
    publish::events(&ctx.client, name, uid, notes).await;
    // A status that cannot be written does not hide work that failed (R49).
    if let Some(error) = Error::apply(&outcome) {
        return Err(error);
    }
    published.map_err(Error::PublishStatus)?;
    Ok(Action::requeue(plan.again_in))
}

/// Backs off for each object by itself, and never sooner than the API server asks.
#[expect(clippy::needless_pass_by_value, reason = "the signature is kube-runtime's")]
fn error_policy(
    object: Arc<PartialObjectMeta<KSMScale>>,
    error: &Error,
    ctx: Arc<Context>,
) -> Action {
    let name = ObjectRef::from_obj(&*object).name;
    let mut failures = ctx.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let count = failures.entry(name.clone()).or_default();
    let delay = backoff::delay(&name, *count);
    *count = count.saturating_add(1);
    Action::requeue(delay.max(error.retry_after()))
}

fn gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn r84_a_panic_is_an_error_of_one_reconcile_and_keeps_its_message() {
        for (text, expected) in [("index 3", "index 3"), ("", "")] {
            let result = survive(async { panic!("{text}") }).await;
            let Err(Error::Panic(message)) = result else { panic!("{result:?}") };
            assert_eq!(message, expected);
        }
        assert!(survive(async { Ok(Action::await_change()) }).await.is_ok());
    }
}
