//! Proves by content that pods can go (V1), and audits those that stay (V3).

use super::scrape::{ScrapeError, Scraper};
use crate::{
    audit::{Answer, Look, Nodes, Silence},
    coverage::Slice,
    exposition::Sample,
    exposure::{Loss, Proof, Series},
    observed::ObservedPod,
    plan::{
        guard::Stake,
        pods::{METRICS_PORT, TELEMETRY_PORT},
    },
};
use futures::future;
use std::time::Duration;
use tokio::time::timeout;

/// Series of a loss that are named.
const EXAMPLES: usize = 3;

/// The longest that a look at pods may take: less than a reconcile may.
pub(super) const LIMIT: Duration = Duration::from_secs(75);

/// One of the pods that are to go, and what of it nobody else has been seen to serve.
struct Victim<'a> {
    pod: &'a ObservedPod,
    at_risk: Series,
    examples: Vec<String>,
}

/// Whether the victims can go, all of them, and the survivors serve every series of theirs.
///
/// What is missing is looked at twice: a series that its victim does not serve either by then is
/// of an object that was deleted or changed meanwhile. A victim that does not answer protects
/// itself from nothing; a survivor that does not answer serves nothing. Of a condemned victim,
/// series of nodes that are not among `nodes` don't count: they may be why it is condemned.
///
/// Cancel safe.
pub(super) async fn prove(scraper: &Scraper, stake: &Stake<'_>, nodes: &Nodes) -> Proof {
    timeout(LIMIT, search_all(scraper, stake, nodes)).await.unwrap_or_else(|_| {
        let cause = format!("looking at the pods takes longer than {LIMIT:?}");
        let loss = |pod: &&ObservedPod| Loss::unknown(&pod.uid, &cause);
        Proof { losses: stake.victims.iter().map(loss).collect(), unreachable: None }
    })
}

async fn search_all(scraper: &Scraper, stake: &Stake<'_>, nodes: &Nodes) -> Proof {
    let (mut at_risk, mut unreachable) = (Vec::new(), None);
    for &pod in &stake.victims {
        let mut hashes = Vec::new();
        let read = scraper.scrape(pod.ip, METRICS_PORT, "/metrics", |sample| {
            if !(pod.condemned && is_of_no_node(&sample, nodes)) {
                hashes.push(Series::hash(sample.series));
            }
        });
        match read.await {
            // The kubelet reaches a pod that is Ready.
            Err(error @ ScrapeError::Unreachable { .. }) if pod.is_ready() => {
                unreachable.get_or_insert(format!("pod {}: {error}", pod.name));
            }
            Err(error) => tracing::debug!(pod = pod.name, %error, "a pod that is to go"),
            Ok(()) => {}
        }
        // Also what arrived of an answer that was cut short is served.
        let at_risk_of_it = hashes.into_iter().collect();
        at_risk.push(Victim { pod, at_risk: at_risk_of_it, examples: Vec::new() });
    }
    let mut survivors = stake.survivors.clone();
    let silent = search(scraper, &mut survivors, &mut at_risk).await;
    recheck(scraper, &mut at_risk).await;
    let silent = silent.or(search(scraper, &mut survivors, &mut at_risk).await);
    let lost = at_risk.into_iter().filter(|victim| !victim.at_risk.is_empty());
    let losses = lost.map(|victim| Loss {
        pod: victim.pod.uid.clone(),
        series: victim.at_risk.len(),
        examples: victim.examples,
        silent: silent.clone(),
    });
    Proof { losses: losses.collect(), unreachable }
}

/// Whether it is a series of a node, and there is no such node.
fn is_of_no_node(sample: &Sample<'_>, nodes: &Nodes) -> bool {
    let name = sample.series.iter().position(|&byte| byte == b'{').unwrap_or_default();
    let family = std::str::from_utf8(&sample.series[..name]).unwrap_or_default();
    family.starts_with("kube_node_")
        && sample.label(family, "node").is_some_and(|node| !nodes.contains_key(node))
}

