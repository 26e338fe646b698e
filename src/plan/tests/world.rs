//! A cluster in memory that does with pods what a control plane does.

use super::{super::*, settings};
use crate::{coverage::is_redundant, observed::Life};

/// Pods and a clock. Starting a pod, its readiness and its end are up to the test.
#[derive(Clone)]
pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) nodes: u32,
    pub(super) pods: Vec<(Pod, ObservedPod)>,
    made: u32,
}

impl World {
    pub(super) fn new(nodes: u32) -> Self {
        Self { now: Timestamp::from_second(1_800_000_000).unwrap(), nodes, pods: vec![], made: 0 }
    }

    pub(super) fn observed(&self) -> Observed {
        let pods = self.pods.iter().map(|(_, pod)| pod.clone()).collect();
        Observed { nodes: self.nodes, pods, ..Default::default() }
    }

    pub(super) fn plan(&self, scale: &Valid<Scale>) -> Plan {
        plan(scale, &self.observed(), self.now, &settings())
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::CreatePod(pod, _) => {
                let mut pod = (**pod).clone();
                self.made += 1;
                pod.metadata.uid = Some(format!("uid-{}", self.made));
                let seen = ObservedPod { created: self.now, ..ObservedPod::new(&pod) };
                let taken = |(_, p): &(Pod, ObservedPod)| {
                    (&p.namespace, &p.name) == (&seen.namespace, &seen.name)
                };
                assert!(!self.pods.iter().any(taken), "{} exists", seen.name);
                self.pods.push((pod, seen));
            }
            Change::DeletePod(pod, _) => self.pods.retain(|(_, p)| p.uid != pod.uid),
            _ => {}
        }
    }

    /// Only the first write of a fresh plan: as if killed right after it.
    pub(super) fn write_once(&mut self, scale: &Valid<Scale>) {
        let plan = self.plan(scale);
        let Some(change) = plan.changes.iter().find(|c| c.group() == Group::Pods) else { return };
        if let Change::DeletePod(pod, _) = change {
            let at = self.pods.iter().position(|(_, p)| p.uid == pod.uid).expect("it is there");
            let (_, gone) = self.pods.remove(at);
            let redundant = is_redundant(gone.slice().expect("a slice"), &self.slices());
            assert!(gone.life == Life::Pending || redundant, "{} was still needed", gone.name);
        } else {
            self.apply(change);
        }
    }

    pub(super) fn make_ready(&mut self, at: usize) {
        let now = self.now;
        if let Some((_, pod)) = self.pods.get_mut(at) {
            pod.life = Life::Running;
            pod.ready_since.get_or_insert(now);
        }
    }

    pub(super) fn tick(&mut self) {
        self.now = self.now.saturating_add(SignedDuration::from_secs(1)).unwrap();
    }

    pub(super) fn slices(&self) -> Vec<Slice> {
        self.pods.iter().filter(|(_, p)| p.is_ready()).filter_map(|(_, p)| p.slice()).collect()
    }

    /// Plans, applies and makes every pod Ready until there is nothing left to do.
    pub(super) fn settle(&mut self, scale: &Valid<Scale>) -> Vec<String> {
        let mut steps = vec![];
        for _ in 0..500 {
            let plan = self.plan(scale);
            if plan.changes.iter().all(|c| c.group() != Group::Pods) && plan.waiting.is_none() {
                return steps;
            }
            for change in &plan.changes {
                if change.group() == Group::Pods {
                    steps.push(change.to_string());
                }
                self.apply(change);
            }
            (0..self.pods.len()).for_each(|at| self.make_ready(at));
            self.tick();
            self.tick();
        }
        panic!("not settled after 500 rounds: {:?}", self.plan(scale));
    }

    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.pods.iter().map(|(_, p)| &*p.name).collect();
        names.sort_unstable();
        names
    }
}
