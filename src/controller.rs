//! The controller: observe, plan, prove, apply, publish; and audit while there is nothing to do.

use crate::{
    allowed::Allowed,
    api::KSMScale,
    membership::{Duty, Membership},
    names::LABEL_SCALE,
    plan::{Settings, plan},
    readiness::Readiness,
    status::{self, Inputs, Outcome},
    telemetry::{
        chain,
        metrics::{Metrics, Totals},
        otlp::TRACES,
        panic_text,
    },
    validate::validate,
};
use checks::Audits;
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
use lease_sharding::guard::{Lost, Refused};
use scrape::Scraper;
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
mod checks;
mod observe;
mod publish;
mod scrape;
mod verify;
mod view;
pub mod watches;

pub use view::View;

/// Reconciles at a time. Each holds one connection to the API server; beyond a few they only wait
/// for each other there.
const CONCURRENCY: u16 = 8;

/// Triggers for one object that come within this time cause one reconcile: ten pods that become
/// Ready together are one event. Small against the second in which pods have to follow nodes.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// The longest that a reconcile may take: calls end by themselves, but there can be many. The next
/// one goes on from what this one has made.
const LIMIT: Duration = Duration::from_mins(2);

/// After a write that was refused because the own Lease was about to end: by then it is renewed, or
/// the KSMScale is another replica's.
const REFUSED: Duration = Duration::from_secs(1);

/// What every reconcile needs.
pub struct Context {
    /// For [`Membership::guard_of_scale`] to make a client of. Nothing is read or written by it.
    connections: Client,
    membership: Membership,
    settings: Settings,
    allowed: Allowed,
    clock: fn() -> Timestamp,
    nodes: watch::Receiver<Count>,
    scales: Store<PartialObjectMeta<KSMScale>>,
    pods: Store<PartialObjectMeta<Pod>>,
    /// Names and UIDs of the nodes, as far as `nodes` is known.
    node_names: Store<PartialObjectMeta<Node>>,
    scraper: Scraper,
    audits: Audits,
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
    /// It took longer than a reconcile may.
    #[error("it took longer than {LIMIT:?}")]
    TooLong,
    /// A write was refused, since the KSMScale may be another replica's by now. No failure.
    #[error("the KSMScale may be another replica's")]
    NotOurs,
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
            Self::TooLong => "too_long",
            Self::NotOurs => "not_ours",
            Self::Panic(_) => "panic",
        }
    }

    /// How long the API server asked us to wait.
    fn retry_after(&self) -> Duration {
        let asked = match self {
            Self::Read { source, .. } | Self::PublishStatus(source) => apply::retry_after(source),
            Self::Apply { retry_after, .. } => *retry_after,
            _ => None,
        };
        asked.unwrap_or_default()
    }

    /// A status that could not be written.
    fn publish(error: kube::Error) -> Self {
        if is_refused(&error) { Self::NotOurs } else { Self::PublishStatus(error) }
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

/// Whether a write was not sent, since the KSMScale may be another replica's.
fn is_refused(error: &kube::Error) -> bool {
    Refused::of(error) == Some(Refused::Guard)
}

/// What the controller is run with.
pub struct Surroundings<'a> {
    /// To the cluster.
    pub clients: Clients,
    /// Which KSMScales are this replica's.
    pub membership: Membership,
    /// The administrator's.
    pub settings: Settings,
    /// The administrator's as well.
    pub allowed: Allowed,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
    /// What is told.
    pub metrics: Metrics,
    /// What is waited for.
    pub readiness: &'a Readiness,
}

