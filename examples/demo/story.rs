//! The steps.

use crate::{
    machines::{self, Pods},
    report::Report,
    stage::{SOON, Sight, Stage},
    witness::{Summary, Witness},
};
use anyhow::{Context as _, Result, bail, ensure};
use devcluster::{Balancer, ControlPlane, Level, eventually, tools};
use futures::TryStreamExt as _;
use ksm_scale_operator::api::{KSMScale, Phase};
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use std::{path::Path, time::Duration};
use tokio::sync::Mutex;

mod admission;
mod coverage;
mod drain;
mod takeover;

pub const STEPS: usize = 15;

pub const INTRODUCTION: &str = "\
ksm-scale-operator: a demo on a real Kubernetes control plane
  Real are etcd, kube-apiserver, kube-controller-manager, kube-scheduler and the operator.
  Simulated are the machines. kwok plays the nodes, but for one, on which each pod is a process:
  a stand-in for kube-state-metrics, which lists, watches, shares out and serves as the real one.";

/// The non-sharded KSMScale of deploy/samples/development.yaml, and the sharded one of sharded.yaml.
const DEVELOPMENT: &str = "dev-ksm";
const SHARDED: &str = "test-sharded-ksm";

const REPLICAS: [&str; 3] = ["operator-a", "operator-b", "operator-c"];

/// Tells everything, and leaves the stage as it is at the end.
pub async fn tell(report: &mut Report, operator: &Path) -> Result<Stage> {
    let mut stage = match raise(report).await {
        Ok(stage) => stage,
        Err(error) => {
            report.failed(&format_args!("{error:#}"));
            bail!("the control plane could not be started");
        }
    };
    match acts(report, &mut stage, operator).await {
        Ok(()) => Ok(stage),
        Err(error) => {
            report.failed(&format_args!("{error:#}"));
            stage.explain(report);
            bail!("a step did not go as expected");
        }
    }
}

async fn acts(report: &mut Report, stage: &mut Stage, operator: &Path) -> Result<()> {
    install(report, stage).await?;
    start_operator(report, stage, operator).await?;
    first_object(report, stage).await?;
    nodes_grow(report, stage).await?;
    nodes_shrink(report, stage).await?;
    shards(report, stage).await?;
    coverage::guarded_change(report, stage).await?;
    coverage::audit(report, stage).await?;
    drain::drain(report, stage).await?;
    takeover::takeover(report, stage).await?;
    bad_spec(report, stage).await?;
    admission::forbidden(report, stage).await?;
    admission::new_ca(report, stage, operator).await?;
    delete(report, stage).await
}

async fn raise(report: &mut Report) -> Result<Stage> {
    report.step(
        "Start a control plane with 4 nodes",
        "4 nodes, Ready (the very first time its programs are built: about 10 minutes)",
    );
    let plane = ControlPlane::start(Level::Nodes).await?;
    let machine = Pods::start(&plane).await?;
    machines::add_nodes(&plane, 0..3).await?;
    plane.nodes_ready(0..3).await?;
    let client = plane.admin();
    let version = client.apiserver_version().await?.git_version;
    let witness = Mutex::new(Witness::start(client.clone()));
    report.passed(&format!("Kubernetes {version} at {}, 4 nodes Ready", plane.server_url()));
    let balancer = Balancer::start(Duration::ZERO).await?;
    Ok(Stage { machine, plane, client, witness, balancer, replicas: Vec::new() })
}

async fn install(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "Install the CRD, the operator's rights and its webhooks",
        "the CRD is established, and ServiceAccount monitoring/ksm-scale-operator exists\n\
         (the webhooks' Service leads to this machine, at a free port in place of 443)",
    );
    stage
        .kubectl(
            report,
            "apply -f crds/ksmscales.monitor.example.com.yaml -f deploy/base/rbac.yaml",
        )
        .await?;
    stage
        .kubectl(report, "wait --for=condition=Established crd/ksmscales.monitor.example.com")
        .await?;
    stage.install_webhooks(report).await?;
    let account = "get serviceaccount -n monitoring ksm-scale-operator -o name";
    let account = stage.kubectl(report, account).await?;
    report.passed(&format!("the CRD is established; {}", account.trim()));
    Ok(())
}

