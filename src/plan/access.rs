//! The ServiceAccount that kube-state-metrics runs as, and its binding (R63).
//!
//! Both are one for each namespace and so shared by every KSMScale with pods there. Each of these
//! holds an ownerReference, so the garbage collector removes them with the last one. Objects of
//! the same name that the operator did not make are used, and never written.

use crate::{
    names::{
        self, KUBE_STATE_METRICS, LABEL_MANAGED_BY, LABEL_NAME, METRICS_CLUSTER_ROLE, OPERATOR,
        rbac_group,
    },
    observed::{NamespaceState, Observed, is_managed, is_owned_by},
    plan::{Change, pods::owner_reference},
    validate::Scale,
};
use k8s_openapi::{
    api::{
        core::v1::ServiceAccount,
        rbac::v1::{ClusterRoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::collections::BTreeMap;

/// What to do about ServiceAccounts and bindings so that our pods have theirs and no other
/// namespace keeps one for us.
pub(super) fn plan_access(scale: &Scale, seen: &Observed) -> Vec<Change> {
    let mut changes = Vec::new();
    if seen.namespace == NamespaceState::Active {
        changes.extend(wanted_account(scale, seen));
        changes.extend(wanted_binding(scale, seen));
    }
    let still_used = |namespace: &str| {
        namespace == scale.namespace || seen.pods.iter().any(|p| p.namespace == namespace)
    };
    for account in &seen.service_accounts {
        let meta = &account.metadata;
        if releases(scale, meta, still_used(meta.namespace.as_deref().unwrap_or_default())) {
            let account = Box::new(account.clone());
            changes.push(if is_owned_by_others(scale, meta) {
                Change::ReleaseServiceAccount(account, scale.uid.clone())
            } else {
                Change::DeleteServiceAccount(account)
            });
        }
    }
    for binding in &seen.bindings {
        let namespace = subject_namespace(binding).unwrap_or_default();
        let meta = &binding.metadata;
        if releases(scale, meta, still_used(namespace)) {
            let binding = Box::new(binding.clone());
            changes.push(if is_owned_by_others(scale, meta) {
                Change::ReleaseBinding(binding, scale.uid.clone())
            } else {
                Change::DeleteBinding(binding)
            });
        }
    }
    changes
}

/// The ServiceAccount of `namespace` among those observed.
pub(crate) fn account_in<'o>(seen: &'o Observed, namespace: &str) -> Option<&'o ServiceAccount> {
    seen.service_accounts.iter().find(|account| {
        account.metadata.namespace.as_deref() == Some(namespace)
            && account.metadata.name.as_deref() == Some(KUBE_STATE_METRICS)
    })
}

fn wanted_account(scale: &Scale, seen: &Observed) -> Option<Change> {
    let found = account_in(seen, &scale.namespace).map(|account| &account.metadata);
    if found.is_some_and(|found| !lacks_us(scale, found)) {
        return None;
    }
    let mut metadata = shared_meta(scale, KUBE_STATE_METRICS.to_owned(), found);
    metadata.namespace = Some(scale.namespace.clone());
    let account = ServiceAccount { metadata, ..Default::default() };
    Some(Change::ApplyServiceAccount(Box::new(account)))
}

fn wanted_binding(scale: &Scale, seen: &Observed) -> Option<Change> {
    let name = names::cluster_role_binding(&scale.namespace);
    let found = seen.bindings.iter().find(|b| b.metadata.name.as_deref() == Some(&name));
    let metadata = shared_meta(scale, name, found.map(|found| &found.metadata));
    let wanted = render_binding(metadata, &scale.namespace);
    let is_right = |found: &ClusterRoleBinding| {
        !is_managed(found.metadata.labels.as_ref())
            || found.subjects == wanted.subjects && !lacks_us(scale, &found.metadata)
    };
    if found.is_some_and(is_right) {
        return None;
    }
    Some(Change::ApplyBinding(Box::new(wanted)))
}

/// Whether an object of the operator's making misses our ownerReference.
fn lacks_us(scale: &Scale, meta: &ObjectMeta) -> bool {
    is_managed(meta.labels.as_ref()) && !is_owned_by(meta.owner_references.as_ref(), &scale.uid)
}

/// Whether an object of the operator's making holds our ownerReference without need.
fn releases(scale: &Scale, meta: &ObjectMeta, still_used: bool) -> bool {
    !still_used
        && is_managed(meta.labels.as_ref())
        && is_owned_by(meta.owner_references.as_ref(), &scale.uid)
}

fn is_owned_by_others(scale: &Scale, meta: &ObjectMeta) -> bool {
    meta.owner_references.iter().flatten().any(|owner| owner.uid != scale.uid)
}

/// Metadata to make an object with, or to add to the one that was found: of the owners only us,
/// since the others' references are theirs.
fn shared_meta(scale: &Scale, name: String, found: Option<&ObjectMeta>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        uid: found.and_then(|found| found.uid.clone()),
        labels: Some(BTreeMap::from([
            (LABEL_NAME.to_owned(), KUBE_STATE_METRICS.to_owned()),
            (LABEL_MANAGED_BY.to_owned(), OPERATOR.to_owned()),
        ])),
        owner_references: Some(vec![owner_reference(scale)]),
        ..Default::default()
    }
}

fn render_binding(metadata: ObjectMeta, namespace: &str) -> ClusterRoleBinding {
    ClusterRoleBinding {
        metadata,
        role_ref: RoleRef {
            api_group: rbac_group(),
            kind: "ClusterRole".to_owned(),
            name: METRICS_CLUSTER_ROLE.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: KUBE_STATE_METRICS.to_owned(),
            namespace: Some(namespace.to_owned()),
            api_group: None,
        }]),
    }
}

fn subject_namespace(binding: &ClusterRoleBinding) -> Option<&str> {
    binding.subjects.as_deref()?.first()?.namespace.as_deref()
}