/// The controller, which does nothing until it is polled, and what its watches know meanwhile.
///
/// It works on those KSMScales that are this replica's, and on one that becomes its at once. It runs until `stop`, and then finishes the reconciles that are under way.
pub fn controller(
    around: Surroundings<'_>,
    stop: &CancellationToken,
) -> (View, impl Future<Output = ()> + Send + use<>) {
    let Surroundings { membership, settings, allowed, clock, metrics, readiness, .. } = around;
    let Clients { calls, watches } = around.clients;
    let config = watcher::Config::default();
    let node_events =
        watches::events::<Node>(watches.clone(), config, readiness.wait_for("the list of nodes"));
    let (nodes, node_names, count) = watches::count_nodes(node_events);
    let (scale_stream, scales, number) = watches::scales(
        watches.clone(),
        readiness.wait_for("the list of KSMScales (is the CRD installed?)"),
    );
    let (pod_stream, pods) = watches::pods(watches.clone(), readiness.wait_for("the list of pods"));
    let budgets = watches::budgets(watches, readiness.wait_for("the list of PodDisruptionBudgets"));
    let view = View { nodes: nodes.clone(), scales: scales.clone(), pods: pods.clone() };
    let gained = membership.gained_scales(scales.clone());
    let (seen, [ours, counted]) = (view.clone(), [membership.clone(), membership.clone()]);
    let ours = move |name: &str| ours.guard_of_scale(name).is_some();
    metrics.count(ours, move || totals(&seen, &counted));
    let context = Arc::new(Context {
        connections: calls,
        membership,
        settings,
        allowed,
        clock,
        nodes: nodes.clone(),
        scales: scales.clone(),
        pods,
        node_names,
        scraper: Scraper::new(metrics.coverage.clone()),
        audits: Audits::default(),
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
        .reconcile_on(gained)
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
    // Not ours: we are called when it is.
    let Some(guard) = ctx.membership.guard_of_scale(&name) else {
        ctx.forget_failures(&name);
        ctx.audits.forget(&name);
        return Ok(Action::await_change());
    };
    // Without nodes nothing can be planned, and their first list wakes everyone.
    if *ctx.nodes.borrow() == Count::Awaited {
        tracing::debug!(ksmscale = name, "the first list of nodes is awaited");
        return Ok(Action::await_change());
    }
    let id = ctx.reconciles.fetch_add(1, Ordering::Relaxed);
    // At the highest level, so that no filter takes the id from a line that it lets through.
    let span = tracing::error_span!("reconcile", ksmscale = name, reconcile_id = id);
    let started = Instant::now();
    let client = guard.client(&ctx.connections);
    let work = Box::pin(work(&ctx, &client, &name).instrument(span.clone()));
    let result = guard.run(tokio::time::timeout(LIMIT, survive(work))).await;
    let _entered = span.enter();
    let result = match result.map(|result| result.unwrap_or(Err(Error::TooLong))) {
        Err(Lost) | Ok(Err(Error::NotOurs)) => {
            tracing::debug!("ended: it may be another replica's");
            return Ok(Action::requeue(REFUSED));
        }
        Ok(result) => result,
    };
    match &result {
        Ok(_) => tracing::debug!(duration_seconds = started.elapsed().as_secs_f64(), "done"),
        Err(error) => {
            tracing::warn!(kind = error.label(), error = chain(error), "failed, it is tried again");
        }
    }
    let metrics = &ctx.metrics;
    metrics.reconciled(started.elapsed(), result.as_ref().err().map(Error::label));
    if result.is_ok() {
        ctx.forget_failures(&name);
    }
    result
}

impl Context {
    fn forget_failures(&self, name: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// What there is, as far as it is this replica's.
fn totals(view: &View, membership: &Membership) -> Totals {
    let ours = |name: &str| membership.guard_of_scale(name).is_some();
    let of_scale = |pod: &PartialObjectMeta<Pod>| pod.labels().get(LABEL_SCALE).cloned();
    let pods = view.pods.state();
    Totals {
        scales: view.scales.state().iter().filter(|scale| ours(&scale.name_any())).count(),
        pods: pods.iter().filter_map(|pod| of_scale(pod)).filter(|name| ours(name)).count(),
        nodes: membership.guard_of_duty(Duty::NodeCount).and_then(|_| view.nodes()),
    }
}

/// The wall around a panic: it costs this reconcile, and is an error like any other.
async fn survive(work: impl Future<Output = Result<Action, Error>>) -> Result<Action, Error> {
    let result = AssertUnwindSafe(work).catch_unwind().await;
    result.unwrap_or_else(|panic| Err(Error::Panic(panic_text(&*panic))))
}

async fn work(ctx: &Context, client: &Client, name: &str) -> Result<Action, Error> {
    let Some(stored) = observe::stored(client, name).await? else {
        ctx.metrics.conditions.forget(name);
        ctx.audits.forget(name);
        return Ok(Action::await_change());
    };
    let (now, owner) = ((ctx.clock)(), ctx.membership.name());
    let uid = stored.json["metadata"]["uid"].as_str().unwrap_or_default();
    let scale = match ctx.allowed.check(validate(&stored.json)) {
        Ok(scale) => scale,
        Err(violations) => {
            let generation = stored.generation;
            let new = status::rejected(&stored.status, owner, generation, &violations, now);
            ctx.metrics.conditions.observed(name, &new.conditions);
            publish::status(client, name, &stored.status, &new).await.map_err(Error::publish)?;
            let notes = status::events::transitions(&stored.status, &new);
            publish::events(client, name, uid, notes).await;
            return Ok(Action::await_change());
        }
    };
    let seen = observe::observe(ctx, client, &scale).await?;
    let planning = tracing::info_span!(target: TRACES, "plan");
    let mut plan = planning.in_scope(|| plan(&scale, &seen, now, &ctx.settings));
    let proven = checks::prove(ctx, &scale, &mut plan, &seen).await;
    let audited = checks::audit(ctx, name, &mut plan, &seen).await;
    let checked = audited.unwrap_or(proven);
    let outcome = apply::apply(client, &ctx.metrics, &plan.changes).await?;
    let inputs = Inputs {
        scale: &scale,
        seen: &seen,
        plan: &plan,
        outcome: &outcome,
        checked: &checked,
        settings: &ctx.settings,
        owner,
        now,
    };
    let new = status::status(&stored.status, &inputs);
    ctx.metrics.conditions.observed(name, &new.conditions);
    let published = publish::status(client, name, &stored.status, &new).await;
    let notes = status::events::notes(&stored.status, &new, &inputs);
    publish::events(client, name, uid, notes).await;
    // A status that cannot be written does not hide work that failed (R49).
    if let Some(error) = Error::apply(&outcome) {
        return Err(error);
    }
    published.map_err(Error::publish)?;
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
