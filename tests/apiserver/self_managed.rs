//! Certificates without cert-manager on a real API server, without the server that presents them:
//! at every moment both live caBundles verify what every ready replica would present (T2, W7).

use crate::support::*;
use devcluster::{Fault, FaultProxy};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use ksm_scale_operator::{
    certificates::rotation::{Lifetimes, Phase, State},
    membership::membership,
    names::*,
    readiness::Readiness,
    telemetry::certificate_metrics::CertificateMetrics,
    webhook::{SelfManaged, Serving},
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use lease_sharding::{Pod, Sharding, protocol::TimingConfig};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{task::AbortHandle, time::Instant};
use tokio_util::sync::CancellationToken;

mod certs;
mod faults;

static RINGS: AtomicU64 = AtomicU64::new(0);

const KINDS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

#[expect(clippy::disallowed_methods, reason = "tests run on the real clock")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// A rotation of ten seconds: two of soak, and eight until the old CA goes.
fn quick() -> Lifetimes {
    let s = Duration::from_secs;
    Lifetimes::new(s(3_600), s(6), s(2)).expect("lifetimes")
}

/// One replica in this process, under the operator's own rights. Dropped, it is killed.
struct Replica {
    serving: Serving,
    readiness: Readiness,
    task: AbortHandle,
}

impl Replica {
    /// Each has the duty, in a ring of its own: no step may be wrong if several make it.
    fn start(
        world: &World,
        client: Client,
        lifetimes: Lifetimes,
        clock: fn() -> Timestamp,
    ) -> Self {
        let (serving, readiness) = (Serving::default(), Readiness::default());
        let ring = format!("ring-{}", RINGS.fetch_add(1, Ordering::Relaxed));
        let name = "replica".to_owned();
        let pod = Pod { name: name.clone(), namespace: OPERATOR_NAMESPACE.into(), uid: name };
        let ring = Sharding::builder(world.config.clone(), &ring, pod);
        let (membership, member) = membership("replica", ring.timing(TimingConfig::FAST));
        let joined = readiness.wait_for("the ring");
        let part = SelfManaged {
            calls: client.clone(),
            watches: client,
            membership,
            serving: serving.clone(),
            lifetimes,
            clock,
            metrics: CertificateMetrics::default(),
        };
        let part = part.run(&readiness, CancellationToken::new());
        let member = member.run(joined, CancellationToken::new());
        let task = tokio::spawn(async move {
            let ((), member) = tokio::join!(part, member);
            member.expect("a member for ever");
        });
        let task = task.abort_handle();
        Self { serving, readiness, task }
    }

    async fn until_ready(&self) {
        let ready =
            eventually("the replica is ready", SOON, || async { self.readiness.check().ok() });
        if let Err(error) = ready.await {
            panic!("{error}: {:?}", self.readiness.check());
        }
    }

    /// The served leaf.
    fn leaf(&self) -> Vec<u8> {
        self.serving.current().expect("a leaf").leaf().to_vec()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A control plane with both webhook configurations, as somebody else would apply them.
struct World {
    cluster: Cluster,
    /// An administrator's.
    config: Config,
}

impl World {
    async fn start() -> Self {
        let world = Self::without_configurations().await;
        for kind in KINDS {
            world.configure(kind).await;
        }
        world
    }

    async fn without_configurations() -> Self {
        let cluster = Cluster::start(0).await;
        let kubeconfig = Kubeconfig::read_from(cluster.plane.kubeconfig()).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("it fits");
        Self { cluster, config }
    }

    fn configurations(&self, kind: &str) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        Api::all_with(self.cluster.client.clone(), &ApiResource::from_gvk(&gvk))
    }

    async fn configure(&self, kind: &str) {
        let name = if kind == KINDS[0] { MUTATING_WEBHOOK } else { VALIDATING_WEBHOOK };
        let webhook = json!({
            "name": name,
            "clientConfig": {"service": {
                "name": WEBHOOK_SERVICE, "namespace": OPERATOR_NAMESPACE, "path": "/x",
            }},
            "rules": [{
                "apiGroups": [GROUP], "apiVersions": ["v1alpha1"], "operations": ["CREATE"],
                "resources": ["ksmscales"], "scope": "Cluster",
            }],
            "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore",
        });
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": WEBHOOK_CONFIGURATION}, "webhooks": [webhook],
        });
        let (api, params) = (self.configurations(kind), PatchParams::apply("test"));
        api.patch(WEBHOOK_CONFIGURATION, &params, &Patch::Apply(object)).await.expect("applied");
    }

    async fn configuration(&self, kind: &str) -> Value {
        let found =
            self.configurations(kind).get(WEBHOOK_CONFIGURATION).await.expect("it is there");
        serde_json::to_value(found).expect("JSON")
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.cluster.client.clone(), OPERATOR_NAMESPACE)
    }

    async fn state(&self) -> Option<State> {
        let secret = self.secrets().get_opt(CA_SECRET).await.ok()??;
        State::parse(&secret.data?).ok()
    }

    async fn until(&self, what: &str, wanted: impl Fn(&State) -> bool) -> State {
        let result =
            eventually(what, SOON, || async { self.state().await.filter(|state| wanted(state)) });
        match result.await {
            Ok(state) => state,
            Err(error) => panic!("{error}; it is {:#?}", self.state().await),
        }
    }

    /// A client with the operator's rights.
    async fn client(&self) -> Client {
        let account = self.cluster.plane.service_account_kubeconfig(OPERATOR_NAMESPACE, OPERATOR);
        self.client_of(&account.await.expect("a token")).await
    }

    async fn client_via(&self, proxy: &FaultProxy) -> Client {
        let (plane, url) = (&self.cluster.plane, proxy.url());
        let account = plane.service_account_kubeconfig_via(&url, OPERATOR_NAMESPACE, OPERATOR);
        self.client_of(&account.await.expect("a token")).await
    }

    async fn client_of(&self, kubeconfig: &Path) -> Client {
        self.cluster.plane.client(kubeconfig).await.expect("a client")
    }

    async fn replica(&self) -> Replica {
        Replica::start(self, self.client().await, quick(), now)
    }

    async fn annotate(&self) {
        let patch = json!({"metadata": {"annotations": {ANNOTATION_ROTATE: "now"}}});
        let params = PatchParams::default();
        self.secrets().patch(CA_SECRET, &params, &Patch::Merge(patch)).await.expect("annotated");
    }
}

