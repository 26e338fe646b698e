//! The status a kubelet reports.

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// What a pod's status is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Ready,
    NotReady,
    Waiting(&'static str),
    Failed,
}

/// The status patch that makes `pod` say so, or `None` if it does already.
pub(super) fn change(pod: &Pod, shown: Shown, ip: &str) -> Result<Option<Value>> {
    let now = now();
    let present = serde_json::to_value(&pod.status)?;
    let ready = shown == Shown::Ready;
    let gates = ready && gates_open(pod);
    let wanted = json!({
        "phase": match shown {
            Shown::Ready | Shown::NotReady => "Running",
            Shown::Waiting(_) => "Pending",
            Shown::Failed => "Failed",
        },
        "podIP": ip,
        "startTime": or(&present["startTime"], &now),
        "containerStatuses": containers(pod, &present, shown, &now),
        "conditions": [
            condition(&present, "Initialized", true, "", &now),
            condition(&present, "ContainersReady", ready, "ContainersNotReady", &now),
            condition(
                &present,
                "Ready",
                gates,
                if ready { "ReadinessGatesNotReady" } else { "ContainersNotReady" },
                &now,
            ),
        ],
    });
    Ok((!includes(&present, &wanted)).then_some(wanted))
}

#[expect(clippy::disallowed_methods, reason = "plays a kubelet, which has a clock of its own")]
fn now() -> Value {
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

fn containers(pod: &Pod, present: &Value, shown: Shown, now: &Value) -> Vec<Value> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let statuses = containers.enumerate().map(|(index, container)| {
        let started = &present["containerStatuses"][index]["state"]["running"]["startedAt"];
        let state = match shown {
            Shown::Ready | Shown::NotReady => {
                json!({ "running": { "startedAt": or(started, now) }})
            }
            Shown::Waiting(reason) => json!({ "waiting": { "reason": reason } }),
            Shown::Failed => json!({ "terminated": { "exitCode": 1, "reason": "Error" } }),
        };
        json!({
            "name": container.name,
            "image": container.image,
            "imageID": "",
            "restartCount": 0,
            "ready": shown == Shown::Ready,
            "started": matches!(shown, Shown::Ready | Shown::NotReady),
            "state": state,
        })
    });
    statuses.collect()
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
