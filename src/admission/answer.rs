//! What goes back: an `AdmissionReview` with a verdict, or a `metav1.Status` where there is none.
//!
//! The types of k8s-openapi and kube-core are not used: they write the patch as numbers, and cannot
//! be read with `dryRun: null`. What the API server makes of an answer:
//! <https://github.com/kubernetes/kubernetes/blob/master/staging/src/k8s.io/apiserver/pkg/admission/plugin/webhook/request/admissionreview.go>.

use super::{
    Endpoint,
    defaults::Add,
    review::{API_VERSION, KIND},
};
use crate::{api::KSMScale, names::GROUP};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::Resource;
use serde::Serialize;
use std::collections::BTreeMap;

/// The cut that the API server makes once there is too much text. Nothing is longer here, so it
/// never cuts.
const LONGEST_WARNING: usize = 256;
/// What the API server passes on for one request, in characters.
const ALL_WARNINGS: usize = 4096;

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It may pass as it is.
    Allowed,
    /// It may pass with what the patch adds.
    Patched,
    /// It is refused, for what it asks.
    Denied,
    /// It is no request that this server answers: HTTP 4xx.
    BadRequest,
    /// The fault is on our side: HTTP 5xx. The webhook's `failurePolicy` decides.
    Failed,
}

impl Verdict {
    /// The value of the metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Patched => "patched",
            Self::Denied => "denied",
            Self::BadRequest => "bad_request",
            Self::Failed => "failed",
        }
    }
}

/// What metrics, audit annotations and the log line of a denial say of a request. Never a body.
///
/// The texts are the requester's and may hold any character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which webhook was called; `None` where the path is neither's.
    pub endpoint: Option<Endpoint>,
    /// `CREATE`, `UPDATE` or `DELETE`; empty where it is not known.
    pub operation: &'static str,
    /// How it was answered.
    pub verdict: Verdict,
    /// Ids of the rules that refused it. A rule of the schema goes by its reason.
    pub rules: Vec<&'static str>,
    /// Ids of the warnings given.
    pub warnings: Vec<&'static str>,
    /// The request's uid; empty where it is not known.
    pub uid: String,
    /// Who asks; empty where it is not known.
    pub user: String,
    /// The KSMScale; empty where it is not known, or has none yet.
    pub name: String,
}

impl Record {
    /// Of a request of which nothing is known yet.
    pub(super) fn unknown(endpoint: Option<Endpoint>, verdict: Verdict) -> Self {
        Self {
            endpoint,
            operation: "",
            verdict,
            rules: Vec::new(),
            warnings: Vec::new(),
            uid: String::new(),
            user: String::new(),
            name: String::new(),
        }
    }
}

/// An HTTP answer: always JSON, a verdict (200) or a `metav1.Status` (4xx, 5xx).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, of media type `application/json`.
    pub body: Vec<u8>,
    /// Seconds for the header `Retry-After`, with which the API server tries again by itself.
    pub retry_after: Option<u32>,
    /// What is told about it.
    pub record: Record,
}

/// An answer without a verdict: a `metav1.Status` that reaches the user as it is.
///
/// `reason` is a `metav1.StatusReason`, such as `BadRequest` or `ServiceUnavailable`.
#[must_use]
pub fn refusal(http_status: u16, reason: &str, message: &str) -> Answer {
    let verdict = if http_status < 500 { Verdict::BadRequest } else { Verdict::Failed };
    without_verdict(http_status, reason, message, Record::unknown(None, verdict))
}

/// The same for a request of which something is known.
pub(super) fn without_verdict(code: u16, reason: &str, message: &str, record: Record) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        kind: &'static str,
        api_version: &'static str,
        metadata: Metadata,
        #[serde(flatten)]
        failure: Failure<'a>,
    }
    #[derive(Serialize)]
    struct Metadata {}
    let failure = Failure { status: "Failure", message, reason, code, details: None };
    let body = Body { kind: "Status", api_version: "v1", metadata: Metadata {}, failure };
    Answer { status: code, body: bytes(&body), retry_after: None, record }
}

