//! Speed and size of the operator on a real API server, with 5,000 nodes and 50 KSMScales.
//!
//! `make bench`. Prints a table with each figure, its goal and how it was measured; nothing fails
//! when a goal is missed, since other work on the machine weighs on every figure.

#![allow(unreachable_pub, reason = "modules of one program, with the visibility of a library")]

mod admission;
#[path = "../webhook/bodies.rs"]
#[allow(dead_code, reason = "a module of another bench, too")]
mod bodies;
mod figures;
mod fleet;
#[path = "../webhook/load.rs"]
#[allow(dead_code, reason = "a module of another bench, too")]
mod load;
mod memory;
mod operator;
mod pods;

use anyhow::{Context as _, Result};
use clap::Parser;
use devcluster::{ControlPlane, FaultProxy, Kubelet, Level};
use figures::{Row, mib};
use fleet::Fleet;
use operator::Operator;
use std::time::{Duration, Instant};

#[derive(Debug, Parser)]
struct Args {
    /// Nodes in the cluster
    #[arg(long, default_value_t = 5_000)]
    nodes: u32,
    /// KSMScales, half of them sharded
    #[arg(long, default_value_t = 50)]
    scales: u32,
    /// How often a node joins, to see how soon pods follow
    #[arg(long, default_value_t = 5)]
    samples: usize,
    /// Seconds at rest, in which every node sends one heartbeat
    #[arg(long, default_value_t = 300)]
    rest: u64,
    /// Measure the webhooks alone
    #[arg(long)]
    admission: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// No reconcile comes by itself in the time of a measurement.
const NO_REQUEUE: [&str; 6] =
    ["--requeue-interval", "24h", "--requeue-interval-sharded", "24h", "--audit-interval", "0s"];

#[tokio::main]
async fn main() -> Result<()> {
    // Only one provider is compiled in, but rustls asks for a choice; it can be made only once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let (begun, cores) = (Instant::now(), figures::cores());
    let say = |what: &str| eprintln!("[{:4} s] {what}", begun.elapsed().as_secs());
    let mut rows = Vec::new();

    if args.admission {
        admission::measure(&say, &mut rows).await?;
        print(&args, cores, &rows);
        return Ok(());
    }
    say("starting etcd and kube-apiserver");
    let plane = ControlPlane::start(Level::ApiServer).await?;
    let fleet = Fleet::prepare(&plane, args.nodes, args.scales).await?;
    memory_of_nodes(&plane, &fleet, &say, &mut rows).await?;
    let _kubelet = Kubelet::start(plane.admin(), Kubelet::always_ready());
    follow_nodes(&plane, &fleet, args.samples, &say, &mut rows).await?;
    let rest = Duration::from_secs(args.rest);
    rest_with_heartbeats(&plane, &fleet, rest, &say, &mut rows).await?;
    heartbeats_alone(&plane, &fleet, &say, &mut rows).await?;
    drop(plane);
    admission::measure(&say, &mut rows).await?;
    print(&args, cores, &rows);
    Ok(())
}

/// Two fresh processes, one on an empty cluster and one on all nodes: the difference is what the
/// nodes cost, what their first list left behind in the allocator included.
async fn memory_of_nodes(
    plane: &ControlPlane,
    fleet: &Fleet<'_>,
    say: &impl Fn(&str),
    rows: &mut Vec<Row>,
) -> Result<()> {
    say("memory without nodes");
    let operator = Operator::start(plane, None, &[]).await?;
    let empty = operator.memory_at_rest().await?;
    operator.stop().await?;
    say("making the nodes");
    fleet.make_nodes().await?;
    say("memory with nodes");
    let operator = Operator::start(plane, None, &[]).await?;
    let full = operator.memory_at_rest().await?;
    operator.stop().await?;
    let more = full.resident.saturating_sub(empty.resident);
    rows.push(Row {
        figure: "memory for each node",
        goal: "≤ 2 KB",
        measured: format!("{} bytes", more / u64::from(fleet.nodes)),
        method: format!(
            "VmRSS of a fresh process with {} nodes ({}) less that with none ({}), no KSMScale",
            fleet.nodes,
            mib(full.resident),
            mib(empty.resident)
        ),
    });
    Ok(())
}

async fn follow_nodes(
    plane: &ControlPlane,
    fleet: &Fleet<'_>,
    samples: usize,
    say: &impl Fn(&str),
    rows: &mut Vec<Row>,
) -> Result<()> {
    let operator = Operator::start(plane, None, &[]).await?;
    say("making the KSMScales, and waiting until their pods serve");
    fleet.make_scales().await?;
    let pods = pods::Pods::watch(plane.admin()).await?;
    let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
    for sample in 1..=samples {
        say(&format!("one node more makes one pod more for each KSMScale: sample {sample}"));
        fleet.until_settled().await?;
        let begun = Instant::now();
        let made = pods.next_created(fleet.scales, plane.add_nodes(fleet.one_more())).await?;
        firsts.extend(made.first().map(|at| at.duration_since(begun)));
        lasts.extend(made.last().map(|at| at.duration_since(begun)));
        plane.remove_nodes(fleet.one_more()).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let method = format!(
        "from the node's creation to the pods' events on a watch; {samples} samples; every one of {} KSMScales needs one pod more",
        fleet.scales
    );
    let row = |figure, times: &mut Vec<Duration>| Row {
        figure,
        goal: "< 1 s",
        measured: spread(times),
        method: method.clone(),
    };
    rows.push(row("node joins → first pod created", &mut firsts));
    rows.push(row("node joins → last pod created", &mut lasts));
    fleet.until_settled().await?;
    let memory = operator.memory_at_rest().await?;
    rows.push(Row {
        figure: "resident memory",
        goal: "≤ 64 MiB",
        measured: format!("{} (peak {})", mib(memory.resident), mib(memory.peak)),
        method: format!(
            "VmRSS (VmHWM), {} nodes, {} KSMScales, after all of the above",
            fleet.nodes, fleet.scales
        ),
    });
    operator.stop().await
}

/// The default intervals, behind a proxy that sees every request of the operator.
async fn rest_with_heartbeats(
    plane: &ControlPlane,
    fleet: &Fleet<'_>,
    rest: Duration,
    say: &impl Fn(&str),
    rows: &mut Vec<Row>,
) -> Result<()> {
    let proxy = FaultProxy::start(plane).await?;
    let operator = Operator::start(plane, Some(&proxy), &[]).await?;
    // The first audits tell by name which pod could not be reached: that is news, once.
    say("until all were audited");
    operator.until_audits("unreachable", f64::from(fleet.scales) * 2.5).await?;
    say(&format!("{} s at rest, one heartbeat from each node", rest.as_secs()));
    proxy.reset_log();
    let (cpu, reconciles) = (operator.cpu()?, operator.reconciles().await?);
    fleet.heartbeats(rest).await?;
    let cpu = operator.cpu()?.saturating_sub(cpu);
    let reconciles = operator.reconciles().await? - reconciles;
    let requests = proxy.requests();
    let (renewals, writes): (Vec<_>, Vec<_>) =
        requests.iter().filter(|request| request.mutating).partition(|request| request.is_lease());
    for write in writes.iter().take(5) {
        say(&format!("written at rest: {} {}", write.method, write.path));
    }
    let minutes = rest.as_secs_f64() / 60.0;
    let conditions = format!("{} s, {} heartbeats, default flags", rest.as_secs(), fleet.nodes);
    rows.push(Row {
        figure: "writes at rest",
        goal: "0",
        measured: writes.len().to_string(),
        method: format!(
            "{conditions}; beside {} renewals of the replica's own Lease; a proxy in front of the API server saw {} reads",
            renewals.len(),
            requests.len() - writes.len() - renewals.len()
        ),
    });
    rows.push(Row {
        figure: "CPU at rest",
        goal: "–",
        measured: format!("{:.2} s a minute", cpu.as_secs_f64() / minutes),
        method: format!(
            "{conditions}; utime + stime; {reconciles} periodic reconciles in that time"
        ),
    });
    let memory = operator.memory_at_rest().await?;
    rows.push(Row {
        figure: "resident memory of a fresh process",
        goal: "≤ 64 MiB",
        measured: format!("{} (peak {})", mib(memory.resident), mib(memory.peak)),
        method: "VmRSS (VmHWM) after the time at rest".into(),
    });
    operator.stop().await
}

/// Without periodic reconciles every reconcile there is comes from a heartbeat.
async fn heartbeats_alone(
    plane: &ControlPlane,
    fleet: &Fleet<'_>,
    say: &impl Fn(&str),
    rows: &mut Vec<Row>,
) -> Result<()> {
    let operator = Operator::start(plane, None, &NO_REQUEUE).await?;
    operator.until_idle(fleet.scales).await?;
    say("heartbeats without periodic reconciles");
    let (cpu, reconciles) = (operator.cpu()?, operator.reconciles().await?);
    fleet.heartbeats(Duration::from_mins(1)).await?;
    let reconciles = operator.reconciles().await? - reconciles;
    let cpu = operator.cpu()?.saturating_sub(cpu) / fleet.nodes;
    rows.push(Row {
        figure: "reconciles for each node heartbeat",
        goal: "0",
        measured: format!("{:.4}", f64::from(reconciles) / f64::from(fleet.nodes)),
        method: format!(
            "{reconciles} reconciles over {} heartbeats with both requeue intervals at 24h; {} µs CPU for each heartbeat",
            fleet.nodes,
            cpu.as_micros()
        ),
    });
    operator.stop().await.context("after the heartbeats")
}

fn print(args: &Args, cores: usize, rows: &[Row]) {
    figures::print(&format!("{} nodes, {} KSMScales", args.nodes, args.scales), cores, rows);
}

fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0, Duration::as_millis);
    format!("median {} ms, max {} ms", ms(times.get(times.len() / 2)), ms(times.last()))
}
