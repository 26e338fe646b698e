//! One control plane: its processes, its files and the ways to talk to it.

mod accounts;
mod cert_manager;
mod components;
mod kubeconfig;
mod nodes;
mod pki;
pub(crate) mod ports;
mod startup;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;
use tokio::sync::Mutex;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::tools::{self, Tool};

pub(crate) use accounts::Accounts;
use components::Layout;

const WATCH_OVER: Duration = Duration::from_millis(500);

/// How much of a control plane is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// etcd and kube-apiserver. Objects are stored, validated and admitted, and nothing acts on
    /// them: no garbage collection, no default ServiceAccounts, no `kube-root-ca.crt`, no
    /// scheduling, and aggregated ClusterRoles (`view`, `edit`, `admin`) are empty.
    /// Enough for most tests, with a [`Kubelet`](crate::Kubelet) where pods must run.
    ApiServer,
    /// Also kube-controller-manager and kube-scheduler. Nodes and pods are still only objects, and
    /// nodes without a heartbeat become NotReady after a while.
    Controllers,
    /// Also kwok: the nodes of [`ControlPlane::add_kwok_nodes`] become Ready and run their pods.
    Nodes,
}

/// A running control plane with a data directory and ports of its own, so that any number of them
/// can run at the same time. All of it is gone when this value is dropped, or when this process
/// ends for any reason.
///
/// The API server authorises by RBAC, admits by its default plugins and
/// `OwnerReferencesPermissionEnforcement`, and leaves new nodes without taints
/// (`TaintNodesByCondition` is off). When the value is dropped by a panic, as in a test that fails,
/// the logs are kept and their place is printed on standard error.
pub struct ControlPlane {
    level: Level,
    layout: Layout,
    admin: Client,
    kubectl: PathBuf,
    api_server: Mutex<Option<Process>>,
    tokens: Arc<AtomicUsize>,
    others: Mutex<Vec<Process>>,
    // Held for its `Drop` alone, and last: the processes above write into it.
    _scratch: Scratch,
}

impl ControlPlane {
    /// Starts a control plane and returns when it can be used: the API server is ready and, from
    /// [`Level::Controllers`] on, the namespace `default` has its ServiceAccount.
    ///
    /// Builds the binaries first if need be (see [`tools`]), which takes minutes. An error contains
    /// the end of the log of the process that is to blame.
    pub async fn start(level: Level) -> Result<Self> {
        startup::start(level).await
    }

    /// What was started.
    pub fn level(&self) -> Level {
        self.level
    }

    /// A client in the group `system:masters`, whom RBAC does not bind. It retries on 429, 503 and
    /// 504.
    pub fn admin(&self) -> Client {
        self.admin.clone()
    }

    /// A kubeconfig file with the rights of [`ControlPlane::admin`].
    pub fn kubeconfig(&self) -> &Path {
        &self.layout.kubeconfig
    }

    /// The API server's URL, `https://127.0.0.1:<port>`; it stays the same over a restart.
    pub fn server_url(&self) -> String {
        self.layout.server_url()
    }

    /// A file with the certificate, in PEM, of the CA that signed the API server's certificate.
    pub fn ca_path(&self) -> &Path {
        &self.layout.ca
    }

    /// The content of [`ControlPlane::ca_path`].
    pub fn ca_pem(&self) -> Result<String> {
        let path = self.ca_path();
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// A directory for a test's own files, such as logs. It is removed with the control plane; files
    /// that end in `.log` are kept with the others when a test fails.
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }

    /// A client with the identity of a kubeconfig file, such as
    /// [`ControlPlane::service_account_kubeconfig`] returns.
    pub async fn client(&self, kubeconfig: &Path) -> Result<Client> {
        kubeconfig::client(kubeconfig).await
    }

    /// A kubeconfig file with the identity of a ServiceAccount, which must exist. The token is good
    /// for a day. Rights that were bound just now take effect a moment later.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        self.service_account_kubeconfig_via(&self.server_url(), namespace, name).await
    }

    /// As [`ControlPlane::service_account_kubeconfig`], with `url` for the server's URL: that of a
    /// [`FaultProxy`](crate::FaultProxy), for example. (kubectl does not send a token over plain
    /// HTTP; kube does.)
    pub async fn service_account_kubeconfig_via(
        &self,
        url: &str,
        namespace: &str,
        name: &str,
    ) -> Result<PathBuf> {
        self.accounts().kubeconfig(url, namespace, name).await
    }

    pub(crate) fn accounts(&self) -> Accounts {
        Accounts {
            admin: self.admin(),
            url: self.server_url(),
            ca: self.layout.ca.clone(),
            dir: self.layout.dir.clone(),
            given: Arc::clone(&self.tokens),
        }
    }

    /// kubectl with the rights of [`ControlPlane::admin`]; add the arguments.
    pub fn kubectl(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.kubectl);
        command.env("KUBECONFIG", self.kubeconfig()).kill_on_drop(true);
        command
    }

    /// Kills the API server: an outage, every connection included. Does nothing if it is down.
    pub async fn stop_api_server(&self) -> Result<()> {
        if let Some(mut process) = self.api_server.lock().await.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// Ends an outage: starts the API server on its old port and data, and returns when it is
    /// ready. Does nothing if it is up.
    pub async fn start_api_server(&self) -> Result<()> {
        let mut api_server = self.api_server.lock().await;
        if api_server.is_none() {
            let program = tools::path(Tool::KubeApiserver)?;
            let mut process = components::api_server(&self.layout, &program)?;
            startup::api_server_ready(&self.layout, &mut [&mut process]).await?;
            *api_server = Some(process);
        }
        Ok(())
    }

    /// From now on the API server writes down every write of a user, with its answer: one
    /// `audit.k8s.io/v1` Event in JSON for each line of the file that is returned. Restarts it.
    pub async fn audit(&self, user: &str) -> Result<PathBuf> {
        let verbs = ["create", "update", "patch", "delete"];
        let policy = serde_json::json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "RequestResponse", "users": [user], "verbs": verbs},
                {"level": "None"},
            ],
        });
        fs::write(&self.layout.audit_policy, policy.to_string())?;
        self.stop_api_server().await?;
        self.start_api_server().await?;
        Ok(self.layout.audit_log.clone())
    }

    /// Returns an error as soon as one of the processes has ended by itself, and never otherwise.
    /// An API server that was stopped on purpose is fine.
    pub async fn watch_over(&self) -> Result<()> {
        loop {
            for process in self.others.lock().await.iter_mut() {
                startup::alive(process)?;
            }
            if let Some(process) = &mut *self.api_server.lock().await {
                startup::alive(process)?;
            }
            tokio::time::sleep(WATCH_OVER).await;
        }
    }

    /// Copies every log to a directory that outlives this control plane, and says where. A panic
    /// does so by itself.
    pub fn keep_logs(&self) -> io::Result<PathBuf> {
        let name = self.layout.dir.file_name().unwrap_or_default();
        let kept = tools::log_archive().join(name);
        fs::create_dir_all(&kept)?;
        for entry in fs::read_dir(&self.layout.dir)? {
            let path = entry?.path();
            if path.extension() == Some("log".as_ref()) {
                fs::copy(&path, kept.join(path.file_name().unwrap_or_default()))?;
            }
        }
        Ok(kept)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let line = match self.keep_logs() {
                Ok(kept) => format!("the control plane's logs are in {}", kept.display()),
                Err(error) => format!("the control plane's logs are lost: {error}"),
            };
            let _ = writeln!(io::stderr(), "devcluster: {line}");
        }
    }
}
