//! The reviews that are sent, made in code, and what has to come back. All servers get the same
//! bytes, and so does the bench of the decision alone.

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::body::Bytes;
use ksm_scale_operator::{
    admission::{Endpoint, Knowledge},
    api::{DEFAULT_MONITOR_IMAGE, DEFAULT_NAMESPACE},
    names::{MUTATE_PATH, VALIDATE_PATH},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Stands in a review until it is sent. The last group of its digits is then the request's number.
pub const UID: &str = "705ab4f5-6393-11e8-b7cc-000000000000";
/// What stands before that group.
pub const UNNUMBERED: &str = "705ab4f5-6393-11e8-b7cc-";

/// A request, and what has to become of it.
pub struct Case {
    pub name: &'static str,
    pub endpoint: Endpoint,
    body: Vec<u8>,
    /// Where the uid stands in it.
    uid_at: usize,
    verdict: Verdict,
    /// Whether there may be warnings.
    pub warned: bool,
}

enum Verdict {
    Allowed,
    /// With so many causes.
    Denied(usize),
    /// By these operations, sorted by path.
    Patched(Value),
}

/// What is looked at in an answer.
#[derive(Deserialize)]
struct Answer {
    response: Response,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    status: Option<Status>,
    patch: Option<String>,
    patch_type: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
    details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    causes: Vec<Value>,
}

impl Case {
    fn new(
        name: &'static str,
        endpoint: Endpoint,
        object: &Value,
        old: Option<&Value>,
        verdict: Verdict,
    ) -> Result<Self> {
        let body = serde_json::to_vec(&review(object, old))?;
        let uid_at = body.windows(UID.len()).position(|text| text == UID.as_bytes());
        Ok(Self { name, endpoint, body, uid_at: uid_at.context("no uid")?, verdict, warned: false })
    }

    pub fn path(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Mutate => MUTATE_PATH,
            Endpoint::Validate => VALIDATE_PATH,
        }
    }

    /// Whether all that comes back is that it may pass.
    pub fn just_passes(&self) -> bool {
        matches!(self.verdict, Verdict::Allowed)
    }

    /// Bytes of each body.
    pub fn size(&self) -> usize {
        self.body.len()
    }

    /// The body of the request of this number.
    pub fn body(&self, number: u64) -> Bytes {
        let mut body = self.body.clone();
        body[self.uid_at..][..UID.len()].copy_from_slice(uid(number).as_bytes());
        body.into()
    }

    /// Whether `answer` is the right one to the request of this number.
    pub fn check(&self, number: u64, answer: &[u8]) -> Result<()> {
        let text = || format!("{}: {}", self.name, String::from_utf8_lossy(answer));
        let Answer { response } = serde_json::from_slice(answer).with_context(text)?;
        ensure!(response.uid == uid(number), "another uid than {}: {}", uid(number), text());
        ensure!(self.warned || response.warnings.is_empty(), "with warnings: {}", text());
        let refused = matches!(self.verdict, Verdict::Denied(_));
        ensure!(response.allowed != refused, "the wrong verdict: {}", text());
        match &self.verdict {
            Verdict::Allowed => {}
            Verdict::Denied(causes) => {
                let status = response.status.with_context(text)?;
                let given = status.details.map_or(0, |details| details.causes.len());
                ensure!((status.code, given) == (422, *causes), "other causes: {}", text());
            }
            Verdict::Patched(expected) => {
                let patch =
                    STANDARD.decode(response.patch.with_context(text)?).with_context(text)?;
                let mut patch: Vec<Value> = serde_json::from_slice(&patch).with_context(text)?;
                patch.sort_unstable_by_key(|operation| operation["path"].to_string());
                let is_json_patch = response.patch_type.as_deref() == Some("JSONPatch");
                ensure!(is_json_patch && json!(patch) == *expected, "another patch: {}", text());
                return Ok(());
            }
        }
        ensure!(response.patch.is_none(), "with a patch: {}", text());
        Ok(())
    }
}

/// What our server knows of the cluster: nothing that it would warn about.
pub fn knowledge() -> Knowledge {
    Knowledge { nodes: Some(100), ..Knowledge::default() }
}

/// All requests that are measured.
pub struct Cases {
    /// Leaves the spec alone.
    pub touch: Case,
    pub update: Case,
    pub create: Case,
    pub denial: Case,
    pub mutation: Case,
    pub large: Case,
    pub huge: Case,
}

