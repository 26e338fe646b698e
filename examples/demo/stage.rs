//! The control plane, the operator on it, and ways to look at both.

use crate::{machines::Pods, report::Report, witness::Witness};
use anyhow::{Context as _, Result, bail, ensure};
use devcluster::{
    Balancer, ControlPlane, Process, eventually,
    probe::{free_address, http_get},
};
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::{
    api::{KSMScale, KSMScaleStatus},
    manifests,
    names::{LABEL_SCALE, OPERATOR_NAMESPACE, WEBHOOK_SERVICE},
    observed::ObservedPod,
};
use kube::{Api, Client, api::ListParams};
use std::{
    fmt,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// What a wait may take. On two cores nothing here takes a quarter of it.
pub const SOON: Duration = Duration::from_mins(1);

const POLL: Duration = Duration::from_millis(50);

/// How long a pod has to be Ready before it counts as serving. The default of 30 s is for real
/// kube-state-metrics, which first has to fill its caches.
const SETTLE: &str = "2s";

/// How long a replica that says nothing more keeps its work. The default is 15 s.
pub const LEASE: &str = "6s";

pub struct Stage {
    // Dropped before the API server that they talk to.
    pub machine: Pods,
    pub plane: ControlPlane,
    pub client: Client,
    /// It listens while others act on the same stage.
    pub witness: Mutex<Witness>,
    /// Stands for the Service in front of the webhooks.
    pub balancer: Balancer,
    pub replicas: Vec<Replica>,
}

/// A process of the operator.
pub struct Replica {
    pub name: String,
    pub process: Process,
    pub metrics: String,
    health: String,
    webhook: SocketAddr,
}

/// A KSMScale as its status and its pods show it.
pub struct Sight {
    pub status: KSMScaleStatus,
    /// Nothing is in progress for the spec as it is now.
    pub settled: bool,
    /// Ready pods, by name.
    pub ready: Vec<String>,
}

impl Stage {
    /// Runs kubectl in the checkout, shows the command and its output, and returns the output.
    pub async fn kubectl(&self, report: &Report, args: &str) -> Result<String> {
        let (ok, output) = self.try_kubectl(report, args).await?;
        ensure!(ok, "kubectl {args} failed: {output}");
        Ok(output)
    }

    /// The same, with whether it succeeded.
    pub async fn try_kubectl(&self, report: &Report, args: &str) -> Result<(bool, String)> {
        report.command(&format!("kubectl {args}"));
        let mut command = self.plane.kubectl();
        // Arguments with a quoted part are for people to read and for the shell to split.
        let words = args.split('\'').enumerate().flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().collect(),
            _ => vec![part],
        });
        let command = command.args(words).current_dir(root()).stdin(Stdio::null());
        let output = command.output().await.context("cannot run kubectl")?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        report.output(&text);
        Ok((output.status.success(), text))
    }

    /// Applies the webhooks' configurations, and a Service that leads here.
    pub async fn install_webhooks(&self, report: &Report) -> Result<()> {
        let port = self.balancer.address().port();
        let service = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {WEBHOOK_SERVICE}, namespace: {OPERATOR_NAMESPACE}}}, spec: {{type: ExternalName, externalName: localhost, ports: [{{port: {port}}}]}}}}"
        );
        let mut documents = vec![service];
        let configurations = manifests::webhooks()?;
        documents.extend(
            configurations.iter().map(|m| m.text.replace("port: 443", &format!("port: {port}"))),
        );
        let file = self.plane.dir().join("webhooks.yaml");
        std::fs::write(&file, documents.join("\n---\n"))?;
        self.kubectl(report, &format!("apply -f {}", file.display())).await.map(drop)
    }

    /// Starts a replica of the operator under its own ServiceAccount.
    pub async fn start_replica(
        &mut self,
        report: &Report,
        binary: &Path,
        name: &str,
    ) -> Result<()> {
        let account = self.plane.service_account_kubeconfig("monitoring", "ksm-scale-operator");
        let kubeconfig = account.await?;
        let (health, metrics, webhook) =
            (free_address().await?, free_address().await?, free_address().await?);
        let args = [
            ["--pod-name", name],
            ["--health-probe-bind-address", &health],
            ["--metrics-bind-address", &metrics],
            ["--webhook-bind-address", &webhook],
            ["--settle-time", SETTLE],
            // Short, so that an audit, a takeover and a whole rotation can be shown.
            ["--audit-interval", "4s"],
            ["--sharding-lease-duration", LEASE],
            ["--sharding-renew-deadline", "4s"],
            ["--sharding-renew-interval", "1s"],
            ["--webhook-ca-soak", "2s"],
            ["--webhook-cert-lifetime", "20s"],
            // There is nobody to wait for at the end.
            ["--lame-duck", "0s"],
        ];
        report.command(&format!("ksm-scale-operator run {}", args.concat().join(" ")));
        let args = ["run"].into_iter().chain(args.into_iter().flatten());
        let log = self.plane.dir().join(format!("{name}.log"));
        let process = Process::spawn(name, binary, args, [("KUBECONFIG", &kubeconfig)], &log)?;
        let webhook = webhook.parse()?;
        self.replicas.push(Replica { name: name.to_owned(), process, metrics, health, webhook });
        Ok(())
    }

    /// Waits until all replicas are ready, and lets the webhooks' Service lead to them.
    pub async fn until_ready(&mut self) -> Result<()> {
        for replica in &mut self.replicas {
            let ready = eventually("/readyz of the operator says ok", SOON, async || {
                (http_get(&replica.health, "/readyz").await.ok()?.0 == 200).then_some(())
            });
            tokio::select! {
                ready = ready => ready?,
                ended = replica.process.wait() => bail!("{} ended: {}", replica.name, ended?),
            }
            self.balancer.add(replica.webhook);
        }
        Ok(())
    }

    /// SIGKILL to a replica.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.replicas.iter().position(|replica| replica.name == name);
        let mut replica = self.replicas.swap_remove(at.context("there is no such replica")?);
        self.balancer.withdraw(replica.webhook);
        replica.process.kill().map(drop)
    }

    /// Looks at a KSMScale until it is as wanted. The error tells what it was like at last.
    pub async fn until(
        &self,
        scale: &str,
        mut wanted: impl FnMut(&Sight) -> bool,
    ) -> Result<Sight> {
        let begun = Instant::now();
        loop {
            let sight = self.look(scale).await?;
            if wanted(&sight) {
                return Ok(sight);
            }
            if begun.elapsed() > SOON {
                bail!("not so after {} s; {scale} is: {sight}", SOON.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub async fn look(&self, scale: &str) -> Result<Sight> {
        let object = Api::<KSMScale>::all(self.client.clone()).get(scale).await?;
        let generation = object.metadata.generation;
        let status = object.status.unwrap_or_default();
        let is = |type_: &str, wanted: &str| {
            status.conditions.iter().any(|c| c.type_ == type_ && c.status == wanted)
        };
        let settled = status.observed_generation == generation
            && is("Progressing", "False")
            && is("Degraded", "False")
            && is("Available", "True");
        let mut ready = self.pods(scale).await?;
        ready.retain(ObservedPod::is_ready);
        let ready = ready.into_iter().map(|pod| pod.name).collect();
        Ok(Sight { status, settled, ready })
    }

    /// The pods of a KSMScale, those that are being deleted too.
    pub async fn pods(&self, scale: &str) -> Result<Vec<ObservedPod>> {
        let selector = ListParams::default().labels(&format!("{LABEL_SCALE}={scale}"));
        let pods = Api::<Pod>::all(self.client.clone()).list(&selector).await?;
        Ok(pods.items.iter().map(ObservedPod::new).collect())
    }

    /// For a step that failed: the end of the operator's log, and where all logs are.
    pub fn explain(&self, report: &Report) {
        for replica in &self.replicas {
            report.paragraph(&format!("The end of the log of {}:", replica.name));
            report.output(&replica.process.log_tail(20));
        }
        report.paragraph(&match self.plane.keep_logs() {
            Ok(kept) => {
                format!("The logs of the operator and the control plane: {}", kept.display())
            }
            Err(error) => format!("The logs are lost: {error}"),
        });
    }
}

impl Sight {
    /// Whether it says `nodes`/`desired`/`current` with nothing left to do.
    pub fn is_ready_with(&self, nodes: i32, pods: i32) -> bool {
        let Self { status, .. } = self;
        self.settled
            && (status.node_count, status.desired_replicas, status.current_replicas)
                == (Some(nodes), Some(pods), Some(pods))
            && usize::try_from(pods) == Ok(self.ready.len())
    }
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, ready, .. } = self;
        let [nodes, desired, current] =
            [status.node_count, status.desired_replicas, status.current_replicas]
                .map(|n| n.map_or_else(|| "?".to_owned(), |n| n.to_string()));
        let phase = status.phase.map_or_else(|| "unknown".to_owned(), |p| p.to_string());
        write!(
            f,
            "{nodes} nodes; pods: {desired} desired, {current} there, {} Ready; phase {phase}",
            ready.len()
        )
    }
}

/// The checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
