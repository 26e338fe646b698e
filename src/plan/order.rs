//! In which order pods change, so that no object goes unexposed on the way.
//!
//! Pods never change in place. A slot without a pod is filled at once. Where a pod that may serve
//! stands in a slot but should be another, its successor is created beside it, one at a time, and
//! it goes when the successor serves. A pod that may serve is deleted only if the pods that then
//! remain serving expose everything it exposes ([`is_redundant`]), and, before that is done, only if
//! they have been seen to ([`super::guard`]). A pod that an audit has condemned is in no slot, so it
//! gets a successor like any other that is not as it should be. Everything is decided from what
//! is observed: an operator that was restarted, a second change halfway and a pod deleted by hand
//! all look like any other state.
//!
//! It always ends: successors are created until every slot holds the pod it should, a complete
//! layout then serves, and beside a complete layout every other pod is redundant.

use crate::{
    coverage::{Slice, is_redundant},
    names,
    observed::{Life, ObservedPod},
    plan::{CreateReason, DeleteReason, PodRef, WaitReason, Waiting, pods::Template, scale::Slot},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;

/// What is to happen to the pods.
#[derive(Debug, Default)]
pub(super) struct PodPlan {
    pub(super) deletes: Vec<(PodRef, DeleteReason)>,
    pub(super) creates: Vec<(Pod, CreateReason)>,
    /// What has to happen before the next step; `None` if nothing is being waited for.
    pub(super) waiting: Option<Waiting>,
    /// Slots without the pod they should hold, serving or not, and pods in no slot. None: settled.
    pub(super) remaining: usize,
    /// Slots whose pod is the one it should be and serves.
    pub(super) serving_slots: usize,
}

/// The times that decide when a pod counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) now: Timestamp,
    /// For how long a pod has to be Ready before it counts as serving.
    pub(super) settle: SignedDuration,
}

/// Plans the pods of one KSMScale: `templates` in order of their index, `pods` as observed.
pub(super) fn order(
    scale: &str,
    templates: &[Template<'_>],
    pods: &[ObservedPod],
    clock: Clock,
    may_create: bool,
) -> PodPlan {
    let mut fleet = Fleet::new(scale, templates, pods, clock);
    fleet.delete_what_serves_nothing();
    fleet.delete_surplus();
    fleet.delete_replaced();
    if may_create {
        fleet.fill_empty_slots();
        fleet.replace_next();
    }
    fleet.finish()
}

struct Fleet<'a> {
    scale: &'a str,
    clock: Clock,
    pods: &'a [ObservedPod],
    slots: Vec<Holding<'a>>,
    /// Pods that are in nobody's slot for good: of another revision, layout or namespace, twice
    /// there, or of an index that is no longer wanted.
    rest: Vec<&'a ObservedPod>,
    /// Pods that serve and that this plan has not deleted.
    serving: Vec<&'a ObservedPod>,
    plan: PodPlan,
}

/// A slot and the pod in it that is as it should be.
struct Holding<'a> {
    template: &'a Template<'a>,
    pod: Option<&'a ObservedPod>,
}

