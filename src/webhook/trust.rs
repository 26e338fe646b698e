//! Whether the API server would accept the certificate that is served, by what stands in the live
//! webhook configurations (W7).

use super::Serving;
use crate::{
    certificates::trust::{Configuration, Configures, Distrust, verify},
    names::{WEBHOOK_CONFIGURATION, webhook_server_name},
    readiness::{Readiness, Requirement},
    telemetry::certificate_metrics::CertificateMetrics,
};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use serde::de::DeserializeOwned;
use std::{
    fmt::Debug,
    mem::{self, Discriminant},
    time::Duration,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How soon a certificate that was swapped counts. Configurations count at once.
const TICK: Duration = Duration::from_secs(2);

/// Watches both webhook configurations, and requires for readiness that every `caBundle` in them
/// verifies what is served for the Service's name. `remedy` says where to look if one does not.
///
/// While the API server cannot be reached the last known configurations count. Never ends before
/// `stop`, and can be dropped at any moment. The requirement counts from this call on, before
/// anything is awaited.
pub fn run(
    watches: Client,
    serving: Serving,
    remedy: &'static str,
    clock: fn() -> Timestamp,
    readiness: &Readiness,
    metrics: CertificateMetrics,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let trusted = readiness.require("the API server's trust in the webhook's certificate");
    let mut verdict = Verdict { trusted, remedy, metrics, cause: None };
    let server_name = webhook_server_name();
    async move {
        let mut changes = stream::select(
            follow::<MutatingWebhookConfiguration>(watches.clone()),
            follow::<ValidatingWebhookConfiguration>(watches),
        );
        let mut live: Vec<Configuration> = Vec::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(change) = changes.next() => {
                    live.retain(|known| known.kind != change.kind);
                    live.push(change);
                }
                _ = ticks.tick() => {}
            }
            // Before both are known there is nothing to say.
            if live.len() == 2 {
                verdict.tell(verify(serving.current().as_deref(), &live, &server_name, clock()));
            }
        }
    }
}

/// The configuration of a kind, now and after each change.
fn follow<K>(client: Client) -> impl Stream<Item = Configuration> + Send + Unpin
where
    K: Clone + Configures + Debug + DeserializeOwned + Resource<DynamicType = ()> + Send + 'static,
{
    let objects = watch_object(Api::<K>::all(client), WEBHOOK_CONFIGURATION).default_backoff();
    objects
        .filter_map(|object| async move {
            let object = object
                .inspect_err(|error| {
                    tracing::warn!(%error, kind = K::KIND, "watch interrupted, it is restored");
                })
                .ok()?;
            let webhooks = object.as_ref().map(Configures::webhooks);
            Some(Configuration { kind: K::KIND, webhooks })
        })
        .boxed()
}

struct Verdict {
    trusted: Requirement,
    remedy: &'static str,
    metrics: CertificateMetrics,
    /// What was logged last. Not its text, in which the time passes.
    cause: Option<Discriminant<Distrust>>,
}

impl Verdict {
    fn tell(&mut self, verdict: Result<(), Distrust>) {
        let cause = verdict.as_ref().err().map(mem::discriminant);
        let is_news = mem::replace(&mut self.cause, cause) != cause;
        self.metrics.in_sync(verdict.is_ok());
        match verdict {
            Ok(()) => {
                self.trusted.met();
                if is_news {
                    tracing::info!("the API server trusts the webhook's certificate again");
                }
            }
            Err(distrust) => {
                let cause = format!("{distrust}; {}", self.remedy);
                self.trusted.unmet(&cause);
                if is_news {
                    tracing::warn!(%cause, "the API server does not trust the webhook's certificate");
                }
            }
        }
    }
}
