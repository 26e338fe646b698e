//! Metrics of the webhook. Labels come from enums and tables, never from a request's texts.

use super::{connections::End, tls};
use crate::{
    admission::{Answer, Endpoint, Verdict},
    rules::RULES,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    operation: &'static str,
    verdict: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RuleLabels {
    rule: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// The webhook's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histogram,
    in_flight: Gauge,
    body_bytes: Counter,
    denials: Family<RuleLabels, Counter>,
    warnings: Family<RuleLabels, Counter>,
    panics: Counter,
    retry_after: Counter,
    handshakes: Counter,
    handshake_failures: Family<ReasonLabels, Counter>,
    pub(super) connections: Gauge,
    ended: Family<ReasonLabels, Counter>,
    client_ca_reloads: Family<ResultLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a review without an object to one that asks a slow API server for the requester's
        // rights, and to the longest time that the API server waits for any webhook.
        let buckets = [
            0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
            0.05, 0.1, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0,
        ];
        Self {
            requests: Family::default(),
            duration: Histogram::new(buckets),
            in_flight: Gauge::default(),
            body_bytes: Counter::default(),
            denials: Family::default(),
            warnings: Family::default(),
            panics: Counter::default(),
            retry_after: Counter::default(),
            handshakes: Counter::default(),
            handshake_failures: Family::default(),
            connections: Gauge::default(),
            ended: Family::default(),
            client_ca_reloads: Family::default(),
        }
    }
}

/// A request from its header to its answer, or to the end of its connection.
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Makes them part of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        self.begin();
        let registry = registry.sub_registry_with_prefix("webhook");
        let m = self.clone();
        registry.register(
            "requests",
            "Requests, by webhook, operation, verdict and HTTP status",
            m.requests,
        );
        registry.register_with_unit(
            "request_duration",
            "Time from the header of a request to its answer",
            Unit::Seconds,
            m.duration,
        );
        registry.register("requests_in_flight", "Requests that have no answer yet", m.in_flight);
        registry.register_with_unit(
            "request_body",
            "Size of all bodies",
            Unit::Bytes,
            m.body_bytes,
        );
        registry.register("denials", "Rules by which requests were refused", m.denials);
        registry.register("warnings", "Warnings given, by rule", m.warnings);
        registry.register("panics", "Requests whose handling panicked", m.panics);
        registry.register(
            "retry_after",
            "Answers that ask the API server to try again",
            m.retry_after,
        );
        registry.register("tls_handshakes", "TLS handshakes that succeeded", m.handshakes);
        registry.register(
            "tls_handshake_failures",
            "TLS handshakes that failed, by cause",
            m.handshake_failures,
        );
        registry.register("connections", "Open connections", m.connections);
        registry.register(
            "connections_ended",
            "Connections that the server has broken off, by cause",
            m.ended,
        );
        registry.register(
            "client_ca_reloads",
            "Changes of the file with client CAs, by whether it could be used",
            m.client_ca_reloads,
        );
    }

    /// What is rare is there from the start: the first of its kind is then an increase, which
    /// PromQL does not see in a series that begins with 1.
    fn begin(&self) {
        for endpoint in Endpoint::ALL.map(Endpoint::as_str) {
            for (operation, verdict, code) in [
                ("CREATE", Verdict::Allowed, 200),
                ("CREATE", Verdict::Denied, 200),
                ("UPDATE", Verdict::Allowed, 200),
                ("UPDATE", Verdict::Denied, 200),
                ("", Verdict::BadRequest, 400),
                ("", Verdict::Failed, 500),
                ("", Verdict::Failed, 503),
            ] {
                let verdict = verdict.as_str();
                let labels = RequestLabels { endpoint, operation, verdict, code };
                drop(self.requests.get_or_create(&labels));
            }
        }
        for rule in RULES.iter().map(|rule| rule.id) {
            drop(self.denials.get_or_create(&RuleLabels { rule }));
            drop(self.warnings.get_or_create(&RuleLabels { rule }));
        }
        for reason in tls::FAILURES {
            drop(self.handshake_failures.get_or_create(&ReasonLabels { reason }));
        }
        for reason in End::ALL.map(End::as_str) {
            drop(self.ended.get_or_create(&ReasonLabels { reason }));
        }
        for result in ["success", "failure"] {
            drop(self.client_ca_reloads.get_or_create(&ResultLabels { result }));
        }
    }

    /// A request has come. It is in flight until the value is dropped.
    pub(super) fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub(super) fn read(&self, body: usize) {
        self.body_bytes.inc_by(u64::try_from(body).unwrap_or(u64::MAX));
    }

    /// A request at `endpoint` was answered `took` after it came.
    pub(super) fn answered(&self, endpoint: Option<Endpoint>, answer: &Answer, took: Duration) {
        let record = &answer.record;
        let labels = RequestLabels {
            endpoint: endpoint.map_or("none", Endpoint::as_str),
            operation: record.operation,
            verdict: record.verdict.as_str(),
            code: answer.status,
        };
        self.requests.get_or_create(&labels).inc();
        self.duration.observe(took.as_secs_f64());
        for &rule in &record.rules {
            self.denials.get_or_create(&RuleLabels { rule }).inc();
        }
        for &rule in &record.warnings {
            self.warnings.get_or_create(&RuleLabels { rule }).inc();
        }
        if answer.retry_after.is_some() {
            self.retry_after.inc();
        }
    }

    pub(super) fn panicked(&self) {
        self.panics.inc();
    }

    pub(super) fn shook_hands(&self) {
        self.handshakes.inc();
    }

    pub(super) fn handshake_failed(&self, reason: &'static str) {
        self.handshake_failures.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(super) fn ended(&self, why: End) {
        self.ended.get_or_create(&ReasonLabels { reason: why.as_str() }).inc();
    }

    pub(super) fn client_ca_reloaded(&self, ok: bool) {
        let result = if ok { "success" } else { "failure" };
        self.client_ca_reloads.get_or_create(&ResultLabels { result }).inc();
    }
}
