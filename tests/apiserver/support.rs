//! A control plane with the CRD and the operator's rights on it, the operator as a process under
//! its own ServiceAccount, and an independent witness of what its pods expose.

use devcluster::{ControlPlane, FaultProxy, Kubelet, Level, Process, Signal};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    events::v1::Event,
};
use ksm_scale_operator::{
    api::{KSMScale, KSMScaleStatus},
    coverage::shard_of,
    manifests,
    observed::ObservedPod,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    discovery,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub use devcluster::eventually;

/// What a wait may take. Nothing here takes a tenth of it on a quiet machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A control plane on which the operator can run.
pub struct Cluster {
    pub plane: ControlPlane,
    pub client: Client,
    /// Brings pods to life; none at the levels that have their own ways.
    pub kubelet: Option<Kubelet>,
}

impl Cluster {
    /// etcd and kube-apiserver, with `nodes` node objects and a stand-in for the kubelet.
    pub async fn start(nodes: u32) -> Self {
        let mut cluster = Self::bare(Level::ApiServer).await;
        cluster.kubelet = Some(Kubelet::start(cluster.client.clone(), Kubelet::always_ready()));
        cluster.plane.add_nodes(0..nodes).await.expect("nodes");
        cluster
    }

    /// Everything a real cluster has but machines.
    pub async fn whole(level: Level) -> Self {
        Self::bare(level).await
    }

    async fn bare(level: Level) -> Self {
        let plane = ControlPlane::start(level).await.expect("a control plane");
        let client = plane.admin();
        for manifest in manifests::all().expect("manifests") {
            apply_yaml(&client, &manifest.text).await;
        }
        let cluster = Self { plane, client, kubelet: None };
        let crds: Api<DynamicObject> =
            cluster.dynamic("apiextensions.k8s.io/v1", "CustomResourceDefinition");
        eventually("the CRD is established", SOON, || async {
            let crd = crds.get("ksmscales.monitor.example.com").await.ok()?;
            let conditions = crd.data["status"]["conditions"].as_array()?.clone();
            conditions
                .iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
                .then_some(())
        })
        .await
        .expect("an established CRD");
        cluster
    }

    fn dynamic(&self, api_version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let gvk = kube::core::GroupVersionKind::gvk(group, version, kind);
        Api::all_with(self.client.clone(), &ApiResource::from_gvk(&gvk))
    }

    pub fn scales(&self) -> Api<KSMScale> {
        Api::all(self.client.clone())
    }

    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates or changes a KSMScale. Fields that the spec leaves out get their defaults.
    pub async fn apply(&self, name: &str, spec: Value) {
        self.try_apply(name, spec).await.expect("a valid KSMScale");
    }

    pub async fn try_apply(&self, name: &str, spec: Value) -> kube::Result<()> {
        let api: Api<DynamicObject> =
            Api::all_with(self.client.clone(), &ApiResource::erase::<KSMScale>(&()));
        let scale = json!({
            "apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale",
            "metadata": {"name": name}, "spec": spec,
        });
        api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(scale)).await.map(drop)
    }

    pub async fn status(&self, name: &str) -> KSMScaleStatus {
        self.scales().get(name).await.expect("the KSMScale").status.unwrap_or_default()
    }

    /// Waits until the status satisfies `wanted`, and returns it.
    pub async fn until(
        &self,
        what: &str,
        name: &str,
        wanted: impl Fn(&KSMScaleStatus) -> bool,
    ) -> KSMScaleStatus {
        let result = eventually(what, SOON, || async {
            let status = self.scales().get(name).await.ok()?.status.unwrap_or_default();
            wanted(&status).then_some(status)
        });
        match result.await {
            Ok(status) => status,
            Err(error) => panic!(
                "{error}; the status is {:#?}",
                self.scales().get(name).await.map(|s| s.status)
            ),
        }
    }

    /// Waits until the KSMScale is at rest: nothing in progress for its current generation.
    pub async fn until_settled(&self, name: &str) -> KSMScaleStatus {
        let generation = self.scales().get(name).await.expect("the KSMScale").metadata.generation;
        self.until("the KSMScale settles", name, |status| {
            status.observed_generation == generation
                && condition(status, "Progressing").0 == "False"
                && condition(status, "Degraded").0 == "False"
                && condition(status, "Available").0 == "True"
                && status.current_replicas == status.desired_replicas
        })
        .await
    }

    /// Names of the pods in a namespace that are not being deleted.
    pub async fn pod_names(&self, namespace: &str) -> Vec<String> {
        let pods = self.pods(namespace).list(&ListParams::default()).await.expect("pods");
        let here = pods.items.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
        here.map(ResourceExt::name_any).collect()
    }

    pub async fn until_pods(&self, namespace: &str, wanted: &[&str]) {
        let what = format!("pods are {wanted:?}");
        let result = eventually(&what, SOON, || async {
            (self.pod_names(namespace).await == wanted).then_some(())
        });
        if let Err(error) = result.await {
            panic!("{error}; they are {:?}", self.pod_names(namespace).await);
        }
    }

    pub async fn create_namespace(&self, name: &str) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).expect("JSON");
        api.create(&Default::default(), &namespace).await.expect("a namespace");
        // The controllers that make default ServiceAccounts may not run here.
    }

    /// Lets the operator work in a namespace, as the documentation says.
    pub async fn allow_namespace(&self, name: &str) {
        self.create_namespace(name).await;
        self.allow_existing_namespace(name).await;
    }

    /// The same for a namespace that is there.
    pub async fn allow_existing_namespace(&self, name: &str) {
        apply_yaml(&self.client, &format!(
            "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: ksm-scale-operator-workload, namespace: {name}}}, roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ksm-scale-operator-workload}}, subjects: [{{kind: ServiceAccount, name: ksm-scale-operator, namespace: monitoring}}]}}"
        )).await;
    }

    /// Reasons of the Events about a KSMScale, oldest first.
    pub async fn events(&self, name: &str) -> Vec<(String, String)> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let mut events = api.list(&ListParams::default()).await.expect("events").items;
        events.retain(|e| e.regarding.as_ref().is_some_and(|r| r.name.as_deref() == Some(name)));
        events.sort_by_key(|e| e.event_time.as_ref().map(|t| t.0));
        events
            .into_iter()
            .map(|e| (e.reason.unwrap_or_default(), e.note.unwrap_or_default()))
            .collect()
    }

    /// The operator, talking to the API server directly.
    pub async fn operator(&self) -> Operator {
        self.operator_with(&[]).await
    }

    /// The operator with more arguments.
    pub async fn operator_with(&self, args: &[&str]) -> Operator {
        let kubeconfig =
            self.plane.service_account_kubeconfig("monitoring", "ksm-scale-operator").await;
        Operator::start(&self.plane, &kubeconfig.expect("a token"), args).await
    }

    /// The operator behind a proxy.
    pub async fn operator_via(&self, proxy: &FaultProxy, args: &[&str]) -> Operator {
        let operator = self.spawn_via(proxy, args).await;
        operator.until_ready().await;
        operator
    }

    /// The same, without waiting until it is ready.
    pub async fn spawn_via(&self, proxy: &FaultProxy, args: &[&str]) -> Operator {
        let url = proxy.url();
        let kubeconfig = self
            .plane
            .service_account_kubeconfig_via(&url, "monitoring", "ksm-scale-operator")
            .await;
        Operator::spawn(&self.plane, &kubeconfig.expect("a token"), args).await
    }
}

