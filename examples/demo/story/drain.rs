//! The step in which pods are evicted, as a drain does it.

use super::{SHARDED, follow};
use crate::{
    machines::MACHINE,
    report::{Report, seconds},
    stage::{SOON, Stage},
};
use anyhow::{Context as _, Result, bail, ensure};
use devcluster::eventually;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    Api, Client, Config,
    api::EvictParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::time::Instant;

const BUDGET: &str = "ksm-test-sharded-ksm-shards";

pub async fn drain(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "Evict two pods, as drains of their nodes do",
        "maxUnavailable is 1: the first eviction is allowed, the second refused with 429 until the\n\
         first pod's replacement is Ready; then allowed. (Each shard has one replica here,\n\
         so its objects have nobody until then: that is what maxUnavailable: 1 permits.)",
    );
    let outcome = follow(report, stage, SHARDED, evictions(report, stage));
    let (saw, _) = outcome.await?;
    report.passed(&saw);
    Ok(())
}

async fn evictions(report: &Report, stage: &Stage) -> Result<String> {
    until_allowed(stage).await?;
    // The client of devcluster repeats what was answered 429, and would hide the refusal.
    let kubeconfig = Kubeconfig::read_from(stage.plane.kubeconfig())?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    let pods = Api::<Pod>::namespaced(Client::try_from(config)?, "monitoring");
    let names = stage.look(SHARDED).await?.ready;
    let [first, second, ..] = names.as_slice() else { bail!("fewer than two pods are Ready") };
    let params = EvictParams::default();
    report.note("no node takes pods for now, so the replacement has to wait");
    stage.kubectl(report, &format!("cordon {MACHINE}")).await?;
    pods.evict(first, &params).await.context("the first eviction was refused")?;
    report.note(&format!("evicted {first}"));
    let begun = Instant::now();
    let refusal = match pods.evict(second, &params).await {
        Err(kube::Error::Api(status)) if status.code == 429 => status.message,
        Err(error) => return Err(error).context("the second eviction failed in another way"),
        Ok(_) => bail!("the second eviction was allowed, too"),
    };
    report.note(&format!("refused {second}: 429 {refusal}"));
    stage.kubectl(report, &format!("uncordon {MACHINE}")).await?;
    let allowed = eventually("the second eviction is allowed", SOON, async || {
        pods.evict(second, &params).await.ok()
    });
    allowed.await?;
    let waited = seconds(begun.elapsed());
    report.note(&format!("evicted {second}, {waited} later"));
    let sight = stage.until(SHARDED, |s| s.is_ready_with(4, 5)).await?;
    Ok(format!("1 allowed, the next refused with 429, allowed {waited} later\n{sight}"))
}

/// The disruption controller counts a pod as healthy a moment after it is Ready.
async fn until_allowed(stage: &Stage) -> Result<()> {
    let budgets = Api::<PodDisruptionBudget>::namespaced(stage.client.clone(), "monitoring");
    let allowed = async || {
        let status = budgets.get(BUDGET).await.ok()?.status?;
        Some((status.disruptions_allowed, status.current_healthy, status.desired_healthy))
    };
    let found = eventually("the budget counts 5 healthy pods", SOON, async || {
        allowed().await.filter(|(_, healthy, _)| *healthy == 5)
    });
    let (disruptions, _, desired) = found.await?;
    ensure!(
        (disruptions, desired) == (1, 4),
        "the budget allows {disruptions} evictions and wants {desired} healthy pods"
    );
    Ok(())
}
