//! The CRD's schema as CEL: for a policy that judges in front of an older CRD.
//!
//! Bounds of numbers, lengths, patterns and required fields are repeated, in the words and in the
//! order of [`crate::validate`]. Types and unknown fields are not: no CRD of this resource ever
//! had others, and the API server drops what its CRD does not know.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

/// A text as a literal of CEL. Raw where it holds a backslash, since patterns are full of them.
///
/// No text of ours holds both kinds of quotation marks.
pub(super) fn literal(text: &str) -> String {
    let quote = if text.contains('\'') { '"' } else { '\'' };
    let raw = if text.contains('\\') { "r" } else { "" };
    format!("{raw}{quote}{text}{quote}")
}

/// Expressions over an object of a schema. Each is a text that says what is wrong, or is empty.
#[derive(Default)]
pub(super) struct Bounds {
    /// What is wrong and new.
    pub(super) checks: Vec<String>,
    /// True where the rules over several fields could not answer, or the API server does not ask
    /// them.
    pub(super) blocking: Vec<String>,
}

impl Bounds {
    /// Everything that the schema of a whole object bounds.
    pub(super) fn of(schema: &JSONSchemaProps) -> Self {
        let mut bounds = Self::default();
        bounds.add(schema, &[]);
        bounds
    }

    fn add(&mut self, schema: &JSONSchemaProps, path: &[&str]) {
        for name in schema.required.iter().flatten() {
            self.required(path, name);
        }
        for (name, schema) in schema.properties.iter().flatten() {
            let field = [path, &[name]].concat();
            if field == ["status"] {
                continue;
            }
            self.leaf(schema, &field);
            self.add(schema, &field);
        }
    }

    /// Missing before too is let pass (W3), if what it is missing from was there.
    fn required(&mut self, parent: &[&str], name: &str) {
        let field = [parent, &[name]].concat();
        let had = format!("{}.hasValue()", optional("oldObject", &field));
        let lacks = format!("!{}", exists(&field));
        let (missing, anew) = match parent {
            [] => (lacks, had),
            _ => (
                format!("{} && {lacks}", exists(parent)),
                format!("!{}.hasValue() || {had}", optional("oldObject", parent)),
            ),
        };
        let said = literal(&format!("{}: Required value", field.join(".")));
        self.checks
            .push(format!("{missing} && (request.operation == 'CREATE' || {anew}) ? {said} : ''"));
        self.blocking.push(missing);
    }

    fn leaf(&mut self, schema: &JSONSchemaProps, path: &[&str]) {
        let value = value(path);
        let text = text_check(schema, path, &value);
        if let Some(max) = schema.max_length {
            let is_text = if schema.x_kubernetes_int_or_string == Some(true) {
                format!("type({value}) == string && ")
            } else {
                String::new()
            };
            self.blocking.push(format!("{} && {is_text}size({value}) > {max}", exists(path)));
        }
        let check = match (number_check(schema, path, &value), text) {
            (None, None) => return,
            (Some(check), None) | (None, Some(check)) => check,
            (Some(number), Some(text)) => format!("type({value}) == int ? ({number}) : ({text})"),
        };
        self.checks.push(format!("{} && {} ? ({check}) : ''", exists(path), changed(path)));
    }
}

/// Every default of `schema`, as its path and its value. None of them stands in an object that is
/// a default itself.
pub(super) fn defaults(schema: &JSONSchemaProps) -> Vec<(Vec<&str>, &serde_json::Value)> {
    let mut found = Vec::new();
    let mut open = vec![(Vec::new(), schema)];
    while let Some((path, schema)) = open.pop() {
        for (name, schema) in schema.properties.iter().flatten().rev() {
            let path = [&path[..], &[&**name]].concat();
            match &schema.default {
                Some(default) => found.push((path, &default.0)),
                None => open.push((path, schema)),
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Whether the object has the field.
pub(super) fn exists(path: &[&str]) -> String {
    format!("{}.hasValue()", optional("object", path))
}

/// Whether the request gives the field another value (W3).
pub(super) fn changed(path: &[&str]) -> String {
    let (before, after) = (optional("oldObject", path), optional("object", path));
    format!("(request.operation == 'CREATE' || {before} != {after})")
}

/// The field of an object that has it.
pub(super) fn value(path: &[&str]) -> String {
    format!("object.{}", path.join("."))
}

fn optional(object: &str, path: &[&str]) -> String {
    format!("{object}.?{}", path.join(".?"))
}

fn number_check(schema: &JSONSchemaProps, path: &[&str], value: &str) -> Option<String> {
    let path = path.join(".");
    let bound = |sign: char, bound: f64, word: &str| {
        let before = literal(&format!("{path}: Invalid value: "));
        let after = literal(&format!(": {path} in body should be {word} than or equal to {bound}"));
        format!("{value} {sign} {bound} ? {before} + string({value}) + {after} : ")
    };
    let min = schema.minimum.map(|min| bound('<', min, "greater"));
    let max = schema.maximum.map(|max| bound('>', max, "less"));
    (min.is_some() || max.is_some())
        .then(|| format!("{}{}''", min.unwrap_or_default(), max.unwrap_or_default()))
}

/// As in the API server, the first violation of a text is the only one.
fn text_check(schema: &JSONSchemaProps, path: &[&str], value: &str) -> Option<String> {
    let path = path.join(".");
    let invalid = |rest: String| {
        let before = literal(&format!("{path}: Invalid value: "));
        format!(
            "{before} + strings.quote({value}) + {}",
            literal(&format!(": {path} in body {rest}"))
        )
    };
    let max = schema.max_length.map(|max| {
        let said = literal(&format!("{path}: Too long: may not be more than {max} bytes"));
        format!("size({value}) > {max} ? {said} : ")
    });
    let min = schema.min_length.map(|min| {
        let said = invalid(format!("should be at least {min} chars long"));
        format!("size({value}) < {min} ? {said} : ")
    });
    let pattern = schema.pattern.as_ref().map(|pattern| {
        let said = invalid(format!("should match '{pattern}'"));
        format!("!{value}.matches({}) ? {said} : ", literal(pattern))
    });
    let checks: Vec<_> = [max, min, pattern].into_iter().flatten().collect();
    (!checks.is_empty()).then(|| format!("{}''", checks.concat()))
}