/// Status, reason and message of a condition; empty if it is not there.
pub fn condition<'s>(status: &'s KSMScaleStatus, type_: &str) -> (&'s str, &'s str, &'s str) {
    let found = status.conditions.iter().find(|c| c.type_ == type_);
    found.map_or(("", "", ""), |c| (&c.status, &c.reason, &c.message))
}

/// Applies YAML documents as an administrator does.
pub async fn apply_yaml(client: &Client, text: &str) {
    for document in
        text.split("\n---\n").flat_map(|d| d.split("---\n")).filter(|d| !d.trim().is_empty())
    {
        let object: DynamicObject = serde_saphyr::from_str(document).expect("a Kubernetes object");
        let types = object.types.clone().expect("apiVersion and kind");
        let gvk = types.try_into().expect("a group, version and kind");
        let (resource, _) = discovery::pinned_kind(client, &gvk).await.expect("a known kind");
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let params = PatchParams::apply("test").force();
        api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await.expect("applied");
    }
}

/// The operator's process.
pub struct Operator {
    process: Process,
    pub health: u16,
    pub metrics: u16,
    log: PathBuf,
}

impl Operator {
    /// Starts it without waiting for anything.
    pub async fn spawn(plane: &ControlPlane, kubeconfig: &Path, args: &[&str]) -> Self {
        let (health, metrics) = (free_port().await, free_port().await);
        let log = plane.dir().join(format!("operator-{health}.log"));
        let (health_at, metrics_at) =
            (format!("127.0.0.1:{health}"), format!("127.0.0.1:{metrics}"));
        let mut all = vec![
            "run",
            "--health-probe-bind-address",
            &health_at,
            "--metrics-bind-address",
            &metrics_at,
        ];
        all.extend(["--log-filter", "info,ksm_scale_operator=debug"]);
        if !args.contains(&"--settle-time") {
            all.extend(["--settle-time", "0s"]);
        }
        all.extend(args);
        let env = [("KUBECONFIG", kubeconfig)];
        let process =
            Process::spawn("operator", env!("CARGO_BIN_EXE_ksm-scale-operator"), all, env, &log);
        Self { process: process.expect("the operator starts"), health, metrics, log }
    }

