//! What the mutating webhook adds: a default for each field that has one and is absent.
//!
//! The API server sets the same defaults from the schema before it asks, so this adds something
//! only where the installed CRD is older than the operator.

use crate::crd;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use serde::Serialize;
use serde_json::Value;

/// One operation of a JSON patch (RFC 6902).
#[derive(Debug, Serialize)]
pub(super) struct Add<'a> {
    op: &'static str,
    path: String,
    value: &'a Value,
}

/// What is to be added below `/spec`, parents before their children. Nothing where there is no
/// spec, or what stands there is no object. Null is absent, as it is to the API server.
pub(super) fn absent(spec: &Value) -> Vec<Add<'static>> {
    let mut adds = Vec::new();
    if let Some(schema) = crd::schema().properties.as_ref().and_then(|fields| fields.get("spec")) {
        collect(spec, schema, "/spec", &mut adds);
    }
    adds
}

fn collect(
    value: &Value,
    schema: &'static JSONSchemaProps,
    path: &str,
    adds: &mut Vec<Add<'static>>,
) {
    let (Value::Object(fields), Some(properties)) = (value, &schema.properties) else { return };
    for (name, schema) in properties {
        let given = fields.get(name).filter(|value| !value.is_null());
        let default = schema.default.as_ref().map(|default| &default.0);
        let path = || format!("{path}/{name}");
        if let (None, Some(value)) = (given, default) {
            adds.push(Add { op: "add", path: path(), value });
        }
        if let Some(value) = given.or(default).filter(|value| value.is_object()) {
            collect(value, schema, &path(), adds);
        }
    }
}
