//! Laws that hold for every request. Single cases stand in `tests/admission/`.

use super::*;
use crate::validate::{defaulted, validate};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde_json::{Value, json};

fn review(operation: &str, object: &Value, old: &Value) -> Vec<u8> {
    let kind = json!({"group": GROUP, "version": "v1alpha1", "kind": "KSMScale"});
    let resource = json!({"group": GROUP, "version": "v1alpha1", "resource": "ksmscales"});
    let review = json!({
        "apiVersion": review::API_VERSION,
        "kind": review::KIND,
        "request": {
            "uid": "request-uid",
            "kind": kind,
            "resource": resource,
            "name": "x",
            "operation": operation,
            "userInfo": {"username": "jane", "uid": "7", "groups": ["a"], "extra": {"k": ["v"]}},
            "object": object,
            "oldObject": old,
        },
    });
    serde_json::to_vec(&review).unwrap()
}

fn ksmscale(spec: &Value) -> Value {
    json!({
        "apiVersion": "monitor.example.com/v1alpha1",
        "kind": "KSMScale",
        "metadata": {"name": "x", "uid": "object-uid"},
        "spec": spec,
    })
}

fn knowledge() -> Knowledge {
    Knowledge { nodes: Some(100), others: 3, other: Some("y".to_owned()), pods: 2 }
}

/// Decided with all knowledge, and in every test the same without what it does not need.
fn decide(endpoint: Endpoint, body: &[u8]) -> Decision {
    let (review, again) = match (parse(endpoint, body), parse(endpoint, body)) {
        (Ok(review), Ok(again)) => (review, again),
        (Err(answer), _) | (_, Err(answer)) => return Decision::Final(answer),
    };
    let needed = match review.need() {
        None => Knowledge::default(),
        Some(Need::Pods { .. }) => Knowledge { pods: knowledge().pods, ..Knowledge::default() },
        Some(Need::Surroundings { .. }) => Knowledge { pods: 0, ..knowledge() },
    };
    let decision = review.decide(&knowledge(), &Allowed::default());
    let by_need = again.decide(&needed, &Allowed::default());
    assert_eq!(format!("{decision:?}"), format!("{by_need:?}"));
    decision
}

/// The answer where the requester may create pods anywhere.
fn answer(endpoint: Endpoint, body: &[u8]) -> Answer {
    match decide(endpoint, body) {
        Decision::Final(answer) => answer,
        Decision::NeedsAccess(access) => access.granted(),
    }
}

/// What the answer's patch makes of `object`.
fn patched(answer: &Answer, object: &Value) -> Value {
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let mut object = object.clone();
    if let Some(patch) = body["response"]["patch"].as_str() {
        let patch = STANDARD.decode(patch).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        json_patch::patch(&mut object, &patch).unwrap();
    }
    object
}

/// Holds of every answer there is.
fn assert_sound(answer: &Answer, uid: Option<&str>) {
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    if answer.status != 200 {
        assert_eq!((&body["kind"], &body["apiVersion"]), (&json!("Status"), &json!("v1")));
        assert_eq!(body["status"], "Failure");
        assert_eq!(body["code"], answer.status);
        assert!((400..600).contains(&answer.status));
        return;
    }
    let response = &body["response"];
    assert_eq!(
        (&body["kind"], &body["apiVersion"]),
        (&json!(review::KIND), &json!(review::API_VERSION))
    );
    assert_eq!(response["uid"], *answer.record.uid);
    assert!(uid.is_none_or(|uid| response["uid"] == uid), "{body}");
    let allowed = response["allowed"].as_bool().unwrap();
    assert_eq!(allowed, response["status"].is_null());
    assert_eq!(response["patch"].is_null(), response["patchType"].is_null());
    assert!(allowed || response["patch"].is_null(), "both a patch and a denial");
    let warnings = response["warnings"].as_array().cloned().unwrap_or_default();
    let warnings: Vec<_> = warnings.iter().map(|warning| warning.as_str().unwrap()).collect();
    assert!(warnings.iter().all(|text| !text.contains(char::is_control)));
    assert!(warnings.iter().all(|text| text.chars().count() <= 256));
    assert!(warnings.iter().map(|text| text.chars().count()).sum::<usize>() <= 4096);
}

