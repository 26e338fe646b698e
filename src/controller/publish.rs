//! Writes the status and the Events, if there is anything new to say.

use super::is_refused;
use crate::{
    api::{KSMScale, KSMScaleStatus},
    names::OPERATOR,
    status::events::Note,
    telemetry::otlp::TRACES,
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;

/// Writes `new` through the status subresource unless it equals `old` (R49).
///
/// # Errors
/// What the API server answered. Nothing is half written.
#[tracing::instrument(target = TRACES, name = "publish", skip_all)]
pub(super) async fn status(
    client: &Client,
    name: &str,
    old: &KSMScaleStatus,
    new: &KSMScaleStatus,
) -> Result<(), kube::Error> {
    if old == new {
        return Ok(());
    }
    // Neither sent nor answered in our types, which cannot hold a spec that does not fit them.
    let resource = ApiResource::erase::<KSMScale>(&());
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    // Not applied: to apply, the API server reads the whole object by the CRD's types, and fails
    // for one whose spec does not fit them, which is the one that most needs a status.
    let patch = Patch::<()>::Json(
        serde_json::from_value(json!([
            {"op": "add", "path": "/status", "value": new},
        ]))
        .map_err(kube::Error::SerdeError)?,
    );
    let params = PatchParams { field_manager: Some(OPERATOR.into()), ..PatchParams::default() };
    match api.patch_status(name, &params, &patch).await {
        // Deleted meanwhile: there is nobody left to tell.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// Sends Events. They are a courtesy: one that cannot be sent is logged and forgotten.
pub(super) async fn events(client: &Client, name: &str, uid: &str, notes: Vec<Note>) {
    for note in notes {
        // A recorder joins Events that are alike but for their text, and keeps the first text. Ours
        // are only sent on a change, so each gets a recorder, and so an object, of its own.
        let reporter = Reporter { controller: OPERATOR.to_owned(), instance: None };
        let recorder = Recorder::new(client.clone(), reporter);
        let regarding = ObjectReference {
            api_version: Some(KSMScale::api_version(&()).into_owned()),
            kind: Some(KSMScale::kind(&()).into_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..Default::default()
        };
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason,
            note: Some(note.message),
            action: note.action.to_owned(),
            secondary: None,
        };
        match recorder.publish(&event, &regarding).await {
            Err(error) if is_refused(&error) => return,
            Err(error) => tracing::warn!(%error, reason = event.reason, "event not sent"),
            Ok(()) => {}
        }
    }
}
