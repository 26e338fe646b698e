//! Events: what changed, for people (R71). None is sent where nothing changed.

use super::{Inputs, Outcome};
use crate::{
    api::KSMScaleStatus,
    plan::{Change, CreateReason, DeleteReason},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// One Event about a KSMScale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether somebody should look.
    pub warning: bool,
    /// CamelCase, for machines.
    pub reason: String,
    /// What the operator did or tried.
    pub action: &'static str,
    /// One sentence, for people; at most 1,024 bytes, the limit of the API.
    pub message: String,
}

impl Note {
    fn new(warning: bool, reason: &str, action: &'static str, message: String) -> Self {
        let mut message = message;
        if message.len() > 1024 {
            message.truncate(message.floor_char_boundary(1020));
            message.push_str(" ...");
        }
        Self { warning, reason: reason.to_owned(), action, message }
    }
}

/// The Events for a reconcile that turned `old` into `new`.
#[must_use]
pub fn notes(old: &KSMScaleStatus, new: &KSMScaleStatus, inputs: &Inputs<'_>) -> Vec<Note> {
    let mut notes = Vec::new();
    if let (Some(from), Some(to)) = (old.desired_replicas.or(Some(0)), new.desired_replicas)
        && from != to
    {
        let message = format!("scaling from {from} to {to} pods for {} nodes", inputs.seen.nodes);
        notes.push(Note::new(false, "Scaling", "Scale", message));
    }
    notes.extend(pod_notes(inputs.outcome));
    notes.extend(transitions(old, new));
    notes
}

/// The Events for conditions that changed. A condition that is true and bad is a warning, again
/// whenever its reason or message changes.
#[must_use]
pub fn transitions(old: &KSMScaleStatus, new: &KSMScaleStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    for now in new.conditions.iter().filter(|c| is_watched(&c.type_)) {
        let before = old.conditions.iter().find(|c| c.type_ == now.type_);
        let same = |b: &Condition| {
            (&b.status, &b.reason, &b.message) == (&now.status, &now.reason, &now.message)
        };
        if before.is_some_and(same) {
            continue;
        }
        if is_bad(now) {
            notes.push(Note::new(true, &now.reason, "Check", now.message.clone()));
        } else if before.is_some_and(is_bad) {
            let message = format!("{} is {} again: {}", now.type_, now.status, now.message);
            notes.push(Note::new(false, &format!("{}Recovered", now.type_), "Check", message));
        }
    }
    notes
}

/// Conditions whose changes are news. `NamespaceReady` and `ServiceAccountReady` show in
/// `Degraded` and would be told twice; `Available` and `Progressing` change with every step.
fn is_watched(type_: &str) -> bool {
    matches!(
        type_,
        "Degraded"
            | "ShardingEfficient"
            | "DuplicateMetrics"
            | "ScopeOverlap"
            | "CoverageComplete"
            | "CoverageVerified"
    )
}

/// A shard count that no other would better is nothing to warn of, nor is a flag.
fn is_bad(condition: &Condition) -> bool {
    let good = match &*condition.type_ {
        "ShardingEfficient" | "CoverageComplete" | "CoverageVerified" => "True",
        _ => "False",
    };
    condition.status != good && !matches!(&*condition.reason, "NoBetterShardCount" | "Disabled")
}

/// One Event for all pods created, and one for all deleted.
fn pod_notes(outcome: &Outcome) -> Vec<Note> {
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    for change in &outcome.applied {
        match change {
            Change::CreatePod(pod, why) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                created.push(match why {
                    CreateReason::Missing => name.to_owned(),
                    CreateReason::Replaces(_) => format!("{name} ({why})"),
                });
            }
            Change::DeletePod(pod, DeleteReason::Surplus) => deleted.push(pod.name.clone()),
            Change::DeletePod(pod, why) => deleted.push(format!("{} ({why})", pod.name)),
            _ => {}
        }
    }
    let mut notes = Vec::new();
    if !created.is_empty() {
        let message = format!("created {}", created.join(", "));
        notes.push(Note::new(false, "PodsCreated", "Create", message));
    }
    if !deleted.is_empty() {
        let message = format!("deleted {}", deleted.join(", "));
        notes.push(Note::new(false, "PodsDeleted", "Delete", message));
    }
    notes
}
