//! Requests to the webhooks and their answers, without a server: one file each in
//! `tests/admission/`, judged as the API server judges answers.

#![allow(clippy::panic, reason = "helpers of tests fail as tests do")]
#![allow(unreachable_pub, reason = "modules of a test binary, with the visibility of a library")]

use api_server::{Call, Cause, Outcome, Told, outcome};
use case::{Access, Case, Endpoint, UID, cases};
use ksm_scale_operator::{
    admission::{self, Answer, Decision, Knowledge},
    allowed::Allowed,
};
use serde_json::Value;
use std::collections::BTreeSet;

#[path = "admission/api_server.rs"]
mod api_server;
#[path = "admission/case.rs"]
mod case;

impl Case {
    /// The answer, and whether the requester had to be asked about.
    fn answer(&self) -> (Answer, bool) {
        let endpoint = match self.endpoint {
            Endpoint::Validate => admission::Endpoint::Validate,
            Endpoint::Mutate => admission::Endpoint::Mutate,
        };
        let knowledge = Knowledge {
            nodes: self.knowledge.nodes,
            others: self.knowledge.others.len(),
            other: self.knowledge.others.first().cloned(),
            pods: self.knowledge.pods,
        };
        let decision = admission::parse(endpoint, &self.body())
            .map(|review| review.decide(&knowledge, &self.allowed()));
        let access = match decision {
            Ok(Decision::Final(answer)) | Err(answer) => return (answer, false),
            Ok(Decision::NeedsAccess(access)) => access,
        };
        let answer = match self.access {
            None | Some(Access::Granted) => access.granted(),
            Some(Access::Refused) => access.refused(Some("no reason")),
            Some(Access::Failed) => access.failed("no answer"),
        };
        (answer, true)
    }

    fn allowed(&self) -> Allowed {
        Allowed {
            namespaces: vec![self.allowed.namespaces.parse().expect("a pattern")],
            images: vec![self.allowed.images.parse().expect("a pattern")],
        }
    }

    /// What the user sees, in the form of `expect`.
    fn seen(&self, answer: &Answer) -> Seen {
        let mutating = self.endpoint == Endpoint::Mutate;
        let (webhook, object) = ("webhook.example.com", self.new_object());
        let object = (!object.is_null()).then_some(&object);
        let call = Call { webhook, mutating, uid: UID, object };
        let mut seen = Seen::default();
        let told = match outcome(&call, answer.status, &answer.body) {
            Outcome::Passed { object: patched, told } => {
                seen.changed = patched.as_ref() != object;
                told
            }
            Outcome::Refused { status, told } => {
                seen.code = Some(status.code);
                let denied_by = format!("admission webhook {webhook:?} denied the request: ");
                let message = status.message.strip_prefix(&denied_by);
                message.expect("a message").clone_into(&mut seen.message);
                assert_eq!(status.status, "Failure", "{}", self.name);
                let details = status.details.expect("details");
                assert_eq!((&*details.group, &*details.kind), ("monitor.example.com", "KSMScale"));
                assert_eq!(details.name, answer.record.name, "{}", self.name);
                let uids = ["object-uid", ""];
                assert!(uids.contains(&&*details.uid), "{}", self.name);
                seen.causes = details.causes.iter().map(written).collect();
                told
            }
            Outcome::CallFailed(message) => {
                seen.code = Some(answer.status);
                seen.message = message;
                Told::default()
            }
            Outcome::Internal(why) => panic!("{}: the contract is broken: {why}", self.name),
        };
        assert_eq!(told.lost, [""; 0], "{}: lost on the way", self.name);
        seen.warnings = told.warnings;
        seen
    }
}

/// `field: message`, of a cause whose reason is the one that its message stands for.
fn written(cause: &Cause) -> String {
    let Cause { reason, message, field } = cause;
    let reasons: &[_] = match message.split([':', ' ']).next() {
        Some("Required") => &["FieldValueRequired"],
        Some("Unsupported") => &["FieldValueNotSupported"],
        Some("Forbidden") => &["FieldValueForbidden"],
        Some("unknown") => &["UnknownField"],
        _ => &["FieldValueInvalid", "FieldValueTypeInvalid"],
    };
    assert!(reasons.contains(&&**reason), "{reason}: {message}");
    format!("{field}: {message}")
}

