//! Writes the status and the Events, if there is anything new to say.

use crate::{
    api::{KSMScale, KSMScaleStatus},
    names::OPERATOR,
    status::events::Note,
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;

/// Writes `new` through the status subresource unless it equals `old` (R49).
///
/// # Errors
/// What the API server answered. Nothing is half written.
pub(super) async fn status(
    client: &Client,
    name: &str,
    old: &KSMScaleStatus,
    new: &KSMScaleStatus,
) -> Result<(), kube::Error> {
    if old == new {
        return Ok(());
    }
    let api: Api<KSMScale> = Api::all(client.clone());
    let patch = json!({
        "apiVersion": KSMScale::api_version(&()),
        "kind": KSMScale::kind(&()),
        "status": new,
    });
    let params = PatchParams::apply(OPERATOR).force();
    match api.patch_status(name, &params, &Patch::Apply(patch)).await {
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
        if let Err(error) = recorder.publish(&event, &regarding).await {
            tracing::warn!(%error, reason = event.reason, "event not sent");
        }
    }
}
