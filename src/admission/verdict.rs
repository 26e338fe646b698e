//! What the validating webhook refuses, warns about and lets pass.

use super::{
    Decision, Knowledge, Operation, Record, Review, access,
    access::{Access, Place},
    answer::{self, Answer, Cause, Denial, Warned},
    review::Object,
};
use crate::{
    allowed::Allowed,
    api::KSMScale,
    names::GROUP,
    rules::{Reason, rule_of},
    validate::{Scale, Valid, Violation, defaulted, validate_owned},
    warnings::{Surroundings, warnings},
};
use kube::Resource;
use serde_json::{Map, Value, json};

/// Names the rule that `spec.deletionProtection` turns on (R68).
const DELETION_PROTECTION: &str = "deletion-protection";

/// The verdict on a request, or what its requester has to be allowed to do.
pub(super) fn validate(review: Review<'_>, knowledge: &Knowledge, allowed: &Allowed) -> Decision {
    let Review { operation, user, record, .. } = review;
    let (mut old, mut new) = match operation {
        Operation::Delete(old) => return Decision::Final(delete(&old, knowledge, record)),
        Operation::Create(new) => (None, new),
        Operation::Update { old, new } => (Some(old), new),
    };
    if old.as_ref().is_some_and(|old| new.is_spelled_as(old)) {
        return Decision::Final(answer::allowed(record, Vec::new()));
    }
    let (scale, faults) = judge(&mut new, allowed);
    let place = match &scale {
        Some(scale) => Place::of(scale),
        None => Place::asked_for(&new).unwrap_or_default(),
    };
    let wanted = access::wanted(old.as_ref(), &place);
    let advice: Vec<_> = scale.iter().flat_map(|scale| advice(scale, knowledge)).collect();
    // To read the values of the old spec takes as long as all of the above. An API server writes the
    // same ones the same way.
    let is_silent = wanted.is_none() && faults.is_empty() && advice.is_empty();
    if is_silent || old.as_ref().is_some_and(|old| new.has_spec_of(old)) {
        return Decision::Final(answer::allowed(record, Vec::new()));
    }
    let (kept, refused) = match &mut old {
        Some(old) if !faults.is_empty() => ratchet(faults, old, &mut new),
        _ => (Vec::new(), faults),
    };
    let mut warned: Vec<_> = kept.iter().map(Fault::warned).collect();
    if !refused.is_empty() {
        return Decision::Final(invalid(record, &new, refused, warned));
    }
    warned.extend(advice);
    match wanted {
        None => Decision::Final(answer::allowed(record, warned)),
        Some(namespace) => {
            let access = Access::new(namespace, new.uid().to_owned(), user, record, warned);
            Decision::NeedsAccess(Box::new(access))
        }
    }
}

/// A violation, and what it takes to find out whether another object has it too.
struct Fault {
    violation: Violation,
    /// Names the rule; one of the schema goes by its reason.
    rule: &'static str,
    /// The path of the value that the rule judges; it depends on nothing else.
    at: String,
}

impl Fault {
    fn new(violation: Violation) -> Self {
        let (rule, at) = match rule_of(&violation.field, &violation.message) {
            Some(rule) => (rule.id, rule.at.join(".")),
            None => (violation.reason.as_str(), violation.field.clone()),
        };
        Self { violation, rule, at }
    }

    fn warned(&self) -> Warned {
        let Violation { field, message, .. } = &self.violation;
        Warned { id: self.rule, text: format!("{field}: let pass because unchanged: {message}") }
    }
}

/// Everything that is wrong with `object`, and what it asks for if the schema has nothing against
/// it.
fn judge(object: &mut Object<'_>, allowed: &Allowed) -> (Option<Valid<Scale>>, Vec<Fault>) {
    let authored = match object.authored() {
        Ok(authored) => authored,
        Err(violation) => return (None, vec![Fault::new(violation)]),
    };
    let mut violations = wrong_type(&authored);
    let scale = match validate_owned(authored) {
        Ok(scale) => {
            violations.extend(allowed.violations(&scale));
            Some(scale)
        }
        Err(found) => {
            violations.extend(found.0);
            let guarded = guarded(object, &violations, allowed);
            violations.extend(guarded);
            None
        }
    };
    (scale, violations.into_iter().map(Fault::new).collect())
}

/// An object whose type is not the one under review.
fn wrong_type(object: &Value) -> Vec<Violation> {
    let expected = [("apiVersion", KSMScale::api_version(&())), ("kind", KSMScale::kind(&()))];
    let wrong = expected.into_iter().filter(|(field, value)| object[field] != **value);
    wrong
        .map(|(field, value)| Violation {
            field: field.to_owned(),
            reason: Reason::FieldValueNotSupported,
            message: format!(
                "Unsupported value: {}: supported values: {value:?}",
                object[field]
                    .as_str()
                    .map_or_else(|| object[field].to_string(), |t| format!("{t:?}"))
            ),
        })
        .collect()
}

