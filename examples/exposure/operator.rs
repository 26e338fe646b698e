//! This operator, with its default of proving deletes.

use crate::{
    rest::until_at_rest,
    site::{DEADLINE, NAMESPACE, Site, operator_image},
};
use anyhow::{Result, ensure};
use devcluster::{
    Process, eventually,
    probe::{free_address, http_get},
};
use ksm_scale_operator::api::KSMScale;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use std::{path::Path, time::Duration};

const NAME: &str = "exposed";
/// In place of 30 s, so that a change takes one minute and not three.
const SETTLE: &str = "5s";

pub struct Operator(Process);

impl Operator {
    pub async fn start(site: &Site, binary: &Path) -> Result<Self> {
        let account = site.plane.service_account_kubeconfig(NAMESPACE, "ksm-scale-operator");
        let env = [("KUBECONFIG", account.await?)];
        let (health, metrics) = (free_address().await?, free_address().await?);
        let addresses =
            ["--health-probe-bind-address", &health, "--metrics-bind-address", &metrics];
        let others = ["--webhook", "off", "--verify-coverage", "true", "--settle-time", SETTLE];
        let args = ["run"].into_iter().chain(addresses).chain(others);
        let log = site.plane.dir().join("operator.log");
        let process = Process::spawn("operator", binary, args, env, &log)?;
        let ready = eventually("the operator is ready", DEADLINE, async || {
            (http_get(&health, "/readyz").await.ok()?.0 == 200).then_some(())
        });
        ready.await?;
        Ok(Self(process))
    }

    pub async fn end(mut self, site: &Site) -> Result<()> {
        scales(site).delete(NAME, &DeleteParams::default()).await?;
        site.until_no_pods().await?;
        let status = self.0.terminate(Duration::from_mins(1)).await?;
        ensure!(status.success(), "the operator ended with {status}");
        Ok(())
    }
}

/// Asks for so many shards, and waits until the status says that it is so.
pub async fn set(site: &Site, shards: u32) -> Result<()> {
    let scales = scales(site);
    let scale = json!({
        "apiVersion": "monitor.example.com/v1alpha1",
        "kind": "KSMScale",
        "metadata": { "name": NAME },
        "spec": {
            "monitorImage": operator_image(),
            "nodesPerMonitor": 10_000,
            "sharding": { "enabled": true, "shardCount": shards },
        },
    });
    let params = PatchParams::apply("exposure").force();
    scales.patch(NAME, &params, &Patch::Apply(scale)).await?;
    until_at_rest(&scales, NAME, shards, DEADLINE).await
}

fn scales(site: &Site) -> Api<KSMScale> {
    Api::all(site.client.clone())
}
