//! Metrics of the controller. Labels come from enums, never from names, so that the number of
//! series does not grow with the cluster.

use super::condition_metrics::ConditionMetrics;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::{fmt, sync::Arc, time::Duration};

/// What a reconcile failed at.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    kind: &'static str,
}

/// What was written.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ChangeLabels {
    change: &'static str,
    result: &'static str,
}

/// The operator's metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    duration: Histogram,
    errors: Family<ErrorLabels, Counter>,
    changes: Family<ChangeLabels, Counter>,
    /// Nodes in the cluster, as the node watch knows it.
    pub nodes: Gauge,
    /// Pods of all KSMScales.
    pub managed_pods: Gauge,
    /// KSMScales.
    pub scales: Gauge,
    /// KSMScales by their conditions.
    pub conditions: ConditionMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::with(|_| {})
    }
}

impl Metrics {
    /// With those that other parts of the process `register`.
    pub fn with(register: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::with_prefix("ksm_scale_operator");
        // From a no-op on a near API server to a change of 40 pods on a slow one.
        let buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let metrics = Self {
            registry: Arc::default(),
            duration: Histogram::new(buckets),
            errors: Family::default(),
            changes: Family::default(),
            nodes: Gauge::default(),
            managed_pods: Gauge::default(),
            scales: Gauge::default(),
            conditions: ConditionMetrics::default(),
        };
        let Self { duration, errors, changes, nodes, managed_pods, scales, .. } = metrics.clone();
        registry.register_with_unit(
            "reconcile_duration",
            "Duration of reconciles",
            Unit::Seconds,
            duration,
        );
        registry.register(
            "reconcile_errors",
            "Reconciles that failed, by what they failed at",
            errors,
        );
        registry.register(
            "changes",
            "Writes to the cluster, by what was done and how it ended",
            changes,
        );
        registry.register("nodes", "Nodes in the cluster", nodes);
        registry.register("managed_pods", "kube-state-metrics pods of all KSMScales", managed_pods);
        registry.register("ksmscales", "KSMScale objects", scales);
        metrics.conditions.register(&mut registry);
        register(&mut registry);
        Self { registry: Arc::new(registry), ..metrics }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Records one reconcile. `error` is what it failed at.
    pub fn reconciled(&self, took: Duration, error: Option<&'static str>) {
        self.duration.observe(took.as_secs_f64());
        if let Some(kind) = error {
            self.errors.get_or_create(&ErrorLabels { kind }).inc();
        }
    }

    /// Records one write.
    pub fn changed(&self, change: &'static str, ok: bool) {
        let result = if ok { "success" } else { "failure" };
        self.changes.get_or_create(&ChangeLabels { change, result }).inc();
    }

    /// The text of `/metrics`, in OpenMetrics format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;
    use std::time::Duration;

    #[test]
    fn o7_metrics_have_the_names_and_labels_that_dashboards_rely_on() {
        let metrics = Metrics::default();
        metrics.reconciled(Duration::from_millis(20), Some("apply"));
        metrics.changed("create_pod", true);
        metrics.nodes.set(4);
        let text = metrics.text();
        for line in [
            "ksm_scale_operator_reconcile_duration_seconds_count 1",
            "ksm_scale_operator_reconcile_duration_seconds_bucket{le=\"0.025\"} 1",
            "ksm_scale_operator_reconcile_errors_total{kind=\"apply\"} 1",
            "ksm_scale_operator_changes_total{change=\"create_pod\",result=\"success\"} 1",
            "ksm_scale_operator_nodes 4",
            "ksm_scale_operator_managed_pods 0",
            "ksm_scale_operator_ksmscales 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
