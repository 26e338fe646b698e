//! Certificates without cert-manager (T2): one CA in one Secret for all replicas, a leaf for each in
//! its memory, and `caBundle` in both webhook configurations.
//!
//! One replica has the [duty](Duty::WebhookCa) to make the steps that are due. What another one needs in
//! order to serve, it does by itself: the duty spares conflicts, and nothing is wrong without it.
//!
//! Watches only wake. What is decided from is read anew, the configurations before the Secret,
//! which is what [`rotation`] rests on.

use super::{
    Serving,
    configurations::{self, Configuration},
};
use crate::{
    certificates::{
        AuthorityError, Leaf, LeafRequest,
        pair::provider,
        rotation::{self, Lifetimes, Phase, Seen, State},
        server_names,
    },
    membership::{Duty, Membership, Published},
    names::{
        CA_SECRET, OPERATOR_NAMESPACE, WEBHOOK_CONFIGURATION, WEBHOOK_SERVICE, webhook_server_name,
    },
    readiness::{Readiness, Requirement},
    telemetry::{certificate_metrics::CertificateMetrics, chain, panic_text},
};
use futures::{FutureExt as _, Stream, StreamExt as _, future, stream};
use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    core::v1::Secret,
};
use kube::{
    Api, Client, Resource,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use lease_sharding::guard::Refused;
use serde::de::DeserializeOwned;
use std::{fmt::Debug, panic::AssertUnwindSafe, time::Duration};
use tokio_util::sync::CancellationToken;

pub(crate) mod secret;

/// How often to look at the clock, whatever is due: it may jump, and a machine may be suspended,
/// which no timer notices.
const TICK: Duration = Duration::from_secs(30);

/// After a failure, doubled up to [`TICK`] with each one more.
const RETRY: Duration = Duration::from_millis(500);

/// After a write that was refused because the duty may be another replica's.
const REFUSED: Duration = Duration::from_secs(1);

/// Under which name a replica publishes the name of the CA of its leaf.
const SERVES: &str = "webhook-ca";

/// After somebody else was faster.
const AGAIN: Duration = Duration::from_millis(50);

/// One replica's part in it.
pub struct SelfManaged {
    /// For reads and writes, without retries of its own.
    pub calls: Client,
    /// For watches, which stay open for minutes.
    pub watches: Client,
    /// Whose the duty is, and what others serve.
    pub membership: Membership,
    /// Where the leaf is put.
    pub serving: Serving,
    /// How long certificates live.
    pub lifetimes: Lifetimes,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
    /// What is told.
    pub metrics: CertificateMetrics,
}

/// Why a pass failed. The next one tries again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read the webhook configurations {WEBHOOK_CONFIGURATION}")]
    ReadConfigurations(#[source] kube::Error),
    #[error("cannot read Secret {OPERATOR_NAMESPACE}/{CA_SECRET}")]
    ReadSecret(#[source] kube::Error),
    #[error("cannot write Secret {OPERATOR_NAMESPACE}/{CA_SECRET}")]
    StoreSecret(#[source] kube::Error),
    #[error("cannot write caBundle of the webhook configurations {WEBHOOK_CONFIGURATION}")]
    SetBundle(#[source] kube::Error),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the duty went to another replica")]
    Lost,
    #[error("a defect in the operator: {0}")]
    Panic(String),
}

struct Replica {
    part: SelfManaged,
    requirement: Requirement,
    remembered: Option<State>,
    leaf: Option<Leaf>,
    /// Whether every API server knows the CA of `leaf`.
    established: bool,
    failures: u32,
}

impl SelfManaged {
    /// Plays this replica's part until `stop`. No error ends it: what fails is tried again, and
    /// meanwhile what is served and whether the process is ready stay as they are. The process is
    /// not ready from the call on, polled or not.
    ///
    /// # Cancel safety
    /// It may be dropped at any point; any replica goes on from what is stored.
    pub fn run(
        self,
        readiness: &Readiness,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let requirement =
            readiness.require("a certificate that both webhook configurations verify");
        let replica = Replica {
            part: self,
            requirement,
            remembered: None,
            leaf: None,
            established: false,
            failures: 0,
        };
        async move { stop.run_until_cancelled(Box::pin(replica.run())).await.unwrap_or_default() }
    }
}

impl Replica {
    async fn run(mut self) {
        let news = self.part.membership.news(Duty::WebhookCa);
        let mut wakes = std::pin::pin!(wakes(&self.part.watches, news));
        loop {
            let wait = self.look().await.min(TICK);
            // However long a failure backs off, a leaf is renewed and its end told in time.
            let leaf = self.leaf.iter().flat_map(|leaf| [leaf.renew_at, leaf.pair.not_after]);
            let wait = leaf.map(|at| self.left_until(at)).fold(wait, Duration::min);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = wakes.next() => {}
            }
        }
    }

    /// How long to sleep until `at`; [`TICK`] if that is over.
    fn left_until(&self, at: Timestamp) -> Duration {
        let now = (self.part.clock)();
        if now < at { at.duration_since(now).unsigned_abs().max(AGAIN) } else { TICK }
    }

    /// One pass, with everything around it. Returns how long to wait for the next.
    async fn look(&mut self) -> Duration {
        let now = (self.part.clock)();
        if let Some(leaf) = self.leaf.as_ref().filter(|leaf| !leaf.is_valid(now)) {
            let (begin, end) = (leaf.pair.not_before, leaf.pair.not_after);
            self.requirement.unmet(&format!("it is {now}, and it is valid from {begin} to {end}"));
        }
        let result = AssertUnwindSafe(self.guarded_pass(now)).catch_unwind().await;
        let error = match result {
            Ok(Ok(wait)) => {
                self.failures = 0;
                return wait;
            }
            Ok(Err(Error::StoreSecret(e) | Error::SetBundle(e))) if is_conflict(&e) => {
                return AGAIN;
            }
            Ok(Err(Error::Lost)) => return REFUSED,
            Ok(Err(Error::StoreSecret(e) | Error::SetBundle(e))) if Refused::of(&e).is_some() => {
                return REFUSED;
            }
            Ok(Err(error)) => error,
            Err(panic) => Error::Panic(panic_text(&*panic)),
        };
        let text = chain(&error);
        tracing::warn!(error = text, "certificates: a pass failed, it is tried again");
        if matches!(error, Error::Authority(_)) {
            self.part.metrics.renewed(false);
        }
        if self.leaf.is_none() {
            self.requirement.unmet(&text);
        }
        self.failures = self.failures.saturating_add(1);
        RETRY.saturating_mul(1 << (self.failures - 1).min(16)).min(TICK)
    }

    /// A pass, under the guard of the duty if it is this replica's.
    async fn guarded_pass(&mut self, begun: Timestamp) -> Result<Duration, Error> {
        let Some(guard) = self.part.membership.guard_of_duty(Duty::WebhookCa) else {
            return self.pass(begun, None).await;
        };
        let client = guard.client(&self.part.calls);
        guard.run(self.pass(begun, Some(client))).await.unwrap_or(Err(Error::Lost))
    }

    /// Reads, decides, and makes the one step that is due: through `duty`'s client if it is this
    /// replica's to make, and otherwise only if it can't wait.
    async fn pass(&mut self, begun: Timestamp, duty: Option<Client>) -> Result<Duration, Error> {
        let calls = self.part.calls.clone();
        let configurations =
            configurations::read(&calls).await.map_err(Error::ReadConfigurations)?;
        let found = secret::read(&calls).await.map_err(Error::ReadSecret)?;
        let now = (self.part.clock)();
        if let Ok(Some(state)) = &found.state {
            self.remembered = Some(state.clone());
        }
        let published = self.part.membership.published();
        let live: Vec<_> = configurations.iter().flat_map(Configuration::bundles).collect();
        let seen = Seen {
            stored: found.state.as_ref().map(Option::as_ref),
            remembered: self.remembered.as_ref(),
            live: &live,
            serving: self.leaf.as_ref(),
            rotate: found.rotate(),
            everyone_serves: everyone_serves(&published),
        };
        let next = rotation::step(&seen, now, &self.part.lifetimes);
        let due = rotation::leaf_is_due(&seen, now, &self.part.lifetimes);
        let urgent = rotation::is_urgent(&seen, now);
        if let Ok(Some(state)) = &found.state {
            // First, so that a Secret that cannot be written stops no renewal.
            if due {
                self.renew(state, begun)?;
            }
            self.tell(state, &configurations, now);
        }
        let looks_again = found.state.as_ref().ok().and_then(Option::as_ref).and_then(|state| {
            rotation::look_again(state, self.leaf.as_ref(), now, &self.part.lifetimes)
        });
        let wait = looks_again.map_or(TICK, |at| self.left_until(at));
        let Some(client) = duty.or_else(|| urgent.then_some(calls)) else { return Ok(wait) };
        if let Some(next) = next? {
            return self.store(&client, found, &next, begun).await;
        }
        // `step` wants nothing only of a state that is there.
        let Ok(Some(state)) = &found.state else { return Ok(TICK) };
        // Each for itself: a failure at one is no reason to leave the other.
        let bundle = state.bundle();
        let sets = configurations.iter().map(|configuration| configuration.set(&client, &bundle));
        let sets = future::join_all(sets).await.into_iter().collect::<Result<Vec<_>, _>>();
        let written = sets.map_err(Error::SetBundle)?.contains(&true);
        Ok(if written { AGAIN } else { wait })
    }
}

impl Replica {
    async fn store(
        &self,
        client: &Client,
        found: secret::Found,
        next: &State,
        begun: Timestamp,
    ) -> Result<Duration, Error> {
        if let Err(damage) = &found.state {
            tracing::warn!(%damage, "Secret {OPERATOR_NAMESPACE}/{CA_SECRET} is damaged, it is restored");
        }
        let late = (self.part.clock)().duration_since(begun).unsigned_abs();
        if late >= self.part.lifetimes.soak() / 2 {
            // The machine slept in between: what was seen is no ground for a new Secret.
            return Ok(AGAIN);
        }
        found.store(client, next).await.map_err(Error::StoreSecret)?;
        tracing::info!(phase = next.phase().as_str(), ca = ?next.active, next = ?next.next, "CA state stored");
        if self.remembered.as_ref().is_none_or(|before| before.generation < next.generation) {
            self.part.metrics.renewed(true);
        }
        Ok(Duration::ZERO)
    }

    fn renew(&mut self, state: &State, begun: Timestamp) -> Result<(), AuthorityError> {
        let life = self.part.lifetimes.leaf();
        let names = server_names(WEBHOOK_SERVICE, OPERATOR_NAMESPACE);
        let request = LeafRequest { names, life, jitter: jitter() };
        let leaf = state.active.authority.issue(&request, begun)?;
        tracing::info!(ca = %leaf.issuer.name, not_after = %leaf.pair.not_after, renew_at = %leaf.renew_at, "new leaf");
        self.part.serving.swap(leaf.pair.clone());
        self.part.metrics.renewed(true);
        self.leaf = Some(leaf);
        Ok(())
    }

    fn tell(&mut self, state: &State, configurations: &[Configuration], now: Timestamp) {
        let (before, lifetimes) = (self.established, &self.part.lifetimes);
        self.established = self
            .leaf
            .as_ref()
            .is_some_and(|leaf| state.is_established(leaf, before, now, lifetimes));
        let metrics = &self.part.metrics;
        metrics.not_after("ca", state.ca().not_after);
        metrics.phase(state.phase().as_str(), Phase::ALL.map(Phase::as_str));
        let Some(leaf) = &self.leaf else { return };
        metrics.not_after("leaf", leaf.pair.not_after);
        self.part.membership.publish(SERVES, &leaf.issuer.name);
        let verified = self.verify(leaf, configurations, now);
        metrics.in_sync(verified.is_ok());
        match verified {
            Ok(()) => self.requirement.met(),
            Err(cause) => self.requirement.unmet(&cause),
        }
    }

    fn verify(
        &self,
        leaf: &Leaf,
        configurations: &[Configuration],
        now: Timestamp,
    ) -> Result<(), String> {
        for configuration in configurations {
            configuration.verify(&leaf.pair, &webhook_server_name(), now)?;
        }
        if !self.established {
            let soak = self.part.lifetimes.soak();
            return Err(format!("the CA is new, and API servers are given {soak:?} to read it"));
        }
        Ok(())
    }
}

/// The CA that everybody serves, if they all say the same.
fn everyone_serves(published: &Published) -> Option<&str> {
    let mut said = published.values().map(|texts| texts.get(SERVES).map(String::as_str));
    let first = said.next()??;
    said.all(|ca| ca == Some(first)).then_some(first)
}

/// One item for each event that may ask for a pass.
fn wakes<S>(client: &Client, news: S) -> impl Stream<Item = ()> + Send + use<S>
where
    S: Stream<Item = ()> + Send + 'static,
{
    let secrets = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    stream::select_all([
        news.boxed(),
        events::<Secret>(secrets, CA_SECRET).boxed(),
        events::<MutatingWebhookConfiguration>(Api::all(client.clone()), WEBHOOK_CONFIGURATION)
            .boxed(),
        events::<ValidatingWebhookConfiguration>(Api::all(client.clone()), WEBHOOK_CONFIGURATION)
            .boxed(),
    ])
    // What came together is one wake.
    .ready_chunks(64)
    .map(drop)
}

fn events<K>(api: Api<PartialObjectMeta<K>>, name: &str) -> impl Stream<Item = ()> + Send + use<K>
where
    K: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()> + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watcher(api, config).default_backoff().filter_map(|event| {
        if let Err(error) = &event {
            tracing::warn!(%error, kind = %K::kind(&()), "watch interrupted, it is restored");
        }
        let is_wake = !matches!(event, Err(_) | Ok(watcher::Event::Init));
        future::ready(is_wake.then_some(()))
    })
}

/// Lets replicas that started together renew apart. Without randomness they do so together.
fn jitter() -> u8 {
    let mut byte = [0];
    let filled = provider().secure_random.fill(&mut byte);
    filled.map_or(0, |()| byte[0])
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