    /// Starts it and waits until it is ready.
    pub async fn start(plane: &ControlPlane, kubeconfig: &Path, args: &[&str]) -> Self {
        let operator = Self::spawn(plane, kubeconfig, args).await;
        operator.until_ready().await;
        operator
    }

    pub async fn until_ready(&self) {
        let ready = eventually("the operator is ready", SOON, || async {
            (http_get(self.health, "/readyz").await?.0 == 200).then_some(())
        });
        if let Err(error) = ready.await {
            panic!("{error}; its log:\n{}", self.log());
        }
    }

    /// The value of a metric without labels, or of the line that starts with `name`.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = http_get(self.metrics, "/metrics").await.expect("metrics");
        let line = text.lines().find(|l| l.split(' ').next() == Some(name));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal).expect("the operator can be signalled");
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill().expect("the operator can be killed");
    }

    /// SIGTERM, and what it ended with.
    pub async fn terminate(mut self) -> ExitStatus {
        self.process.terminate(SOON).await.expect("the operator stops")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Status code and body, or `None` while nobody answers.
pub async fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())
        .await
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Follows every pod of the cluster and works out, at each of their changes, which objects the
/// Ready ones expose: by hashing the UIDs of 2,000 made-up objects, knowing nothing of plans.
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    pods: BTreeMap<String, Pod>,
    /// Changes of pods since the witness was asked to watch.
    changes: usize,
    /// The most objects that nobody exposed, and the pods at that moment.
    worst: (usize, String),
    most_pods: usize,
}

const OBJECTS: u32 = 2_000;

impl Witness {
    pub async fn start(client: &Client) -> Self {
        Self::start_with(client, watcher::Config::default()).await
    }

    /// Follows the pods of one KSMScale only.
    pub async fn of(client: &Client, scale: &str) -> Self {
        let labels = format!("ksmscale.example.com={scale}");
        Self::start_with(client, watcher::Config::default().labels(&labels)).await
    }