/// Looks at both bundles all the time, as an API server that calls would.
struct Caller {
    task: tokio::task::JoinHandle<Option<String>>,
    stop: CancellationToken,
    replicas: Called,
}

/// Who is called, until forgotten.
type Called = Arc<Mutex<Vec<Option<(Serving, Readiness)>>>>;

impl Caller {
    fn start(world: &World) -> Self {
        let apis = KINDS.map(|kind| world.configurations(kind));
        let stop = CancellationToken::new();
        let replicas = Called::default();
        let (stopped, called) = (stop.clone(), replicas.clone());
        let task = tokio::spawn(async move {
            while !stopped.is_cancelled() {
                for api in &apis {
                    let Ok(found) = api.get(WEBHOOK_CONFIGURATION).await else { continue };
                    let bundle = &found.data["webhooks"][0]["clientConfig"]["caBundle"];
                    let bundle: ByteString =
                        serde_json::from_value(bundle.clone()).unwrap_or_default();
                    for (serving, readiness) in called.lock().expect("a list").iter().flatten() {
                        if let Some(refusal) = refusal(serving, readiness, &bundle.0) {
                            return Some(format!("{:?}: {refusal}", found.types));
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            None
        });
        Self { task, stop, replicas }
    }

    /// Calls a replica from now on. Returns its place, for [`Caller::forgets`].
    fn calls(&self, replica: &Replica) -> usize {
        let mut all = self.replicas.lock().expect("a list");
        all.push(Some((replica.serving.clone(), replica.readiness.clone())));
        all.len() - 1
    }

    /// Who will be gone is called no more.
    fn forgets(&self, place: usize) {
        self.replicas.lock().expect("a list")[place] = None;
    }

    async fn was_never_refused(self) {
        self.stop.cancel();
        assert_eq!(self.task.await.expect("no panic"), None);
    }
}

/// Why a client that trusts `bundle` would refuse a replica that says it is ready.
fn refusal(serving: &Serving, readiness: &Readiness, bundle: &[u8]) -> Option<String> {
    readiness.check().ok()?;
    let name = format!("{WEBHOOK_SERVICE}.{OPERATOR_NAMESPACE}.svc");
    serving.current()?.verify(bundle, &name, now()).err().map(|error| error.to_string())
}

#[tokio::test]
async fn t2_replicas_that_start_at_once_share_one_ca_and_then_write_nothing() {
    for number in [2, 5] {
        let world = World::start().await;
        let proxy = FaultProxy::start(&world.cluster.plane).await.expect("a proxy");
        let client = world.client_via(&proxy).await;
        let start = |_| Replica::start(&world, client.clone(), Lifetimes::default(), now);
        let replicas: Vec<_> = (0..number).map(start).collect();
        for replica in &replicas {
            replica.until_ready().await;
        }
        let state = world.until("a CA at rest", |s| s.active.trusted_since.is_some()).await;
        assert_eq!((state.generation, state.phase()), (1, Phase::Steady));
        for kind in KINDS {
            let bundle =
                &world.configuration(kind).await["webhooks"][0]["clientConfig"]["caBundle"];
            let bundle: ByteString = serde_json::from_value(bundle.clone()).expect("base64");
            assert_eq!(String::from_utf8_lossy(&bundle.0), state.bundle());
            for replica in &replicas {
                assert_eq!(refusal(&replica.serving, &replica.readiness, &bundle.0), None);
            }
        }
        // Whoever starts now finds everything as it should be.
        proxy.reset_log();
        let late = Replica::start(&world, client.clone(), Lifetimes::default(), now);
        late.until_ready().await;
        let writes: Vec<_> = proxy.requests().into_iter().filter(|r| r.mutating).collect();
        assert!(writes.is_empty(), "{writes:#?}");
    }
}

#[tokio::test]
async fn w7_a_rotation_goes_on_wherever_a_replica_is_killed_and_no_call_is_lost() {
    let world = World::start().await;
    let caller = Caller::start(&world);
    // The writes of a rotation: announce, two bundles, soak, switch, retire, two bundles.
    for writes in 1..=7 {
        let proxy = FaultProxy::start(&world.cluster.plane).await.expect("a proxy");
        let victim = Replica::start(&world, world.client_via(&proxy).await, quick(), now);
        let victims_place = caller.calls(&victim);
        victim.until_ready().await;
        let before = world.until("a CA at rest", |s| s.phase() == Phase::Steady).await;
        proxy.cut_after_mutations(writes);
        world.annotate().await;
        tokio::time::timeout(SOON, proxy.first_refusal()).await.expect("so many writes");
        // It goes on serving what it has, until it is gone.
        let successor = world.replica().await;
        let place = caller.calls(&successor);
        successor.until_ready().await;
        caller.forgets(victims_place);
        drop(victim);
        let after = world
            .until("the rotation ends", |s| {
                s.generation > before.generation && s.phase() == Phase::Steady
            })
            .await;
        assert_eq!(after.generation, before.generation + 1, "after {writes} writes");
        successor.until_ready().await;
        caller.forgets(place);
    }
    caller.was_never_refused().await;
}

#[tokio::test]
async fn w7_readiness_says_which_file_to_apply_and_comes_with_it() {
    let world = World::without_configurations().await;
    let replica = world.replica().await;
    eventually("it says what is missing", SOON, || async {
        replica
            .readiness
            .check()
            .err()
            .filter(|text| text.contains("kubectl apply -k webhook-config"))
    })
    .await
    .expect("a remedy");
    for kind in KINDS {
        world.configure(kind).await;
    }
    replica.until_ready().await;
}
