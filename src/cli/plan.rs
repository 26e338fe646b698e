//! `plan`: pods, their distribution and the steps of a change, without a cluster (O2).

use super::{allowed::AllowedArgs, files, print};
use crate::{
    allowed::Allowed,
    coverage::Coverage,
    forecast::{Step, at_rest, steps},
    observed::ObservedPod,
    validate::{Scale, Valid, validate},
    warnings::{Surroundings, warnings},
};
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::{
    fmt::Write as _,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
};

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// A file with one KSMScale, or - for standard input.
    #[arg(short, long = "filename", value_name = "FILE")]
    filename: PathBuf,
    /// Nodes in the cluster: a number, or a range such as 1..500, of which each change is shown.
    #[arg(long, value_name = "N|A..B")]
    nodes: Nodes,
    /// The KSMScale as it is now: shows the steps from there. Not with a range.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[command(flatten)]
    allowed: AllowedArgs,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// A list with an entry for each number of nodes.
    Json,
    /// The same as YAML.
    Yaml,
}

/// How many nodes.
#[derive(Clone, Debug)]
struct Nodes(RangeInclusive<u32>);

impl FromStr for Nodes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|_| format!("{text:?} is no number of nodes: write 60, or 1..500"))
        };
        match text.split_once("..") {
            None => number(text).map(|n| Self(n..=n)),
            Some((from, to)) => {
                let range = number(from)?..=number(to.trim_start_matches('='))?;
                if range.is_empty() {
                    Err("the range is empty: write the smaller number first".into())
                } else {
                    Ok(Self(range))
                }
            }
        }
    }
}

/// What a KSMScale asks for on a number of nodes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    nodes: u32,
    desired_replicas: usize,
    pods: Vec<PodLine>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<StepLine>>,
}

#[derive(Serialize)]
struct PodLine {
    name: String,
    shard: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StepLine {
    step: usize,
    change: String,
    pods: usize,
    covered_percent: f64,
    duplicated_percent: f64,
}

impl Plan {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let allowed = self.allowed.allowed();
        let scale = scale_in(&self.filename, &allowed)?;
        // What is there already may have been allowed at its time.
        let everything = Allowed::everything();
        let from = self.from.as_deref().map(|path| scale_in(path, &everything)).transpose()?;
        if let Some(from) = from.as_ref().filter(|from| from.name != scale.name) {
            bail!(
                "--from is KSMScale {} and -f is {}: steps lead from one spec of a KSMScale to another of the same",
                from.name,
                scale.name
            );
        }
        let range = self.nodes.0.clone();
        if from.is_some() && range.start() != range.end() {
            bail!("--from shows the steps on one number of nodes: give --nodes a number");
        }
        let mut entries: Vec<Entry> = Vec::new();
        for nodes in range {
            let entry = entry(&scale, from.as_ref(), nodes);
            // Of a range, only where something changes.
            let same = |last: &Entry| {
                last.desired_replicas == entry.desired_replicas
                    && last.warnings.is_empty() == entry.warnings.is_empty()
            };
            if !entries.last().is_some_and(same) {
                entries.push(entry);
            }
        }
        print(&match self.output {
            Format::Table => table(&entries),
            Format::Json => serde_json::to_string_pretty(&entries)? + "\n",
            Format::Yaml => serde_saphyr::to_string(&entries)?,
        })
    }
}

/// The one KSMScale of a file, valid and allowed.
fn scale_in(path: &Path, allowed: &Allowed) -> anyhow::Result<Valid<Scale>> {
    let found = files::read(&[path.to_owned()])?;
    let [written] = &found.scales[..] else {
        bail!("{} holds {} KSMScales; give a file with one", path.display(), found.scales.len());
    };
    allowed
        .check(validate(&written.document.json))
        .with_context(|| format!("{}: KSMScale {} is not valid", written.file, written.name()))
}

fn entry(scale: &Valid<Scale>, from: Option<&Valid<Scale>>, nodes: u32) -> Entry {
    let pods = at_rest(scale, nodes);
    let around = Surroundings { nodes: Some(nodes), ..Surroundings::default() };
    Entry {
        nodes,
        desired_replicas: pods.len(),
        pods: pods.iter().map(pod_line).collect(),
        warnings: warnings(scale, around).iter().map(ToString::to_string).collect(),
        steps: from
            .map(|from| steps(from, scale, nodes).iter().enumerate().map(step_line).collect()),
    }
}

fn pod_line(pod: &ObservedPod) -> PodLine {
    let shard = pod.slice().map_or_else(|| "?".to_owned(), |slice| slice.to_string());
    PodLine { name: format!("{}/{}", pod.namespace, pod.name), shard }
}

fn step_line((at, step): (usize, &Step)) -> StepLine {
    let percent = |fraction: f64| (1000.0 * fraction).round() / 10.0;
    let coverage: Coverage = step.coverage;
    StepLine {
        step: at + 1,
        change: step.change.to_string(),
        pods: step.pods,
        covered_percent: percent(1.0 - coverage.gap()),
        duplicated_percent: percent(coverage.duplicates()),
    }
}

fn table(entries: &[Entry]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let [entry] = entries {
        let _ = writeln!(text, "{} nodes: {} pods", entry.nodes, entry.desired_replicas);
        for pod in &entry.pods {
            let _ = writeln!(text, "  {:<60} shard {}", pod.name, pod.shard);
        }
    } else {
        let _ = writeln!(text, "{:>9}  PODS", "FROM NODE");
        for entry in entries {
            let Entry { nodes, desired_replicas, warnings, .. } = entry;
            let line = format!("{nodes:>9}  {desired_replicas:<4}  {}", warnings.join("; "));
            let _ = writeln!(text, "{}", line.trim_end());
        }
        return text;
    }
    for warning in entries.iter().flat_map(|entry| &entry.warnings) {
        let _ = writeln!(text, "warning: {warning}");
    }
    for steps in entries.iter().filter_map(|entry| entry.steps.as_ref()) {
        let _ = writeln!(text, "{} steps, each when the pod before it serves:", steps.len());
        for StepLine { step, change, pods, covered_percent, duplicated_percent } in steps {
            let _ = writeln!(
                text,
                "{step:>4}. {change}\n      {pods} pods, {covered_percent:.1} % covered, {duplicated_percent:.1} % duplicated"
            );
        }
    }
    text
}
