//! Warnings are made of texts from elsewhere, and reach the user whole.

use super::{
    answers::{answer, check},
    reviews::review,
};
use ksm_scale_operator::admission::{Access, Endpoint, Knowledge};
use serde_json::{Value, json};

/// Whatever text is in a warning, the API server passes the warning on.
pub fn warnings(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    // The name of another KSMScale, in advice.
    let known = Knowledge { others: 1, other: Some(text.clone().into()), ..Knowledge::default() };
    let object = |spec: Value| {
        json!({
            "apiVersion": "monitor.example.com/v1alpha1",
            "kind": "KSMScale",
            "metadata": {"name": "x"},
            "spec": spec,
        })
    };
    let request = json!({"operation": "CREATE", "object": object(json!({}))});
    let given = warned(&request, &known);
    let start = "metadata.name: KSMScale ";
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cut: String = shown.chars().take(255 - start.chars().count()).collect();
    assert!(given.iter().any(|warning| warning.starts_with(&format!("{start}{cut}"))), "{given:?}");

    // A field that nobody knows, which was there before; many of them fill what may be said.
    let mut spec = json!({});
    for number in 0..input.len() % 40 {
        spec[format!("{number}{text}")] = json!(*text);
    }
    let old = object(spec.clone());
    spec["nodesPerMonitor"] = json!(9);
    let request = json!({"operation": "UPDATE", "oldObject": old, "object": object(spec)});
    let kept = warned(&request, &known);
    assert!(!kept.is_empty(), "the most important one is there");
}

/// The warnings of a request that passes.
fn warned(request: &Value, knowledge: &Knowledge) -> Vec<String> {
    let answer = answer(Endpoint::Validate, &review(request), knowledge, Access::granted);
    let checked = check(Endpoint::Validate, &answer, Some(&request["object"]));
    assert!(checked.object.is_some(), "{}", checked.body);
    let warnings = checked.body["response"]["warnings"].as_array().cloned().unwrap_or_default();
    warnings.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
