//! What the webhooks decide, as admission policies: for clusters that want no webhook.
//!
//! From the same tables: the schema ([`cel`]), [`RULES`], [`Allowed`]. They differ from the
//! webhooks in three points. All violations stand in one message, since the API server tells no
//! more than the first. The number of pods is the one in the status, and unknown is not zero. And
//! there is no advice, most of which needs the number of nodes.

use super::{
    cel::{self, Bounds, changed, exists, literal, value},
    labels,
    webhooks::{NOT_BEING_DELETED, SPEC_CHANGED, match_conditions, rules},
};
use crate::{
    allowed::{Allowed, NAME_CEL, REPOSITORY_CEL},
    crd,
    names::OPERATOR,
    rules::RULES,
};
use serde_json::{Value, json};

/// The requester may make the pods itself that the operator will make for it.
const MAY_CREATE_PODS: &str = "authorizer.group('').resource('pods').namespace(object.spec.namespace).check('create').allowed()";

const SPEC_NAMESPACE: &[&str] = &["spec", "namespace"];
const SPEC_IMAGE: &[&str] = &["spec", "monitorImage"];

/// The policies on what a KSMScale says and on its deletion, each with its binding.
pub(super) fn validating(allowed: &Allowed) -> Vec<Value> {
    let mut spec = policy("ValidatingAdmissionPolicy", OPERATOR, &["CREATE", "UPDATE"]);
    spec["spec"]["failurePolicy"] = json!("Fail");
    spec["spec"]["matchConditions"] = match_conditions(&[NOT_BEING_DELETED, SPEC_CHANGED]);
    spec["spec"]["variables"] = variables(allowed);
    spec["spec"]["validations"] = json!([
        {
            "expression": "size(variables.violations) == 0",
            "messageExpression": "variables.violations.join('; ')",
            "reason": "Invalid",
        },
        {
            "expression": may_create_pods(),
            "messageExpression": r#"'spec.namespace: Forbidden: user "' + request.userInfo.username + '" may not create pods in namespace "' + object.spec.namespace + '", and a KSMScale runs its pods there: ask for a Role in "' + object.spec.namespace + '" with the verb create on pods, or set spec.namespace to a namespace where you may create them'"#,
            "message": "spec.namespace: Forbidden: whoever writes a KSMScale has to be allowed to create pods in its namespace",
            "reason": "Forbidden",
        },
    ]);
    let name = format!("{OPERATOR}-deletion");
    let mut deletion = policy("ValidatingAdmissionPolicy", &name, &["DELETE"]);
    deletion["spec"]["failurePolicy"] = json!("Fail");
    deletion["spec"]["matchConditions"] = match_conditions(&[NOT_BEING_DELETED]);
    deletion["spec"]["validations"] = json!([{
        "expression": "!oldObject.?spec.?deletionProtection.orValue(false) || oldObject.?status.?currentReplicas.orValue(1) == 0",
        "messageExpression": r#"'spec.deletionProtection: Forbidden: KSMScale ' + oldObject.metadata.name + ' is protected from deletion while it has pods: to delete it, first run kubectl patch ksmscale ' + oldObject.metadata.name + " --type=merge -p '{\"spec\":{\"deletionProtection\":false}}'""#,
        "reason": "Forbidden",
    }]);
    vec![
        spec,
        binding("ValidatingAdmissionPolicyBinding", OPERATOR),
        deletion,
        binding("ValidatingAdmissionPolicyBinding", &name),
    ]
}

/// The policy that sets defaults, with its binding. It may fail: the CRD's schema has them too.
pub(super) fn mutating() -> Vec<Value> {
    let mut policy = policy("MutatingAdmissionPolicy", OPERATOR, &["CREATE", "UPDATE"]);
    policy["spec"]["failurePolicy"] = json!("Ignore");
    policy["spec"]["reinvocationPolicy"] = json!("IfNeeded");
    policy["spec"]["matchConditions"] = match_conditions(&[NOT_BEING_DELETED, SPEC_CHANGED]);
    // The status is the operator's, and has no part in what a user writes.
    let adds: Vec<_> = cel::defaults(crd::schema())
        .iter()
        .filter(|(path, _)| path[0] == "spec")
        .map(|(path, default)| {
            let (parent, pointer) = (&path[..path.len() - 1], path.join("/"));
            let default = default.as_str().map_or_else(|| default.to_string(), literal);
            format!(
                "({} && !{} ? [JSONPatch{{op: 'add', path: '/{pointer}', value: {default}}}] : [])",
                exists(parent),
                exists(path)
            )
        })
        .collect();
    policy["spec"]["mutations"] =
        json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": adds.join(" +\n")}}]);
    vec![policy, binding("MutatingAdmissionPolicyBinding", OPERATOR)]
}

