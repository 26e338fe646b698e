//! Probes of a container.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::probe::http_get;

/// What the probes of a container have found since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) started: bool,
    pub(super) ready: bool,
    pub(super) alive: bool,
}

/// Counts answers in a row.
#[derive(Debug, Clone, Copy)]
struct Streak {
    successes: u32,
    failures: u32,
    /// In a row, and neither is 0.
    needed: (u32, u32),
}

impl Streak {
    fn new(probe: &Probe) -> Self {
        let count =
            |set: Option<i32>, default| set.and_then(|n| n.try_into().ok()).unwrap_or(default);
        let needed = (count(probe.success_threshold, 1), count(probe.failure_threshold, 3));
        Self { successes: 0, failures: 0, needed }
    }

    /// Takes an answer in, and says what is true now if it was enough of them.
    fn add(&mut self, success: bool) -> Option<bool> {
        (self.successes, self.failures) =
            if success { (self.successes + 1, 0) } else { (0, self.failures + 1) };
        if self.successes >= self.needed.0 {
            Some(true)
        } else {
            (self.failures >= self.needed.1).then_some(false)
        }
    }
}

/// The probes of one run of a container. They stop when dropped.
pub(super) struct Probes {
    pub(super) health: watch::Receiver<Health>,
    _tasks: JoinSet<()>,
}

impl Probes {
    /// Starts the probes of a container that was just started.
    pub(super) fn start(container: &Container, ip: &str, pace: u32) -> Self {
        let startup = container.startup_probe.clone();
        let (readiness, liveness) = (&container.readiness_probe, &container.liveness_probe);
        let (sender, health) = watch::channel(Health {
            started: startup.is_none(),
            ready: startup.is_none() && readiness.is_none(),
            alive: true,
        });
        let mut tasks = JoinSet::new();
        for (probe, kind) in [
            (&startup, Kind::Startup { then_ready: readiness.is_none() }),
            (readiness, Kind::Readiness),
            (liveness, Kind::Liveness),
        ] {
            if let Some(target) = probe.as_ref().and_then(|probe| Target::of(probe, container, ip))
            {
                tasks.spawn(target.probe(kind, pace, sender.clone()));
            }
        }
        Self { health, _tasks: tasks }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Startup { then_ready: bool },
    Readiness,
    Liveness,
}

struct Target {
    probe: Probe,
    address: String,
    path: String,
}

impl Target {
    /// Other probes than HTTP have no target, and so never fail.
    fn of(probe: &Probe, container: &Container, ip: &str) -> Option<Self> {
        let get = probe.http_get.as_ref()?;
        let port = match &get.port {
            IntOrString::Int(port) => *port,
            IntOrString::String(name) => {
                let mut ports = container.ports.iter().flatten();
                ports.find(|port| port.name.as_deref() == Some(name))?.container_port
            }
        };
        let path = get.path.clone().unwrap_or_else(|| "/".to_owned());
        Some(Self { probe: probe.clone(), address: format!("{ip}:{port}"), path })
    }

    async fn probe(self, kind: Kind, pace: u32, health: watch::Sender<Health>) {
        let seconds = |set: Option<i32>, default: u64| {
            Duration::from_secs(set.and_then(|n| n.try_into().ok()).unwrap_or(default))
        };
        if !matches!(kind, Kind::Startup { .. }) {
            let mut started = health.subscribe();
            // The sender is here, so that the channel is open.
            let _ = started.wait_for(|health| health.started).await;
        }
        tokio::time::sleep(seconds(self.probe.initial_delay_seconds, 0) / pace).await;
        let timeout = seconds(self.probe.timeout_seconds, 1);
        let mut ticks = tokio::time::interval(seconds(self.probe.period_seconds, 10) / pace);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut streak = Streak::new(&self.probe);
        loop {
            ticks.tick().await;
            let answer = tokio::time::timeout(timeout, http_get(&self.address, &self.path)).await;
            let success = matches!(answer, Ok(Ok((200..400, _))));
            let Some(verdict) = streak.add(success) else { continue };
            health.send_if_modified(|health| apply(kind, verdict, health));
            if verdict && matches!(kind, Kind::Startup { .. }) {
                return;
            }
        }
    }
}

/// Whether the verdict of a probe changes anything.
fn apply(kind: Kind, verdict: bool, health: &mut Health) -> bool {
    let before = *health;
    match kind {
        Kind::Startup { then_ready } if verdict => {
            health.started = true;
            health.ready = then_ready;
        }
        Kind::Startup { .. } | Kind::Liveness => health.alive = verdict,
        Kind::Readiness => health.ready = verdict,
    }
    *health != before
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_verdict_needs_as_many_answers_in_a_row_as_the_probe_says() {
        let probe = json!({ "successThreshold": 2, "failureThreshold": 3 });
        let mut streak = Streak::new(&serde_json::from_value(probe).unwrap());
        let verdicts = [true, true, false, true, false, false, false, true, true];
        let verdicts = verdicts.map(|success| streak.add(success));
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(verdicts, [None, yes, None, None, None, None, no, None, yes]);
    }
}