/// What `allowed` has against an object that is not valid for other reasons, so that everything is
/// said at once, and so that nothing passes it behind a fault that is let pass.
fn guarded(object: &Object<'_>, found: &[Violation], allowed: &Allowed) -> Vec<Violation> {
    let is_sound = |field: &str| !found.iter().any(|v| v.field == format!("spec.{field}"));
    let spec = object.spec().unwrap_or_default();
    let fields = ["namespace", "monitorImage"].into_iter().filter(|field| is_sound(field));
    let spec: Map<_, _> =
        fields.clone().filter_map(|f| Some((f.to_owned(), spec.get(f)?.clone()))).collect();
    let Ok(scale) = validate_owned(json!({"metadata": {"name": "guarded"}, "spec": spec})) else {
        return Vec::new();
    };
    let about = |violation: &Violation| {
        fields.clone().any(|field| violation.field == format!("spec.{field}"))
    };
    allowed.violations(&scale).into_iter().filter(about).collect()
}

/// Splits `faults` of `new` into those to let pass and those to refuse (W3).
///
/// Let pass is a fault if the value that its rule judges is that of `old`, which then had the same
/// fault, even if another one kept anybody from asking.
fn ratchet(
    faults: Vec<Fault>,
    old: &mut Object<'_>,
    new: &mut Object<'_>,
) -> (Vec<Fault>, Vec<Fault>) {
    let (Ok(before), Ok(after)) = (old.authored(), new.authored()) else {
        return (Vec::new(), faults);
    };
    let (before, after) = (defaulted(&before), defaulted(&after));
    faults.into_iter().partition(|fault| {
        let value_at =
            if fault.violation.reason == Reason::UnknownField { unknown_at } else { value_at };
        match (value_at(&before, &fault.at), value_at(&after, &fault.at)) {
            (Some(before), Some(after)) => before == after,
            // Missing before and after, from an object that was there.
            (None, None) => {
                let parent = fault.at.rsplit_once('.').map(|(parent, _)| parent);
                parent.is_some_and(|parent| value_at(&before, parent).is_some_and(Value::is_object))
            }
            _ => false,
        }
    })
}

fn value_at<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(object, |value, name| value.get(name))
}

/// The same of a field that the schema does not know, whose name may hold dots.
fn unknown_at<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    object.get(path).or_else(|| {
        let (name, rest) = path.split_once('.')?;
        unknown_at(object.get(name)?, rest)
    })
}

/// The refusal of an object, as the API server's registry writes its own.
fn invalid(record: Record, object: &Object<'_>, faults: Vec<Fault>, warned: Vec<Warned>) -> Answer {
    let mut texts: Vec<_> = faults.iter().map(|fault| fault.violation.to_string()).collect();
    let mut seen = Vec::new();
    texts.retain(|text| !seen.contains(text) && (seen.push(text.clone()), true).1);
    let texts = match &texts[..] {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let mut rules: Vec<_> = faults.iter().map(|fault| fault.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    let denial = Denial {
        code: 422,
        reason: "Invalid",
        message: format!("{}.{GROUP} {:?} is invalid: {texts}", KSMScale::kind(&()), record.name),
        object_uid: object.uid().to_owned(),
        causes: faults.into_iter().map(|fault| cause(fault.violation)).collect(),
    };
    answer::denied(record, rules, &denial, warned)
}

fn cause(violation: Violation) -> Cause {
    let Violation { field, reason, message } = violation;
    Cause { reason: reason.as_str(), message, field }
}

fn advice(scale: &Scale, knowledge: &Knowledge) -> impl Iterator<Item = Warned> {
    let around = Surroundings {
        nodes: knowledge.nodes,
        others: knowledge.others,
        other: knowledge.other.as_deref(),
    };
    warnings(scale, around).into_iter().map(|w| Warned { id: w.id, text: w.to_string() })
}

/// R68. The protection is read from what is stored, valid or not.
pub(super) fn is_protected(old: &Object<'_>) -> bool {
    old.spec().is_some_and(|spec| spec["deletionProtection"] == true)
}

/// Refused while there are pods, if it is protected.
fn delete(old: &Object<'_>, knowledge: &Knowledge, record: Record) -> Answer {
    if !is_protected(old) || knowledge.pods == 0 {
        return answer::allowed(record, Vec::new());
    }
    let name = &record.name;
    let text = format!(
        "KSMScale {name} is protected from deletion while it has pods, and it has {}: to delete it, first run kubectl patch ksmscale {name} --type=merge -p '{{\"spec\":{{\"deletionProtection\":false}}}}'",
        knowledge.pods
    );
    let field = "spec.deletionProtection";
    let denial = Denial {
        code: 403,
        reason: "Forbidden",
        message: format!("{field}: Forbidden: {text}"),
        object_uid: old.uid().to_owned(),
        causes: vec![Cause {
            reason: Reason::FieldValueForbidden.as_str(),
            message: format!("Forbidden: {text}"),
            field: field.to_owned(),
        }],
    };
    answer::denied(record, vec![DELETION_PROTECTION], &denial, Vec::new())
}
