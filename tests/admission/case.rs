//! The cases in this folder, one file each.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// The uid of every request here that has one.
pub const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";

/// A request, what is known around it, and what comes of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Case {
    /// The file's name, without its ending.
    #[serde(skip)]
    pub name: String,
    /// `validate` (the default) or `mutate`.
    #[serde(default)]
    pub endpoint: Endpoint,
    /// Whether an API server with the shipped CRD sends just this when `object` is created, or
    /// changed from `oldObject`, or deleted. All else is made by hand.
    #[serde(default)]
    pub live: bool,
    /// `CREATE` unless said otherwise.
    #[serde(default = "create")]
    pub operation: String,
    /// What replaces fields of the object; null removes one.
    #[serde(default)]
    pub object: Value,
    /// The same for the object as it was.
    #[serde(default)]
    pub old_object: Value,
    /// What replaces fields of the review; null removes one.
    #[serde(default)]
    pub review: Value,
    /// Text in the review that is replaced by another, for what YAML cannot say.
    #[serde(default)]
    pub replace: Option<(String, String)>,
    /// The whole body, instead of all above.
    pub body: Option<String>,
    #[serde(default)]
    pub knowledge: Knowledge,
    #[serde(default)]
    pub allowed: Allowed,
    /// What the API server says if it is asked about the requester; it must not be without this.
    pub access: Option<Access>,
    pub expect: Expected,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    #[default]
    Validate,
    Mutate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    Granted,
    Refused,
    Failed,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knowledge {
    pub nodes: Option<u32>,
    #[serde(default)]
    pub others: Vec<String>,
    #[serde(default)]
    pub pods: u32,
}

/// Everything, unless said otherwise.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowed {
    pub namespaces: String,
    pub images: String,
}

impl Default for Allowed {
    fn default() -> Self {
        Self { namespaces: "*".to_owned(), images: "*".to_owned() }
    }
}

/// What the user and the metrics are to see.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// `allowed`, `patched`, `denied`, `bad_request` or `failed`.
    pub verdict: String,
    /// The code of the Status, where there is one.
    #[serde(default)]
    pub code: Option<u16>,
    /// Parts of its message, in their order.
    #[serde(default)]
    pub message: Vec<String>,
    /// Its causes, as `field: message`.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What the patch adds, as `path: value`.
    #[serde(default)]
    pub adds: Vec<String>,
    /// Ids of the rules that refuse.
    #[serde(default)]
    pub rules: Vec<String>,
    /// The warnings, as they reach the user.
    #[serde(default)]
    pub warnings: Vec<String>,
}

fn create() -> String {
    "CREATE".to_owned()
}

/// Every case, in the order of the files' names.
pub fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/admission");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Case {
    let text = fs::read_to_string(file).expect("text");
    let mut case: Case =
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    case.name = file.file_stem().expect("a name").to_string_lossy().into_owned();
    case
}

impl Case {
    /// The object as it is to be; null on DELETE.
    pub fn new_object(&self) -> Value {
        if self.operation == "DELETE" { Value::Null } else { ksmscale(&self.object) }
    }

    /// The object as it was; null on CREATE.
    pub fn previous_object(&self) -> Value {
        if self.operation == "CREATE" { Value::Null } else { ksmscale(&self.old_object) }
    }

    /// The body of the request.
    pub fn body(&self) -> Vec<u8> {
        if let Some(body) = &self.body {
            return body.clone().into_bytes();
        }
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": UID,
                "kind": {"group": "monitor.example.com", "version": "v1alpha1", "kind": "KSMScale"},
                "resource": {"group": "monitor.example.com", "version": "v1alpha1", "resource": "ksmscales"},
                "requestKind": {"group": "monitor.example.com", "version": "v1alpha1", "kind": "KSMScale"},
                "requestResource": {"group": "monitor.example.com", "version": "v1alpha1", "resource": "ksmscales"},
                "name": "case",
                "operation": self.operation,
                "userInfo": {"username": "jane", "uid": "1", "groups": ["system:authenticated"]},
                "object": self.new_object(),
                "oldObject": self.previous_object(),
                "dryRun": false,
                "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
            },
        });
        merge(&mut review, &self.review);
        let mut text = review.to_string();
        if let Some((from, to)) = &self.replace {
            assert!(text.contains(from), "{}: {from} is not in {text}", self.name);
            text = text.replace(from, to);
        }
        text.into_bytes()
    }
}

fn ksmscale(changes: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "monitor.example.com/v1alpha1",
        "kind": "KSMScale",
        "metadata": {"name": "case", "uid": "object-uid"},
        "spec": {},
    });
    merge(&mut object, changes);
    object
}

/// Puts `changes` into `value`, object by object. Null removes.
fn merge(value: &mut Value, changes: &Value) {
    match (value, changes) {
        (_, Value::Null) => {}
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                if change.is_null() {
                    fields.remove(name);
                } else {
                    merge(fields.entry(name).or_insert_with(|| Map::new().into()), change);
                }
            }
        }
        (value, change) => *value = change.clone(),
    }
}
