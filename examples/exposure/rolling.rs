//! A Deployment for each shard, changed one after the other: by a script that waits for each
//! rollout, as Helm or a pipeline does. Kubernetes makes each new pod before it deletes the old one.

use crate::site::{DEADLINE, LABEL, NAMESPACE, Site, pod_spec};
use anyhow::Result;
use devcluster::eventually;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

pub async fn start(site: &Site, shards: u32) -> Result<()> {
    for shard in 0..shards {
        apply(site, shard, shards).await?;
    }
    Ok(())
}

/// Those that are there first, then those that are new or too many.
pub async fn change(site: &Site, from: u32, to: u32) -> Result<()> {
    for shard in 0..to {
        apply(site, shard, to).await?;
    }
    for shard in to..from {
        deployments(site).delete(&name(shard), &DeleteParams::default()).await?;
    }
    Ok(())
}

pub async fn end(site: &Site) -> Result<()> {
    let all = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
    deployments(site).delete_collection(&DeleteParams::default(), &all).await?;
    Ok(())
}

/// `kubectl apply` and `kubectl rollout status`.
async fn apply(site: &Site, shard: u32, total: u32) -> Result<()> {
    let name = name(shard);
    let labels = json!({ LABEL.0: LABEL.1, "shard": shard.to_string() });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "replicas": 1,
            "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": pod_spec(Some((shard, total)))?,
            },
        },
    });
    let deployments = deployments(site);
    let params = PatchParams::apply("script").force();
    deployments.patch(&name, &params, &Patch::Apply(deployment)).await?;
    let rolled_out = eventually("a rollout is done", DEADLINE, async || {
        let deployment = deployments.get(&name).await.ok()?;
        let (generation, status) = (deployment.metadata.generation, deployment.status?);
        let one = Some(1);
        (status.observed_generation == generation
            && status.updated_replicas == one
            && status.replicas == one
            && status.available_replicas == one)
            .then_some(())
    });
    rolled_out.await
}

fn name(shard: u32) -> String {
    format!("rolling-{shard}")
}

fn deployments(site: &Site) -> Api<Deployment> {
    Api::namespaced(site.client.clone(), NAMESPACE)
}
