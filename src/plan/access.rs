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
            let meta = shared_meta(scale, meta, false);
            changes.push(match meta.owner_references.as_deref() {
                Some([]) => Change::DeleteServiceAccount(Box::new(account.clone())),
                _ => Change::ApplyServiceAccount(Box::new(ServiceAccount {
                    metadata: meta,
                    ..Default::default()
                })),
            });
        }
    }
    for binding in &seen.bindings {
        let namespace = subject_namespace(binding).unwrap_or_default();
        if releases(scale, &binding.metadata, still_used(namespace)) {
            let meta = shared_meta(scale, &binding.metadata, false);
            changes.push(match meta.owner_references.as_deref() {
                Some([]) => Change::DeleteBinding(Box::new(binding.clone())),
                _ => Change::ApplyBinding(Box::new(render_binding(meta, namespace))),
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
    let metadata = match account_in(seen, &scale.namespace) {
        Some(account) if !lacks_us(scale, &account.metadata) => return None,
        Some(account) => shared_meta(scale, &account.metadata, true),
        None => shared_meta(
            scale,
            &ObjectMeta {
                name: Some(KUBE_STATE_METRICS.to_owned()),
                namespace: Some(scale.namespace.clone()),
                ..Default::default()
            },
            true,
        ),
    };
    let account = ServiceAccount { metadata, ..Default::default() };
    Some(Change::ApplyServiceAccount(Box::new(account)))
}

fn wanted_binding(scale: &Scale, seen: &Observed) -> Option<Change> {
    let name = names::cluster_role_binding(&scale.namespace);
    let existing = seen.bindings.iter().find(|b| b.metadata.name.as_deref() == Some(&name));
    let metadata = match existing {
        Some(binding) => {
            let same = binding.subjects
                == render_binding(ObjectMeta::default(), &scale.namespace).subjects;
            if !is_managed(binding.metadata.labels.as_ref())
                || same && !lacks_us(scale, &binding.metadata)
            {
                return None;
            }
            shared_meta(scale, &binding.metadata, true)
        }
        None => shared_meta(scale, &ObjectMeta { name: Some(name), ..Default::default() }, true),
    };
    Some(Change::ApplyBinding(Box::new(render_binding(metadata, &scale.namespace))))
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

/// Metadata to apply: the owners observed, with or without us. The resourceVersion makes the
/// write fail if another KSMScale changed them meanwhile, since apply would undo that.
fn shared_meta(scale: &Scale, seen: &ObjectMeta, with_us: bool) -> ObjectMeta {
    let mut owners = seen.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != scale.uid);
    if with_us {
        owners.push(owner_reference(scale));
    }
    owners.sort_by(|a, b| a.uid.cmp(&b.uid));
    ObjectMeta {
        name: seen.name.clone(),
        namespace: seen.namespace.clone(),
        resource_version: seen.resource_version.clone(),
        labels: Some(BTreeMap::from([
            (LABEL_NAME.to_owned(), KUBE_STATE_METRICS.to_owned()),
            (LABEL_MANAGED_BY.to_owned(), OPERATOR.to_owned()),
        ])),
        owner_references: Some(owners),
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
