//! Tells the API server how a pod is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;

use crate::pod_status::{self, Report};

/// Between two tries when the API server does not answer.
pub(super) const RETRY: Duration = Duration::from_millis(200);

/// Writes the newest report whenever it, or the pod, changes. A task of its own, so that nothing
/// that happens to the process waits for the API server.
pub(super) async fn report(
    api: Api<Pod>,
    mut pod: watch::Receiver<Arc<Pod>>,
    mut report: watch::Receiver<Report>,
) {
    loop {
        let (seen, wanted) = (pod.borrow_and_update().clone(), report.borrow_and_update().clone());
        if write(&api, &seen, &wanted).await.is_err() {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let changed = tokio::select! {
            changed = pod.changed() => changed,
            changed = report.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn write(api: &Api<Pod>, pod: &Pod, report: &Report) -> Result<()> {
    let Some(status) = pod_status::change(pod, report)? else { return Ok(()) };
    // The uid makes the server refuse a namesake. Strategic, so that others' conditions stay.
    let patch = json!({ "metadata": { "uid": pod.uid() }, "status": status });
    let params = PatchParams::default();
    match api.patch_status(&pod.name_any(), &params, &Patch::Strategic(patch)).await {
        Ok(_) => Ok(()),
        // Gone or replaced: the watch says so next.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
