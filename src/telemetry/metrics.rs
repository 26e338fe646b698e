//! Metrics of the controller. Labels come from enums, never from names, so that the number of
//! series does not grow with the cluster.

use super::{condition_metrics::ConditionMetrics, coverage_metrics::CoverageMetrics};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode},
    metrics::{
        MetricType, counter::Counter, family::Family, gauge::ConstGauge, histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

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
    /// KSMScales by their conditions.
    pub conditions: ConditionMetrics,
    /// Looks at what pods serve.
    pub coverage: CoverageMetrics,
    source: Arc<OnceLock<Source>>,
}

/// How much there is, as far as it is for this replica to tell: the sum over replicas is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// KSMScales that this replica works on.
    pub scales: usize,
    /// Their pods.
    pub pods: usize,
    /// Nodes in the cluster, if this replica is the one that tells.
    pub nodes: Option<u32>,
}

/// Who knows. It is asked at each scrape: what is this replica's can change at any time.
struct Source {
    ours: Box<dyn Fn(&str) -> bool + Send + Sync>,
    totals: Box<dyn Fn() -> Totals + Send + Sync>,
}

struct TotalsCollector(Arc<OnceLock<Source>>);

impl fmt::Debug for TotalsCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TotalsCollector")
    }
}

impl Collector for TotalsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Totals { scales, pods, nodes } =
            self.0.get().map(|source| (source.totals)()).unwrap_or_default();
        let gauges = [
            ("nodes", "Nodes in the cluster, told by one replica", nodes.map(i64::from)),
            (
                "managed_pods",
                "kube-state-metrics pods of the KSMScales that this replica works on",
                Some(i64::try_from(pods).unwrap_or(i64::MAX)),
            ),
            (
                "ksmscales",
                "KSMScales that this replica works on",
                Some(i64::try_from(scales).unwrap_or(i64::MAX)),
            ),
        ];
        for (name, help, value) in gauges {
            let sample = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            if let Some(value) = value {
                ConstGauge::new(value).encode(sample)?;
            }
        }
        Ok(())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::with(Registry::default(), |_| {})
    }
}

impl Metrics {
    /// With those in `all`, which go by their own names, and those that other parts of the process
    /// `register` under the operator's prefix.
    pub fn with(mut all: Registry, register: impl FnOnce(&mut Registry)) -> Self {
        let registry = all.sub_registry_with_prefix("ksm_scale_operator");
        // From a no-op on a near API server to a change of 40 pods on a slow one.
        let buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let metrics = Self {
            registry: Arc::default(),
            duration: Histogram::new(buckets),
            errors: Family::default(),
            changes: Family::default(),
            conditions: ConditionMetrics::default(),
            coverage: CoverageMetrics::default(),
            source: Arc::default(),
        };
        let Self { duration, errors, changes, source, .. } = metrics.clone();
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
        registry.register_collector(Box::new(TotalsCollector(source)));
        metrics.conditions.register(registry);
        metrics.coverage.register(registry);
        register(registry);
        Self { registry: Arc::new(all), ..metrics }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// From now on, `totals` tells how much there is, and `ours` whether this replica works on the
    /// KSMScale of a name. Only the first call counts.
    pub fn count(
        &self,
        ours: impl Fn(&str) -> bool + Send + Sync + 'static,
        totals: impl Fn() -> Totals + Send + Sync + 'static,
    ) {
        let _ = self.source.set(Source { ours: Box::new(ours), totals: Box::new(totals) });
    }

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
        if let Some(Source { ours, .. }) = self.source.get() {
            self.conditions.retain(&**ours);
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Metrics, Totals};
    use std::time::Duration;

    #[test]
    fn o7_metrics_have_the_names_and_labels_that_dashboards_rely_on() {
        let metrics = Metrics::default();
        metrics.reconciled(Duration::from_millis(20), Some("apply"));
        metrics.changed("create_pod", true);
        metrics.count(|_| true, || Totals { scales: 2, pods: 6, nodes: Some(4) });
        let text = metrics.text();
        for line in [
            "ksm_scale_operator_reconcile_duration_seconds_count 1",
            "ksm_scale_operator_reconcile_duration_seconds_bucket{le=\"0.025\"} 1",
            "ksm_scale_operator_reconcile_errors_total{kind=\"apply\"} 1",
            "ksm_scale_operator_changes_total{change=\"create_pod\",result=\"success\"} 1",
            "ksm_scale_operator_nodes 4",
            "ksm_scale_operator_managed_pods 6",
            "ksm_scale_operator_ksmscales 2",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
