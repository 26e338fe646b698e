//! Looks at what pods serve: how many, what they cost and what they found.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FaultLabels {
    fault: &'static str,
}

/// Counts of looks. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct CoverageMetrics {
    scrapes: Family<ResultLabels, Counter>,
    bytes: Counter,
    held_back: Counter,
    at_risk: Counter,
    audits: Family<ResultLabels, Counter>,
    faults: Family<FaultLabels, Counter>,
}

impl CoverageMetrics {
    /// Makes them part of what is scraped.
    pub(super) fn register(&self, registry: &mut Registry) {
        let Self { scrapes, bytes, held_back, at_risk, audits, faults } = self.clone();
        registry.register("pod_scrapes", "Scrapes of pods, by how they ended", scrapes);
        registry.register_with_unit(
            "pod_scrape",
            "What scrapes of pods have read",
            Unit::Bytes,
            bytes,
        );
        registry.register(
            "deletes_held_back",
            "Deletes of pods that were put off, since no other pod was seen to serve their series",
            held_back,
        );
        registry.register(
            "series_at_risk",
            "Series that deletes which were put off would have lost, counted at each try",
            at_risk,
        );
        registry.register(
            "audits",
            "Comparisons of what pods expose with the nodes of the cluster, by what they found",
            audits,
        );
        registry.register("audit_faults", "Pods that an audit found at fault, by kind", faults);
    }

    /// One scrape of a pod, and the bytes that were read.
    pub fn scraped(&self, result: &'static str, bytes: u64) {
        self.scrapes.get_or_create(&ResultLabels { result }).inc();
        self.bytes.inc_by(bytes);
    }

    /// One delete that was put off, and the series it would have lost.
    pub fn held_back(&self, series: usize) {
        self.held_back.inc();
        self.at_risk.inc_by(series as u64);
    }

    /// One audit.
    pub fn audited(&self, result: &'static str) {
        self.audits.get_or_create(&ResultLabels { result }).inc();
    }

    /// One pod with a fault of this kind.
    pub fn fault(&self, fault: &'static str) {
        self.faults.get_or_create(&FaultLabels { fault }).inc();
    }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn v4_looks_are_told_under_the_names_that_dashboards_rely_on() {
        let metrics = Metrics::default();
        metrics.coverage.scraped("whole", 1_000);
        metrics.coverage.held_back(12);
        metrics.coverage.audited("complete");
        metrics.coverage.fault("ghost");
        let text = metrics.text();
        for line in [
            "pod_scrapes_total{result=\"whole\"} 1",
            "pod_scrape_bytes_total 1000",
            "deletes_held_back_total 1",
            "series_at_risk_total 12",
            "audits_total{result=\"complete\"} 1",
            "audit_faults_total{fault=\"ghost\"} 1",
        ] {
            let line = format!("ksm_scale_operator_{line}");
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
