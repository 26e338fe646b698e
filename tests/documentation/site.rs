//! Where a reader works: a checkout, a shell, and a cluster of four nodes whose pods are processes.

use crate::document::{Shown, Step};
use devcluster::{
    Balancer, ControlPlane, Level, Machines, Process, Program, SecretVolume, eventually,
    kube_state_metrics,
    probe::{free_address, http_get},
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use ksm_scale_operator::names::{
    OPERATOR, OPERATOR_NAMESPACE, WEBHOOK_CERTIFICATE_SECRET, WEBHOOK_SERVICE,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{process::Command, task::JoinHandle};

/// What a wait may take. Nothing here takes a tenth of it on a quiet machine.
pub(crate) const SOON: Duration = Duration::from_mins(2);

/// Probes are so many times faster than the pods say.
const PACE: u32 = 10;

/// What the operator's pods get beside their own arguments: addresses, since processes share this
/// machine, and less patience, since nobody is there who has to be waited for.
const ARGS: [&str; 6] = [
    "--metrics-bind-address=0.0.0.0:8080",
    "--health-probe-bind-address=0.0.0.0:8081",
    "--webhook-bind-address=0.0.0.0:10250",
    "--settle-time=1s",
    "--webhook-ca-soak=2s",
    "--lame-duck=3s",
];

/// A copy of what is applied, with the files that pages speak of. What Git has of `scale.yaml` is told
/// by a stand-in, since Git may not be here.
const CHECKOUT: &str = "
cp -r \"$REPOSITORY\"/{deploy,crds,certs,webhook-config} .
cp \"$REPOSITORY\"/examples/demo/*.yaml .
mkdir -p manifests target/release
cp deploy/samples/production.yaml manifests/
cp deploy/samples/sharded.yaml scale.yaml
ln -s \"$OPERATOR\" target/release/ksm-scale-operator
printf '#!/bin/sh\\ncat \"${2#HEAD:}\"' > .bin/git
chmod +x .bin/git
";

pub(crate) struct Site {
    /// Operators that were started by hand.
    by_hand: Vec<Process>,
    stand_ins: JoinHandle<()>,
    balancer: Arc<Balancer>,
    /// Of an operator that is started by hand: health and metrics.
    addresses: [String; 2],
    _machines: Machines,
    plane: ControlPlane,
    checkout: PathBuf,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stand_ins.abort();
    }
}

impl Site {
    pub(crate) async fn start() -> Self {
        let built = tokio::task::spawn_blocking(|| kube_state_metrics::program(None));
        let metrics = built.await.expect("no panic").expect("a stand-in");
        let plane = ControlPlane::start(Level::Controllers).await.expect("a control plane");
        let (checkout, mounted) = (plane.dir().join("checkout"), plane.dir().join("mounted"));
        for folder in [&checkout, &mounted] {
            std::fs::create_dir(folder).expect("a folder");
        }
        let folder = format!("--webhook-cert-dir={}", mounted.display());
        let programs = Arc::new(move |pod: &Pod| Some(program(pod, &metrics, &folder)));
        let machines = Machines::start(&plane, 4, PACE, programs).await.expect("machines");
        let balancer = Arc::new(Balancer::start(Duration::ZERO).await.expect("a balancer"));
        let stand_ins = tokio::spawn(stand_in(plane.admin(), Arc::clone(&balancer), mounted));
        let addresses = [free_address().await, free_address().await];
        let addresses = addresses.map(|address| address.expect("a port"));
        let by_hand = Vec::new();
        let site =
            Self { by_hand, stand_ins, balancer, addresses, _machines: machines, plane, checkout };
        site.prepare().await;
        site
    }

    async fn prepare(&self) {
        let bin = self.checkout.join(".bin");
        std::fs::create_dir(&bin).expect("a folder");
        let kubectl = self.plane.kubectl().as_std().get_program().to_owned();
        symlink(kubectl, bin.join("kubectl")).expect("a link");
        symlink(env!("CARGO_BIN_EXE_ksm-scale-operator"), bin.join(OPERATOR)).expect("a link");
        std::fs::copy(self.plane.kubeconfig(), self.checkout.join("admin.kubeconfig"))
            .expect("a kubeconfig");
        let (code, printed) = self.shell(CHECKOUT).await;
        assert_eq!(code, Some(0), "{printed}");
    }

    pub(crate) async fn start_cert_manager(&self) {
        self.plane.start_cert_manager().await.expect("cert-manager");
    }

    /// Takes one step. What it printed if it did not do what the page says.
    pub(crate) async fn follow(&mut self, shown: &Shown) -> Result<(), String> {
        match &shown.step {
            Step::Command { text, output } => self.command(text, output.as_deref()).await,
            Step::Yaml(text) => self.yaml(text).await,
            Step::Other { .. } => Ok(()),
        }
    }

    async fn command(&mut self, text: &str, shown: Option<&str>) -> Result<(), String> {
        if text.contains("ksm-scale-operator run --webhook") {
            return self.run_operator(text).await;
        }
        if let Some(url) = text.strip_prefix("curl http://") {
            return self.get(url).await;
        }
        let looks = ["kubectl get", "kubectl describe", "kubectl diff", "kubectl auth can-i"];
        // What is refused changes nothing either, and may tell how many there are.
        let is_refusal = shown.is_some_and(|shown| shown.starts_with("Error from server"));
        let is_look = looks.iter().any(|start| text.starts_with(start))
            || text.contains("doctor")
            || is_refusal;
        let as_shown = |(code, printed): &(Option<i32>, String)| match shown {
            Some(shown) => crate::compare::agrees(shown, printed),
            None => *code == Some(0),
        };
        let start = Instant::now();
        let seen = loop {
            let seen = self.shell(text).await;
            // What is looked at may come a moment later.
            if as_shown(&seen) || !is_look || start.elapsed() > SOON {
                break seen;
            }
        };
        if text.starts_with("kubectl apply -k deploy/overlays/") {
            self.connect(text.contains("policies")).await;
        }
        if text.contains("rollout status") {
            self.until_called().await;
        }
        if as_shown(&seen) {
            return Ok(());
        }
        Err(format!("exit code {:?}, and printed:\n{}", seen.0, seen.1))
    }

    /// What curl does, which may not be here, for an operator on `localhost`. Ports of this machine may
    /// be taken, so one that was started by hand has others; else it is a replica in the cluster, as
    /// after `kubectl port-forward`.
    async fn get(&self, url: &str) -> Result<(), String> {
        let (address, path) = url.split_once('/').ok_or("no path")?;
        let [health, metrics] = &self.addresses;
        let address = match address {
            _ if self.by_hand.is_empty() => {
                let ip = "kubectl get pods -n monitoring -l app.kubernetes.io/name=ksm-scale-operator -o jsonpath='{.items[0].status.podIP}'";
                address.replace("localhost", &self.shell(ip).await.1)
            }
            "localhost:8081" => health.clone(),
            _ => metrics.clone(),
        };
        let answered = eventually("it answers", SOON, || async {
            (http_get(&address, &format!("/{path}")).await.ok()?.0 == 200).then_some(())
        });
        answered.await.map_err(|error| format!("{error:#} at {address}"))
    }

    /// An object that a page shows is a file of that name if its first line says so; then a later
    /// command uses it. Else the API server says whether it takes it.
    async fn yaml(&self, text: &str) -> Result<(), String> {
        let first = text.lines().next().unwrap_or_default();
        let named = first.strip_prefix("# ");
        let named = named.filter(|name| Path::new(name).extension().is_some_and(|e| e == "yaml"));
        if let Some(name) = named {
            let path = self.checkout.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
            return Ok(());
        }
        let command =
            format!("kubectl apply --dry-run=server -f - <<'END-OF-FILE'\n{text}END-OF-FILE");
        match self.shell(&command).await {
            (Some(0), _) => Ok(()),
            (_, printed) => Err(printed),
        }
    }

    /// Runs a command line in the checkout: its exit code and all it printed.
    pub(crate) async fn shell(&self, text: &str) -> (Option<i32>, String) {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("exec 2>&1\nset -o pipefail\n{text}")]);
        shell.current_dir(&self.checkout).kill_on_drop(true).stdin(Stdio::null());
        shell.envs(self.environment());
        let output = tokio::time::timeout(SOON * 2, shell.output()).await;
        let Ok(output) = output else { return (None, "it does not end".to_owned()) };
        let output = output.expect("a shell");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        #[expect(clippy::disallowed_methods, reason = "the reader's other programs")]
        let others = std::env::var("PATH").unwrap_or_default();
        let [health, metrics] = &self.addresses;
        vec![
            ("PATH", format!("{}:{others}", path(&self.checkout.join(".bin")))),
            ("HOME", path(&self.checkout)),
            ("KUBECONFIG", path(&self.checkout.join("admin.kubeconfig"))),
            ("REPOSITORY", env!("CARGO_MANIFEST_DIR").to_owned()),
            ("OPERATOR", env!("CARGO_BIN_EXE_ksm-scale-operator").to_owned()),
            ("KSM_HEALTH_PROBE_BIND_ADDRESS", health.clone()),
            ("KSM_METRICS_BIND_ADDRESS", metrics.clone()),
            ("KSM_SETTLE_TIME", "1s".to_owned()),
        ]
    }

    async fn run_operator(&mut self, text: &str) -> Result<(), String> {
        let line = format!("cd {}; {text}", self.checkout.display());
        let log = self.plane.dir().join("by-hand.log");
        let process = Process::spawn("operator", "bash", ["-c", &line], self.environment(), &log);
        self.by_hand.push(process.expect("a process"));
        let ready = eventually("the operator is ready", SOON, || async {
            (http_get(&self.addresses[0], "/readyz").await.ok()?.0 == 200).then_some(())
        });
        ready.await.map_err(|error| {
            format!("{error}\n{}", std::fs::read_to_string(log).unwrap_or_default())
        })
    }

    /// There is no network of Services here: that of the webhooks leads to the balancer.
    async fn connect(&self, policies: bool) {
        let port = self.balancer.address().port();
        let service = json!({"spec": {
            "type": "ExternalName", "externalName": "localhost", "clusterIP": null, "clusterIPs": null,
        }});
        let hook = json!([{"op": "replace", "path": "/webhooks/0/clientConfig/service/port", "value": port}]);
        let mut lines = vec![format!(
            "kubectl patch service -n {OPERATOR_NAMESPACE} {WEBHOOK_SERVICE} --type=merge -p '{service}'"
        )];
        if !policies {
            for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
                lines.push(format!("kubectl patch {kind} {OPERATOR} --type=json -p '{hook}'"));
            }
        }
        let (code, printed) = self.shell(&lines.join(" && ")).await;
        assert_eq!(code, Some(0), "{printed}");
    }

    /// Waits until the API server gets answers of the webhooks, if there are any.
    async fn until_called(&self) {
        let scale = json!({
            "apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale",
            "metadata": {"name": "dry"}, "spec": {},
        });
        let line = format!("kubectl create --dry-run=server -f - <<< '{scale}'");
        let called = eventually("the API server is answered", SOON, || async {
            (self.shell(&line).await.0 == Some(0)).then_some(())
        });
        called.await.expect("an answer");
    }
}

