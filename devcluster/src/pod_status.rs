//! The status that a kubelet reports, as a patch.

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

/// What a pod's status is to say. Readiness gates are looked up in the pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    pub(crate) phase: &'static str,
    pub(crate) ip: Option<String>,
    pub(crate) host_ip: Option<String>,
    /// `state` and `lastState` of every container.
    pub(crate) state: Value,
    pub(crate) last_state: Value,
    pub(crate) restarts: u32,
    pub(crate) started: bool,
    /// Whether the containers are; the pod needs its gates as well.
    pub(crate) ready: bool,
}

/// The status patch that makes `pod` say so, or `None` if it does already.
pub(crate) fn change(pod: &Pod, report: &Report) -> Result<Option<Value>> {
    let now = now();
    let present = serde_json::to_value(&pod.status)?;
    let gates = report.ready && gates_open(pod);
    let wanted = json!({
        "phase": report.phase,
        "podIP": report.ip,
        "hostIP": report.host_ip,
        "startTime": or(&present["startTime"], &now),
        "containerStatuses": containers(pod, report),
        "conditions": [
            condition(&present, "Initialized", true, "", &now),
            condition(&present, "ContainersReady", report.ready, "ContainersNotReady", &now),
            condition(
                &present,
                "Ready",
                gates,
                if report.ready { "ReadinessGatesNotReady" } else { "ContainersNotReady" },
                &now,
            ),
        ],
    });
    Ok((!includes(&present, &wanted)).then_some(wanted))
}

/// The time as it stands in a status.
#[expect(clippy::disallowed_methods, reason = "plays a kubelet, which has a clock of its own")]
pub(crate) fn now() -> Value {
    json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn or(present: &Value, otherwise: &Value) -> Value {
    if present.is_null() { otherwise.clone() } else { present.clone() }
}

fn gates_open(pod: &Pod) -> bool {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    gates.into_iter().all(|gate| {
        conditions
            .unwrap_or_default()
            .iter()
            .any(|condition| condition.type_ == gate.condition_type && condition.status == "True")
    })
}

fn condition(present: &Value, name: &str, holds: bool, reason: &str, now: &Value) -> Value {
    let status = if holds { "True" } else { "False" };
    let old = by_type(&present["conditions"], &json!(name)).filter(|old| old["status"] == status);
    json!({
        "type": name,
        "status": status,
        // A null removes the old value.
        "reason": if holds { Value::Null } else { json!(reason) },
        "lastTransitionTime": or(old.map_or(&Value::Null, |old| &old["lastTransitionTime"]), now),
    })
}

fn containers(pod: &Pod, report: &Report) -> Vec<Value> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let status = |container: &Container| {
        json!({
            "name": container.name,
            "image": container.image,
            "imageID": "",
            "restartCount": report.restarts,
            "ready": report.ready,
            "started": report.started,
            "state": report.state,
            "lastState": report.last_state,
        })
    };
    containers.map(status).collect()
}

fn by_type<'a>(conditions: &'a Value, name: &Value) -> Option<&'a Value> {
    conditions.as_array()?.iter().find(|condition| condition["type"] == *name)
}

/// Whether `present` says all that `wanted` says. The server adds fields, others add conditions.
fn includes(present: &Value, wanted: &Value) -> bool {
    match wanted {
        Value::Object(fields) => fields.iter().all(|(key, value)| includes(&present[key], value)),
        Value::Array(items) => items.iter().enumerate().all(|(index, item)| match &item["type"] {
            Value::Null => includes(&present[index], item),
            name => by_type(present, name).is_some_and(|present| includes(present, item)),
        }),
        value => present == value,
    }
}
