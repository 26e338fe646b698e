//! The PodDisruptionBudget of a sharded KSMScale (R37).

use crate::{
    names::{
        self, KUBE_STATE_METRICS, LABEL_INSTANCE, LABEL_MANAGED_BY, LABEL_NAME, LABEL_SCALE,
        LABEL_SHARDING_ENABLED, OPERATOR,
    },
    observed::{NamespaceState, Observed, is_owned_by},
    plan::{Change, pods::controller_reference},
    validate::{Mode, Scale},
};
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use std::collections::BTreeMap;

/// What to do so that the budget stands where the pods are, and nowhere else.
pub(super) fn plan_disruption(scale: &Scale, seen: &Observed, desired: u32) -> Vec<Change> {
    let wanted = budget(scale, desired);
    let is_wanted = |seen: &&PodDisruptionBudget| {
        wanted.as_ref().is_some_and(|wanted| {
            wanted.metadata.name == seen.metadata.name
                && wanted.metadata.namespace == seen.metadata.namespace
        })
    };
    let mut changes: Vec<Change> = seen
        .budgets
        .iter()
        .filter(|seen| !is_wanted(seen) && is_ours(scale, seen))
        // After a move it protects the pods that still serve from the old namespace.
        .filter(|budget| wanted.is_none() || !guards_pods(budget, seen))
        .map(|seen| Change::DeleteBudget(Box::new(seen.clone())))
        .collect();
    if seen.namespace != NamespaceState::Active {
        return changes;
    }
    if let Some(wanted) = &wanted {
        let existing = seen.budgets.iter().find(is_wanted);
        let differs = |seen: &PodDisruptionBudget| !says(seen, wanted) && is_ours(scale, seen);
        if existing.is_none_or(differs) {
            changes.push(Change::ApplyBudget(Box::new(wanted.clone())));
        }
    }
    changes
}

/// A PodDisruptionBudget of our name that is not ours, if one is in the way.
pub(crate) fn foreign_budget<'o>(
    scale: &Scale,
    seen: &'o Observed,
) -> Option<&'o PodDisruptionBudget> {
    let wanted = budget(scale, 0)?;
    seen.budgets.iter().find(|seen| {
        seen.metadata.name == wanted.metadata.name
            && seen.metadata.namespace == wanted.metadata.namespace
            && !is_ours(scale, seen)
    })
}

fn guards_pods(budget: &PodDisruptionBudget, seen: &Observed) -> bool {
    seen.pods.iter().any(|pod| Some(&pod.namespace) == budget.metadata.namespace.as_ref())
}

fn is_ours(scale: &Scale, budget: &PodDisruptionBudget) -> bool {
    is_owned_by(budget.metadata.owner_references.as_ref(), &scale.uid)
}

/// Whether an observed budget says what the wanted one does. The API server adds no default to
/// any field that we set.
fn says(seen: &PodDisruptionBudget, wanted: &PodDisruptionBudget) -> bool {
    let ours = |labels: &BTreeMap<String, String>| {
        wanted.metadata.labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v))
    };
    seen.spec == wanted.spec && seen.metadata.labels.as_ref().is_some_and(ours)
}

/// `minAvailable` is an integer: for `maxUnavailable` and percentages the disruption controller
/// asks the pods' controller for its scale in the pods' namespace, and a cluster-scoped one has
/// none (`pkg/controller/disruption`, `getExpectedScale`); it would then allow no disruption.
fn budget(scale: &Scale, desired: u32) -> Option<PodDisruptionBudget> {
    let Mode::Sharded(shards) = &scale.mode else { return None };
    let available = desired.saturating_sub(shards.max_unavailable?);
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
    };
    Some(PodDisruptionBudget {
        metadata: ObjectMeta {
            name: Some(names::pod_disruption_budget(&scale.name)),
            namespace: Some(scale.namespace.clone()),
            labels: Some(pairs(&[
                (LABEL_NAME, KUBE_STATE_METRICS),
                (LABEL_INSTANCE, &scale.name),
                (LABEL_SCALE, &scale.name),
                (LABEL_MANAGED_BY, OPERATOR),
            ])),
            owner_references: Some(vec![controller_reference(scale)]),
            ..Default::default()
        },
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(available).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector {
                match_labels: Some(pairs(&[
                    (LABEL_SCALE, &scale.name),
                    (LABEL_SHARDING_ENABLED, "true"),
                ])),
                match_expressions: None,
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            max_unavailable: None,
        }),
        status: None,
    })
}
