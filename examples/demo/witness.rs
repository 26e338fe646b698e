//! An independent witness: it follows the pods, and at each of their changes works out which
//! objects the Ready ones expose, by hashing UIDs as kube-state-metrics does. It knows nothing of
//! the operator's plans.

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use ksm_scale_operator::{
    coverage::{Slice, shard_of},
    names::LABEL_SCALE,
    observed::ObservedPod,
};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use std::{collections::BTreeMap, fmt, time::Instant};
use tokio::{sync::mpsc, task::JoinHandle};

/// So many made-up objects stand for those of a cluster.
pub const OBJECTS: u16 = 2_000;

/// Where the pods of one KSMScale are, after one of them changed.
#[derive(Clone, Debug)]
pub struct Moment {
    at: Instant,
    scale: String,
    pod: String,
    slice: Option<Slice>,
    stage: Stage,
    ready: usize,
    /// Objects that at least one Ready pod exposes.
    covered: u16,
    /// Exposures beyond the first of each object.
    duplicates: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Created,
    Ready,
    NotReady,
    Deleting,
    Gone,
}

/// What was seen between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub changes: usize,
    pub least_covered: f64,
    pub most_duplicated: f64,
}

pub struct Witness {
    moments: mpsc::UnboundedReceiver<Moment>,
    task: JoinHandle<()>,
}

impl Witness {
    /// Follows every pod of every KSMScale from now on.
    pub fn start(client: Client) -> Self {
        let (sender, moments) = mpsc::unbounded_channel();
        let pods = Api::<Pod>::all(client);
        let config = watcher::Config::default().labels(LABEL_SCALE);
        let task = tokio::spawn(async move {
            let mut known = Known { pods: BTreeMap::new(), uids: uids() };
            // Interrupted watches are restored by the backoff, so the stream has no end.
            let _ = watcher(pods, config)
                .default_backoff()
                .try_for_each(|event| {
                    if let Some(moment) = known.take(event) {
                        let _ = sender.send(moment);
                    }
                    std::future::ready(Ok(()))
                })
                .await;
        });
        Self { moments, task }
    }

    /// Does `work`, tells `show` about every moment of `scale` meanwhile, and sums them up.
    pub async fn during<T>(
        &mut self,
        scale: &str,
        mut show: impl FnMut(&str),
        work: impl Future<Output = Result<T>>,
    ) -> Result<(T, Summary)> {
        while self.moments.try_recv().is_ok() {}
        let begun = Instant::now();
        let mut summary = Summary { changes: 0, least_covered: 100.0, most_duplicated: 0.0 };
        let mut take = |moment: &Moment| {
            if moment.scale == scale {
                summary.add(moment);
                show(&moment.line(begun));
            }
        };
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                biased;
                moment = self.moments.recv() => take(&moment.context("the witness ended")?),
                done = &mut work => break done?,
            }
        };
        while let Ok(moment) = self.moments.try_recv() {
            take(&moment);
        }
        Ok((done, summary))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Known {
    pods: BTreeMap<String, (Stage, ObservedPod)>,
    uids: Vec<String>,
}

impl Known {
    fn take(&mut self, event: watcher::Event<Pod>) -> Option<Moment> {
        let (pod, gone) = match event {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => (pod, false),
            watcher::Event::Delete(pod) => (pod, true),
            watcher::Event::Init | watcher::Event::InitDone => return None,
        };
        let pod = ObservedPod::new(&pod);
        let before = self.pods.get(&pod.uid).map(|(stage, _)| *stage);
        let stage = match before {
            _ if gone => Stage::Gone,
            _ if pod.terminating => Stage::Deleting,
            _ if pod.is_ready() => Stage::Ready,
            None | Some(Stage::Created) => Stage::Created,
            Some(_) => Stage::NotReady,
        };
        if gone {
            self.pods.remove(&pod.uid);
        } else {
            self.pods.insert(pod.uid.clone(), (stage, pod.clone()));
        }
        (before != Some(stage)).then(|| self.moment(&pod, stage))
    }

    fn moment(&self, pod: &ObservedPod, stage: Stage) -> Moment {
        let scale = pod.labels.get(LABEL_SCALE).cloned().unwrap_or_default();
        let ready = self
            .pods
            .values()
            .filter(|(_, other)| other.is_ready() && other.labels.get(LABEL_SCALE) == Some(&scale));
        let slices: Vec<_> = ready.filter_map(|(_, other)| other.slice()).collect();
        let (mut covered, mut duplicates) = (0, 0);
        for uid in &self.uids {
            let exposes = |s: &&Slice| shard_of(uid, s.total()) == s.ordinal();
            let times = slices.iter().filter(exposes).map(|_| 1).sum::<u32>();
            covered += u16::from(times > 0);
            duplicates += times.saturating_sub(1);
        }
        Moment {
            at: Instant::now(),
            pod: pod.name.clone(),
            slice: pod.slice(),
            ready: slices.len(),
            scale,
            stage,
            covered,
            duplicates,
        }
    }
}

impl Moment {
    fn covered(&self) -> f64 {
        100.0 * f64::from(self.covered) / f64::from(OBJECTS)
    }

    fn duplicated(&self) -> f64 {
        100.0 * f64::from(self.duplicates) / f64::from(OBJECTS)
    }

    fn line(&self, begun: Instant) -> String {
        let after = self.at.saturating_duration_since(begun).as_secs_f64();
        let prefix = format!("kube-state-metrics-{}-", self.scale);
        let pod = self.pod.strip_prefix(&prefix).unwrap_or(&self.pod);
        let slice = self.slice.map(|s| s.to_string()).unwrap_or_default();
        format!(
            "+{after:5.1} s  pod {pod:8} (shard {slice:>4}) {:9} {} Ready: {:5.1} % covered, {:5.1} % duplicated",
            self.stage.to_string(),
            self.ready,
            self.covered(),
            self.duplicated(),
        )
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Ready => "Ready",
            Self::NotReady => "not Ready",
            Self::Deleting => "deleting",
            Self::Gone => "gone",
        })
    }
}

impl Summary {
    fn add(&mut self, moment: &Moment) {
        self.changes += 1;
        self.least_covered = self.least_covered.min(moment.covered());
        self.most_duplicated = self.most_duplicated.max(moment.duplicated());
    }

    /// An error if an object was ever exposed by nobody, or if nothing changed: then nothing is
    /// proven.
    pub fn without_gap(self) -> Result<Self> {
        anyhow::ensure!(self.changes > 0, "no pod changed, so nothing was shown");
        anyhow::ensure!(self.least_covered >= 100.0, "coverage fell: {self}");
        Ok(self)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} changes of pods; of {OBJECTS} objects never fewer than {:.1} % covered, at most {:.1} % duplicated",
            self.changes, self.least_covered, self.most_duplicated
        )
    }
}

/// UIDs in no particular order, the same in every run.
fn uids() -> Vec<String> {
    (0..u32::from(OBJECTS))
        .map(|i| format!("{:08x}-0000-4000-8000-{i:012x}", i.wrapping_mul(2_654_435_761)))
        .collect()
}
