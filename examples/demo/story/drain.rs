//! The step in which pods are evicted, as a drain does it.

use super::{SHARDED, follow};
use crate::{
    report::{Report, seconds},
    stage::{SOON, Stage},
};
use anyhow::{Result, bail, ensure};
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
        "Evict two pods at once, as a drain of a node does",
        "maxUnavailable is 1: one eviction is allowed, the other refused with 429 until the\n\
         operator has replaced the first pod; then allowed. (Each shard has one replica here,\n\
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
    // Both at once: one after the other, a slow machine might replace the first in between.
    let begun = Instant::now();
    let answers = tokio::join!(pods.evict(first, &params), pods.evict(second, &params));
    let (evicted, refused, refusal) = match answers {
        (Ok(_), Err(kube::Error::Api(why))) if why.code == 429 => (first, second, why.message),
        (Err(kube::Error::Api(why)), Ok(_)) if why.code == 429 => (second, first, why.message),
        (Ok(_), Ok(_)) => bail!("both evictions were allowed at once"),
        (one, other) => bail!("the evictions were answered with {one:?} and {other:?}"),
    };
    report.note(&format!("evicted {evicted}"));
    report.note(&format!("refused {refused}: 429 {refusal}"));
    let allowed = eventually("the second eviction is allowed", SOON, async || {
        pods.evict(refused, &params).await.ok()
    });
    allowed.await?;
    let waited = seconds(begun.elapsed());
    report.note(&format!("evicted {refused}, {waited} later"));
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
