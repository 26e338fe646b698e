//! Advice on a valid KSMScale (W4): what is allowed and probably not meant.

use crate::{
    names::MAX_NAME_LENGTH,
    plan::{
        pods::release,
        scale::{Efficiency, desired, efficiency},
    },
    validate::{Mode, Scale},
};
use std::fmt;

/// Beyond this a name leaves little room in the names of what is made for it (R12).
const LONG_NAME: usize = 40;

/// The first release without a known fault in sharding
/// (<https://github.com/kubernetes/kube-state-metrics/releases/tag/v2.20.0>).
const SOUND_RELEASE: (u32, u32) = (2, 20);

/// What is known of the cluster that a KSMScale is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings<'a> {
    /// Its nodes, if their number is known.
    pub nodes: Option<u32>,
    /// How many other KSMScales it has.
    pub others: usize,
    /// The name of one of these.
    pub other: Option<&'a str>,
}

/// One piece of advice. Short, one line, the cause first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Names the rule.
    pub id: &'static str,
    /// The field it is about.
    pub field: &'static str,
    /// Cause and remedy.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All advice on `scale`, most important first.
#[must_use]
pub fn warnings(scale: &Scale, around: Surroundings<'_>) -> Vec<Warning> {
    let rules: [fn(&Scale, Surroundings<'_>) -> Option<Warning>; 6] =
        [unfit_shards, duplicate_metrics, overlap, old_image, blocked_drains, long_name];
    rules.iter().filter_map(|rule| rule(scale, around)).collect()
}

fn warn(id: &'static str, field: &'static str, message: String) -> Warning {
    Warning { id, field, message }
}

fn unfit_shards(scale: &Scale, around: Surroundings<'_>) -> Option<Warning> {
    match efficiency(&scale.mode, around.nodes?) {
        Efficiency::Misfit(misfit) => {
            Some(warn("unfit-shard-count", "spec.sharding.shardCount", misfit.to_string()))
        }
        _ => None,
    }
}

fn duplicate_metrics(scale: &Scale, around: Surroundings<'_>) -> Option<Warning> {
    let pods = desired(scale, around.nodes?);
    if scale.mode != Mode::Unsharded || pods < 2 {
        return None;
    }
    let message =
        format!("without sharding each of {pods} pods exports every series; set spec.sharding");
    Some(warn("duplicate-metrics", "spec.sharding", message))
}

fn overlap(_: &Scale, around: Surroundings<'_>) -> Option<Warning> {
    let other = around.other?;
    let message = match around.others {
        0 => return None,
        1 => format!("KSMScale {other} exports the same objects; keep one of the two"),
        n => format!("KSMScales {other} and {} more export the same objects; keep one", n - 1),
    };
    Some(warn("scope-overlap", "metadata.name", message))
}

fn old_image(scale: &Scale, _: Surroundings<'_>) -> Option<Warning> {
    let (major, minor) = release(&scale.image)?;
    if scale.mode == Mode::Unsharded || (major, minor) >= SOUND_RELEASE {
        return None;
    }
    let message = format!(
        "kube-state-metrics v{major}.{minor} has known faults in sharding; use v2.20.0 or later"
    );
    Some(warn("old-image-with-sharding", "spec.monitorImage", message))
}

fn blocked_drains(scale: &Scale, _: Surroundings<'_>) -> Option<Warning> {
    match &scale.mode {
        Mode::Sharded(shards) if shards.max_unavailable == Some(0) => Some(warn(
            "drains-blocked",
            "spec.sharding.distribution.maxUnavailable",
            "0 blocks every drain of a node with one of the pods; use 1 or more".to_owned(),
        )),
        _ => None,
    }
}

fn long_name(scale: &Scale, _: Surroundings<'_>) -> Option<Warning> {
    let length = scale.name.len();
    if length <= LONG_NAME {
        return None;
    }
    let message = format!(
        "{length} characters make long pod names; up to {LONG_NAME} are better, {MAX_NAME_LENGTH} the limit"
    );
    Some(warn("long-name", "metadata.name", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::validate;
    use serde_json::{Value, json};

    fn ids(name: &str, spec: &Value, around: Surroundings<'_>) -> Vec<&'static str> {
        let scale = validate(&json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let warnings = warnings(&scale, around);
        for warning in &warnings {
            let text = warning.to_string();
            assert!(text.chars().count() <= 120 && !text.contains(char::is_control), "{text}");
        }
        warnings.iter().map(|w| w.id).collect()
    }

    #[test]
    fn r12_w4_each_rule_warns_and_each_can_be_satisfied() {
        let bare = Surroundings::default();
        let nodes = |n| Surroundings { nodes: Some(n), ..bare };
        let old = json!({"sharding": {"enabled": true, "shardCount": 3}});
        let mut new = old.clone();
        new["monitorImage"] =
            json!("registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.20.0");
        assert_eq!(ids("x", &old, bare), ["old-image-with-sharding"]);
        assert_eq!(ids("x", &new, bare), [""; 0]);
        assert_eq!(ids("x", &new, nodes(4)), ["unfit-shard-count"]);
        assert_eq!(ids("x", &new, nodes(60)), [""; 0]);
        assert_eq!(ids("x", &json!({}), nodes(15)), [""; 0]);
        assert_eq!(ids("x", &json!({}), nodes(16)), ["duplicate-metrics"]);
        let mut blocked = new.clone();
        blocked["sharding"]["distribution"] = json!({"enablePDB": true, "maxUnavailable": 0});
        assert_eq!(ids("x", &blocked, bare), ["drains-blocked"]);
        blocked["sharding"]["distribution"]["enablePDB"] = json!(false);
        assert_eq!(ids("x", &blocked, bare), [""; 0]);
        for others in [1, 2] {
            let around = Surroundings { others, other: Some("y"), ..bare };
            assert_eq!(ids("x", &new, around), ["scope-overlap"]);
        }
        assert_eq!(ids(&"x".repeat(40), &new, bare), [""; 0]);
        assert_eq!(ids(&"x".repeat(41), &new, bare), ["long-name"]);
    }
}
