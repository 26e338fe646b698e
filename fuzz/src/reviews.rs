//! Reviews as an API server sends them, of objects with a fault here and there.

use super::answers::{ACCESSES, ENDPOINTS, answer, check};
use arbitrary::{Arbitrary, Result, Unstructured};
use ksm_scale_operator::{
    admission::{Access, Endpoint, Knowledge, Verdict},
    validate::defaulted,
};
use serde_json::{Map, Value, json};

const UID: &str = "request-uid";

/// Each review has a sound answer, and no update is refused for what was so before.
pub fn reviews(input: &[u8]) {
    // Bytes never run out: what is missing is read as zeros.
    let Ok((knowledge, mut request)) = request(&mut Unstructured::new(input)) else { return };
    let body = review(&request);
    for endpoint in ENDPOINTS {
        for access in ACCESSES {
            let answer = answer(endpoint, &body, &knowledge, access);
            assert!(answer.status == 200 || answer.status >= 500 || is_incomplete(&request));
            assert!(answer.status != 200 || answer.record.uid == UID);
            check(endpoint, &answer, Some(&request["object"]));
        }
    }
    let judge = |request: &Value| {
        let answer = answer(Endpoint::Validate, &review(request), &knowledge, Access::granted);
        let body = check(Endpoint::Validate, &answer, Some(&request["object"])).body;
        (answer, body["response"]["status"]["details"]["causes"].clone())
    };
    if request["operation"] != "UPDATE" || is_incomplete(&request) {
        return;
    }
    let (_, refused) = judge(&request);
    check_ratchet(&request, &refused);
    let updated = request.clone();
    request["operation"] = json!("CREATE");
    request["oldObject"].take();
    let (_, of_new) = judge(&request);
    let of_new = of_new.as_array().cloned().unwrap_or_default();
    for cause in refused.as_array().into_iter().flatten() {
        assert!(of_new.contains(cause), "an update alone is refused for {cause}");
    }
    request["operation"] = json!("UPDATE");
    request["oldObject"] = request["object"].clone();
    let (answer, causes) = judge(&request);
    assert_eq!(answer.record.verdict, Verdict::Allowed, "{causes} of {}", updated["object"]);
}

/// No field is refused that is as it was, with all that its rules join it to (W3).
fn check_ratchet(request: &Value, refused: &Value) {
    let (old, new) = (defaulted(&request["oldObject"]), defaulted(&request["object"]));
    let causes = refused.as_array().into_iter().flatten();
    // The name of a field that nobody knows may hold a dot.
    for cause in causes.filter(|cause| cause["reason"] != "UnknownField") {
        let mut path = cause["field"].as_str().unwrap_or_default().split(['.', '[']);
        let (Some("spec"), Some(field)) = (path.next(), path.next()) else { continue };
        if let (Some(old), Some(new)) = (old["spec"].get(field), new["spec"].get(field)) {
            assert_ne!(old, new, "refused for what was so: {cause}");
        }
    }
}

/// A patch is what defaulting means, and there is no second one.
pub fn patches(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let Ok(object) = object(&mut input) else { return };
    if object.is_null() {
        return;
    }
    let patched = |object: &Value| {
        let request = json!({"uid": UID, "operation": "CREATE", "object": object});
        let known = Knowledge::default();
        let answer = answer(Endpoint::Mutate, &review(&request), &known, Access::granted);
        let object = check(Endpoint::Mutate, &answer, Some(object)).object;
        (answer.record.verdict, object.expect("nothing is refused on the way to a patch"))
    };
    let (_, once) = patched(&object);
    assert_eq!(defaulted(&once), defaulted(&object), "another meaning");
    let (again, twice) = patched(&once);
    assert_eq!((again, &twice), (Verdict::Allowed, &once), "a second patch");
    if once["spec"].is_object() && once["metadata"].is_object() {
        let expected = defaulted(&object);
        assert!(covers(&once["spec"], &expected["spec"]), "{once} lacks a default of {expected}");
    }
    if let (Some(before), Some(after)) = (object["spec"].as_object(), once["spec"].as_object()) {
        for (field, value) in before.iter().filter(|(_, value)| !value.is_object()) {
            assert!(value.is_null() || after.get(field) == Some(value), "{field} was changed");
        }
    }
}

/// Whether each field of `expected` is in `value`, which may have more.
fn covers(value: &Value, expected: &Value) -> bool {
    match (value, expected) {
        (Value::Object(value), Value::Object(expected)) => expected
            .iter()
            .all(|(field, expected)| value.get(field).is_some_and(|value| covers(value, expected))),
        _ => true,
    }
}

/// Whether an object is missing that the operation is about: null is none.
fn is_incomplete(request: &Value) -> bool {
    let needed: &[&str] = match request["operation"].as_str() {
        Some("CREATE") => &["object"],
        Some("UPDATE") => &["object", "oldObject"],
        _ => &["oldObject"],
    };
    needed.iter().any(|field| request[*field].is_null())
}

/// The body of a review. What `request` says comes before what every request says.
pub(super) fn review(request: &Value) -> Vec<u8> {
    let mut whole = json!({
        "uid": UID,
        "kind": {"group": "monitor.example.com", "version": "v1alpha1", "kind": "KSMScale"},
        "resource": {"group": "monitor.example.com", "version": "v1alpha1", "resource": "ksmscales"},
        "name": "x",
    });
    for (field, value) in request.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    let review =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": whole});
    review.to_string().into_bytes()
}