/// Any JSON.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z/~]{0,8}", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A field that is absent, or one of `values`, or anything at all.
fn field(values: &[Value]) -> impl Strategy<Value = Option<Value>> + use<> {
    prop_oneof![
        3 => Just(None),
        4 => prop::sample::select(values.to_vec()).prop_map(Some),
        1 => any_json().prop_map(Some),
    ]
}

/// An object of those fields that are there, or now and then something else.
fn object_of(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let object = values.prop_map(move |values| {
        let there = names.iter().zip(values).filter_map(|(n, v)| Some(((*n).to_owned(), v?)));
        Value::Object(there.collect())
    });
    prop_oneof![19 => object, 1 => any_json()].boxed()
}

/// Specs with a fault here and there.
fn any_spec() -> BoxedStrategy<Value> {
    let quantity = || field(&[json!("1"), json!(2), json!("500m"), json!("x")]).boxed();
    let maybe = |part: BoxedStrategy<Value>| prop::option::of(part).boxed();
    let quantities = || maybe(object_of(vec![("cpu", quantity()), ("memory", quantity())]));
    let distribution = object_of(vec![
        ("enablePDB", field(&[json!(true), json!(false)]).boxed()),
        ("maxUnavailable", field(&[json!(0), json!(-1)]).boxed()),
    ]);
    let sharding = object_of(vec![
        ("enabled", Just(Some(json!(true))).boxed()),
        ("shardCount", field(&[json!(1), json!(2), json!(5)]).boxed()),
        ("minReplicasPerShard", field(&[json!(1), json!(3)]).boxed()),
        ("maxReplicasPerShard", field(&[json!(2), json!(4)]).boxed()),
        ("distribution", maybe(distribution)),
    ]);
    object_of(vec![
        ("nodesPerMonitor", field(&[json!(8), json!(9), json!(20.0)]).boxed()),
        ("monitorImage", field(&[json!("a:v1"), json!("A"), json!("kube-state-metrics")]).boxed()),
        ("namespace", field(&[json!("monitoring"), json!("other"), json!("A")]).boxed()),
        ("deletionProtection", field(&[json!(true)]).boxed()),
        ("resources", maybe(object_of(vec![("requests", quantities()), ("limits", quantities())]))),
        ("sharding", maybe(sharding)),
    ])
}