impl Cases {
    pub fn new() -> Result<Self> {
        use Verdict::{Allowed, Denied, Patched};
        let (validate, mutate) = (Endpoint::Validate, Endpoint::Mutate);
        let changed = |object: &Value, changes: &[(&str, Value)]| {
            let mut object = object.clone();
            for (path, value) in changes {
                *object.pointer_mut(path).context("a field that is there")? = value.clone();
            }
            anyhow::Ok(object)
        };
        let old = object(0);
        let new = changed(&old, &[("/spec/nodesPerMonitor", json!(25))])?;
        let bad = changed(
            &old,
            &[
                ("/spec/nodesPerMonitor", json!(1)),
                ("/spec/namespace", json!("Not-A-Label")),
                ("/spec/sharding/shardCount", json!(1)),
            ],
        )?;
        let mut touched = old.clone();
        touched["metadata"]["labels"] = json!({"touched": "yes"});
        let mut sparse = old.clone();
        let spec = sparse["spec"].as_object_mut().context("an object")?;
        spec.retain(|field, _| {
            matches!(field.as_str(), "deletionProtection" | "resources" | "sharding")
        });
        let patch = json!([
            {"op": "add", "path": "/spec/monitorImage", "value": DEFAULT_MONITOR_IMAGE},
            {"op": "add", "path": "/spec/namespace", "value": DEFAULT_NAMESPACE},
            {"op": "add", "path": "/spec/nodesPerMonitor", "value": 15},
        ]);
        let of_many = |annotations| {
            let old = object(annotations);
            anyhow::Ok((changed(&old, &[("/spec/nodesPerMonitor", json!(25))])?, old))
        };
        let ((large, large_old), (huge, huge_old)) = (of_many(193)?, of_many(2_825)?);
        Ok(Self {
            touch: Case::new("touch", validate, &touched, Some(&old), Allowed)?,
            update: Case::new("update", validate, &new, Some(&old), Allowed)?,
            create: Case::new("create", validate, &new, None, Allowed)?,
            denial: Case::new("denial", validate, &bad, Some(&old), Denied(3))?,
            mutation: Case::new("mutation", mutate, &sparse, None, Patched(patch))?,
            large: Case::new("large", validate, &large, Some(&large_old), Allowed)?,
            huge: Case::new("huge", validate, &huge, Some(&huge_old), Allowed)?,
        })
    }
}

fn uid(number: u64) -> String {
    format!("{UNNUMBERED}{number:012x}")
}

/// A KSMScale as the API server holds it, with so many annotations beside its owner.
///
/// Annotations may have 256 KiB in all. What makes an object larger than that is who set them,
/// which is written down once for each field and each manager: here three.
fn object(annotations: usize) -> Value {
    let keys = (0..annotations).map(|i| format!("inventory.example.com/owner-of-shard-{i:05}"));
    let mut values: Map<_, _> = keys
        .clone()
        .map(|key| (key, json!("team-monitoring, on call: +49 30 901820, \"24x7\"")))
        .collect();
    let spec = json!({
        "nodesPerMonitor": 20,
        "monitorImage": "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0",
        "namespace": "monitoring",
        "deletionProtection": true,
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "sharding": {"enabled": true, "shardCount": 5, "minReplicasPerShard": 1, "maxReplicasPerShard": 4, "distribution": {"spreadAcrossNodes": true, "enablePDB": true, "maxUnavailable": 1}},
    });
    values.insert("example.com/owner".into(), json!("team-monitoring"));
    let mut owned: Map<_, _> = keys.map(|key| (format!("f:{key}"), json!({}))).collect();
    owned.insert(".".into(), json!({}));
    owned.insert("f:example.com/owner".into(), json!({}));
    let manager = |name: &str, fields: Value| json!({"manager": name, "operation": "Update", "apiVersion": "monitor.example.com/v1alpha1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields});
    let fields = json!({
        "f:metadata": {"f:annotations": owned},
        "f:spec": {".": {}, "f:monitorImage": {}, "f:namespace": {}, "f:nodesPerMonitor": {}, "f:resources": {".": {}, "f:limits": {".": {}, "f:cpu": {}, "f:memory": {}}, "f:requests": {".": {}, "f:cpu": {}, "f:memory": {}}}, "f:sharding": {".": {}, "f:distribution": {".": {}, "f:enablePDB": {}, "f:maxUnavailable": {}, "f:spreadAcrossNodes": {}}, "f:enabled": {}, "f:maxReplicasPerShard": {}, "f:minReplicasPerShard": {}, "f:shardCount": {}}},
    });
    let mut status = manager(
        "ksm-scale-operator",
        json!({"f:status": {".": {}, "f:conditions": {}, "f:currentReplicas": {}, "f:desiredReplicas": {}, "f:lastUpdated": {}, "f:nodeCount": {}, "f:observedGeneration": {}, "f:phase": {}}}),
    );
    status["subresource"] = json!("status");
    let mut managers = vec![manager("kubectl-client-side-apply", fields), status];
    if annotations > 0 {
        let owned = json!({"f:metadata": {"f:annotations": owned}});
        managers.push(manager("inventory", owned.clone()));
        managers.push(manager("inventory-sync", owned));
    }
    json!({
        "apiVersion": "monitor.example.com/v1alpha1",
        "kind": "KSMScale",
        "metadata": {
            "name": "production",
            "uid": "0d9d0b0e-6d3c-4a0f-9f0b-1f5d6a3c2b1a",
            "resourceVersion": "123456",
            "generation": 7,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": values,
            "managedFields": managers,
        },
        "spec": spec,
        "status": {"nodeCount": 100, "desiredReplicas": 5, "currentReplicas": 5, "phase": "Ready", "observedGeneration": 7},
    })
}

fn review(object: &Value, old: Option<&Value>) -> Value {
    let (kind, resource) = (
        json!({"group": "monitor.example.com", "version": "v1alpha1", "kind": "KSMScale"}),
        json!({"group": "monitor.example.com", "version": "v1alpha1", "resource": "ksmscales"}),
    );
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": UID,
            "kind": kind, "requestKind": kind, "resource": resource, "requestResource": resource,
            "name": "production",
            "operation": if old.is_some() { "UPDATE" } else { "CREATE" },
            "userInfo": {"username": "system:serviceaccount:gitops:deployer", "uid": "9c0f7a3a-1f2e-4d5c-8b6a-7e8d9c0b1a2f", "groups": ["system:serviceaccounts", "system:serviceaccounts:gitops", "system:authenticated"], "extra": {"authentication.kubernetes.io/credential-id": ["JTI=5f8b9c3e"]}},
            "object": object,
            "oldObject": old,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "UpdateOptions", "fieldManager": "deployer"},
        },
    })
}
