//! Nodes whose pods are processes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use devcluster::kube_state_metrics::{self, Faults};
use devcluster::probe::http_get;
use devcluster::{ControlPlane, Level, Machines, Program, Signal, eventually};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

/// Nothing here takes a tenth of it on a quiet machine.
const DEADLINE: Duration = Duration::from_mins(2);
/// Probes and back-offs are so many times faster than their pods say.
const PACE: u32 = 10;

/// A control plane with machines that run what the pod's image says: `stand-in`, or a shell script
/// in its first argument.
struct Site {
    // Dropped before the API server it talks to.
    machines: Machines,
    pods: Api<Pod>,
    plane: ControlPlane,
}

fn program(pod: &Pod, faults: &std::path::Path) -> Option<Program> {
    let image = pod.spec.as_ref()?.containers[0].image.as_deref()?;
    let program = match image {
        "stand-in" => kube_state_metrics::program(Some(&faults.join(pod.name_any()))).unwrap(),
        "script" => Program { path: "sh".into(), ..Program::default() },
        _ => return None,
    };
    let pull = Duration::from_millis(if pod.name_any().starts_with("slow") { 700 } else { 0 });
    Some(Program { pull, ..program })
}

impl Site {
    async fn at(level: Level) -> Self {
        let plane = ControlPlane::start(level).await.unwrap();
        let dir = plane.dir().to_owned();
        let programs = Arc::new(move |pod: &Pod| program(pod, &dir));
        let machines = Machines::start(&plane, 2, PACE, programs).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::default_namespaced(plane.admin());
        if level == Level::ApiServer {
            let account = json!({ "metadata": { "name": "default" } });
            let account = serde_json::from_value(account).unwrap();
            accounts.create(&PostParams::default(), &account).await.unwrap();
        }
        let rights = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "everything" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
            "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": "default" }],
        });
        let binding: k8s_openapi::api::rbac::v1::ClusterRoleBinding =
            serde_json::from_value(rights).unwrap();
        let bindings = Api::all(plane.admin());
        bindings.create(&PostParams::default(), &binding).await.unwrap();
        Self { machines, pods: Api::default_namespaced(plane.admin()), plane }
    }

    async fn create(&self, name: &str, container: Value, spec: Value) {
        let mut container = container;
        container["name"] = json!("main");
        let mut spec = spec;
        spec["containers"] = json!([container]);
        let pod = json!({ "metadata": { "name": name }, "spec": spec });
        let pod = serde_json::from_value(pod).unwrap();
        self.pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    async fn script(&self, name: &str, script: &str, spec: Value) {
        self.create(name, json!({ "image": "script", "args": ["-c", script] }), spec).await;
    }

    /// The pod's status, once it satisfies `wanted`.
    async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let what = format!("{name} {what}");
        let found = eventually(&what, DEADLINE, || async {
            let status = serde_json::to_value(self.pods.get(name).await.unwrap().status).unwrap();
            wanted(&status).then_some(status)
        });
        match found.await {
            Ok(status) => status,
            Err(error) => panic!("{error}: {:#?}", self.pods.get(name).await.unwrap().status),
        }
    }

    async fn ready(&self, name: &str) -> Value {
        self.until(name, "is Ready", is_ready).await
    }

    async fn gone(&self, name: &str) {
        eventually(&format!("{name} is gone"), DEADLINE, || async {
            self.pods.get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await
        .unwrap();
    }
}

fn condition<'a>(status: &'a Value, name: &str) -> &'a Value {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == name).unwrap_or(&Value::Null)
}

fn is_ready(status: &Value) -> bool {
    condition(status, "Ready")["status"] == "True"
}

