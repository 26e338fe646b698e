//! What the API server makes of a webhook's answer, step by step as its Go code does:
//! `pkg/admission/plugin/webhook/{request,errors,mutating,validating}`,
//! `pkg/endpoints/filters/warning.go` of kubernetes/apiserver, and client-go's `rest`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What the API server asked.
pub struct Call<'a> {
    /// The webhook's name in its configuration.
    pub webhook: &'a str,
    /// Which kind of webhook.
    pub mutating: bool,
    /// The uid of the request.
    pub uid: &'a str,
    /// The object sent; none on DELETE.
    pub object: Option<&'a Value>,
}

/// What becomes of the user's request.
#[derive(Debug)]
pub enum Outcome {
    /// It goes on, with the object as it is after the patch.
    Passed { object: Option<Value>, told: Told },
    /// It is refused with this Status.
    Refused { status: Box<Status>, told: Told },
    /// There is no verdict, and the webhook's failurePolicy decides. The text is the cause's.
    CallFailed(String),
    /// It is refused whatever the failurePolicy says: the webhook broke the contract.
    Internal(String),
}

/// What is passed on beside the verdict.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Warnings that reach the user.
    pub warnings: Vec<String>,
    /// Warnings, and keys of audit annotations, that are dropped on the way.
    pub lost: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Review {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    response: Option<Response>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Response {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    allowed: bool,
    status: Option<Status>,
    #[serde(default)]
    patch: Option<String>,
    patch_type: Option<String>,
    #[serde(default)]
    audit_annotations: BTreeMap<String, String>,
    #[serde(default)]
    warnings: Vec<String>,
}

/// A `metav1.Status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_field_names, reason = "named as in the API")]
pub struct Status {
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub details: Option<Details>,
    #[serde(default)]
    pub code: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Details {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub group: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub causes: Vec<Cause>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub field: String,
}

/// Follows an answer to its end.
pub fn outcome(call: &Call<'_>, http: u16, body: &[u8]) -> Outcome {
    // client-go: anything but 200 to 206 is an error, told by a Status or not at all.
    if !(200..=206).contains(&http) {
        let status: Status = serde_json::from_slice(body).unwrap_or_default();
        let is_status = (&*status.kind, &*status.api_version) == ("Status", "v1");
        let unknown = "the server rejected our request for an unknown reason".to_owned();
        return Outcome::CallFailed(if is_status { status.message } else { unknown });
    }
    let review: Review = match serde_json::from_slice(body) {
        Ok(review) => review,
        Err(error) => return Outcome::CallFailed(error.to_string()),
    };
    match verified(call, review) {
        Err(why) => Outcome::CallFailed(why),
        Ok(response) if response.allowed => passed(call, response),
        Ok(response) => Outcome::Refused {
            told: told(call, &response),
            status: Box::new(refused(call, response.status)),
        },
    }
}

/// request.VerifyAdmissionResponse.
fn verified(call: &Call<'_>, review: Review) -> Result<Response, String> {
    let response = review.response.ok_or("webhook response was absent")?;
    let (expected, given) = (call.uid, &response.uid);
    if expected != given {
        return Err(format!("expected response.uid={expected:?}, got {given:?}"));
    }
    if (&*review.api_version, &*review.kind) != ("admission.k8s.io/v1", "AdmissionReview") {
        return Err(format!("expected AdmissionReview v1, got {}", review.api_version));
    }
    let has_patch = response.patch.as_ref().is_some_and(|patch| !patch.is_empty());
    match (call.mutating, has_patch, &response.patch_type) {
        (true, true, None) => Err("response.patch but not response.patchType".to_owned()),
        (true, false, Some(_)) => Err("response.patchType but not response.patch".to_owned()),
        (true, _, Some(kind)) if kind.is_empty() => Err("invalid response.patchType".to_owned()),
        (false, true, _) => Err("validating webhook may not return response.patch".to_owned()),
        (false, _, Some(_)) => Err("validating webhook may not return patchType".to_owned()),
        _ => Ok(response),
    }
}

/// mutating.callAttrMutatingHook, from the verdict on.
fn passed(call: &Call<'_>, response: Response) -> Outcome {
    let told = told(call, &response);
    let Some(patch) = response.patch.filter(|patch| !patch.is_empty()) else {
        return Outcome::Passed { object: call.object.cloned(), told };
    };
    // Go decodes []byte from base64 when it reads the review.
    let patch = match STANDARD.decode(patch) {
        Ok(patch) => patch,
        Err(error) => return Outcome::CallFailed(error.to_string()),
    };
    let patch: json_patch::Patch = match serde_json::from_slice(&patch) {
        Ok(patch) => patch,
        Err(error) => return Outcome::CallFailed(error.to_string()),
    };
    let Some(object) = call.object else {
        return Outcome::Internal("the object cannot be modified by this operation".to_owned());
    };
    if response.patch_type.as_deref() != Some("JSONPatch") {
        return Outcome::CallFailed("unsupported patch type".to_owned());
    }
    let mut object = object.clone();
    match json_patch::patch(&mut object, &patch) {
        Ok(()) => Outcome::Passed { object: Some(object), told },
        Err(error) => Outcome::Internal(error.to_string()),
    }
}

/// errors.ToStatusErr.
fn refused(call: &Call<'_>, status: Option<Status>) -> Status {
    let mut status = status.unwrap_or_default();
    let denied_by = format!("admission webhook {:?} denied the request", call.webhook);
    status.code = status.code.max(400);
    if matches!(&*status.status, "" | "Success") {
        "Failure".clone_into(&mut status.status);
    }
    status.message = match (&*status.message, &*status.reason) {
        ("", "") => format!("{denied_by} without explanation"),
        ("", reason) => format!("{denied_by}: {reason}"),
        (message, _) => format!("{denied_by}: {message}"),
    };
    status
}

/// The audit backend's check of keys, and the warnings filter.
fn told(call: &Call<'_>, response: &Response) -> Told {
    let mut told = Told::default();
    for key in response.audit_annotations.keys() {
        let full = format!("{}/{key}", call.webhook);
        if !is_qualified_name(&full) {
            told.lost.push(full);
        }
    }
    let total: usize = response.warnings.iter().map(|text| text.chars().count()).sum();
    for text in &response.warnings {
        let too_much = total > 4096;
        if text.is_empty() || too_much || text.contains(char::is_control) {
            told.lost.push(text.clone());
        } else if !told.warnings.contains(text) {
            told.warnings.push(text.clone());
        }
    }
    told
}

/// validation.IsQualifiedName, of a name with a prefix.
fn is_qualified_name(full: &str) -> bool {
    let Some((prefix, name)) = full.split_once('/') else { return false };
    let inside = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let at_ends = |c: char| c.is_ascii_alphanumeric();
    prefix.len() <= 253
        && (1..=63).contains(&name.len())
        && name.chars().all(inside)
        && name.starts_with(at_ends)
        && name.ends_with(at_ends)
}
