//! The step in which a replica of the operator dies.

use super::SHARDED;
use crate::{
    report::{Report, seconds},
    stage::Stage,
};
use anyhow::{Context as _, Result};
use std::time::Instant;

pub async fn takeover(report: &mut Report, stage: &mut Stage) -> Result<()> {
    report.step(
        "Kill the replica that works on test-sharded-ksm, and delete a pod",
        "no other replica acts on it until the dead one's Lease has ended (6 s here, 15 s by\n\
         default); then one takes over, and the pod is made again",
    );
    let leases = "get leases -n monitoring -l lease-sharding/ring=ksm-scale-operator";
    stage.kubectl(report, leases).await?;
    stage.kubectl(report, "get ksmscales -o wide").await?;
    let sight = stage.look(SHARDED).await?;
    let owner = sight.status.owner.context("nobody works on it")?;
    let pod = sight.ready.first().context("it has no pod")?;
    stage.kill(&owner)?;
    let begun = Instant::now();
    report.note(&format!("killed {owner}"));
    stage.kubectl(report, &format!("delete pod -n monitoring {pod} --wait=false")).await?;
    let taken = stage.until(SHARDED, |s| s.status.owner.as_ref() != Some(&owner)).await?;
    let heir = taken.status.owner.unwrap_or_default();
    report.note(&format!("{heir} works on it, {} after the death", seconds(begun.elapsed())));
    let sight = stage.until(SHARDED, |s| s.is_ready_with(4, 5)).await?;
    stage.kubectl(report, "get ksmscales -o wide").await?;
    report.passed(&format!("{owner} died, {heir} took over\n{sight}"));
    Ok(())
}
