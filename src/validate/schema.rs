//! The part of a structural schema's semantics that the KSMScale CRD uses, on plain JSON, with
//! the messages of kube-openapi's validator
//! (<https://github.com/kubernetes/kube-openapi/tree/master/pkg/validation>).

use super::Violation;
use crate::{crd, rules::Reason};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrBool,
};
use regex::Regex;
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};

/// The CRD's schema. The API's own type for one takes more than a kilobyte for each field, and to
/// compile a pattern takes longer than all checks together.
pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let mut patterns = BTreeMap::new();
    Schema::new(crd::schema(), &mut patterns)
});

/// What is asked of a value.
pub(super) struct Schema {
    /// The name of a JSON type, unless it may be an integer or a text.
    type_: Option<&'static str>,
    format: Option<&'static str>,
    is_int_or_string: bool,
    minimum: Option<f64>,
    maximum: Option<f64>,
    min_length: Option<i64>,
    max_length: Option<i64>,
    pattern: Option<Pattern>,
    required: Vec<&'static str>,
    fields: Vec<Field>,
    /// Of fields with other names.
    others: Option<Box<Schema>>,
}

/// A pattern and what it compiles to, which fields share. One that does not compile matches nothing.
type Pattern = (&'static str, Option<Regex>);

struct Field {
    name: &'static str,
    schema: Schema,
    /// With the defaults of its own fields.
    default: Option<Value>,
}

impl Schema {
    fn new(
        given: &'static JSONSchemaProps,
        patterns: &mut BTreeMap<&'static str, Option<Regex>>,
    ) -> Self {
        let pattern = given.pattern.as_deref().map(|text| {
            let regex = patterns.entry(text).or_insert_with(|| Regex::new(text).ok());
            (text, regex.clone())
        });
        let others = match &given.additional_properties {
            Some(JSONSchemaPropsOrBool::Schema(others)) => {
                Some(Box::new(Self::new(others, patterns)))
            }
            _ => None,
        };
        let field = |(name, given): (&'static String, &'static JSONSchemaProps)| {
            let schema = Self::new(given, patterns);
            let mut default = given.default.as_ref().map(|default| default.0.clone());
            if let Some(default) = &mut default {
                prune_nulls_and_default(default, &schema);
            }
            Field { name, schema, default }
        };
        Self {
            type_: given.type_.as_deref(),
            format: given.format.as_deref(),
            is_int_or_string: given.x_kubernetes_int_or_string == Some(true),
            minimum: given.minimum,
            maximum: given.maximum,
            min_length: given.min_length,
            max_length: given.max_length,
            pattern,
            required: given.required.iter().flatten().map(String::as_str).collect(),
            fields: given.properties.iter().flatten().map(field).collect(),
            others,
        }
    }

    fn field(&self, name: &str) -> Option<&Self> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.schema)
    }
}

/// Removes nulls (no field of ours is nullable), sets defaults and writes whole numbers as such,
/// as the API server does when it decodes and stores an object.
pub(super) fn prune_nulls_and_default(value: &mut Value, schema: &Schema) {
    let takes_integers = schema.type_ == Some("integer") || schema.is_int_or_string;
    if let Some(whole) = whole_number(value).filter(|_| takes_integers) {
        *value = whole.into();
    }
    let Value::Object(fields) = value else { return };
    for Field { name, schema, default } in &schema.fields {
        match fields.get_mut(*name) {
            Some(field) if !field.is_null() => prune_nulls_and_default(field, schema),
            absent => {
                if absent.is_some() {
                    fields.remove(*name);
                }
                if let Some(default) = default {
                    fields.insert((*name).to_owned(), default.clone());
                }
            }
        }
    }
}

/// The number that `20.0` and `2e1` are.
fn whole_number(value: &Value) -> Option<i64> {
    let number = value.as_f64().filter(|_| value.is_f64())?;
    // What is whole is written without a fraction here, whatever its size.
    format!("{number}").parse().ok()
}

