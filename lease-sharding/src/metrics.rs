//! Metrics: those of `operator-scaling` under their names, and those of the protocol.

use crate::{
    clock::Clock,
    protocol::{MemberName, Millis},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ChangeLabels {
    event_type: &'static str,
}

/// The metrics of one ring. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    members: Gauge,
    members_added: Counter,
    members_removed: Counter,
    changes: Family<ChangeLabels, Counter>,
    relocated: Counter,
    last_relocated: Gauge,
    last_relocated_percent: Gauge<f64, AtomicU64>,
    partitions: Gauge,
    pub(crate) heartbeats: Counter,
    pub(crate) heartbeat_failures: Counter,
    pub(crate) claimed: Gauge,
    pub(crate) owned: Gauge,
    pub(crate) fences: Counter,
    pub(crate) tombstones: Counter,
    echo: Histogram,
    handover: Histogram,
    renewed: LeaseAge,
}

impl Metrics {
    /// Metrics that nobody reads yet.
    pub(crate) fn new(clock: Clock) -> Self {
        // From a near API server to a crash: 15 s and more is the time that a death takes.
        let buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0];
        Self {
            members: Gauge::default(),
            members_added: Counter::default(),
            members_removed: Counter::default(),
            changes: Family::default(),
            relocated: Counter::default(),
            last_relocated: Gauge::default(),
            last_relocated_percent: Gauge::default(),
            partitions: Gauge::default(),
            heartbeats: Counter::default(),
            heartbeat_failures: Counter::default(),
            claimed: Gauge::default(),
            owned: Gauge::default(),
            fences: Counter::default(),
            tombstones: Counter::default(),
            echo: Histogram::new(buckets),
            handover: Histogram::new(buckets),
            renewed: LeaseAge { at: Arc::default(), clock },
        }
    }

    /// Adds them to a registry, whose prefix should be empty: the names begin with `sharding_`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        for event_type in ["member_added", "member_removed"] {
            drop(m.changes.get_or_create(&ChangeLabels { event_type }));
        }
        let r = registry.sub_registry_with_prefix("sharding");
        r.register("ring_member_count", "Members among whom partitions are placed", m.members);
        r.register("ring_members_added", "Members that came", m.members_added);
        r.register("ring_members_removed", "Members that went", m.members_removed);
        r.register("ring_change_events", "Members that came or went", m.changes);
        r.register("partitions_relocated", "Partitions placed elsewhere than before", m.relocated);
        r.register(
            "last_partitions_relocated",
            "Partitions placed elsewhere by the last change of members",
            m.last_relocated,
        );
        r.register(
            "last_partitions_relocated_percent",
            "The same in percent of all partitions",
            m.last_relocated_percent,
        );
        r.register("partitions", "All partitions, whoever owns them", m.partitions);
        r.register("lease_heartbeats", "Writes of the own Lease that were made", m.heartbeats);
        r.register(
            "lease_heartbeat_failures",
            "Writes of the own Lease that were refused or not answered",
            m.heartbeat_failures,
        );
        r.register("claimed_partitions", "Partitions that the own Lease claims", m.claimed);
        r.register("owned_partitions", "Partitions that this replica may act on", m.owned);
        r.register("fences", "Times that renewals did not arrive for the fence time", m.fences);
        r.register("tombstones", "Dead members whose claims this replica took away", m.tombstones);
        r.register_with_unit(
            "echo",
            "From sending a new claim to seeing it in the watch",
            Unit::Seconds,
            m.echo,
        );
        r.register_with_unit(
            "handover",
            "From being given partitions to acting on them",
            Unit::Seconds,
            m.handover,
        );
        r.register_collector(Box::new(m.renewed));
    }

    /// The clock by which the Lease's age is told.
    pub(crate) fn clock(&self) -> &Clock {
        &self.renewed.clock
    }

    /// Members changed from one set to another, which moved so many of all partitions.
    pub(crate) fn placed(
        &self,
        before: &BTreeSet<MemberName>,
        now: &BTreeSet<MemberName>,
        (moved, all): (u32, u32),
    ) {
        let added = now.difference(before).count() as u64;
        let removed = before.difference(now).count() as u64;
        self.members.set(i64::try_from(now.len()).unwrap_or(i64::MAX));
        for (count, counter, event_type) in [
            (added, &self.members_added, "member_added"),
            (removed, &self.members_removed, "member_removed"),
        ] {
            counter.inc_by(count);
            self.changes.get_or_create(&ChangeLabels { event_type }).inc_by(count);
        }
        self.partitions.set(all.into());
        self.relocated.inc_by(moved.into());
        self.last_relocated.set(moved.into());
        self.last_relocated_percent.set(100.0 * f64::from(moved) / f64::from(all.max(1)));
    }

    /// The own Lease was written. `sent` is when, on the steady clock.
    pub(crate) fn renewed(&self, sent: Millis) {
        self.heartbeats.inc();
        self.renewed.at.store(sent, Ordering::Relaxed);
    }

    /// A claim was seen so long after it was sent.
    pub(crate) fn echoed(&self, took: Millis) {
        self.echo.observe(seconds(took));
    }

    /// Partitions were gained so long after they were wanted.
    pub(crate) fn handed_over(&self, took: Millis) {
        self.handover.observe(seconds(took));
    }
}

#[expect(clippy::cast_precision_loss, reason = "times are far from 2^52 ms")]
fn seconds(time: Millis) -> f64 {
    time as f64 / 1_000.0
}

/// How old the newest acknowledged renewal is, asked at each scrape: it also grows while nothing
/// runs that could set a gauge.
#[derive(Clone, Debug)]
struct LeaseAge {
    /// On the steady clock; 0 before the first.
    at: Arc<AtomicU64>,
    clock: Clock,
}

impl Collector for LeaseAge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Time since the newest acknowledged renewal of the own Lease was sent";
        let unit = Unit::Seconds;
        let sample =
            encoder.encode_descriptor("lease_age", help, Some(&unit), MetricType::Gauge)?;
        let at = self.at.load(Ordering::Relaxed);
        if at == 0 {
            return Ok(());
        }
        ConstGauge::new(seconds(self.clock.now().steady.saturating_sub(at))).encode(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Now;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn s5_metrics_have_the_names_that_dashboards_rely_on() {
        let metrics = Metrics::new(Clock::new(|| Now { steady: 5_500, wall: 0 }));
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let set = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        metrics.placed(&set(&[]), &set(&["a", "b"]), (0, 8));
        metrics.placed(&set(&["a", "b"]), &set(&["a", "c"]), (2, 8));
        metrics.renewed(4_000);
        metrics.heartbeat_failures.inc();
        metrics.echoed(20);
        metrics.handed_over(20);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "sharding_ring_member_count 2",
            "sharding_ring_members_added_total 3",
            "sharding_ring_members_removed_total 1",
            "sharding_ring_change_events_total{event_type=\"member_added\"} 3",
            "sharding_ring_change_events_total{event_type=\"member_removed\"} 1",
            "sharding_partitions_relocated_total 2",
            "sharding_last_partitions_relocated 2",
            "sharding_last_partitions_relocated_percent 25.0",
            "sharding_partitions 8",
            "sharding_lease_heartbeats_total 1",
            "sharding_lease_heartbeat_failures_total 1",
            "sharding_claimed_partitions 0",
            "sharding_owned_partitions 0",
            "sharding_fences_total 0",
            "sharding_tombstones_total 0",
            "sharding_echo_seconds_count 1",
            "sharding_handover_seconds_count 1",
            "sharding_lease_age_seconds 1.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
