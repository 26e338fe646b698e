//! How many KSMScales have which condition: what alerts ask first. The names of KSMScales are no
//! labels, so the number of series does not grow with them.

use crate::status::CONDITIONS;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConditionLabels {
    condition: &'static str,
    status: &'static str,
}

/// Conditions of the KSMScales that this process reconciles. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ConditionMetrics {
    counts: Family<ConditionLabels, Gauge>,
    /// What is counted, by the name of the KSMScale.
    counted: Arc<Mutex<HashMap<String, Vec<ConditionLabels>>>>,
}

impl ConditionMetrics {
    /// Makes them part of what is scraped.
    pub(super) fn register(&self, registry: &mut Registry) {
        // All are there from the start, so that none of a kind is 0 and not absent.
        for condition in CONDITIONS.map(|described| described.type_) {
            for status in ["True", "False"] {
                drop(self.counts.get_or_create(&ConditionLabels { condition, status }));
            }
        }
        registry.register(
            "ksmscale_conditions",
            "KSMScales by the status of each condition, of those that this process reconciles",
            self.counts.clone(),
        );
    }

    /// These are the conditions of the KSMScale `name` now.
    pub fn observed(&self, name: &str, conditions: &[Condition]) {
        let labels = conditions.iter().filter_map(|seen| {
            let described = CONDITIONS.iter().find(|described| described.type_ == seen.type_)?;
            let status = if seen.status == "True" { "True" } else { "False" };
            Some(ConditionLabels { condition: described.type_, status })
        });
        self.count(name, labels.collect());
    }

    /// The KSMScale `name` is gone, or another process reconciles it.
    pub fn forget(&self, name: &str) {
        self.count(name, Vec::new());
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, ours: &dyn Fn(&str) -> bool) {
        let lock = || self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let lost: Vec<_> = lock().keys().filter(|name| !ours(name)).cloned().collect();
        for name in &lost {
            self.forget(name);
        }
    }

    fn count(&self, name: &str, now: Vec<ConditionLabels>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        for labels in &now {
            self.counts.get_or_create(labels).inc();
        }
        for labels in counted.remove(name).unwrap_or_default() {
            self.counts.get_or_create(&labels).dec();
        }
        if !now.is_empty() {
            counted.insert(name.to_owned(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use prometheus_client::encoding::text::encode;

    fn degraded(status: &str) -> Vec<Condition> {
        vec![Condition {
            type_: "Degraded".to_owned(),
            status: status.to_owned(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            message: String::new(),
            observed_generation: None,
            reason: String::new(),
        }]
    }

    #[test]
    fn o7_each_ksmscale_counts_once_for_each_condition_and_not_after_it_is_gone() {
        let (metrics, mut registry) = (ConditionMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        let counts = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            ["True", "False"].map(|status| {
                let start =
                    format!("ksmscale_conditions{{condition=\"Degraded\",status=\"{status}\"}} ");
                let line = text.lines().find_map(|line| line.strip_prefix(&start));
                line.unwrap_or_else(|| panic!("no {start} in\n{text}")).parse::<i64>().unwrap()
            })
        };
        assert_eq!(counts(), [0, 0], "there from the start");
        metrics.observed("a", &degraded("True"));
        metrics.observed("b", &degraded("False"));
        metrics.observed("a", &degraded("True"));
        assert_eq!(counts(), [1, 1]);
        metrics.observed("a", &degraded("False"));
        assert_eq!(counts(), [0, 2]);
        metrics.retain(&|name| name == "b");
        metrics.forget("never seen");
        assert_eq!(counts(), [0, 1]);
    }
}