/// Looks for what is at risk in the answers of `survivors`, and keeps what was not found. Those that
/// gave no whole answer are taken out, since waiting for them once is enough; returns why one did not.
async fn search(
    scraper: &Scraper,
    survivors: &mut Vec<&ObservedPod>,
    victims: &mut [Victim<'_>],
) -> Option<String> {
    let mut silent = None;
    for pod in std::mem::take(survivors) {
        if victims.iter().all(|victim| victim.at_risk.is_empty()) {
            break;
        }
        let mut marks: Vec<_> = victims.iter().map(|victim| victim.at_risk.marks()).collect();
        let read = scraper.scrape(pod.ip, METRICS_PORT, "/metrics", |sample| {
            let hash = Series::hash(sample.series);
            for (victim, marks) in victims.iter().zip(&mut marks) {
                victim.at_risk.mark(hash, marks);
            }
        });
        match read.await {
            Ok(()) => {
                survivors.push(pod);
                for (victim, marks) in victims.iter_mut().zip(&marks) {
                    victim.at_risk.find(marks);
                    victim.at_risk = victim.at_risk.missing();
                }
            }
            Err(error) => {
                silent.get_or_insert(format!("pod {}: {error}", pod.name));
            }
        }
    }
    silent
}

/// Keeps of what is at risk what the victims still serve.
async fn recheck(scraper: &Scraper, victims: &mut [Victim<'_>]) {
    for victim in victims.iter_mut().filter(|victim| !victim.at_risk.is_empty()) {
        let (at_risk, examples) = (&victim.at_risk, &mut victim.examples);
        let mut marks = at_risk.marks();
        let read = scraper.scrape(victim.pod.ip, METRICS_PORT, "/metrics", |sample| {
            let lost = at_risk.mark(Series::hash(sample.series), &mut marks);
            if lost && examples.len() < EXAMPLES {
                examples.push(String::from_utf8_lossy(sample.series).into_owned());
            }
        });
        // What it does not serve any more is not lost, whether or not it answers.
        let _ = read.await;
        victim.at_risk.find(&marks);
        victim.at_risk = victim.at_risk.found();
    }
}

/// Asks all pods which nodes they expose. `None` if that takes too long. Cancel safe.
pub(super) async fn look(
    scraper: &Scraper,
    pods: &[&ObservedPod],
    nodes: impl Fn() -> Nodes,
) -> Option<Look> {
    let before = nodes();
    // The scraper bounds how many are asked at a time.
    let answers = future::join_all(pods.iter().map(|pod| ask(scraper, pod)));
    let answers = timeout(LIMIT, answers).await.ok()?;
    Some(Look { before, after: nodes(), answers: answers.into_iter().flatten().collect() })
}

/// Which nodes a pod exposes, and as which shard it runs. `None` if its arguments make no sense.
///
/// Versions before 2.18 know no `resources` and answer with everything.
async fn ask(scraper: &Scraper, pod: &ObservedPod) -> Option<Answer> {
    let told = pod.slice()?;
    let mut nodes = Vec::new();
    let read = scraper.scrape(pod.ip, METRICS_PORT, "/metrics?resources=nodes", |sample| {
        nodes.extend(sample.label("kube_node_info", "node").map(str::to_owned));
    });
    let read = read.await;
    let (mut ordinal, mut total) = (None, None);
    if read.is_ok() {
        let itself = scraper.scrape(pod.ip, TELEMETRY_PORT, "/metrics", |sample| {
            let label = sample.label("kube_state_metrics_shard_ordinal", "shard_ordinal");
            ordinal = label.and_then(|label| label.parse().ok()).or(ordinal);
            if sample.series == b"kube_state_metrics_total_shards" {
                total = std::str::from_utf8(sample.value).ok().and_then(|v| v.parse().ok());
            }
        });
        if let Err(error) = itself.await {
            tracing::debug!(pod = pod.name, %error, "a pod does not say as which shard it runs");
        }
    }
    let silence = |error: ScrapeError| match error {
        ScrapeError::NoAnswer { .. } => Silence::NoAnswer,
        error => Silence::Unreachable(format!("pod {}: {error}", pod.name)),
    };
    Some(Answer {
        pod: pod.uid.clone(),
        name: pod.name.clone(),
        told,
        says: ordinal.zip(total).and_then(|(ordinal, total)| Slice::new(ordinal, total)),
        nodes: read.map(|()| nodes).map_err(silence),
    })
}