/// One `metav1.StatusCause`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Cause {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) field: String,
}

/// Why a request is refused, as the API server's own refusals say it.
#[derive(Debug)]
pub(super) struct Denial {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// UID of the object; empty where it has none.
    pub(super) object_uid: String,
    pub(super) causes: Vec<Cause>,
}

/// A line for the requester, whatever the verdict.
#[derive(Clone, Debug)]
pub(super) struct Warned {
    pub(super) id: &'static str,
    pub(super) text: String,
}

/// Lets the request pass, with `warned`, most important first.
pub(super) fn allowed(record: Record, warned: Vec<Warned>) -> Answer {
    reviewed(Record { verdict: Verdict::Allowed, ..record }, None, None, warned)
}

/// Lets the request pass with `adds`; without any, as it is.
pub(super) fn patched(record: Record, adds: &[Add<'_>]) -> Answer {
    if adds.is_empty() {
        return allowed(record, Vec::new());
    }
    let patch = STANDARD.encode(bytes(&adds));
    reviewed(Record { verdict: Verdict::Patched, ..record }, Some(patch), None, Vec::new())
}

/// Refuses the request for `rules`.
pub(super) fn denied(
    record: Record,
    rules: Vec<&'static str>,
    denial: &Denial,
    warned: Vec<Warned>,
) -> Answer {
    let record = Record { verdict: Verdict::Denied, rules, ..record };
    let name = record.name.clone();
    let failure = Failure {
        status: "Failure",
        message: &denial.message,
        reason: denial.reason,
        code: denial.code,
        details: Some(Details {
            name: &name,
            group: GROUP,
            kind: KSMScale::kind(&()).into_owned(),
            uid: &denial.object_uid,
            causes: &denial.causes,
        }),
    };
    reviewed(record, None, Some(failure), warned)
}

fn reviewed(
    mut record: Record,
    patch: Option<String>,
    status: Option<Failure<'_>>,
    warned: Vec<Warned>,
) -> Answer {
    let mut warnings = Vec::new();
    let mut left = ALL_WARNINGS;
    for Warned { id, text } in warned {
        let text = presentable(&text);
        let Some(rest) = left.checked_sub(text.chars().count()) else { break };
        left = rest;
        record.warnings.push(id);
        warnings.push(text);
    }
    let notes = [("rules", &record.rules), ("warnings", &record.warnings)];
    let body = Review {
        kind: KIND,
        api_version: API_VERSION,
        response: Response {
            uid: &record.uid,
            allowed: status.is_none(),
            patch_type: patch.is_some().then_some("JSONPatch"),
            patch,
            status,
            audit_annotations: notes
                .into_iter()
                .filter(|(_, ids)| !ids.is_empty())
                .map(|(key, ids)| (key, ids.join(",")))
                .collect(),
            warnings,
        },
    };
    Answer { status: 200, body: bytes(&body), retry_after: None, record }
}

/// The API server drops a warning with a control character without a word.
fn presentable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    if text.chars().count() <= LONGEST_WARNING {
        text.chars().map(shown).collect()
    } else {
        text.chars().take(LONGEST_WARNING - 1).map(shown).chain(['…']).collect()
    }
}

fn bytes(value: &impl Serialize) -> Vec<u8> {
    // Maps with text as keys, numbers and text: there is nothing that cannot be written.
    serde_json::to_vec(value).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    kind: &'static str,
    api_version: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Failure<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// A `metav1.Status` without its type, as it stands in a response.
#[derive(Serialize)]
struct Failure<'a> {
    status: &'static str,
    message: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    code: u16,
}

#[derive(Serialize)]
struct Details<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    group: &'static str,
    kind: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    causes: &'a [Cause],
}
