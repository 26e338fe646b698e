//! The CustomResourceDefinition as shipped: the schema of [`crate::api`], without its noise, with
//! the rules of [`crate::rules`].

use crate::{
    api::KSMScale,
    names::MAX_NAME_LENGTH,
    rules::{RULES, Rule},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps,
};
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// The CustomResourceDefinition `ksmscales.monitor.example.com` (R1, R2, R11).
///
/// # Panics
/// Never on a build that passes this module's tests: the types it is generated from are constant.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    #[expect(clippy::expect_used, reason = "constant input, covered by the golden file")]
    let mut crd = serde_json::to_value(KSMScale::crd()).expect("a CRD serializes");
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    strip_noise(schema);
    schema["properties"]["metadata"] = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": MAX_NAME_LENGTH}},
    });
    let conditions = &mut schema["properties"]["status"]["properties"]["conditions"];
    conditions["x-kubernetes-list-type"] = json!("map");
    conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
    for rule in RULES {
        let at = rule.at.iter().fold(&mut *schema, |schema, name| &mut schema["properties"][*name]);
        let rules = &mut at["x-kubernetes-validations"];
        if rules.is_null() {
            *rules = json!([]);
        }
        rules.as_array_mut().into_iter().for_each(|rules| rules.push(cel(rule)));
    }
    #[expect(clippy::expect_used, reason = "constant input, covered by the golden file")]
    serde_json::from_value(crd).expect("still a CRD")
}

/// The schema of a KSMScale, the one that the API server checks objects against.
#[must_use]
pub fn schema() -> &'static JSONSchemaProps {
    static SCHEMA: LazyLock<JSONSchemaProps> = LazyLock::new(|| {
        let version = crd().spec.versions.into_iter().next();
        version.and_then(|v| v.schema?.open_api_v3_schema).unwrap_or_default()
    });
    &SCHEMA
}

fn cel(rule: &Rule) -> Value {
    json!({
        "rule": rule.cel,
        "message": rule.message,
        "fieldPath": rule.field,
        "reason": rule.reason.as_str(),
    })
}

/// Removes what says nothing to a reader and costs every client that downloads the schema:
/// `nullable` (the API server prunes nulls before it defaults, so `has()` means what it says),
/// titles, and everything after a description's first paragraph.
fn strip_noise(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    fields.remove("nullable");
    fields.remove("title");
    if let Some(Value::String(text)) = fields.get_mut("description") {
        text.truncate(text.find("\n\n").unwrap_or(text.len()));
    }
    for (name, value) in fields.iter_mut() {
        match (name.as_str(), value) {
            ("properties", Value::Object(properties)) => strip_each(properties),
            ("items" | "additionalProperties", value) => strip_noise(value),
            _ => {}
        }
    }
}

/// The names under `properties` belong to the resource: a *property* may be called `nullable`.
fn strip_each(properties: &mut Map<String, Value>) {
    properties.values_mut().for_each(strip_noise);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r1_the_crd_is_cluster_scoped_with_a_status_subresource_and_one_version() {
        let crd = crd();
        assert_eq!(crd.metadata.name.as_deref(), Some("ksmscales.monitor.example.com"));
        assert_eq!(crd.spec.scope, "Cluster");
        assert_eq!(crd.spec.names.singular.as_deref(), Some("ksmscale"));
        let [version] = crd.spec.versions.as_slice() else { panic!("one version") };
        assert_eq!(version.name, "v1alpha1");
        assert!(version.served && version.storage);
        assert!(version.subresources.as_ref().is_some_and(|s| s.status.is_some()));
    }

    #[test]
    fn r2_printer_columns_stand_in_the_order_users_know() {
        let crd = crd();
        let columns = crd.spec.versions[0].additional_printer_columns.as_ref().unwrap();
        let names: Vec<_> =
            columns.iter().filter(|c| c.priority.unwrap_or(0) == 0).map(|c| &*c.name).collect();
        assert_eq!(names, ["Nodes", "Desired", "Current", "Phase", "Age"]);
    }

    #[test]
    fn r11_the_schema_has_no_noise_and_every_rule() {
        let text = serde_json::to_string(&crd()).unwrap();
        assert!(!text.contains("nullable") && !text.contains("preserve-unknown"));
        for rule in RULES {
            assert!(text.contains(rule.message), "{} is missing", rule.id);
        }
    }
}
