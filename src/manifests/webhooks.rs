//! The configurations of the two webhooks (W1, W3, R68). Without a certificate authority: whoever
//! knows it fills it in, and no empty field of ours stands in the way of GitOps tools.

use super::labels;
use crate::names::{
    GROUP, MUTATE_PATH, MUTATING_WEBHOOK, OPERATOR_NAMESPACE, VALIDATE_PATH, VALIDATING_WEBHOOK,
    WEBHOOK_CONFIGURATION, WEBHOOK_SERVICE,
};
use serde_json::{Value, json};

/// Well above what an answer takes, and short enough that a webhook that does not answer is
/// noticed as that.
const TIMEOUT_SECONDS: u32 = 5;

/// Name and expression of a match condition. All of them have to be true.
type MatchCondition = (&'static str, &'static str);

/// W3: what is being deleted is never held back.
pub(super) const NOT_BEING_DELETED: MatchCondition = (
    "not-being-deleted",
    "request.operation == 'CREATE' || !has(oldObject.metadata.deletionTimestamp)",
);

/// W3: labels, finalizers and managed fields depend on no verdict about the spec.
pub(super) const SPEC_CHANGED: MatchCondition = (
    "spec-changed",
    "request.operation != 'UPDATE' || !has(object.spec) || !has(oldObject.spec) || object.spec != oldObject.spec",
);

/// R68.
pub(super) const DELETION_PROTECTED: MatchCondition = (
    "deletion-protected",
    "request.operation != 'DELETE' || (has(oldObject.spec) && has(oldObject.spec.deletionProtection) && oldObject.spec.deletionProtection == true)",
);

/// The mutator may fail: the CRD's schema has the same defaults.
pub(super) fn mutating() -> Value {
    let webhook = json!({
        "name": MUTATING_WEBHOOK,
        "clientConfig": {"service": service(MUTATE_PATH)},
        "rules": rules(&["CREATE", "UPDATE"]),
        "matchPolicy": "Equivalent",
        "matchConditions": match_conditions(&[NOT_BEING_DELETED, SPEC_CHANGED]),
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT_SECONDS,
        "failurePolicy": "Ignore",
        "reinvocationPolicy": "IfNeeded",
        "admissionReviewVersions": ["v1"],
    });
    configuration("MutatingWebhookConfiguration", &webhook)
}

/// The validator may not fail: nothing else judges who asks for what where.
pub(super) fn validating() -> Value {
    let webhook = json!({
        "name": VALIDATING_WEBHOOK,
        "clientConfig": {"service": service(VALIDATE_PATH)},
        "rules": rules(&["CREATE", "UPDATE", "DELETE"]),
        "matchPolicy": "Equivalent",
        "matchConditions": match_conditions(&[NOT_BEING_DELETED, SPEC_CHANGED, DELETION_PROTECTED]),
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT_SECONDS,
        "failurePolicy": "Fail",
        "admissionReviewVersions": ["v1"],
    });
    configuration("ValidatingWebhookConfiguration", &webhook)
}

fn configuration(kind: &str, webhook: &Value) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": WEBHOOK_CONFIGURATION, "labels": labels()},
        "webhooks": [webhook],
    })
}

fn service(path: &str) -> Value {
    json!({"name": WEBHOOK_SERVICE, "namespace": OPERATOR_NAMESPACE, "path": path, "port": 443})
}

/// Only our own kind, and not its status: the worst that a webhook without an answer does is that
/// KSMScales cannot be edited.
pub(super) fn rules(operations: &[&str]) -> Value {
    json!([{
        "apiGroups": [GROUP],
        "apiVersions": ["v1alpha1"],
        "operations": operations,
        "resources": ["ksmscales"],
        "scope": "Cluster",
    }])
}

pub(super) fn match_conditions(conditions: &[MatchCondition]) -> Value {
    conditions
        .iter()
        .map(|(name, expression)| json!({"name": name, "expression": expression}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A renewal that waited for a webhook of ours would end ownership whenever webhooks are slow.
    #[test]
    fn s1_w3_no_webhook_is_called_for_a_lease() {
        for configuration in [mutating(), validating()] {
            for rule in configuration["webhooks"][0]["rules"].as_array().unwrap() {
                assert_eq!(rule["apiGroups"], json!([GROUP]));
                assert_eq!(rule["resources"], json!(["ksmscales"]));
            }
        }
    }
}
