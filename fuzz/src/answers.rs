//! What holds of the answer to any bytes at all.

use super::api_server::{Call, Outcome, Told, outcome};
use ksm_scale_operator::{
    admission::{self, Access, Answer, Decision, Endpoint, Knowledge},
    allowed::Allowed,
};
use serde_json::Value;

pub(super) const ENDPOINTS: [Endpoint; 2] = [Endpoint::Mutate, Endpoint::Validate];

/// What the API server may say of the requester.
pub(super) const ACCESSES: [fn(Access) -> Answer; 3] =
    [Access::granted, |access| access.refused(Some("\u{7}\n")), |access| access.failed("gone")];

/// A request body is answered whatever it is, and a review with its own uid.
pub fn raw_reviews(body: &[u8]) {
    let knowledge = Knowledge { nodes: Some(100), others: 1, other: Some("y".to_owned()), pods: 2 };
    let review: Option<Value> = serde_json::from_slice(body).ok();
    for endpoint in ENDPOINTS {
        for access in ACCESSES {
            let answer = answer(endpoint, body, &knowledge, access);
            let request = review.as_ref().map(|review| &review["request"]);
            if let (200, Some(request)) = (answer.status, request) {
                assert_eq!(request["uid"], *answer.record.uid, "another uid");
            }
            check(endpoint, &answer, request.map(|request| &request["object"]));
        }
    }
}

/// The answer where `access` is said of the requester.
pub(super) fn answer(
    endpoint: Endpoint,
    body: &[u8],
    knowledge: &Knowledge,
    access: fn(Access) -> Answer,
) -> Answer {
    let decision = admission::parse(endpoint, body)
        .map(|review| review.decide(knowledge, &Allowed::default()));
    match decision {
        Ok(Decision::Final(answer)) | Err(answer) => answer,
        Ok(Decision::NeedsAccess(needed)) => access(*needed),
    }
}

/// What an answer comes to.
pub(super) struct Checked {
    /// The body.
    pub(super) body: Value,
    /// The object after the patch, where the request passes.
    pub(super) object: Option<Value>,
}

/// Panics unless the API server can use all of the answer. `object` is what was sent; `None` where
/// that cannot be told by who reads the review as values.
pub(super) fn check(endpoint: Endpoint, answer: &Answer, object: Option<&Value>) -> Checked {
    let body: Value = serde_json::from_slice(&answer.body).expect("an answer is JSON");
    if answer.status != 200 {
        check_status(answer.status, &body);
        return Checked { body, object: None };
    }
    let response = &body["response"];
    assert_eq!(response["allowed"] == true, response["status"].is_null(), "{body}");
    assert!(response["allowed"] == true || response["patch"].is_null(), "both: {body}");
    for warning in response["warnings"].as_array().into_iter().flatten() {
        let warning = warning.as_str().expect("a warning is text");
        assert!(warning.chars().count() <= 256, "it could be cut: {warning}");
    }
    let sent = object.filter(|object| !object.is_null());
    let mutating = endpoint == Endpoint::Mutate;
    let call = Call { webhook: "w.example.com", mutating, uid: &answer.record.uid, object: sent };
    let (after, told) = match outcome(&call, answer.status, &answer.body) {
        Outcome::Passed { object, told } => (object, told),
        Outcome::Refused { told, .. } => (None, told),
        Outcome::Internal(_) if object.is_none() => (None, Told::default()),
        Outcome::CallFailed(why) | Outcome::Internal(why) => panic!("{why}: {body}"),
    };
    assert!(told.lost.is_empty(), "the API server drops {:?}", told.lost);
    Checked { body, object: after }
}

/// Panics unless it is a `metav1.Status` of a failure with the code of HTTP.
pub(super) fn check_status(code: u16, body: &Value) {
    assert!((400..600).contains(&code), "{code}");
    let expected = [("kind", "Status"), ("apiVersion", "v1"), ("status", "Failure")];
    assert!(expected.iter().all(|(field, value)| body[field] == **value), "{body}");
    assert_eq!(body["code"], code);
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
}
