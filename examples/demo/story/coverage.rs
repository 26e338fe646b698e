//! The steps in which it is looked at what pods serve: a change that waits for content, and an
//! audit that finds a fault.

use super::{SHARDED, follow, has_shards};
use crate::{
    report::Report,
    stage::{SOON, Sight, Stage},
};
use anyhow::{Context as _, Result, ensure};
use devcluster::{Sampler, eventually, kube_state_metrics::Faults, sampler::Kind};
use k8s_openapi::api::core::v1::Node;
use ksm_scale_operator::{coverage::shard_of, names::LABEL_SCALE};
use kube::{Api, ResourceExt as _};
use std::time::Duration;

use crate::machines::MACHINE;

/// Milliseconds for which new pods are Ready and serve nothing.
const LATE: u64 = 4_000;

pub async fn guarded_change(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "From 3 to 5 shards; new pods are Ready at once, and serve nothing for 4 s",
        "5 pods, one for each shard; the status says what would be lost, and the pod stays until\n\
         nothing would; coverage, computed at every change of a pod by hashing UIDs as\n\
         kube-state-metrics does, never below 100 %; an observer that scrapes all pods twenty\n\
         times a second finds every node, namespace, Secret and ConfigMap in every sample",
    );
    stage.machine.list_late(LATE);
    let sampler = sampler(stage).await?;
    let patch = r#"{"spec":{"sharding":{"shardCount":5}}}"#;
    let patch = format!("patch ksmscale {SHARDED} --type=merge -p '{patch}'");
    let work = async {
        stage.kubectl(report, &patch).await?;
        let mut told = Waits::default();
        let sight = stage.until(SHARDED, |sight| {
            told.tell(report, sight);
            sight.is_ready_with(4, 5) && has_shards(sight, 5)
        });
        Ok((sight.await?, told.losses))
    };
    let ((sight, losses), summary) = follow(report, stage, SHARDED, work).await?;
    stage.machine.list_late(0);
    let summary = summary.without_gap()?;
    ensure!(losses > 0, "the status never said that series would be lost");
    let history = sampler.history();
    let worst = history.worst().context("no samples")?;
    ensure!(worst.missing.is_empty(), "missing in a sample: {:?}", worst.missing);
    report.passed(&format!(
        "{sight}; 5 shards with 1 pod each\n{summary}\n\
         {} samples of {} objects: 0 missing in any of them, at most {} exposed twice",
        history.samples().len(),
        worst.expected,
        history.most_duplicated(),
    ));
    Ok(())
}

/// What a change waits for, each thing once.
#[derive(Default)]
struct Waits {
    last: Option<String>,
    losses: usize,
}

impl Waits {
    fn tell(&mut self, report: &Report, sight: &Sight) {
        let Some(change) = &sight.status.change else { return };
        if change.waiting_for == self.last {
            return;
        }
        self.last.clone_from(&change.waiting_for);
        if let Some(waiting) = &self.last {
            self.losses += usize::from(waiting.contains("served by no other pod"));
            report.note(&format!("step {} of {}: {waiting}", change.step, change.of));
        }
    }
}

/// Of the sharded KSMScale's pods alone, once they expose everything.
async fn sampler(stage: &Stage) -> Result<Sampler> {
    let kinds = [Kind::Node, Kind::Namespace, Kind::ConfigMap, Kind::Secret];
    let selector = format!("{LABEL_SCALE}={SHARDED}");
    let slack = Duration::from_secs(3);
    let sampler = Sampler::start(stage.client.clone(), &selector, &kinds, slack).await?;
    let whole = eventually("everything is exposed", SOON, async || {
        let history = sampler.history();
        let last = history.samples().last()?;
        (last.expected > 4 && last.missing.is_empty()).then_some(())
    });
    whole.await?;
    sampler.reset();
    Ok(sampler)
}

pub async fn audit(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "A pod loses its nodes: a fault, put into the process of one shard",
        "the pod stays Ready; an audit (every 4 s here, 60 s by default) names pod and nodes, in the\n\
         status and as an Event; after three in a row the pod is replaced, and all is well again",
    );
    let pod = exposing_machine(stage).await?;
    let faults = Faults { truncated: [("nodes".to_owned(), 0)].into(), ..Faults::default() };
    stage.machine.set(&pod, &faults)?;
    report.note(&format!("{pod} serves no nodes any more"));
    let complete = |sight: &Sight, wanted: &str| {
        let mut conditions = sight.status.conditions.iter();
        conditions.any(|c| c.type_ == "CoverageComplete" && c.status == wanted)
    };
    let sight = stage.until(SHARDED, |sight| complete(sight, "False")).await?;
    let conditions = sight.status.conditions.iter();
    let found = conditions.filter(|c| c.type_ == "CoverageComplete").map(|c| c.message.clone());
    let found = found.collect::<String>();
    ensure!(found.contains(&pod) && found.contains(MACHINE), "it says: {found}");
    report.note(&found);
    let healed = |sight: &Sight| {
        !sight.ready.contains(&pod) && complete(sight, "True") && sight.is_ready_with(4, 5)
    };
    let sight = stage.until(SHARDED, healed).await?;
    let events = "get events --field-selector involvedObject.name=test-sharded-ksm,reason=NodesMissing \
                  -o custom-columns=TYPE:.type,REASON:.reason,NOTE:.message";
    stage.kubectl(report, events).await?;
    report.passed(&format!("{pod} was found at fault and replaced\n{sight}"));
    Ok(())
}

/// The pod of the shard to which the machine belongs.
async fn exposing_machine(stage: &Stage) -> Result<String> {
    let machine = Api::<Node>::all(stage.client.clone()).get(MACHINE).await?;
    let shard = shard_of(&machine.uid().unwrap_or_default(), 5);
    let pods = stage.pods(SHARDED).await?;
    let pod = pods.into_iter().find(|pod| pod.slice().is_some_and(|s| s.ordinal() == shard));
    Ok(pod.context("a pod of each shard")?.name)
}
