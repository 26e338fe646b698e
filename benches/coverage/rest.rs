//! When a KSMScale is at rest, as its status says. A module of `examples/exposure` as well.

use anyhow::Result;
use devcluster::eventually;
use ksm_scale_operator::api::KSMScale;
use kube::Api;
use std::time::Duration;

/// Waits until the KSMScale of this name has so many pods, all it was asked for is done, and they serve.
pub async fn until_at_rest(
    scales: &Api<KSMScale>,
    name: &str,
    pods: u32,
    bound: Duration,
) -> Result<()> {
    eventually("the KSMScale is at rest", bound, async || {
        let scale = scales.get(name).await.ok()?;
        let (generation, status) = (scale.metadata.generation, scale.status?);
        let is = |type_: &str, wanted: &str| {
            status.conditions.iter().any(|c| c.type_ == type_ && c.status == wanted)
        };
        let current = status.current_replicas.and_then(|count| u32::try_from(count).ok());
        (status.observed_generation == generation
            && is("Progressing", "False")
            && is("Available", "True")
            && current == Some(pods))
        .then_some(())
    })
    .await
}