async fn start_operator(report: &mut Report, stage: &mut Stage, operator: &Path) -> Result<()> {
    report.step(
        "Start three replicas of the operator, under its own ServiceAccount",
        "all are ready, with those rights and no others; they will share the work\n\
         (with a settle time of 2 s, for pods that have little to load, audits every 4 s, and Leases\n\
         of 6 s; the defaults are 30 s, 60 s and 15 s)",
    );
    for name in REPLICAS {
        stage.start_replica(report, operator, name).await?;
    }
    stage.until_ready().await?;
    for (verb, allowed) in [("list", true), ("delete", false)] {
        let account = "system:serviceaccount:monitoring:ksm-scale-operator";
        let question = format!("auth can-i {verb} nodes --as={account}");
        let (answer, _) = stage.try_kubectl(report, &question).await?;
        ensure!(answer == allowed, "the operator's right to {verb} nodes is not as it should be");
    }
    report.passed("/readyz of all says ok; the operator may list nodes and not delete them");
    Ok(())
}

async fn first_object(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "A first KSMScale: dev-ksm, one pod for every 15 nodes",
        "4 nodes, 1 pod desired, 1 there, Ready",
    );
    stage.kubectl(report, "apply -f deploy/samples/development.yaml").await?;
    let sight = stage.until(DEVELOPMENT, |s| s.is_ready_with(4, 1)).await?;
    stage.kubectl(report, "get ksmscale dev-ksm").await?;
    report.passed(&sight.to_string());
    Ok(())
}

async fn nodes_grow(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "41 nodes join: from 4 to 45",
        "3 pods, without any other input; no object exposed by nobody on the way",
    );
    let sight = follow(report, stage, DEVELOPMENT, async {
        machines::add_nodes(&stage.plane, 3..44).await?;
        stage.until(DEVELOPMENT, |s| s.is_ready_with(45, 3)).await
    });
    let (sight, summary) = sight.await?;
    report.passed(&format!("{sight}\n{}", summary.without_gap()?));
    Ok(())
}

async fn nodes_shrink(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "41 nodes leave: from 45 to 4",
        "1 pod again, the highest indexes went first; no object exposed by nobody on the way",
    );
    let sight = follow(report, stage, DEVELOPMENT, async {
        stage.plane.remove_nodes(3..44).await?;
        stage.until(DEVELOPMENT, |s| s.is_ready_with(4, 1)).await
    });
    let (sight, summary) = sight.await?;
    let last = format!("kube-state-metrics-{DEVELOPMENT}-0");
    ensure!(sight.ready == [last.as_str()], "another pod than {last} is left");
    report.passed(&format!("{sight}\n{}", summary.without_gap()?));
    Ok(())
}

async fn shards(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "A sharded KSMScale: test-sharded-ksm with 3 shards",
        "phase Incomplete, then 4 nodes, 3 pods desired, 3 there, Ready; dev-ksm stays as it is",
    );
    let phases = phases(stage, SHARDED);
    let apply = async {
        let said = stage.kubectl(report, "apply -f deploy/samples/sharded.yaml").await?;
        ensure!(said.contains("Warning: spec.sharding.shardCount"), "no warning at apply");
        stage.until(SHARDED, |s| s.is_ready_with(4, 3)).await
    };
    let (phases, sight) = tokio::try_join!(phases, apply)?;
    stage.kubectl(report, "get pods -n monitoring -l sharding-enabled=true -L shard-id").await?;
    stage.kubectl(report, "get pdb -n monitoring ksm-test-sharded-ksm-shards").await?;
    let names: Vec<_> = phases.iter().map(ToString::to_string).collect();
    let names = names.join(", then ");
    ensure!(phases.first() == Some(&Phase::Incomplete), "the phases were {names}");
    ensure!(stage.look(DEVELOPMENT).await?.is_ready_with(4, 1), "dev-ksm did not stay as it was");
    let warning = sight.status.sharding_status.as_ref().and_then(|s| s.warning.clone());
    let warning = warning.context("no warning of too many shards for 4 nodes")?;
    report.passed(&format!("phase {names}\n{sight}\nwarning: {warning}"));
    Ok(())
}