fn policy(kind: &str, name: &str, operations: &[&str]) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": labels()},
        "spec": {"matchConstraints": {"resourceRules": rules(operations), "matchPolicy": "Equivalent"}},
    })
}

fn binding(kind: &str, policy: &str) -> Value {
    let mut binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": policy, "labels": labels()},
        "spec": {"policyName": policy},
    });
    if kind.starts_with("Validating") {
        binding["spec"]["validationActions"] = json!(["Deny"]);
    }
    binding
}

/// Each is evaluated once, and only if asked for.
fn variables(allowed: &Allowed) -> Value {
    let bounds = Bounds::of(crd::schema());
    let list = |checks: &[String]| format!("[\n{}\n]", checks.join(",\n"));
    let all = [
        ("bounds", list(&bounds.checks)),
        ("blocked", bounds.blocking.join(" ||\n")),
        ("rules", list(&rule_checks())),
        ("imageName", NAME_CEL.to_owned()),
        ("repository", REPOSITORY_CEL.to_owned()),
        ("forbidden", list(&[namespace_check(allowed), image_check(allowed)])),
        (
            "violations",
            "(variables.bounds + (variables.blocked ? [] : variables.rules) + variables.forbidden).filter(said, said != '')".to_owned(),
        ),
    ];
    all.iter().map(|(name, expression)| json!({"name": name, "expression": expression})).collect()
}

/// Like the API server's own, a rule is not asked again about an object that stays as it was.
fn rule_checks() -> Vec<String> {
    let check = |rule: &crate::rules::Rule| {
        let holds = rule.cel.replace("self.", &format!("{}.", value(rule.at)));
        let said = literal(&format!("{}: {}", rule.path(), rule.text()));
        format!("{} && {} && !({holds}) ? {said} : ''", exists(rule.at), changed(rule.at))
    };
    RULES.iter().map(check).collect()
}

fn namespace_check(allowed: &Allowed) -> String {
    let namespace = value(SPEC_NAMESPACE);
    let matches: Vec<_> = allowed.namespaces.iter().map(|p| p.cel(&namespace)).collect();
    forbidden_check(SPEC_NAMESPACE, &matches, &namespace, &|said| allowed.namespace_forbidden(said))
}

fn image_check(allowed: &Allowed) -> String {
    let matches: Vec<_> = allowed.images.iter().map(|p| p.cel("variables.repository")).collect();
    let said = |said: &str| allowed.image_forbidden(said);
    forbidden_check(SPEC_IMAGE, &matches, "variables.repository", &said)
}

fn forbidden_check(
    path: &[&str],
    matches: &[String],
    shown: &str,
    message: &dyn Fn(&str) -> String,
) -> String {
    // A mark that no name has stands where CEL puts in the value.
    let message = format!("{}: {}", path.join("."), message("{}"));
    let (before, after) = message.split_once("{}").unwrap_or((&message, ""));
    let is_allowed = if matches.is_empty() { "false".to_owned() } else { matches.join(" || ") };
    format!(
        "{} && {} && !({is_allowed}) ? {} + {shown} + {} : ''",
        exists(path),
        changed(path),
        literal(before),
        literal(after)
    )
}

/// Asked only of what would be let in, and only where it says other pods in another place.
fn may_create_pods() -> String {
    let unasked = format!("!({} || {})", changed(SPEC_NAMESPACE), changed(SPEC_IMAGE));
    format!("size(variables.violations) > 0 || {unasked} || {MAY_CREATE_PODS}")
}