fn request(input: &mut Unstructured<'_>) -> Result<(Knowledge, Value)> {
    let knowledge = Knowledge {
        nodes: input.arbitrary()?,
        others: input.arbitrary()?,
        other: input.arbitrary()?,
        pods: input.arbitrary()?,
    };
    let old = object(input)?;
    let mut new = old.clone();
    match input.int_in_range(0..=3)? {
        0 => new = object(input)?,
        // A change or two of what was there.
        changes => {
            for (name, values) in &fields()[..] {
                if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut)
                    && changes > 1
                    && input.ratio(1, 4)?
                {
                    put(spec, name, values, input)?;
                }
            }
        }
    }
    let operation = *input.choose(&["UPDATE", "UPDATE", "CREATE", "DELETE"])?;
    let sub_resource = if input.ratio(1, 16)? { "status" } else { "" };
    let user = json!({"username": String::arbitrary(input)?, "groups": ["a"]});
    let request = json!({
        "uid": UID,
        "operation": operation,
        "subResource": sub_resource,
        "userInfo": user,
        "object": if operation == "DELETE" { Value::Null } else { new },
        "oldObject": if operation == "CREATE" { Value::Null } else { old },
    });
    Ok((knowledge, request))
}

/// Fields of a spec, each with what may stand there.
fn fields() -> [(&'static str, Vec<Value>); 6] {
    let quantities = || json!([{}, {"cpu": "1"}, {"cpu": "500m", "memory": 2}, {"memory": "x"}]);
    let (requests, limits) = (quantities(), quantities());
    let both = |i: usize, j: usize| json!({"requests": requests[i], "limits": limits[j]});
    let sharding = |count: i32, at_least: i32, at_most: i32| {
        let distribution = json!({"enablePDB": count == 2, "maxUnavailable": at_least - 1});
        json!({"enabled": count > 0, "shardCount": count, "minReplicasPerShard": at_least,
            "maxReplicasPerShard": at_most, "distribution": distribution})
    };
    [
        ("nodesPerMonitor", vec![json!(8), json!(9), json!(20.0), json!(1e300), json!(1)]),
        ("monitorImage", vec![json!("a:v1"), json!("A"), json!("kube-state-metrics"), json!("")]),
        ("namespace", vec![json!("monitoring"), json!("other"), json!("A")]),
        ("deletionProtection", vec![json!(true), json!(false)]),
        ("resources", vec![json!({}), both(1, 2), both(2, 1), both(3, 0), both(2, 3)]),
        ("sharding", vec![json!({"enabled": true}), sharding(2, 1, 2), sharding(5, 3, 2)]),
    ]
}

/// Sets a field to one of `values`, or to anything, or removes it.
fn put(
    into: &mut Map<String, Value>,
    name: &str,
    values: &[Value],
    input: &mut Unstructured<'_>,
) -> Result<()> {
    match input.int_in_range(0..=8)? {
        0..=2 => drop(into.remove(name)),
        3..=6 => drop(into.insert(name.to_owned(), input.choose(values)?.clone())),
        7 => drop(into.insert(name.to_owned(), any(input, 3)?)),
        // One of them, with one field that may be anything.
        _ => {
            let mut value = input.choose(values)?.clone();
            if let Value::Object(fields) = &mut value {
                let names: Vec<_> = fields.keys().cloned().collect();
                let name = if names.is_empty() { "x" } else { input.choose(&names)? };
                fields.insert(name.to_owned(), any(input, 2)?);
            }
            into.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

/// A KSMScale, or now and then anything else.
fn object(input: &mut Unstructured<'_>) -> Result<Value> {
    if input.ratio(1, 32)? {
        return any(input, 3);
    }
    let mut spec = Map::new();
    for (name, values) in &fields() {
        put(&mut spec, name, values, input)?;
    }
    let mut object = json!({
        "apiVersion": "monitor.example.com/v1alpha1",
        "kind": "KSMScale",
        "metadata": {"name": "x", "uid": "object-uid"},
        "spec": spec,
    });
    match input.int_in_range(0..=31)? {
        0 => object["spec"] = any(input, 2)?,
        1 => object["metadata"] = any(input, 2)?,
        2 => object["metadata"]["name"] = String::arbitrary(input)?.into(),
        3 => object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        4 => object["spec"][String::arbitrary(input)?] = any(input, 1)?,
        5 => object[String::arbitrary(input)?] = any(input, 1)?,
        _ => {}
    }
    Ok(object)
}

/// Any JSON, nested so deep.
fn any(input: &mut Unstructured<'_>, depth: u8) -> Result<Value> {
    Ok(match input.int_in_range(0..=if depth == 0 { 4 } else { 6 })? {
        0 => Value::Null,
        1 => bool::arbitrary(input)?.into(),
        2 => i64::arbitrary(input)?.into(),
        3 => f64::arbitrary(input)?.into(),
        4 => String::arbitrary(input)?.into(),
        5 => {
            let count = input.int_in_range(0..=3)?;
            (0..count).map(|_| any(input, depth - 1)).collect::<Result<Vec<_>>>()?.into()
        }
        _ => {
            let mut fields = Map::new();
            for _ in 0..input.int_in_range(0..=3)? {
                fields.insert(String::arbitrary(input)?, any(input, depth - 1)?);
            }
            fields.into()
        }
    })
}
