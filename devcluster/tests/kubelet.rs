//! The stand-in for scheduler and kubelet.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use devcluster::{ControlPlane, Fate, Kubelet, Level, eventually};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);

struct Pods {
    // Dropped before the API server it talks to.
    kubelet: Kubelet,
    api: Api<Pod>,
    _plane: ControlPlane,
}

impl Pods {
    async fn with(fate: impl Fn(&Pod) -> Fate + Send + Sync + 'static) -> Self {
        let plane = ControlPlane::start(Level::ApiServer).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::default_namespaced(plane.admin());
        let account = serde_json::from_value(json!({ "metadata": { "name": "default" } })).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
        let kubelet = Kubelet::start(plane.admin(), Arc::new(fate));
        Self { kubelet, api: Api::default_namespaced(plane.admin()), _plane: plane }
    }

    async fn create(&self, name: &str, gates: &[&str]) {
        let gates: Vec<Value> = gates.iter().map(|gate| json!({ "conditionType": gate })).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "containers": [{ "name": "main", "image": "example.com/none" }],
                "readinessGates": gates,
            },
        }))
        .unwrap();
        self.api.create(&PostParams::default(), &pod).await.unwrap();
    }

    /// The pod's status, once it says `wanted`.
    async fn shows(&self, name: &str, wanted: &str) -> Value {
        eventually(&format!("{name} shows {wanted}"), DEADLINE, || async {
            let pod = self.api.get(name).await.unwrap();
            let status = serde_json::to_value(&pod.status).unwrap();
            (summary(&status) == wanted).then_some(status)
        })
        .await
        .unwrap()
    }

    async fn gone(&self, name: &str) {
        eventually(&format!("{name} is gone"), DEADLINE, || async {
            self.api.get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await
        .unwrap();
    }
}

/// Such as `Running, containers ready, Ready`.
fn summary(status: &Value) -> String {
    let mut words = vec![status["phase"].as_str().unwrap_or_default()];
    if status["containerStatuses"][0]["ready"] == true {
        words.push("containers ready");
    }
    words.extend(status["containerStatuses"][0]["state"]["waiting"]["reason"].as_str());
    if condition(status, "Ready")["status"] == "True" {
        words.push("Ready");
    }
    words.join(", ")
}

fn condition<'a>(status: &'a Value, name: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().find(|condition| condition["type"] == name).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn pods_become_ready_with_addresses_of_their_own_and_go_when_deleted() {
    let pods = Pods::with(|_| Fate::READY).await;
    pods.create("one", &[]).await;
    pods.create("two", &[]).await;
    let one = pods.shows("one", "Running, containers ready, Ready").await;
    let two = pods.shows("two", "Running, containers ready, Ready").await;
    assert_ne!(one["podIP"], two["podIP"]);
    for name in ["PodScheduled", "Initialized", "ContainersReady"] {
        assert_eq!(condition(&one, name)["status"], "True", "{name}");
        assert!(condition(&one, name)["lastTransitionTime"].is_string(), "{name}");
    }
    let pod = pods.api.get("one").await.unwrap();
    assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some(Kubelet::NODE));

    pods.api.delete("one", &DeleteParams::default()).await.unwrap();
    pods.gone("one").await;
}

#[tokio::test]
async fn a_policy_decides_by_pod_and_can_change_at_run_time() {
    let pods = Pods::with(|pod| match pod.name_any().as_str() {
        "slow" => Fate::Ready { after: Duration::from_hours(1) },
        "stuck" => Fate::Pending { reason: "ImagePullBackOff" },
        "sick" => Fate::RunningNotReady,
        "broken" => Fate::Failed,
        _ => Fate::READY,
    })
    .await;
    for name in ["slow", "stuck", "sick", "broken", "fine"] {
        pods.create(name, &[]).await;
    }
    pods.shows("slow", "Running").await;
    pods.shows("stuck", "Pending, ImagePullBackOff").await;
    pods.shows("sick", "Running").await;
    pods.shows("broken", "Failed").await;
    pods.shows("fine", "Running, containers ready, Ready").await;

    pods.kubelet.set_policy(Arc::new(|pod| match pod.name_any().as_str() {
        "fine" => Fate::RunningNotReady,
        _ => Fate::Ready { after: Duration::from_millis(300) },
    }));
    pods.shows("fine", "Running").await;
    for name in ["slow", "stuck", "sick"] {
        pods.shows(name, "Running, containers ready, Ready").await;
    }
    // A failed pod stays failed, whatever the policy says.
    pods.shows("broken", "Failed").await;
}

#[tokio::test]
async fn a_pod_with_a_readiness_gate_waits_for_whoever_sets_it() {
    let pods = Pods::with(|_| Fate::READY).await;
    pods.create("gated", &["example.com/gate"]).await;
    let status = pods.shows("gated", "Running, containers ready").await;
    assert_eq!(condition(&status, "Ready")["reason"], "ReadinessGatesNotReady");

    let gate = json!({ "status": { "conditions": [{
        "type": "example.com/gate",
        "status": "True",
    }]}});
    let params = PatchParams::default();
    pods.api.patch_status("gated", &params, &Patch::Strategic(gate)).await.unwrap();
    let status = pods.shows("gated", "Running, containers ready, Ready").await;
    assert_eq!(condition(&status, "example.com/gate")["status"], "True");
    assert_eq!(condition(&status, "Ready")["reason"], Value::Null);
}