async fn bad_spec(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "A spec with mistakes",
        "refused by the API server with field, cause and remedy; nothing is stored",
    );
    let (stored, answer) =
        stage.try_kubectl(report, "apply -f examples/demo/mistakes.yaml").await?;
    ensure!(!stored, "the spec was accepted");
    for wanted in ["spec.nodesPerMonitor", "greater than or equal to 9", "spec.sharding"] {
        ensure!(answer.contains(wanted), "the answer does not say {wanted}");
    }
    let there = Api::<KSMScale>::all(stage.client.clone()).get_opt("mistakes").await?;
    ensure!(there.is_none(), "KSMScale mistakes was stored");
    report.passed("the messages above, exit code 1, and no KSMScale mistakes");
    Ok(())
}

async fn delete(report: &mut Report, stage: &Stage) -> Result<()> {
    let all = "get pods,pdb,serviceaccounts,clusterrolebindings -A -o name \
               -l app.kubernetes.io/name=kube-state-metrics";
    report.step(
        "Delete both KSMScales",
        "nothing is left of what the operator made: pods, budget, ServiceAccount, binding\n\
         (removed by Kubernetes' garbage collector, which takes up to a minute to know a new CRD)",
    );
    let before = stage.kubectl(report, all).await?;
    ensure!(before.lines().count() >= 9, "there is less than the operator should have made");
    stage.kubectl(report, &format!("delete ksmscale {DEVELOPMENT} {SHARDED}")).await?;
    let quiet = Report::silent();
    let gone = eventually("nothing is left", 2 * SOON, async || {
        let left = stage.kubectl(&quiet, all).await.ok()?;
        (!left.contains('/')).then_some(())
    });
    let gone = gone.await;
    stage.kubectl(report, all).await?;
    gone?;
    report.passed(&format!("{} objects before, none now", before.lines().count()));
    Ok(())
}

/// Does `work`, and shows meanwhile how each change of a pod of `scale` changes the coverage.
async fn follow<T>(
    report: &Report,
    stage: &Stage,
    scale: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<(T, Summary)> {
    stage.witness.lock().await.during(scale, |line| report.note(line), work).await
}

fn has_shards(sight: &Sight, count: usize) -> bool {
    let Some(sharding) = &sight.status.sharding_status else { return false };
    let each = sharding.shard_distribution.values();
    sharding.shard_distribution.len() == count
        && each.into_iter().all(|shard| (shard.replicas, shard.ready) == (1, 1))
}

/// The phases that a KSMScale goes through until it is Ready.
async fn phases(stage: &Stage, scale: &str) -> Result<Vec<Phase>> {
    let config = watcher::Config::default().fields(&format!("metadata.name={scale}"));
    let objects = watcher(Api::<KSMScale>::all(stage.client.clone()), config);
    let mut objects = std::pin::pin!(objects.default_backoff().applied_objects());
    let mut phases = Vec::new();
    while let Some(object) = objects.try_next().await? {
        let Some(phase) = object.status.and_then(|s| s.phase) else { continue };
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
        if phase == Phase::Ready {
            break;
        }
    }
    Ok(phases)
}

/// For those who want to look around: something to look at, and how.
pub async fn invite(stage: &Stage, report: &Report) -> Result<()> {
    report.paragraph("The cluster stays up, with both samples applied again:");
    stage
        .kubectl(report, "apply -f deploy/samples/development.yaml -f deploy/samples/sharded.yaml")
        .await?;
    let operator = stage.replicas.first().context("the operator runs")?;
    let kubectl = tools::path(tools::Tool::Kubectl)?;
    let folder = kubectl.parent().context("kubectl is in a folder")?;
    report.paragraph(&format!(
        "Look around from another terminal, in this checkout:

  export KUBECONFIG={}
  export PATH={}:$PATH

  kubectl get ksmscales -w
  kubectl get pods -n monitoring -L shard-id -w
  kubectl patch ksmscale {SHARDED} --type=merge -p '{{\"spec\":{{\"sharding\":{{\"shardCount\":4}}}}}}'
  kubectl get events --sort-by=.metadata.creationTimestamp
  kubectl get ksmscale {SHARDED} -o yaml
  curl -s http://{}/metrics
  tail -f {}

Enter (or Ctrl-C) here ends it all and leaves nothing behind.",
        stage.plane.kubeconfig().display(),
        folder.display(),
        operator.metrics,
        operator.process.log_path().display(),
    ));
    Ok(())
}
