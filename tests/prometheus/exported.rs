//! What a replica exports, without a cluster: its registries, with everything that is counted by
//! then having happened once.

use ksm_scale_operator::{
    telemetry::{certificate_metrics::CertificateMetrics, metrics::Metrics},
    webhook,
};
use prometheus_client::registry::Registry;
use std::time::Duration;

/// The text of `/metrics`.
pub(crate) fn exported() -> String {
    let (requests, certificates) = (webhook::Metrics::default(), CertificateMetrics::default());
    let metrics = Metrics::with(sharding(), |registry| {
        requests.register(registry);
        certificates.register(registry);
    });
    metrics.reconciled(Duration::ZERO, Some("read"));
    for ok in [true, false] {
        metrics.changed("create_pod", ok);
    }
    metrics.coverage.scraped("whole", 0);
    metrics.coverage.audited("whole");
    metrics.coverage.fault("ghost");
    for certificate in ["ca", "leaf"] {
        certificates.not_after(certificate, jiff::Timestamp::UNIX_EPOCH);
    }
    certificates.phase("steady", ["steady"]);
    metrics.text()
}

fn sharding() -> Registry {
    let mut registry = Registry::default();
    let url = "http://localhost".parse().expect("a URL");
    let [name, namespace, uid] = ["a", "b", "c"].map(str::to_owned);
    let pod = lease_sharding::Pod { name, namespace, uid };
    drop(
        lease_sharding::Sharding::builder(kube::Config::new(url), "ring", pod)
            .metrics(&mut registry),
    );
    registry
}