    async fn start_with(client: &Client, config: watcher::Config) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (writer, pods) = (seen.clone(), Api::<Pod>::all(client.clone()));
        let (listed, first) = tokio::sync::oneshot::channel();
        let mut listed = Some(listed);
        let uids: Vec<String> = (0..OBJECTS)
            .map(|i| format!("{:08x}-0000-4000-8000-{i:012x}", i.wrapping_mul(2_654_435_761)))
            .collect();
        let task = tokio::spawn(async move {
            let events = watcher(pods, config).default_backoff();
            let _ = events
                .try_for_each(|event| {
                    let mut seen = writer.lock().expect("no panic");
                    match event {
                        watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                            seen.pods.insert(pod.uid().unwrap_or_default(), pod);
                        }
                        watcher::Event::Delete(pod) => {
                            seen.pods.remove(&pod.uid().unwrap_or_default());
                        }
                        watcher::Event::InitDone => {
                            listed.take().map(|listed| listed.send(()));
                        }
                        watcher::Event::Init => {}
                    }
                    seen.look(&uids);
                    std::future::ready(Ok(()))
                })
                .await;
        });
        first.await.expect("a first list");
        Self { seen, task }
    }

    /// Forgets what was; from now on every object has to be exposed.
    pub fn watch(&self) {
        let mut seen = self.seen.lock().expect("no panic");
        (seen.changes, seen.worst, seen.most_pods) = (0, (0, String::new()), 0);
    }

    /// Panics if since [`Witness::watch`] an object was ever exposed by no Ready pod, or if pods
    /// have not changed at all.
    pub fn saw_no_gap(&self) {
        let seen = self.seen.lock().expect("no panic");
        assert!(seen.changes > 0, "no pod changed, so nothing was proven");
        let (missing, at) = &seen.worst;
        assert_eq!(*missing, 0, "of {OBJECTS} objects were exposed by nobody, with pods {at}");
    }

    /// The most pods there were at a time since [`Witness::watch`].
    pub fn most_pods(&self) -> usize {
        self.seen.lock().expect("no panic").most_pods
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn look(&mut self, uids: &[String]) {
        let pods: Vec<_> = self.pods.values().map(ObservedPod::new).collect();
        let serving: Vec<_> = pods.iter().filter(|p| p.is_ready()).collect();
        let exposed = |uid: &&String| {
            serving
                .iter()
                .filter_map(|p| p.slice())
                .any(|s| shard_of(uid, s.total()) == s.ordinal())
        };
        let missing = uids.iter().filter(|uid| !exposed(uid)).count();
        self.changes += 1;
        self.most_pods = self.most_pods.max(pods.iter().filter(|p| !p.terminating).count());
        if missing > self.worst.0 {
            let names: Vec<_> = serving.iter().map(|p| p.name.clone()).collect();
            self.worst = (missing, names.join(", "));
        }
    }
}

/// Every status that a KSMScale had, in order, from the moment of the call.
pub struct History {
    statuses: Arc<Mutex<Vec<KSMScaleStatus>>>,
    task: JoinHandle<()>,
}

impl History {
    pub async fn of(cluster: &Cluster, name: &str) -> Self {
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let (writer, api) = (statuses.clone(), cluster.scales());
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let (listed, first) = tokio::sync::oneshot::channel();
        let mut listed = Some(listed);
        let task = tokio::spawn(async move {
            watcher(api, config)
                .default_backoff()
                .for_each(|event| {
                    match event {
                        Ok(watcher::Event::Apply(scale) | watcher::Event::InitApply(scale)) => {
                            let mut statuses = writer.lock().expect("no panic");
                            if let Some(status) =
                                scale.status.filter(|s| statuses.last() != Some(s))
                            {
                                statuses.push(status);
                            }
                        }
                        Ok(watcher::Event::InitDone) => {
                            listed.take().map(|listed| listed.send(()));
                        }
                        _ => {}
                    }
                    std::future::ready(())
                })
                .await;
        });
        first.await.expect("a first list");
        Self { statuses, task }
    }

    pub fn statuses(&self) -> Vec<KSMScaleStatus> {
        self.statuses.lock().expect("no panic").clone()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Deletes a pod at once, as a machine that died would.
pub async fn kill_pod(pods: &Api<Pod>, name: &str) {
    pods.delete(name, &DeleteParams::default().grace_period(0)).await.expect("the pod is deleted");
}