/// What runs in place of a pod's image.
fn program(pod: &Pod, metrics: &Program, mounted: &str) -> Program {
    if pod.labels().get("app.kubernetes.io/name").is_none_or(|name| name != OPERATOR) {
        let mut metrics = metrics.clone();
        // Who says nothing would listen on all addresses of this machine.
        let hosts = ["--host=0.0.0.0", "--telemetry-host=0.0.0.0"];
        metrics.args.extend(hosts.map(str::to_owned));
        return metrics;
    }
    let args = ARGS.into_iter().chain([mounted]).map(str::to_owned).collect();
    Program { path: env!("CARGO_BIN_EXE_ksm-scale-operator").into(), args, ..Program::default() }
}

/// What else a cluster has: kube-proxy, which sends the webhooks' calls to Ready replicas, and the
/// kubelet, which mounts cert-manager's Secret.
async fn stand_in(client: kube::Client, balancer: Arc<Balancer>, folder: PathBuf) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(client, OPERATOR_NAMESPACE);
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={OPERATOR}"));
    let mut volume = SecretVolume::new(&folder);
    let (mut known, mut mounted) = (BTreeSet::new(), Vec::new());
    loop {
        if let Ok(list) = pods.list(&ours).await {
            let ready: BTreeSet<_> = list.iter().filter_map(ready_address).collect();
            ready.difference(&known).for_each(|address| balancer.add(*address));
            known.difference(&ready).for_each(|address| balancer.withdraw(*address));
            known = ready;
        }
        let data = secrets.get_opt(WEBHOOK_CERTIFICATE_SECRET).await.ok().flatten();
        if let Some(data) = data.and_then(|secret| secret.data) {
            let files: Vec<_> =
                data.iter().map(|(name, bytes)| (name.as_str(), &*bytes.0)).collect();
            let crt = data.get("tls.crt").map(|bytes| bytes.0.clone()).unwrap_or_default();
            if !crt.is_empty() && crt != mounted && volume.write(&files).is_ok() {
                mounted = crt;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn ready_address(pod: &Pod) -> Option<SocketAddr> {
    let status = pod.status.as_ref()?;
    let ready =
        status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let leaving = pod.metadata.deletion_timestamp.is_some();
    let ip = status.pod_ip.as_ref()?.parse().ok()?;
    (ready && !leaving).then_some(SocketAddr::new(ip, 10_250))
}
