//! A control plane with a namespace of work, and processes that share it.

use crate::witness::Witness;
use devcluster::{ControlPlane, FaultProxy, Level, Process, eventually};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::NamespaceResourceScope,
};
use lease_sharding::{
    Pod,
    keys::{Key, Keyspace},
    partitions::PartitionSet,
    placement::{Candidate, Placement},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// What a wait may take. Nothing here takes a tenth of it on a quiet machine.
pub const SOON: Duration = Duration::from_mins(3);
pub const NAMESPACE: &str = "work";
const MAPS: usize = 12;

pub struct Stage {
    pub plane: ControlPlane,
    pub client: Client,
    /// With the rights of a worker.
    pub kubeconfig: PathBuf,
    pub witness: Witness,
}

/// The names of the objects that are worked on.
pub fn maps() -> impl Iterator<Item = String> {
    (0..MAPS).map(|n| format!("map-{n}"))
}

pub fn key(map: &str) -> Key {
    Key::new("", "ConfigMap", NAMESPACE, map)
}

impl Stage {
    pub async fn set() -> Self {
        let plane = ControlPlane::start(Level::ApiServer).await.expect("a control plane");
        let client = plane.admin();
        let stage =
            Self { witness: Witness::start(&client), kubeconfig: PathBuf::new(), client, plane };
        stage.create_namespace(NAMESPACE).await;
        for map in maps() {
            let labels = json!({"work": "shared"});
            stage
                .create::<ConfigMap>(
                    NAMESPACE,
                    json!({"metadata": {"name": map, "labels": labels}}),
                )
                .await;
        }
        let url = stage.plane.server_url();
        let kubeconfig = stage.kubeconfig_via(&url).await;
        Self { kubeconfig, ..stage }
    }

    pub async fn create<K>(&self, namespace: &str, object: Value)
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).expect("an object");
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        api.create(&PostParams::default(), &object).await.expect("created");
    }

    /// A namespace with a ServiceAccount that has a worker's rights there, and no others.
    pub async fn create_namespace(&self, name: &str) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).expect("JSON");
        api.create(&PostParams::default(), &namespace).await.expect("a namespace");
        let meta = json!({"name": "worker"});
        self.create::<ServiceAccount>(name, json!({"metadata": meta})).await;
        self.create::<Role>(name, json!({"metadata": meta, "rules": [
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch", "patch"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
             "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
        ]})).await;
        self.create::<RoleBinding>(name, json!({
            "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "worker"},
            "subjects": [{"kind": "ServiceAccount", "name": "worker", "namespace": name}],
        })).await;
    }

    pub async fn kubeconfig_via(&self, url: &str) -> PathBuf {
        let file = self.plane.service_account_kubeconfig_via(url, NAMESPACE, "worker").await;
        let file = file.expect("a token");
        // The authoriser hears of the binding a moment later.
        let client = Client::try_from(config(&file).await).expect("a client");
        let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        eventually("the worker may list", SOON, || async {
            maps.list(&ListParams::default()).await.ok()
        })
        .await
        .expect("rights");
        file
    }

    pub fn worker(&self, name: &str) -> Process {
        self.worker_as(name, name, &self.kubeconfig)
    }

    /// A process of the example, in the pod `name` with the UID `uid`.
    pub fn worker_as(&self, name: &str, uid: &str, kubeconfig: &Path) -> Process {
        let log = self.plane.dir().join(format!("{name}.log"));
        let env = [
            ("KUBECONFIG", kubeconfig.as_os_str()),
            ("POD_NAME", name.as_ref()),
            ("POD_NAMESPACE", NAMESPACE.as_ref()),
            ("POD_UID", uid.as_ref()),
            ("RUST_LOG", "info".as_ref()),
        ];
        let none: [&str; 0] = [];
        Process::spawn(name, example(), none, env, &log).expect("a worker")
    }

    /// The newest revision of any object.
    pub async fn revision(&self) -> u64 {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let list = maps.list(&ListParams::default()).await.expect("ConfigMaps");
        let revision = list.metadata.resource_version.expect("a revision");
        revision.parse().expect("a number")
    }

    /// Waits until each object was worked on, from now on, by that one of these to whom it is placed.
    /// Returns when that was.
    pub async fn until_shared_by(&self, workers: &[&str]) -> Instant {
        let begun = Instant::now();
        let none = PartitionSet::EMPTY;
        let candidates =
            workers.iter().map(|name| Candidate { name, claims: &none, generation: 0 });
        let candidates: Vec<_> = candidates.collect();
        let keys = Keyspace::default();
        let placed = Placement::default().place(keys.partitions(), &candidates);
        let what = format!("{workers:?} share the work");
        let shared = eventually(&what, SOON, || async {
            let latest = self.witness.latest();
            let done = |map: String| {
                let owner = placed.owner(keys.partition_of(&key(&map)));
                latest.get(&map).is_some_and(|(who, at)| owner == Some(who) && *at > begun)
            };
            maps().all(done).then(Instant::now)
        });
        match shared.await {
            Ok(at) => at,
            Err(error) => {
                self.witness.assert_one_owner();
                panic!("{error}; the last were {:#?}", self.witness.latest())
            }
        }
    }

    pub async fn proxy(&self) -> (FaultProxy, PathBuf) {
        let proxy = FaultProxy::start(&self.plane).await.expect("a proxy");
        let kubeconfig = self.kubeconfig_via(&proxy.url()).await;
        (proxy, kubeconfig)
    }
}

pub async fn config(kubeconfig: &Path) -> Config {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a configuration")
}

pub fn pod(name: &str) -> Pod {
    Pod { name: name.into(), namespace: NAMESPACE.into(), uid: name.into() }
}

/// The example's program, built by now: Cargo gives tests the paths of programs, but not those of
/// examples.
fn example() -> &'static Path {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| {
        let arguments =
            ["build", "--quiet", "--package", "lease-sharding", "--example", "configmaps"];
        let built = Command::new(env!("CARGO")).args(arguments).status().expect("cargo runs");
        assert!(built.success(), "the example does not build");
        let me = std::env::current_exe().expect("a path");
        let profile = me.ancestors().nth(2).expect("target, profile and deps");
        profile.join("examples/configmaps")
    })
}
