//! Metrics of the mounted certificate.

use crate::certificates::Pair;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// The metrics. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    reloads: Family<ResultLabels, Counter>,
    not_after: Gauge,
}

impl Metrics {
    /// Makes them part of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        // Both results are there from the start, so that a rate of failures is 0 and not absent.
        for result in ["success", "failure"] {
            drop(self.reloads.get_or_create(&ResultLabels { result }));
        }
        registry.register(
            "mounted_certificate_reloads",
            "Times that other files were found in the mounted directory, by whether they are served",
            self.reloads.clone(),
        );
        registry.register_with_unit(
            "mounted_certificate_not_after_timestamp",
            "Unix time at which the mounted certificate that is served ends; 0 while there is none",
            Unit::Seconds,
            self.not_after.clone(),
        );
    }

    pub(super) fn served(&self, pair: &Pair) {
        self.reloads.get_or_create(&ResultLabels { result: "success" }).inc();
        self.not_after.set(pair.not_after.as_second());
    }

    pub(super) fn refused(&self) {
        self.reloads.get_or_create(&ResultLabels { result: "failure" }).inc();
    }
}
