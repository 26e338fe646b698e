//! Whether the requester may put pods where they want them put (W5).
//!
//! Pods of a KSMScale run in `spec.namespace`, from `spec.monitorImage`, as the ServiceAccount
//! kube-state-metrics, which may list nearly everything. Who may not create a pod there must not
//! have the operator create one. So this is asked when one of the two is set or changes, of a dry
//! run too, whose verdict has to be the real one.

use super::{
    Record, Verdict,
    answer::{self, Answer, Cause, Denial, Warned},
    review::{Given, Object, UserInfo},
};
use crate::{
    api::{DEFAULT_MONITOR_IMAGE, DEFAULT_NAMESPACE},
    rules::Reason,
    validate::Scale,
};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReviewSpec};
use serde_json::Value;

/// Names the rule.
const RULE: &str = "requester-access";

/// A request that passes if its requester may create pods in a namespace.
#[derive(Debug)]
pub struct Access {
    spec: SubjectAccessReviewSpec,
    namespace: String,
    object_uid: String,
    record: Record,
    warned: Vec<Warned>,
}

impl Access {
    pub(super) fn new(
        namespace: String,
        object_uid: String,
        user: UserInfo<'_>,
        record: Record,
        warned: Vec<Warned>,
    ) -> Self {
        let given = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        let spec = SubjectAccessReviewSpec {
            user: given(user.username.get()),
            uid: given(user.uid.get()),
            groups: user.groups.as_deref().map(owned),
            extra: user.extra.map(|extra| {
                extra.iter().map(|(key, values)| (key.0.to_string(), owned(values))).collect()
            }),
            resource_attributes: Some(ResourceAttributes {
                group: Some(String::new()),
                version: Some("v1".to_owned()),
                resource: Some("pods".to_owned()),
                verb: Some("create".to_owned()),
                namespace: Some(namespace.clone()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        };
        Self { spec, namespace, object_uid, record, warned }
    }

    /// What to ask the API server. The answer holds for this request only.
    #[must_use]
    pub fn spec(&self) -> SubjectAccessReviewSpec {
        self.spec.clone()
    }

    /// The answer if the requester may.
    #[must_use]
    pub fn granted(self) -> Answer {
        answer::allowed(self.record, self.warned)
    }

    /// The answer if the requester may not, for `reason` where the API server gave one.
    #[must_use]
    pub fn refused(self, reason: Option<&str>) -> Answer {
        let Self { namespace, object_uid, record, warned, .. } = self;
        let because = reason.filter(|reason| !reason.is_empty());
        let because = because.map(|reason| format!(" ({reason})")).unwrap_or_default();
        let text = format!(
            "user {:?} may not create pods in namespace {namespace:?}{because}, and a KSMScale runs its pods there: ask for a Role in {namespace:?} with the verb create on pods, or set spec.namespace to a namespace where you may create them",
            record.user
        );
        let denial = Denial {
            code: 403,
            reason: "Forbidden",
            message: format!("spec.namespace: Forbidden: {text}"),
            object_uid,
            causes: vec![Cause {
                reason: Reason::FieldValueForbidden.as_str(),
                message: format!("Forbidden: {text}"),
                field: "spec.namespace".to_owned(),
            }],
        };
        answer::denied(record, vec![RULE], &denial, warned)
    }

    /// The answer if it could not be found out, because of `error`: none (HTTP 500), so that the
    /// webhook's `failurePolicy` decides.
    #[must_use]
    pub fn failed(self, error: &str) -> Answer {
        let Self { namespace, record, .. } = self;
        let message = format!(
            "cannot find out whether user {:?} may create pods in namespace {namespace:?}: {error}: try again, and see that the operator may create subjectaccessreviews",
            record.user
        );
        let record = Record { verdict: Verdict::Failed, ..record };
        answer::without_verdict(500, "InternalError", &message, record)
    }
}

fn owned(texts: &[Given<'_>]) -> Vec<String> {
    texts.iter().map(|text| text.0.to_string()).collect()
}

/// Where pods run and from which image. What the schema has something against may be of any type.
#[derive(PartialEq)]
pub(super) struct Place {
    namespace: Value,
    image: Value,
}

impl Place {
    pub(super) fn of(scale: &Scale) -> Self {
        Self { namespace: (*scale.namespace).into(), image: (*scale.image).into() }
    }

    /// `None` where nothing is known, also not that it was the same.
    pub(super) fn asked_for(object: &Object<'_>) -> Option<Self> {
        let [namespace, image] = object.of_spec(["namespace", "monitorImage"])?;
        let default = Self::default();
        let or = |given: Value, default| if given.is_null() { default } else { given };
        Some(Self { namespace: or(namespace, default.namespace), image: or(image, default.image) })
    }
}

impl Default for Place {
    fn default() -> Self {
        Self { namespace: DEFAULT_NAMESPACE.into(), image: DEFAULT_MONITOR_IMAGE.into() }
    }
}

/// The namespace to ask about, if `place` is not that of `old`.
pub(super) fn wanted(old: Option<&Object<'_>>, place: &Place) -> Option<String> {
    if old.is_some_and(|old| Place::asked_for(old).as_ref() == Some(place)) {
        return None;
    }
    // What is no text names no namespace, and so asks for the right in all of them.
    Some(place.namespace.as_str().unwrap_or_default().to_owned())
}