impl<'a> Fleet<'a> {
    fn new(
        scale: &'a str,
        templates: &'a [Template<'a>],
        pods: &'a [ObservedPod],
        clock: Clock,
    ) -> Self {
        let mut rest: Vec<_> = pods.iter().filter(|p| !p.terminating).collect();
        // Of pods that fit one slot, the one that serves longest is kept.
        rest.sort_by_key(|p| {
            (p.life == Life::Finished, p.ready_since.is_none(), p.ready_since, p.created, &p.name)
        });
        // Every pod is compared with every slot, and its revision tells nearly all of them apart.
        let mut rest: Vec<_> = rest.into_iter().map(|pod| (pod.revision(), pod)).collect();
        let slots = templates.iter().map(|template| {
            let fits = |(revision, pod): &(Option<&str>, &ObservedPod)| {
                *revision == Some(&template.revision)
                    && !pod.condemned
                    && pod.life != Life::Finished
                    && template.fits(pod)
            };
            let pod = rest.iter().position(fits).map(|at| rest.remove(at).1);
            Holding { template, pod }
        });
        let slots = slots.collect();
        let rest = rest.into_iter().map(|(_, pod)| pod).collect();
        // What a condemned pod serves is not what its arguments say, so it stands in for nobody.
        let serves = |p: &&ObservedPod| p.is_serving(clock.now, clock.settle) && !p.condemned;
        let serving = pods.iter().filter(serves).collect();
        Self { scale, clock, pods, slots, rest, serving, plan: PodPlan::default() }
    }

    /// Finished pods, and pods that are not wanted and have not started.
    fn delete_what_serves_nothing(&mut self) {
        for pod in self.rest.clone() {
            match pod.life {
                Life::Finished => self.delete(pod, DeleteReason::Finished),
                Life::Pending => self.delete(pod, DeleteReason::NeverServed),
                Life::Running => {}
            }
        }
    }

    /// Pods beyond the last slot, highest index first (R17). Without any slot there is nothing to
    /// cover.
    fn delete_surplus(&mut self) {
        let mut surplus: Vec<_> =
            self.rest.iter().copied().filter(|p| self.slot_of(p).is_none()).collect();
        surplus.sort_by(|a, b| (b.index(), &b.name).cmp(&(a.index(), &a.name)));
        for pod in surplus {
            if self.slots.is_empty() || self.is_redundant(pod) {
                self.delete(pod, DeleteReason::Surplus);
            }
        }
    }

    /// Pods whose successor in the same slot serves.
    fn delete_replaced(&mut self) {
        for pod in self.rest.clone() {
            let successor = self.slot_of(pod).and_then(|slot| slot.pod);
            if let Some(successor) = successor.filter(|s| self.serves(s))
                && self.is_redundant(pod)
            {
                self.delete(pod, DeleteReason::ReplacedBy(successor.name.clone()));
            }
        }
    }

    /// Slots with neither the right pod nor one that may serve, lowest index first (R16, R39).
    fn fill_empty_slots(&mut self) {
        let taken: BTreeSet<u32> = self.rest.iter().filter_map(|pod| pod.index()).collect();
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            if slot.pod.is_none() && !taken.contains(&slot.template.slot.index) {
                self.create(at, CreateReason::Missing);
            }
        }
    }

    /// Creates the successor for one more slot, if nothing else is under way.
    fn replace_next(&mut self) {
        let busy = self.slots.iter().any(|slot| slot.pod.is_some_and(|pod| !self.serves(pod)));
        if busy || !self.plan.creates.is_empty() {
            return;
        }
        // First the shards that only the new layout has: they add the least duplicates and let the
        // most go. Then by index.
        let totals = self.serving.iter().filter_map(|p| p.slice()).map(Slice::total);
        let old = self.slots.first().and_then(|slot| {
            let total = slot.template.slot.total;
            totals.filter(|&other| other != total).max()
        });
        let order = |&at: &usize| {
            let Slot { index, shard, .. } = self.slots[at].template.slot;
            (old.is_none_or(|old| shard < old), index)
        };
        let stale = (0..self.slots.len()).filter(|&at| self.slots[at].pod.is_none());
        if let Some(at) = stale.min_by_key(order) {
            let index = self.slots[at].template.slot.index;
            let predecessor = self.rest.iter().find(|p| p.index() == Some(index));
            let name = predecessor.map(|p| p.name.clone()).unwrap_or_default();
            self.create(at, CreateReason::Replaces(name));
        }
    }

    fn serves(&self, pod: &ObservedPod) -> bool {
        pod.is_serving(self.clock.now, self.clock.settle)
    }

    /// The slot that an unwanted pod stands in.
    fn slot_of(&self, pod: &ObservedPod) -> Option<&Holding<'a>> {
        self.slots.get(usize::try_from(pod.index()?).ok()?)
    }

    /// Whether the pods that serve without this one expose everything it exposes. A pod whose
    /// arguments make no sense may expose anything.
    fn is_redundant(&self, pod: &ObservedPod) -> bool {
        let remaining = self.serving.iter().filter(|p| p.uid != pod.uid);
        let remaining: Vec<Slice> = remaining.filter_map(|p| p.slice()).collect();
        is_redundant(pod.slice().unwrap_or(Slice::ALL), &remaining)
    }

    fn delete(&mut self, pod: &ObservedPod, reason: DeleteReason) {
        self.rest.retain(|p| p.uid != pod.uid);
        self.serving.retain(|p| p.uid != pod.uid);
        self.plan.deletes.push((PodRef::new(pod), reason));
    }

    /// Creates the pod under the first name that is free (R22). If none is, a pod of that name is
    /// on its way out, and its end brings us back here.
    fn create(&mut self, at: usize, reason: CreateReason) {
        let template = self.slots[at].template;
        let index = template.slot.index;
        let namespace = template.namespace();
        let free =
            |name: &String| self.pods.iter().all(|p| p.name != *name || p.namespace != namespace);
        let names = [
            names::pod(self.scale, index),
            names::pod_beside(self.scale, index, &template.revision),
        ];
        if let Some(name) = names.into_iter().find(free) {
            self.plan.creates.push((template.named(name), reason));
        }
    }

    fn finish(mut self) -> PodPlan {
        let held = self.slots.iter().filter_map(|slot| slot.pod);
        self.plan.serving_slots = held.clone().filter(|pod| self.serves(pod)).count();
        let empty = self.slots.iter().filter(|slot| slot.pod.is_none()).count();
        self.plan.remaining = empty + self.rest.len() + self.plan.deletes.len();
        let unready =
            self.slots.iter().find_map(|slot| Some((slot, slot.pod.filter(|p| !self.serves(p))?)));
        self.plan.waiting = match unready {
            Some((slot, pod)) => Some(self.wait_for(slot.template.slot, pod)),
            None => self.rest.iter().find(|p| !self.has_successor_to_come(p)).map(|p| guarded(p)),
        };
        self.plan
    }

    /// A predecessor in a slot that is still to be replaced waits for its turn, not for coverage.
    fn has_successor_to_come(&self, pod: &ObservedPod) -> bool {
        self.slot_of(pod).is_some_and(|slot| slot.pod.is_none())
    }

    fn wait_for(&self, slot: Slot, pod: &ObservedPod) -> Waiting {
        let (reason, cause) = match (&pod.trouble, pod.settles_at(self.clock.settle)) {
            (_, Some(at)) => (WaitReason::PodSettling { until: at }, "to stay Ready".to_owned()),
            (Some(trouble), None) => (WaitReason::PodCannotStart, format!("to start: {trouble}")),
            (None, None) => (WaitReason::PodNotReady, "to become Ready".to_owned()),
        };
        let old: Vec<_> =
            self.rest.iter().filter(|p| p.index() == Some(slot.index)).map(|p| &*p.name).collect();
        let purpose = if old.is_empty() {
            String::new()
        } else {
            format!(", which replaces {},", old.join(", "))
        };
        let what = pod.slice().map_or_else(String::new, |slice| format!(" (shard {slice})"));
        Waiting {
            reason,
            since: pod.created,
            message: format!(
                "waiting for pod {}/{}{what}{purpose} {cause}",
                pod.namespace, pod.name
            ),
        }
    }
}

fn guarded(pod: &ObservedPod) -> Waiting {
    let what = pod.slice().map_or_else(|| "unknown objects".to_owned(), |s| format!("shard {s}"));
    Waiting {
        reason: WaitReason::StillNeeded,
        since: pod.created,
        message: format!(
            "keeping pod {}/{}: the pods that serve without it do not expose all of {what}",
            pod.namespace, pod.name
        ),
    }
}