#[derive(Debug, Default)]
struct Seen {
    code: Option<u16>,
    message: String,
    causes: Vec<String>,
    warnings: Vec<String>,
    changed: bool,
}

/// What the answer's patch adds, as `path: value`.
fn adds(answer: &Answer) -> Vec<String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let Some(patch) = body["response"]["patch"].as_str() else { return Vec::new() };
    let patch: Value =
        serde_json::from_slice(&STANDARD.decode(patch).expect("base64")).expect("JSON");
    let operations = patch.as_array().expect("a list").iter();
    operations
        .map(|operation| {
            assert_eq!(operation["op"], "add");
            format!("{}: {}", operation["path"].as_str().expect("a path"), operation["value"])
        })
        .collect()
}

#[test]
fn w1_w3_w4_w5_w6_r68_every_case_has_the_answer_that_stands_beside_it() {
    let mut wrong = Vec::new();
    for case in cases() {
        let (answer, asked) = case.answer();
        let (seen, record, expected) = (case.seen(&answer), &answer.record, &case.expect);
        let mut rest = &*seen.message;
        let says_it = expected.message.iter().all(|part| {
            let found = rest.find(part.as_str());
            rest = found.map_or("", |at| &rest[at + part.len()..]);
            found.is_some()
        });
        let as_expected = asked == case.access.is_some()
            && record.verdict.as_str() == expected.verdict
            && seen.code == expected.code
            && says_it
            && seen.causes == expected.causes
            && adds(&answer) == expected.adds
            && seen.changed != expected.adds.is_empty()
            && record.rules == expected.rules
            && seen.warnings == expected.warnings
            && record.warnings.len() == expected.warnings.len();
        if !as_expected {
            wrong.push(format!(
                "{}: asked {asked}, {seen:#?} {:?} {record:?}",
                case.name,
                adds(&answer)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn w1_the_answer_to_every_review_carries_its_uid_and_type() {
    for case in cases() {
        let (answer, _) = case.answer();
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        if answer.status == 200 {
            assert_eq!(body["kind"], "AdmissionReview", "{}", case.name);
            assert_eq!(body["response"]["uid"], UID, "{}", case.name);
            assert_eq!(answer.record.uid, UID, "{}", case.name);
        } else {
            assert_eq!(body["kind"], "Status", "{}", case.name);
            assert_eq!(body["code"], answer.status, "{}", case.name);
        }
    }
}

/// What is marked as live can be sent to an API server as it is.
#[test]
fn w2_live_cases_are_made_of_objects_alone() {
    let live = cases().into_iter().filter(|case| case.live).inspect(|case| {
        let by_hand = case.body.is_some() || case.replace.is_some();
        let about_name = case.review.is_null() || case.review["request"].get("name").is_some();
        assert!(!by_hand && about_name, "{}", case.name);
    });
    assert!(live.count() >= 20);
}

/// A folder that is not read would prove nothing.
#[test]
fn w6_the_cases_are_many_and_cover_every_verdict_of_both_webhooks() {
    let cases = cases();
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let verdicts: BTreeSet<_> =
        cases.iter().map(|case| (case.endpoint as u8, case.expect.verdict.clone())).collect();
    let (validate, mutate) = (Endpoint::Validate as u8, Endpoint::Mutate as u8);
    for (endpoint, verdict) in [
        (validate, "allowed"),
        (validate, "denied"),
        (validate, "bad_request"),
        (validate, "failed"),
        (mutate, "allowed"),
        (mutate, "patched"),
        (mutate, "bad_request"),
    ] {
        assert!(verdicts.contains(&(endpoint, verdict.to_owned())), "{endpoint} {verdict}");
    }
}
