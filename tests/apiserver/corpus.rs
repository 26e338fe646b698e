//! One corpus of good and bad KSMScales (`tests/corpus/`), given to the real API server and to the
//! rules in Rust: both say the same, word for word.

use crate::support::*;
use ksm_scale_operator::{
    api::KSMScale,
    rules::{RULES, Reason},
    validate::{defaulted, validate},
};
use kube::{Client, api::PostParams, core::Status};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Write};

/// One row of the corpus.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    #[serde(default = "metadata")]
    metadata: Value,
    /// Absent where the object has none. A null in the file is a null.
    #[serde(default, deserialize_with = "given")]
    spec: Option<Value>,
    /// What is at fault; empty for a good case.
    #[serde(default)]
    fields: Vec<String>,
    /// What the API server names of these, where it stops early.
    server_fields: Option<Vec<String>>,
}

fn metadata() -> Value {
    json!({"name": "case"})
}

fn given<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(input).map(Some)
}

impl Case {
    pub fn object(&self) -> Value {
        let mut object = json!({
            "apiVersion": "monitor.example.com/v1alpha1",
            "kind": "KSMScale",
            "metadata": self.metadata,
        });
        if let Some(spec) = &self.spec {
            object["spec"] = spec.clone();
        }
        object
    }
}

fn read(text: &str) -> Vec<Case> {
    serde_saphyr::from_str(text).expect("a list of cases")
}

pub fn good() -> Vec<Case> {
    read(include_str!("../corpus/good.yaml"))
}

pub fn bad() -> Vec<Case> {
    read(include_str!("../corpus/bad.yaml"))
}

/// Asks the API server to create the object, strictly and without keeping it.
pub async fn create(client: &Client, object: &Value) -> Result<Value, Box<Status>> {
    let url = "/apis/monitor.example.com/v1alpha1/ksmscales";
    let body = serde_json::to_vec(object).expect("JSON");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let mut request = kube::core::Request::new(url).create(&dry, body).expect("a request");
    *request.uri_mut() =
        format!("{}&fieldValidation=Strict", request.uri()).parse().expect("a URI");
    match client.request(request).await {
        Ok(stored) => Ok(stored),
        Err(kube::Error::Api(status)) => Err(status),
        Err(other) => panic!("{other}"),
    }
}

/// `field: message` for each cause that the API server gives, sorted.
fn causes(status: &Status) -> Vec<String> {
    let unknown = status.message.split("unknown field \"").skip(1);
    let unknown = unknown.filter_map(|rest| rest.split('"').next());
    let mut found: Vec<_> = unknown.map(|field| format!("{field}: unknown field")).collect();
    let details = status.details.as_ref();
    for cause in details.into_iter().flat_map(|details| &details.causes) {
        // It says that rules were not asked, which the other causes show.
        if cause.field != "<nil>" {
            found.push(format!("{}: {}", cause.field, cause.message));
        }
    }
    if found.is_empty() {
        found.push(format!("{}: without causes", status.message));
    }
    found.sort();
    found
}

/// The same from the rules in Rust. Of an unknown field the API server says no more than that.
fn ours(object: &Value) -> Vec<String> {
    let violations = validate(object).err().map(|violations| violations.0).unwrap_or_default();
    let mut found: Vec<_> = violations
        .iter()
        .map(|violation| match violation.reason {
            Reason::UnknownField => format!("{}: unknown field", violation.field),
            _ => violation.to_string(),
        })
        .collect();
    found.sort();
    found
}

fn fields(texts: &[String]) -> Vec<&str> {
    texts.iter().filter_map(|text| Some(text.split_once(": ")?.0)).collect()
}

fn sorted(fields: &[String]) -> Vec<&str> {
    let mut fields: Vec<_> = fields.iter().map(String::as_str).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn r3_r4_r5_r6_r7_r8_r9_r11_r12_the_api_server_and_the_rules_refuse_the_same_in_the_same_words()
 {
    let cluster = Cluster::start(0).await;
    let mut differences = String::new();
    for case in bad() {
        let (here, object) = (ours(&case.object()), case.object());
        let there = match create(&cluster.client, &object).await {
            Ok(_) => vec!["accepted: by the API server".to_owned()],
            Err(status) => causes(&status),
        };
        let expected = case.server_fields.as_deref().unwrap_or(&case.fields);
        let whole = case.server_fields.is_some() || here == there;
        if fields(&here) != sorted(&case.fields) || fields(&there) != sorted(expected) || !whole {
            let _ = writeln!(differences, "{}\n  here:  {here:#?}\n  there: {there:#?}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[tokio::test]
async fn r3_r4_r5_r6_r7_r8_r9_r11_r12_the_api_server_and_the_rules_store_the_same_defaults() {
    let cluster = Cluster::start(0).await;
    let mut differences = String::new();
    for case in good() {
        let object = case.object();
        let there = create(&cluster.client, &object).await.map(|stored| stored["spec"].clone());
        let there = there.map_err(|status| causes(&status));
        let here = match ours(&object) {
            none if none.is_empty() => Ok(defaulted(&object)["spec"].clone()),
            violations => Err(violations),
        };
        if here != there || here.is_err() {
            let _ = writeln!(differences, "{}\n  here:  {here:?}\n  there: {there:?}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn r11_every_rule_is_broken_by_a_case_and_every_case_has_a_name_of_its_own() {
    let (good, bad) = (good(), bad());
    for rule in RULES {
        let broken = |case: &Case| ours(&case.object()).iter().any(|t| t.ends_with(rule.message));
        assert!(bad.iter().any(broken), "no case breaks {}", rule.id);
    }
    let names: BTreeSet<_> = good.iter().chain(&bad).map(|case| &case.name).collect();
    assert_eq!(names.len(), good.len() + bad.len(), "two cases have one name");
    assert!(good.iter().all(|case| case.fields.is_empty()));
    assert!(bad.iter().all(|case| !case.fields.is_empty()));
}

/// What the API server stored once can be read by our types, whatever its spelling.
#[test]
fn r10_every_good_case_can_be_read() {
    for case in good() {
        let read: Result<KSMScale, _> = serde_json::from_value(defaulted(&case.object()));
        assert!(read.is_ok(), "{}: {:?}", case.name, read.err());
    }
}
