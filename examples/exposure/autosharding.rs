//! kube-state-metrics' own autosharding, emulated: a StatefulSet whose pods share out anew by
//! themselves when the number of replicas changes. What of it is real and what is not stands in
//! docs/exposure.md.

use crate::site::{DEADLINE, LABEL, NAMESPACE, Site, pod_spec};
use anyhow::Result;
use devcluster::eventually;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

const NAME: &str = "autosharding";

pub async fn start(site: &Site, shards: u32) -> Result<()> {
    tell(site, 0, shards)?;
    let labels = json!({ LABEL.0: LABEL.1 });
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": { "name": NAME },
        "spec": {
            "replicas": shards,
            "serviceName": NAME,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod_spec(None)? },
        },
    });
    let params = PatchParams::apply("script").force();
    sets(site).patch(NAME, &params, &Patch::Apply(set)).await?;
    until_rolled_out(site, shards).await
}

/// `kubectl scale`: all processes see it through their watch of the StatefulSet.
pub async fn change(site: &Site, from: u32, to: u32) -> Result<()> {
    let scale = json!({ "spec": { "replicas": to } });
    sets(site).patch(NAME, &PatchParams::default(), &Patch::Merge(scale)).await?;
    tell(site, from, to)?;
    until_rolled_out(site, to).await
}

pub async fn end(site: &Site) -> Result<()> {
    sets(site).delete(NAME, &DeleteParams::default()).await?;
    Ok(())
}

/// The first `there` processes, and those to come.
fn tell(site: &Site, there: u32, total: u32) -> Result<()> {
    let tell =
        |ordinal| site.reshard(&format!("{NAME}-{ordinal}"), (ordinal, total), ordinal < there);
    (0..there.max(total)).try_for_each(tell)
}

async fn until_rolled_out(site: &Site, shards: u32) -> Result<()> {
    let wanted = i32::try_from(shards)?;
    let sets = sets(site);
    let rolled_out = eventually("the StatefulSet is rolled out", DEADLINE, async || {
        let set = sets.get(NAME).await.ok()?;
        let (generation, status) = (set.metadata.generation, set.status?);
        (status.observed_generation == generation
            && status.replicas == wanted
            && status.ready_replicas == Some(wanted))
        .then_some(())
    });
    rolled_out.await
}

fn sets(site: &Site) -> Api<StatefulSet> {
    Api::namespaced(site.client.clone(), NAMESPACE)
}