#[test]
fn w3_r68_only_what_is_needed_to_know_is_asked_for() {
    let (old, new) = (ksmscale(&json!({})), ksmscale(&json!({"nodesPerMonitor": 20})));
    let mut protected = ksmscale(&json!({"deletionProtection": true}));
    let need = |endpoint, operation, object: &Value, old: &Value| {
        let body = review(operation, object, old);
        format!("{:?}", parse(endpoint, &body).unwrap().need())
    };
    let (validate, mutate, null) = (Endpoint::Validate, Endpoint::Mutate, Value::Null);
    let surroundings = r#"Some(Surroundings { name: "x" })"#;
    assert_eq!(need(validate, "CREATE", &new, &null), surroundings);
    assert_eq!(need(validate, "UPDATE", &new, &old), surroundings);
    assert_eq!(need(validate, "UPDATE", &old, &old), "None");
    assert_eq!(need(mutate, "UPDATE", &new, &old), "None");
    assert_eq!(need(validate, "DELETE", &null, &old), "None");
    let pods = r#"Some(Pods { uid: "object-uid" })"#;
    assert_eq!(need(validate, "DELETE", &null, &protected), pods);
    protected["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(need(validate, "DELETE", &null, &protected), "None");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn w3_no_object_is_refused_an_update_to_itself(object in any_json(), spec in any_spec()) {
        for object in [object, ksmscale(&spec)] {
            if !object.is_null() {
                let answer = answer(Endpoint::Validate, &review("UPDATE", &object, &object));
                prop_assert_eq!(answer.record.verdict, Verdict::Allowed);
            }
        }
    }

    #[test]
    fn w3_an_update_is_not_refused_for_what_was_so_before(spec in any_spec(), other in any_spec()) {
        // Sharding is left alone, and everything else as well but for two fields without rules
        // that join them to others.
        let mut after = spec.clone();
        for field in ["nodesPerMonitor", "deletionProtection"] {
            if let (Some(fields), Some(value)) = (after.as_object_mut(), other.get(field)) {
                fields.insert(field.to_owned(), value.clone());
            }
        }
        let body = review("UPDATE", &ksmscale(&after), &ksmscale(&spec));
        let answer = answer(Endpoint::Validate, &body);
        let touched = |violation: &crate::validate::Violation| {
            ["spec.nodesPerMonitor", "spec.deletionProtection"]
                .iter()
                .any(|field| violation.field.starts_with(field))
        };
        let faults = validate(&ksmscale(&after)).err().map(|v| v.0).unwrap_or_default();
        let (before, now) = (defaulted(&ksmscale(&spec)), defaulted(&ksmscale(&after)));
        let is_new = |violation: &crate::validate::Violation| {
            let field = violation.field.split('.').nth(1).unwrap_or_default();
            touched(violation) && before["spec"].get(field) != now["spec"].get(field)
        };
        let expected = if faults.iter().any(is_new) { Verdict::Denied } else { Verdict::Allowed };
        prop_assert_eq!(answer.record.verdict, expected, "{:?}", faults);
    }

    #[test]
    fn w2_a_new_object_is_refused_for_just_what_the_rules_refuse(spec in any_spec()) {
        let verdict = Allowed::default().check(validate(&ksmscale(&spec)));
        let answer = answer(Endpoint::Validate, &review("CREATE", &ksmscale(&spec), &Value::Null));
        prop_assert_eq!(answer.record.verdict == Verdict::Denied, verdict.is_err());
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        for violation in verdict.err().iter().flat_map(|violations| &violations.0) {
            let cause = json!({
                "reason": violation.reason.as_str(),
                "message": violation.message,
                "field": violation.field,
            });
            let causes = body["response"]["status"]["details"]["causes"].as_array().unwrap();
            prop_assert!(causes.contains(&cause), "{} is not among {:?}", cause, causes);
        }
    }

    #[test]
    fn w1_a_patch_gives_what_the_schema_would_and_a_second_one_nothing(spec in any_spec()) {
        prop_assume!(!spec.is_null());
        let object = ksmscale(&spec);
        let first = answer(Endpoint::Mutate, &review("CREATE", &object, &Value::Null));
        let once = patched(&first, &object);
        prop_assert_eq!(&defaulted(&once), &defaulted(&object), "the meaning is the same");
        let second = answer(Endpoint::Mutate, &review("CREATE", &once, &Value::Null));
        prop_assert_eq!(second.record.verdict, Verdict::Allowed);
        prop_assert_eq!(&patched(&second, &once), &once);
        // What is left for the schema is to remove nulls, and to write 20.0 as 20.
        let mut without_nulls = once;
        remove_nulls_and_fractions(&mut without_nulls["spec"], &defaulted(&object)["spec"]);
        prop_assert_eq!(without_nulls, defaulted(&object));
    }

    #[test]
    fn w6_no_bytes_are_without_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for endpoint in [Endpoint::Mutate, Endpoint::Validate] {
            assert_sound(&answer(endpoint, &bytes), None);
        }
    }

    #[test]
    fn w1_w6_no_review_is_without_a_sound_answer(
        object in any_json(),
        spec in any_spec(),
        other in any_spec(),
        operation in prop::sample::select(&["CREATE", "UPDATE", "DELETE"]),
        cut in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        for object in [object, ksmscale(&spec)] {
            let mut body = review(operation, &object, &ksmscale(&other));
            for endpoint in [Endpoint::Mutate, Endpoint::Validate] {
                assert_sound(&answer(endpoint, &body), Some("request-uid"));
                if let Decision::NeedsAccess(access) = decide(endpoint, &body) {
                    assert_sound(&access.refused(Some("\u{7}\n")), Some("request-uid"));
                }
                if let Decision::NeedsAccess(access) = decide(endpoint, &body) {
                    assert_sound(&access.failed("gone"), None);
                }
            }
            let at = cut.index(body.len());
            body[at] = byte;
            assert_sound(&answer(Endpoint::Validate, &body), None);
        }
    }

    #[test]
    fn w4_warnings_pass_whole_whatever_they_are_made_of(texts in prop::collection::vec("\\PC{0,300}|.{0,300}|[\\x00-\\x20]{0,9}", 0..40)) {
        let record = Record::unknown(Some(Endpoint::Validate), Verdict::Allowed);
        let warned = |text: &String| answer::Warned { id: "id", text: text.clone() };
        let answer = answer::allowed(record, texts.iter().map(warned).collect());
        assert_sound(&answer, None);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let given = body["response"]["warnings"].as_array().map_or(0, Vec::len);
        prop_assert_eq!(answer.record.warnings.len(), given);
        let first = texts.first().map_or(0, |text| text.chars().count().min(256));
        let shown = body["response"]["warnings"][0].as_str().unwrap_or_default();
        prop_assert_eq!(shown.chars().count(), first, "the most important one is there");
    }
}

