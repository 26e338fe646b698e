//! What it costs to look at what pods serve: 10 shards, 5,000 nodes, 1,000,000 series.
//!
//! `make bench`. The operator is a process of its own; the pods are processes that serve text made
//! beforehand, so that the figures are the operator's. Nothing fails when a goal is missed.

#![allow(unreachable_pub, reason = "modules of one program, with the visibility of a library")]

#[path = "../cluster/figures.rs"]
mod figures;
#[path = "../cluster/fleet.rs"]
#[allow(dead_code, reason = "a module of another bench, too")]
mod fleet;
#[path = "../cluster/memory.rs"]
#[allow(dead_code, reason = "a module of another bench, too")]
mod memory;
#[path = "../cluster/operator.rs"]
#[allow(dead_code, reason = "a module of another bench, too")]
mod operator;
mod pods;
mod rest;
mod serve;

use anyhow::{Context as _, Result};
use clap::Parser;
use devcluster::{ControlPlane, Level, Machines, Program};
use figures::{Row, mib};
use fleet::Fleet;
use k8s_openapi::api::core::v1::Node;
use ksm_scale_operator::{
    api::KSMScale,
    forecast,
    validate::{Scale, Valid, validate},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use operator::Operator;
use pods::{Pods, Seen};
use rest::until_at_rest;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_mins(10);
const NAME: &str = "bench";
const IMAGES: [&str; 2] = ["v2.19.1", "v2.20.0"];
/// Probes are so many times as frequent as the pods say.
const PACE: u32 = 10;
const AUDITS: f64 = 6.0;
/// The result of an audit that finds nothing.
const WHOLE: &str = "whole";
/// Of another image: long enough that a delete is looked at twice, as it is by default.
const SETTLE: &str = "5s";

#[derive(Debug, Parser)]
struct Args {
    /// Nodes in the cluster
    #[arg(long, default_value_t = 5_000)]
    nodes: u32,
    /// Series that all shards serve together
    #[arg(long, default_value_t = 1_000_000)]
    series: u32,
    /// Seconds from the binding of a pod to the start of its process
    #[arg(long, default_value_t = 5)]
    pull: u64,
    /// The operator's binary; by default the one that was built with this bench
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_ksm-scale-operator"))]
    operator: PathBuf,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the operator has used so far.
struct Used {
    bytes: f64,
    cpu: Duration,
}

struct Bench<'p> {
    plane: &'p ControlPlane,
    operator: &'p Path,
    rows: Vec<Row>,
    begun: Instant,
}

#[tokio::main]
async fn main() -> Result<()> {
    if std::env::args().any(|arg| arg == serve::FLAG) {
        return serve::run(serve::Args::parse()).await;
    }
    // Only one provider is compiled in, but rustls asks for a choice; it can be made only once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let plane = ControlPlane::start(Level::ApiServer).await?;
    let mut bench =
        Bench { plane: &plane, operator: &args.operator, rows: Vec::new(), begun: Instant::now() };
    bench.say("making the nodes");
    Fleet::prepare(&plane, args.nodes, 0).await?.make_nodes().await?;
    let _machines = machines(&plane, &args).await?;
    bench.changes().await?;
    bench.audits().await?;
    bench.print(&args);
    Ok(())
}

/// A node whose pods are this program, which serves what its shard's kube-state-metrics would.
async fn machines(plane: &ControlPlane, args: &Args) -> Result<Machines> {
    let file = plane.dir().join("nodes");
    let program = Program {
        path: std::env::current_exe()?,
        args: vec![
            serve::FLAG.to_owned(),
            file.display().to_string(),
            format!("--series={}", args.series),
        ],
        pull: Duration::from_secs(args.pull),
    };
    let machines =
        Machines::start(plane, 1, PACE, Arc::new(move |_| Some(program.clone()))).await?;
    let nodes = Api::<Node>::all(plane.admin()).list_metadata(&ListParams::default()).await?;
    let mut text = String::new();
    for node in nodes {
        writeln!(text, "{} {}", node.uid().unwrap_or_default(), node.name_any())?;
    }
    std::fs::write(&file, text)?;
    Ok(machines)
}

impl Bench<'_> {
    fn say(&self, what: &str) {
        eprintln!("[{:4} s] {what}", self.begun.elapsed().as_secs());
    }

    fn row(&mut self, figure: &'static str, goal: &'static str, measured: String, method: &str) {
        let measured = ["**".to_owned(), measured, "**".to_owned()].concat();
        self.rows.push(Row { figure, goal, measured, method: method.to_owned() });
    }

    /// What one of so many cost.
    fn cost(
        &mut self,
        [bytes, cpu]: [&'static str; 2],
        [before, after]: [&Used; 2],
        times: f64,
        method: &str,
    ) {
        self.row(bytes, "–", megabytes((after.bytes - before.bytes) / times), method);
        let used = after.cpu.saturating_sub(before.cpu).as_secs_f64() / times;
        self.row(cpu, "–", format!("{:.0} ms", used * 1e3), method);
    }

    async fn start(&self, settle: &str, audit_interval: &str) -> Result<Operator> {
        let args = ["--settle-time", settle, "--audit-interval", audit_interval];
        Operator::start_binary(self.operator, self.plane, None, &args).await
    }

    async fn changes(&mut self) -> Result<()> {
        let operator = self.start(SETTLE, "0s").await?;
        self.say("bringing up 10 shards");
        self.set(10, IMAGES[0]).await?;
        let pods = Pods::watch(self.plane.admin()).await?;
        self.say("another image for 10 shards");
        let before = used(&operator).await?;
        self.set(10, IMAGES[1]).await?;
        let after = used(&operator).await?;
        let seen = pods.seen();
        let deletes = f64::from(u32::try_from(seen.gone)?);
        let method = format!(
            "another image for 10 shards, settle time {SETTLE}: {deletes} deletes; all that the operator read and used in that time, divided by them"
        );
        let figures = ["guarded delete: bytes read", "guarded delete: CPU"];
        self.cost(figures, [&before, &after], deletes, &method);
        self.row(
            "pods at a time, another image for 10 shards",
            "as planned",
            most(&seen, planned(10, 10, IMAGES[0])),
            MOST,
        );
        self.say("from 10 to 3 shards");
        self.set(3, IMAGES[1]).await?;
        let memory = operator.memory_at_rest().await?;
        let method = "VmHWM of the operator that made these changes";
        self.row("peak memory, changes", "≤ 64 MiB", mib(memory.peak), method);
        operator.stop().await?;
        let operator = self.start("0s", "0s").await?;
        self.grow().await?;
        operator.stop().await
    }

    async fn grow(&mut self) -> Result<()> {
        self.say("from 3 to 5 shards");
        let pods = Pods::watch(self.plane.admin()).await?;
        let begun = Instant::now();
        self.set(5, IMAGES[1]).await?;
        let took = begun.elapsed().as_secs_f64();
        let seen = pods.seen();
        let starts: f64 = seen.starts.iter().map(Duration::as_secs_f64).sum();
        self.row(
            "3 → 5 shards, against the pods' own starts",
            "≤ 1.2",
            format!("{:.2} ({took:.1} s against {starts:.1} s)", took / starts),
            &format!(
                "from the request to Ready in the status, settle time 0; {} pods, each from its creation to Ready, added up",
                seen.starts.len()
            ),
        );
        self.row(
            "pods at a time, 3 → 5 shards",
            "as planned",
            most(&seen, planned(3, 5, IMAGES[1])),
            MOST,
        );
        Ok(())
    }

    async fn audits(&mut self) -> Result<()> {
        self.say("10 shards, and audits");
        let operator = self.start("0s", "10s").await?;
        self.set(10, IMAGES[1]).await?;
        operator.until_audits(WHOLE, operator.audits(WHOLE).await + 1.0).await?;
        let (first, before) = (operator.audits(WHOLE).await, used(&operator).await?);
        operator.until_audits(WHOLE, first + AUDITS).await?;
        let (last, after) = (operator.audits(WHOLE).await, used(&operator).await?);
        let audits = last - first;
        let method = format!(
            "{audits} audits in a row, 10 s apart, and whatever else the operator did meanwhile, divided by them"
        );
        self.cost(["audit: bytes read", "audit: CPU"], [&before, &after], audits, &method);
        let memory = operator.memory_at_rest().await?;
        let method = "VmHWM of a fresh operator that went from 5 to 10 shards and audited";
        self.row("peak memory, audits", "≤ 64 MiB", mib(memory.peak), method);
        operator.stop().await
    }

    /// Asks for shards and an image, and waits until it is so.
    async fn set(&self, shards: u32, image: &str) -> Result<()> {
        let scales: Api<KSMScale> = Api::all(self.plane.admin());
        let scale = json!({
            "apiVersion": "monitor.example.com/v1alpha1",
            "kind": "KSMScale",
            "metadata": { "name": NAME },
            "spec": spec(shards, image),
        });
        let params = PatchParams::apply("bench").force();
        scales.patch(NAME, &params, &Patch::Apply(scale)).await?;
        let settled = until_at_rest(&scales, NAME, shards, DEADLINE);
        settled.await.with_context(|| format!("{shards} shards of {image}"))
    }

    fn print(&self, args: &Args) {
        let on = format!("{} nodes, {} series", args.nodes, args.series);
        figures::print(&on, figures::cores(), &self.rows);
    }
}

/// How the most pods at a time are counted.
const MOST: &str =
    "by a watch, without pods that are being deleted; planned by the forecast of `plan`";

fn most(seen: &Seen, planned: usize) -> String {
    let Seen { most, most_with_terminating, .. } = seen;
    format!("{most} (planned {planned}; with pods that are being deleted {most_with_terminating})")
}

fn spec(shards: u32, image: &str) -> Value {
    json!({
        "monitorImage": format!("registry.k8s.io/kube-state-metrics/kube-state-metrics:{image}"),
        "nodesPerMonitor": 10_000,
        "sharding": { "enabled": true, "shardCount": shards },
    })
}

/// The most pods at any step of a change to the second image.
fn planned(from: u32, to: u32, image: &str) -> usize {
    let scale = |shards, image| -> Option<Valid<Scale>> {
        let metadata = json!({ "name": NAME, "uid": "uid", "generation": 1 });
        validate(&json!({ "metadata": metadata, "spec": spec(shards, image) })).ok()
    };
    let (from, to) = (scale(from, image), scale(to, IMAGES[1]));
    let steps = from.zip(to).map(|(from, to)| forecast::steps(&from, &to, 100));
    steps.iter().flatten().map(|step| step.pods).max().unwrap_or_default()
}

async fn used(operator: &Operator) -> Result<Used> {
    let bytes = operator.metric("ksm_scale_operator_pod_scrape_bytes_total").await?;
    Ok(Used { bytes, cpu: operator.cpu()? })
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}
