//! Metrics of the certificate that the webhook serves, and of the CA behind it. A failing API
//! server leaves them as they are.

use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CertificateLabels {
    certificate: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

/// Metrics of certificates. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct CertificateMetrics {
    not_after: Family<CertificateLabels, Gauge>,
    renewals: Family<ResultLabels, Counter>,
    in_sync: Gauge,
    phase: Family<PhaseLabels, Gauge>,
}

impl CertificateMetrics {
    /// Makes them part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        let Self { not_after, renewals, in_sync, phase } = self.clone();
        // Both are there from the start, so that a rate of failures is 0 and not absent.
        for result in ["success", "failure"] {
            drop(renewals.get_or_create(&ResultLabels { result }));
        }
        registry.register_with_unit(
            "webhook_certificate_not_after_timestamp",
            "End of a certificate's life, in Unix time",
            Unit::Seconds,
            not_after,
        );
        registry.register(
            "webhook_certificate_renewals",
            "Certificates that were made or found in the mounted folder, by whether they are served",
            renewals,
        );
        registry.register(
            "webhook_ca_bundle_in_sync",
            "Whether every caBundle verifies what is served (1), as last seen",
            in_sync,
        );
        registry.register("webhook_ca_rotation_phase", "Phase of the CA's rotation", phase);
    }

    /// The end of what is served (`leaf`) or of the CA that signs (`ca`).
    pub fn not_after(&self, certificate: &'static str, end: Timestamp) {
        self.not_after.get_or_create(&CertificateLabels { certificate }).set(end.as_second());
    }

    /// A leaf or a CA was made, or could not be.
    pub fn renewed(&self, ok: bool) {
        let result = if ok { "success" } else { "failure" };
        self.renewals.get_or_create(&ResultLabels { result }).inc();
    }

    /// Whether every `caBundle` verifies what is served.
    pub fn in_sync(&self, yes: bool) {
        self.in_sync.set(yes.into());
    }

    /// The one phase of `all` in which the rotation is.
    pub fn phase(&self, now: &'static str, all: impl IntoIterator<Item = &'static str>) {
        for phase in all {
            self.phase.get_or_create(&PhaseLabels { phase }).set((phase == now).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn o7_certificates_have_the_metrics_that_alerts_rely_on() {
        let (metrics, mut registry) = (CertificateMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        metrics.not_after("leaf", Timestamp::from_second(1_800_000_000).unwrap());
        metrics.renewed(true);
        metrics.in_sync(true);
        metrics.phase("soak", ["steady", "soak"]);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "webhook_certificate_not_after_timestamp_seconds{certificate=\"leaf\"} 1800000000",
            "webhook_certificate_renewals_total{result=\"success\"} 1",
            "webhook_ca_bundle_in_sync 1",
            "webhook_ca_rotation_phase{phase=\"soak\"} 1",
            "webhook_ca_rotation_phase{phase=\"steady\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