fn remove_nulls_and_fractions(value: &mut Value, like: &Value) {
    match (value, like) {
        (Value::Object(fields), Value::Object(like)) => {
            fields.retain(|name, value| !value.is_null() || like.contains_key(name));
            for (name, value) in fields {
                remove_nulls_and_fractions(value, like.get(name).unwrap_or(&Value::Null));
            }
        }
        (value, like) if value.is_f64() && like.is_i64() && value.as_f64() == like.as_f64() => {
            *value = like.clone();
        }
        _ => {}
    }
}

#[test]
fn w5_the_requester_is_asked_about_with_everything_that_is_known_of_them() {
    let object = ksmscale(&json!({}));
    let Decision::NeedsAccess(access) =
        decide(Endpoint::Validate, &review("CREATE", &object, &Value::Null))
    else {
        panic!("nobody was asked");
    };
    assert_eq!(
        serde_json::to_value(access.spec()).unwrap(),
        json!({
            "user": "jane",
            "uid": "7",
            "groups": ["a"],
            "extra": {"k": ["v"]},
            "resourceAttributes": {
                "group": "", "version": "v1", "resource": "pods", "verb": "create",
                "namespace": "monitoring",
            },
        })
    );
}

#[test]
fn w5_nobody_is_asked_about_who_is_refused_already_and_nobody_on_the_way_to_a_patch() {
    let bad = ksmscale(&json!({"nodesPerMonitor": 1}));
    for (endpoint, object) in [
        (Endpoint::Validate, &bad),
        (Endpoint::Mutate, &bad),
        (Endpoint::Mutate, &ksmscale(&json!({}))),
    ] {
        let decision = decide(endpoint, &review("CREATE", object, &Value::Null));
        assert!(matches!(decision, Decision::Final(_)), "{decision:?}");
    }
}

#[test]
fn w6_a_refusal_of_the_server_is_a_status_with_the_code_of_http() {
    for (code, verdict) in
        [(404, Verdict::BadRequest), (413, Verdict::BadRequest), (503, Verdict::Failed)]
    {
        let answer = refusal(code, "SomeReason", "some text");
        assert_sound(&answer, None);
        assert_eq!((answer.status, answer.record.verdict), (code, verdict));
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            (&body["reason"], &body["message"]),
            (&json!("SomeReason"), &json!("some text"))
        );
    }
}

#[test]
fn w1_the_paths_are_those_of_the_webhook_configurations() {
    assert_eq!(Endpoint::of_path(MUTATE_PATH), Some(Endpoint::Mutate));
    assert_eq!(Endpoint::of_path(VALIDATE_PATH), Some(Endpoint::Validate));
    for other in ["", "/", "/validate", &format!("{VALIDATE_PATH}/"), "/healthz"] {
        assert_eq!(Endpoint::of_path(other), None, "{other}");
    }
}