/// Checks `value` against `schema` and adds every violation to `found`, depth first. Leaves `path`,
/// where `value` stands, as it was.
pub(super) fn check(value: &Value, schema: &Schema, path: &mut String, found: &mut Vec<Violation>) {
    let mut add = |reason, message: String| {
        found.push(Violation { field: path.clone(), reason, message });
    };
    if let Some(expected) = wrong_type(value, schema) {
        let (expected, shown) = match (schema.format, value) {
            // Where a format is given, the API server talks of formats, which few values have.
            (Some(format), Value::Number(_)) => (format, "float64"),
            (Some(format), Value::Bool(_) | Value::Object(_)) => (format, ""),
            _ => (expected, type_of(value)),
        };
        let text = format!(
            "Invalid value: {shown:?}: {path} in body must be of type {expected}: {shown:?}"
        );
        return add(Reason::FieldValueTypeInvalid, text);
    }
    match value {
        Value::Number(number) => check_number(number, schema, path, &mut add),
        Value::String(text) => check_text(text, schema, path, &mut add),
        Value::Object(fields) => {
            for name in schema.required.iter().filter(|n| !fields.contains_key(**n)) {
                found.push(Violation {
                    field: join(path, name),
                    reason: Reason::FieldValueRequired,
                    message: "Required value".into(),
                });
            }
            for (name, field) in fields {
                let end = path.len();
                path.push_str(if end == 0 { "" } else { "." });
                path.push_str(name);
                check_field(name, field, schema, path, found);
                path.truncate(end);
            }
        }
        _ => {}
    }
}

fn check_field(
    name: &str,
    field: &Value,
    schema: &Schema,
    path: &mut String,
    found: &mut Vec<Violation>,
) {
    if let Some(schema) = schema.field(name) {
        // What the API server writes (other metadata, the status) is not its author's fault.
        if path != "status" {
            check(field, schema, path, found);
        }
    } else if let Some(schema) = &schema.others {
        check(field, schema, path, found);
    } else if !path.starts_with("metadata.") && !matches!(&**path, "apiVersion" | "kind") {
        found.push(Violation {
            message: format!("unknown field {path:?}: remove it, or correct its spelling"),
            field: path.clone(),
            reason: Reason::UnknownField,
        });
    }
}

fn check_number(
    number: &serde_json::Number,
    schema: &Schema,
    path: &str,
    add: &mut impl FnMut(Reason, String),
) {
    let value = number.as_f64().unwrap_or(f64::NAN);
    if schema.minimum.is_some_and(|min| value < min) {
        let min = schema.minimum.unwrap_or_default();
        add(
            Reason::FieldValueInvalid,
            format!(
                "Invalid value: {number}: {path} in body should be greater than or equal to {min}"
            ),
        );
    }
    if let Some(max) = schema.maximum.filter(|max| value > *max) {
        add(
            Reason::FieldValueInvalid,
            format!(
                "Invalid value: {number}: {path} in body should be less than or equal to {max}"
            ),
        );
    }
}

fn check_text(text: &str, schema: &Schema, path: &str, add: &mut impl FnMut(Reason, String)) {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let matches = |(_, regex): &Pattern| regex.as_ref().is_some_and(|regex| regex.is_match(text));
    // As in the API server, the first violation of a text is the only one.
    if let Some(max) = schema.max_length.filter(|max| length > *max) {
        add(Reason::FieldValueTooLong, format!("Too long: may not be more than {max} bytes"));
    } else if let Some(min) = schema.min_length.filter(|min| length < *min) {
        add(
            Reason::FieldValueInvalid,
            format!("Invalid value: {text:?}: {path} in body should be at least {min} chars long"),
        );
    } else if let Some((pattern, _)) = schema.pattern.as_ref().filter(|pattern| !matches(pattern)) {
        add(
            Reason::FieldValueInvalid,
            format!("Invalid value: {text:?}: {path} in body should match '{pattern}'"),
        );
    }
}

/// The type that `schema` wants, if `value` is of another.
fn wrong_type(value: &Value, schema: &Schema) -> Option<&'static str> {
    if schema.is_int_or_string {
        let fits = value.is_string() || value.is_i64() || value.is_u64();
        return (!fits).then_some("integer,string");
    }
    let wanted = schema.type_?;
    let fits = match wanted {
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        _ => true,
    };
    (!fits).then_some(wanted)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// RFC 1123 subdomain, the rule for names of custom resources.
pub(super) fn is_dns_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && label.bytes().next().is_some_and(|b| b != b'-')
            && label.bytes().last().is_some_and(|b| b != b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
