//! The steps of a change before it is made: the planner itself, on a cluster in memory in which
//! every pod becomes Ready.

use crate::{
    coverage::{Coverage, Slice},
    observed::{Life, Observed, ObservedPod},
    plan::{Change, Settings, plan},
    validate::{Scale, Valid},
};
use jiff::Timestamp;
use std::time::Duration;

/// One change of a pod, and what is exposed after it.
#[derive(Clone, Debug)]
pub struct Step {
    /// What is done, and why.
    pub change: Change,
    /// Pods after it.
    pub pods: usize,
    /// What they expose; a created pod has become Ready.
    pub coverage: Coverage,
}

/// The pods of a KSMScale at rest, by index.
#[must_use]
pub fn at_rest(scale: &Valid<Scale>, nodes: u32) -> Vec<ObservedPod> {
    let mut pods = Vec::new();
    advance(scale, nodes, &mut pods);
    pods.sort_by_key(ObservedPod::index);
    pods
}

/// The steps from the pods of one KSMScale at rest to those of another, on a cluster of `nodes`
/// nodes. The operator makes the same steps in the same order as long as nothing fails and each
/// pod becomes Ready before the next one.
#[must_use]
pub fn steps(from: &Valid<Scale>, to: &Valid<Scale>, nodes: u32) -> Vec<Step> {
    let mut pods = at_rest(from, nodes);
    advance(to, nodes, &mut pods)
}

/// Plans and applies until there is nothing left to do. Every round ends a step of the planner,
/// and it takes at most one for each pod that is or should be there, so the loop ends.
fn advance(scale: &Valid<Scale>, nodes: u32, pods: &mut Vec<ObservedPod>) -> Vec<Step> {
    let settings = Settings { settle: Duration::ZERO, manage_access: false, ..Settings::default() };
    let mut steps = Vec::new();
    loop {
        let seen = Observed { nodes, pods: pods.clone(), ..Observed::default() };
        let changes = plan(scale, &seen, Timestamp::UNIX_EPOCH, &settings).changes;
        let before = steps.len();
        for change in changes {
            match &change {
                Change::CreatePod(pod, _) => pods.push(ready(ObservedPod::new(pod))),
                Change::DeletePod(gone, _) => pods.retain(|pod| pod.uid != gone.uid),
                _ => continue,
            }
            let slices: Vec<Slice> = pods.iter().filter_map(ObservedPod::slice).collect();
            steps.push(Step { change, pods: pods.len(), coverage: Coverage::of(&slices) });
        }
        if steps.len() == before {
            return steps;
        }
    }
}

/// A pod that serves. Names are given once at a time in one namespace, so they tell pods apart.
fn ready(pod: ObservedPod) -> ObservedPod {
    ObservedPod {
        uid: format!("{}/{}", pod.namespace, pod.name),
        life: Life::Running,
        ready_since: Some(Timestamp::UNIX_EPOCH),
        ..pod
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::validate;
    use serde_json::{Value, json};

    fn scale(spec: &Value) -> Valid<Scale> {
        validate(&json!({"metadata": {"name": "x", "uid": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn o2_every_step_of_every_change_of_shards_is_covered_and_it_ends() {
        let spec = |count: u32| match count {
            1 => scale(&json!({})),
            _ => scale(&json!({"sharding": {"enabled": true, "shardCount": count}})),
        };
        for (from, to) in (1..=10).flat_map(|from| (1..=10).map(move |to| (from, to))) {
            let steps = steps(&spec(from), &spec(to), 4);
            assert_eq!(steps.is_empty(), from == to, "{from} to {to}");
            assert!(
                steps.iter().all(|step| step.coverage.is_complete()),
                "{from} to {to}: {steps:?}"
            );
            let last = steps.last().map_or(from as usize, |step| step.pods);
            assert_eq!(last, to as usize);
        }
    }
}
