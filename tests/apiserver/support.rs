//! A control plane with the CRD and the operator's rights on it, the operator as a process under
//! its own ServiceAccount, and an independent witness of what its pods expose.

use devcluster::{ControlPlane, FaultProxy, Kubelet, Level};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    events::v1::Event,
};
use ksm_scale_operator::{
    api::{KSMScale, KSMScaleStatus},
    manifests,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    discovery,
};
use serde_json::{Value, json};
use std::time::Duration;

mod caller;
mod load;
mod operator;
mod webhook;
mod witness;

pub use caller::{Caller, Connections};
pub use devcluster::eventually;
pub use load::{Load, until_called};
pub use operator::Operator;
pub use webhook::{PROXY_DELAY, Replica, Webhooks};
pub use witness::{History, Witness};

/// What a wait may take. Nothing here takes a tenth of it on a quiet machine.
pub const SOON: Duration = Duration::from_mins(1);

/// The same for what keeps the machine busy by itself: many KSMScales that change at a time.
pub const LATER: Duration = Duration::from_mins(5);

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
        let mut cluster = Self::without_kubelet(nodes).await;
        cluster.kubelet = Some(Kubelet::start(cluster.client.clone(), Kubelet::always_ready()));
        cluster
    }

    /// The same without anybody who brings pods to life.
    pub async fn without_kubelet(nodes: u32) -> Self {
        let cluster = Self::bare(Level::ApiServer).await;
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
        for manifest in manifests::base().expect("manifests") {
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

    pub fn dynamic(&self, api_version: &str, kind: &str) -> Api<DynamicObject> {
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

    /// Waits until the status satisfies `wanted`, and returns it.
    pub async fn until(
        &self,
        what: &str,
        name: &str,
        wanted: impl Fn(&KSMScaleStatus) -> bool,
    ) -> KSMScaleStatus {
        self.until_within(SOON, what, name, wanted).await
    }

    async fn until_within(
        &self,
        bound: Duration,
        what: &str,
        name: &str,
        wanted: impl Fn(&KSMScaleStatus) -> bool,
    ) -> KSMScaleStatus {
        let result = eventually(what, bound, || async {
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
        self.until_settled_within(SOON, name).await
    }

    /// The same where that is much work.
    pub async fn until_settled_within(&self, bound: Duration, name: &str) -> KSMScaleStatus {
        let generation = self.scales().get(name).await.expect("the KSMScale").metadata.generation;
        self.until_within(bound, "the KSMScale settles", name, |status| {
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
        api.create(&PostParams::default(), &namespace).await.expect("a namespace");
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

/// Deletes a pod at once, as a machine that died would.
pub async fn kill_pod(pods: &Api<Pod>, name: &str) {
    pods.delete(name, &DeleteParams::default().grace_period(0)).await.expect("the pod is deleted");
}