fn container(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

/// As the operator's pods are.
fn stand_in() -> Value {
    json!({
        "image": "stand-in",
        "args": ["--host=0.0.0.0", "--port=8080", "--telemetry-host=0.0.0.0", "--telemetry-port=8081"],
        "ports": [
            { "name": "http-metrics", "containerPort": 8080 },
            { "name": "telemetry", "containerPort": 8081 },
        ],
        "livenessProbe": {
            "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 2, "timeoutSeconds": 1,
            // Five seconds to start in, at this pace: a busy machine may need some.
            "initialDelaySeconds": 50,
        },
        "readinessProbe": {
            "httpGet": { "path": "/readyz", "port": "telemetry" },
            "initialDelaySeconds": 5, "timeoutSeconds": 5,
        },
    })
}

#[tokio::test]
async fn pods_are_processes_that_answer_on_their_own_address_and_are_ready_when_they_say_so() {
    let site = Site::at(Level::ApiServer).await;
    let created = Instant::now();
    for name in ["one", "slow"] {
        site.create(name, stand_in(), json!({})).await;
    }
    let unknown = json!({ "image": "example.com/none" });
    site.create("unknown", unknown, json!({ "readinessGates": [] })).await;
    let one = site.ready("one").await;
    let slow = site.ready("slow").await;
    // The delay of the readiness probe, at its pace, and the pull.
    assert!(created.elapsed() > Duration::from_millis(1200), "{:?}", created.elapsed());
    assert_eq!((&one["phase"], &container(&one)["restartCount"]), (&json!("Running"), &json!(0)));
    assert!(one["startTime"].is_string() && one["podIP"] != slow["podIP"]);
    for status in [&one, &slow] {
        let address = status["podIP"].as_str().unwrap();
        let (code, text) = http_get(&format!("{address}:8080"), "/metrics").await.unwrap();
        assert_eq!(code, 200);
        eventually("both machines are served", DEADLINE, || async {
            let (_, text) = http_get(&format!("{address}:8080"), "/metrics").await.unwrap();
            (text.matches("kube_node_info{").count() == 2).then_some(())
        })
        .await
        .unwrap_or_else(|error| panic!("{error}: {text}"));
    }
    let nodes: Api<Node> = Api::all(site.plane.admin());
    let on = async |name| site.pods.get(name).await.unwrap().spec.unwrap().node_name.unwrap();
    assert_ne!(on("one").await, on("slow").await);
    let node = nodes.get(&on("one").await).await.unwrap();
    let addresses = node.status.unwrap().addresses.unwrap();
    assert!(addresses.iter().any(|address| one["hostIP"] == address.address));

    let waiting =
        |status: &Value| container(status)["state"]["waiting"]["reason"] == "ImagePullBackOff";
    let status = site.until("unknown", "waits for its image", waiting).await;
    assert_eq!((&status["phase"], &status["podIP"]), (&json!("Pending"), &Value::Null));
    site.pods.delete("unknown", &DeleteParams::default()).await.unwrap();
    site.gone("unknown").await;
}

#[tokio::test]
async fn a_process_that_crashes_or_hangs_is_started_again_and_counted() {
    let site = Site::at(Level::ApiServer).await;
    for name in ["crashes", "hangs"] {
        site.create(name, stand_in(), json!({ "terminationGracePeriodSeconds": 1 })).await;
    }
    let before = site.ready("crashes").await;
    site.ready("hangs").await;
    site.machines.signal("default", "crashes", Signal::Kill).unwrap();
    site.machines.signal("default", "hangs", Signal::Stop).unwrap();
    let again = |status: &Value| container(status)["restartCount"] == 1 && is_ready(status);
    let after = site.until("crashes", "is Ready again", again).await;
    assert_eq!(after["podIP"], before["podIP"]);
    assert_eq!(container(&after)["lastState"]["terminated"]["exitCode"], 137);
    site.until("hangs", "was killed by its liveness probe", again).await;

    // From now on it ends as soon as it starts.
    let faults = Faults { crash: true, ..Faults::default() };
    faults.write(&site.plane.dir().join("crashes")).unwrap();
    let looping = |status: &Value| {
        container(status)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && container(status)["restartCount"].as_u64() > Some(2)
            && !is_ready(status)
    };
    site.until("crashes", "is in a crash loop", looping).await;
    assert!(site.machines.signal("default", "nobody", Signal::Kill).is_err());
}

#[tokio::test]
async fn a_pod_goes_when_its_process_has_ended_which_has_its_grace_period() {
    let site = Site::at(Level::ApiServer).await;
    let log = site.plane.dir().join("ends");
    let polite =
        format!("trap 'echo bye >{}; exit' TERM; while :; do sleep 0.05; done", log.display());
    site.script("polite", &polite, json!({ "terminationGracePeriodSeconds": 600 })).await;
    let deaf = "trap '' TERM; while :; do sleep 0.05; done";
    site.script("deaf", deaf, json!({ "terminationGracePeriodSeconds": 2 })).await;
    site.script("forced", deaf, json!({ "terminationGracePeriodSeconds": 600 })).await;
    site.script("good", "exit 0", json!({ "restartPolicy": "Never" })).await;
    site.script("bad", "exit 3", json!({ "restartPolicy": "Never" })).await;
    for name in ["polite", "deaf", "forced"] {
        site.ready(name).await;
    }
    for (name, phase, code) in [("good", "Succeeded", 0), ("bad", "Failed", 3)] {
        let status = site.until(name, "has ended", |status| status["phase"] == phase).await;
        assert_eq!(container(&status)["state"]["terminated"]["exitCode"], code);
        site.pods.delete(name, &DeleteParams::default()).await.unwrap();
        site.gone(name).await;
    }
    site.pods.delete("polite", &DeleteParams::default()).await.unwrap();
    site.gone("polite").await;
    assert_eq!(std::fs::read_to_string(log).unwrap(), "bye\n");
    let deleted = Instant::now();
    site.pods.delete("deaf", &DeleteParams::default()).await.unwrap();
    site.gone("deaf").await;
    assert!(deleted.elapsed() > Duration::from_secs(2), "{:?}", deleted.elapsed());
    site.pods.delete("forced", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("the process of the pod that was removed by force has ended", DEADLINE, || async {
        site.machines.signal("default", "forced", Signal::Cont).is_err().then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_pod_lives_on_while_the_api_server_is_away_and_waits_for_its_readiness_gate() {
    let site = Site::at(Level::ApiServer).await;
    let gates = json!({ "readinessGates": [{ "conditionType": "example.com/gate" }] });
    site.create("gated", stand_in(), gates).await;
    let started = |status: &Value| container(status)["ready"] == true;
    let status = site.until("gated", "has ready containers", started).await;
    assert_eq!(condition(&status, "Ready")["reason"], "ReadinessGatesNotReady");
    let gate =
        json!({ "status": { "conditions": [{ "type": "example.com/gate", "status": "True" }]}});
    let params = PatchParams::default();
    site.pods.patch_status("gated", &params, &Patch::Strategic(gate)).await.unwrap();
    let status = site.ready("gated").await;

    site.plane.stop_api_server().await.unwrap();
    let address = format!("{}:8080", status["podIP"].as_str().unwrap());
    assert_eq!(http_get(&address, "/healthz").await.unwrap().0, 200);
    eventually("kube-state-metrics misses the API server", DEADLINE, || async {
        (http_get(&address, "/livez").await.ok()?.0 == 503).then_some(())
    })
    .await
    .unwrap();
    site.machines.signal("default", "gated", Signal::Kill).unwrap();
    eventually("the process is replaced", DEADLINE, || async {
        let (code, _) = http_get(&address, "/livez").await.ok()?;
        (code == 503).then_some(())
    })
    .await
    .unwrap();
    site.plane.start_api_server().await.unwrap();
    let again = |status: &Value| container(status)["restartCount"] == 1 && is_ready(status);
    site.until("gated", "is Ready again", again).await;
}

#[tokio::test]
async fn the_scheduler_places_pods_on_machines_when_nodes_of_kwok_are_cordoned() {
    let site = Site::at(Level::Nodes).await;
    site.plane.add_kwok_nodes(0..3).await.unwrap();
    site.plane.nodes_ready(0..3).await.unwrap();
    site.plane.cordon_nodes(0..3).await.unwrap();
    let names = ["one", "two", "three", "four"];
    for name in names {
        site.create(name, stand_in(), json!({})).await;
    }
    for name in names {
        site.ready(name).await;
    }
    let pods = site.pods.list(&ListParams::default()).await.unwrap();
    let nodes = pods.iter().map(|pod| pod.spec.as_ref().unwrap().node_name.clone().unwrap());
    assert!(nodes.into_iter().all(|node| node.starts_with("machine-")));
}
