//! The webhook before a CRD without any rules, so that it has to judge everything: the corpus, and
//! the cases of `tests/admission/`, by what a real API server makes of the answers.

use crate::{
    case::{Access, Case, Endpoint, cases},
    corpus::{bad, create, good},
    policies::with_schema,
    served::{causes, said, until_judged},
    support::*,
};
use ksm_scale_operator::{
    admission::Knowledge,
    allowed::Allowed,
    names::VALIDATING_WEBHOOK,
    rules::Reason,
    validate::{Violation, defaulted, validate},
};
use kube::Client;
use serde_json::{Value, json};
use stage::{Stage, Told, send};
use std::{collections::BTreeMap, fmt::Write, mem, time::Duration};
use tokio_util::sync::CancellationToken;

pub mod stage;

/// A spec that no schema looks at.
pub fn unruled(schema: &mut Value) {
    let status = schema["properties"]["status"].take();
    let spec = json!({"x-kubernetes-preserve-unknown-fields": true});
    *schema = json!({"type": "object", "properties": {"spec": spec, "status": status}});
}

/// What the API server refuses whatever the schema says.
fn is_elementary(violation: &Violation) -> bool {
    violation.field == "metadata.name" && violation.reason != Reason::FieldValueTooLong
}

#[tokio::test]
async fn w1_w2_the_webhook_refuses_and_completes_the_corpus_as_the_rules_do() {
    let cluster = with_schema(unruled).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let _replica = webhooks.replica(&["--lame-duck", "0s"]).await;
    until_judged(&cluster, &json!({"nodesPerMonitor": 1})).await;
    let (mut differences, mut judged) = (String::new(), 0);
    for case in bad() {
        let here = validate(&case.object()).expect_err("a bad case").0;
        let status = create(&cluster.client, &case.object()).await.err();
        let same = match &status {
            None => false,
            Some(_) if here.iter().any(is_elementary) => true,
            Some(status) => {
                judged += 1;
                let texts: Vec<_> = here.iter().map(ToString::to_string).collect();
                let words = said(status).unwrap_or_default();
                status.code == 422
                    && causes(status) == texts
                    && texts.iter().all(|text| words.contains(text))
            }
        };
        if !same {
            let _ = writeln!(differences, "{}\n  here:  {here:?}\n  there: {status:?}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(judged > 70, "the webhook had to judge {judged} cases only");
    for case in good() {
        let there = create(&cluster.client, &case.object()).await;
        // Taking away nulls is the schema's work, which is not there.
        let there = there.map(|stored| without_nulls(&stored["spec"]));
        let here = defaulted(&case.object())["spec"].clone();
        if there.as_ref().ok() != Some(&here) {
            let _ = writeln!(differences, "{}\n  here:  {here}\n  there: {there:?}", case.name);
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

fn without_nulls(value: &Value) -> Value {
    let Value::Object(fields) = value else { return value.clone() };
    let fields = fields.iter().filter(|(_, value)| !value.is_null());
    fields.map(|(name, value)| (name.clone(), without_nulls(value))).collect()
}

impl Case {
    /// Whether an API server sends this when somebody writes or deletes an object: there is no
    /// other way for them to say anything.
    fn is_of_objects(&self) -> bool {
        // A time of deletion is taken from what is created, and may not be set by an update.
        let is_create = self.operation == "CREATE";
        let in_metadata = |field: &str| {
            ["labels", "annotations"].contains(&field)
                || (is_create && field == "deletionTimestamp")
        };
        let all = |changes: &Value, fits: &dyn Fn(&str) -> bool| {
            changes.as_object().is_none_or(|fields| fields.keys().all(|field| fits(field)))
        };
        let authored = |changes: &Value| {
            all(changes, &|field| ["metadata", "spec"].contains(&field))
                && all(&changes["metadata"], &in_metadata)
        };
        let by_hand = self.body.is_some() || !self.review.is_null() || self.written().is_none();
        self.live || (!by_hand && authored(&self.object) && authored(&self.old_object))
    }

    /// The object, with what is replaced in it; `None` if that is elsewhere, or no JSON for
    /// everybody.
    fn written(&self) -> Option<Value> {
        let object = self.new_object();
        let Some((from, to)) = &self.replace else { return Some(object) };
        let text = object.to_string();
        text.contains(from).then(|| serde_json::from_str(&text.replace(from, to)).ok())?
    }

    /// Which server answers it: what is allowed there, and whether it may ask about requesters.
    fn server(&self) -> (String, String, bool) {
        let powerless = self.access == Some(Access::Failed);
        (self.allowed.namespaces.clone(), self.allowed.images.clone(), powerless)
    }

    /// Sends it for nobody to keep.
    async fn play(&self, stage: &Stage<'_>) -> Told {
        let admin = &stage.cluster.client;
        let (others, other) = (self.knowledge.others.len(), self.knowledge.others.first().cloned());
        *stage.knowledge.lock().expect("one at a time") =
            Knowledge { nodes: self.knowledge.nodes, others, other, pods: self.knowledge.pods };
        let user = if self.endpoint == Endpoint::Mutate { "mary" } else { "jane" };
        let may = if self.access == Some(Access::Granted) { "creators" } else { "others" };
        let client = stage.client(user, &["writers", may]).await;
        let mut object = self.written().expect("JSON");
        let told = if self.operation == "CREATE" {
            send(&client, "POST", "?dryRun=All", Some(&object)).await
        } else {
            let old = self.store(admin).await;
            if self.operation == "UPDATE" {
                object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
                object["metadata"]["uid"] = old["metadata"]["uid"].clone();
                object["metadata"]["finalizers"] = old["metadata"]["finalizers"].clone();
                send(&client, "PUT", "/case?dryRun=All", Some(&object)).await
            } else if self.review.is_null() {
                send(&client, "DELETE", "/case?dryRun=All", None).await
            } else {
                send(&client, "DELETE", "?dryRun=All", None).await
            }
        };
        if self.operation != "CREATE" {
            send(admin, "DELETE", "/case", None).await;
            let mut left = send(admin, "GET", "/case", None).await;
            if left.code == 200 {
                left.body["metadata"]["finalizers"] = Value::Null;
                left = send(admin, "PUT", "/case", Some(&left.body)).await;
            }
            assert!([200, 404].contains(&left.code), "{}: {left:?}", self.name);
        }
        told
    }

    /// Stores the object as it was.
    async fn store(&self, admin: &Client) -> Value {
        let mut old = self.previous_object();
        let is_deleting = !old["metadata"]["deletionTimestamp"].is_null();
        if is_deleting {
            old["metadata"]["finalizers"] = json!(["example.com/kept"]);
        }
        let stored = send(admin, "POST", "", Some(&old)).await;
        assert_eq!(stored.code, 201, "{}: {stored:?}", self.name);
        if is_deleting {
            send(admin, "DELETE", "/case", None).await;
        }
        send(admin, "GET", "/case", None).await.body
    }

    /// What is not as the case expects it.
    fn differs(&self, told: &Told) -> Option<String> {
        let expected = &self.expect;
        let refused = expected.code.is_some();
        let code = expected.code.map_or((200..300).contains(&told.code), |code| code == told.code);
        let reason = match expected.code {
            Some(422) => json!("Invalid"),
            Some(403) => json!("Forbidden"),
            Some(500) => json!("InternalError"),
            _ => Value::Null,
        };
        let message = told.body["message"].as_str().unwrap_or_default();
        let start = match (refused, expected.verdict.as_str()) {
            (true, "denied") => {
                format!("admission webhook {VALIDATING_WEBHOOK:?} denied the request: ")
            }
            (true, _) => format!(
                "Internal error occurred: failed calling webhook {VALIDATING_WEBHOOK:?}: failed to call webhook: "
            ),
            (false, _) => String::new(),
        };
        // A cluster gives other reasons than the case made up.
        let real = |text: &String| text.replace(" (no reason)", "").replace("no answer", "");
        let mut rest = message.strip_prefix(&start);
        for part in expected.message.iter().map(real) {
            rest = rest.and_then(|rest| Some(rest.split_once(&part)?.1));
        }
        let causes = told.body["details"]["causes"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let causes = causes.map(|c| format!("{}: {}", text(&c["field"]), text(&c["message"])));
        let by_webhook = expected.verdict == "denied";
        let wanted: Vec<_> = expected.causes.iter().map(real).collect();
        let completes = self.endpoint == Endpoint::Mutate && self.operation != "DELETE";
        let same = code
            && (!refused || told.body["reason"] == reason)
            && (!refused || rest.is_some())
            && (!by_webhook || causes.eq(wanted))
            && told.warnings == expected.warnings
            && (!completes || told.body["spec"] == self.completed());
        (!same).then(|| format!("{}: {told:#?}", self.name))
    }

    /// The spec as it is to be stored.
    fn completed(&self) -> Value {
        let mut object = self.written().expect("JSON");
        for add in &self.expect.adds {
            let (at, value) = add.split_once(": ").expect("path and value");
            let value: Value = serde_json::from_str(value).expect("JSON");
            let add = json!([{"op": "add", "path": at, "value": value}]);
            let add: json_patch::Patch = serde_json::from_value(add).expect("a patch");
            json_patch::patch(&mut object, &add).expect("it fits");
        }
        object["spec"].take()
    }
}

#[tokio::test]
async fn w1_w3_w4_w5_w6_r68_the_api_server_understands_every_answer_as_the_cases_expect() {
    let cluster = with_schema(unruled).await;
    let stage = Stage::set(&cluster).await;
    let mut servers: BTreeMap<_, Vec<Case>> = BTreeMap::new();
    for case in cases().into_iter().filter(Case::is_of_objects) {
        servers.entry(case.server()).or_default().push(case);
    }
    let (mut wrong, mut replayed, mut end) = (Vec::new(), 0, CancellationToken::new());
    for ((namespaces, images, powerless), cases) in servers {
        mem::take(&mut end).cancel();
        let account = if powerless { "powerless" } else { "ksm-scale-operator" };
        let kubeconfig = cluster.plane.service_account_kubeconfig("monitoring", account).await;
        let allowed = Allowed {
            namespaces: vec![namespaces.parse().expect("a pattern")],
            images: vec![images.parse().expect("a pattern")],
        };
        end = stage.serve(allowed, stage::config(&kubeconfig.expect("a token")).await).await;
        let jane = stage.client("jane", &["writers"]).await;
        let probe = json!({"apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale", "metadata": {"name": "probe"}, "spec": {"nodesPerMonitor": 1}});
        eventually("the server is asked", SOON, || async {
            let told = send(&jane, "POST", "?dryRun=All", Some(&probe)).await;
            (told.code == 422).then_some(())
        })
        .await
        .expect("a server that is asked");
        for case in cases {
            let told = case.play(&stage).await;
            wrong.extend(case.differs(&told));
            replayed += 1;
        }
    }
    end.cancel();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(replayed >= 70, "{replayed} cases were replayed");
}
