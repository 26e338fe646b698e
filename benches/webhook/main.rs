//! The admission webhook beside a controller-runtime webhook server of the same rules, and beside
//! the least that a server of hyper and rustls can do: CPU time of each request, memory, and how
//! long an answer takes.
//!
//! `make bench`. All get the same bytes in the same run; every answer is looked at. Wall-clock
//! rates depend on who else works on the machine, so the figures are CPU times of the server's
//! process. Nothing fails when a goal is missed.

#![allow(unreachable_pub, reason = "modules of one program, with the visibility of a library")]

mod bodies;
mod floor;
mod load;
mod machine;
#[path = "../cluster/memory.rs"]
mod memory;
mod serve;
mod servers;
mod table;

use anyhow::{Context as _, Result};
use bodies::{Case, Cases};
use clap::{Parser, Subcommand};
use machine::Machine;
use servers::{Server, Servers, Side};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use table::{Figure, Table};

#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// How often everything is measured, with fresh servers
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Requests of each measurement; fewer where each takes longer
    #[arg(long, default_value_t = 5_000)]
    requests: u64,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the bench starts itself as.
#[derive(Debug, Subcommand)]
enum Role {
    /// Our server
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        cert_dir: PathBuf,
    },
    /// The least that can be done
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        cert_dir: PathBuf,
    },
}

/// How requests reach the server.
#[derive(Clone, Copy)]
enum Over {
    /// So many connections that stay.
    Kept(usize),
    /// A new connection for each, so many at a time.
    Fresh(usize),
}

/// Requests a second of the paced load.
const RATE: u32 = 1_000;

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.role {
        Some(Role::Serve { port, cert_dir }) => serve::serve(*port, cert_dir),
        Some(Role::Floor { port, cert_dir }) => floor::serve(*port, cert_dir),
        None => compare(&args),
    }
}

/// One thread, which is what the load gets of the machine.
fn compare(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let say = |what: &str| eprintln!("[{:4} s] {what}", begun.elapsed().as_secs());
    say("building the server to compare with");
    let (servers, cases) = (Servers::prepare()?, Cases::new()?);
    let mut table = Table::default();
    let before = Machine::now()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for run in 1..=args.runs {
        say(&format!("run {run} of {}", args.runs));
        runtime.block_on(measure(&servers, &cases, args.requests, &mut table))?;
    }
    let (busy, stolen) = Machine::now()?.shares_since(before);
    let pinned =
        if servers.are_pinned() { "servers on core 0, load on core 1" } else { "not pinned" };
    println!(
        "{} runs, {pinned}; cores {busy:.0} % busy, {stolen:.1} % stolen; median (lowest–highest)\n",
        args.runs
    );
    table.print();
    Ok(())
}

/// One run: fresh servers, each figure of all one after the other. Large bodies come last, since
/// what they leave in an allocator would count as memory of small ones.
async fn measure(servers: &Servers, cases: &Cases, requests: u64, table: &mut Table) -> Result<()> {
    let mut all = Vec::new();
    for side in Side::ALL {
        all.push((side, servers.start(side, &cases.update).await?));
    }
    let Cases { touch, update, create, denial, mutation, large, huge } = cases;
    memory(&all, update, requests, table).await?;
    let goal = "≤ 25 µs, a fifth of the other's";
    cpu(&all, "update", goal, update, Over::Kept(16), requests, table).await?;
    cpu(&all, "update", "–", update, Over::Kept(1), requests, table).await?;
    cpu(&all, "update", "–", update, Over::Kept(128), requests, table).await?;
    cpu(&all, "update of nothing in the spec", "–", touch, Over::Kept(16), requests, table).await?;
    cpu(&all, "create", "–", create, Over::Kept(16), requests, table).await?;
    cpu(&all, "denial with three causes", "–", denial, Over::Kept(16), requests, table).await?;
    cpu(&all, "mutation with a patch", "–", mutation, Over::Kept(16), requests, table).await?;
    cpu(&all, "update", "≤ 200 µs", update, Over::Fresh(16), requests / 8, table).await?;
    paced(&all, update, requests, table).await?;
    cpu(&all, "update", "≤ 100 µs", large, Over::Kept(16), requests / 16, table).await?;
    // No more at a time than our server holds: beyond 16 MiB of large bodies it has clients wait.
    cpu(&all, "update", "≤ 1,300 µs", huge, Over::Kept(8), requests / 100, table).await
}

/// CPU time of the server for each request.
async fn cpu(
    all: &[(Side, Server)],
    what: &str,
    goal: &'static str,
    case: &Case,
    over: Over,
    requests: u64,
    table: &mut Table,
) -> Result<()> {
    let how = match over {
        Over::Kept(1) => "1 connection".to_owned(),
        Over::Kept(count) => format!("{count} connections"),
        Over::Fresh(_) => "a new connection for each".to_owned(),
    };
    let figure = Figure {
        name: format!("CPU, {what}, {} bytes, {how}", case.size()),
        goal,
        unit: "µs",
        method: format!(
            "CPU time of the process over {requests} requests, after {}",
            requests / 10
        ),
    };
    // The floor lets everything pass, and asks nobody.
    let fits = |side| side != Side::Floor || (case.just_passes() && what == "update");
    for (side, server) in all.iter().filter(|(side, _)| fits(*side)) {
        let used = match over {
            Over::Kept(count) => {
                let mut connections = server.target.connections(count).await?;
                connections.ask(case, requests / 10).await?;
                let before = server.cpu().await?;
                connections.ask(case, requests).await?;
                server.cpu().await?.saturating_sub(before)
            }
            Over::Fresh(concurrency) => {
                server.target.ask_afresh(case, requests / 10, concurrency).await?;
                let before = server.cpu().await?;
                server.target.ask_afresh(case, requests, concurrency).await?;
                server.cpu().await?.saturating_sub(before)
            }
        };
        let each = used.as_secs_f64() * 1e6 / f64::from(u32::try_from(requests)?);
        table.add(&figure, *side, each);
    }
    Ok(())
}

/// Memory of fresh servers with many connections open.
async fn memory(
    all: &[(Side, Server)],
    case: &Case,
    requests: u64,
    table: &mut Table,
) -> Result<()> {
    const CONNECTIONS: usize = 128;
    let figure = |what: &str, field: &str| Figure {
        name: format!("{what} memory with {CONNECTIONS} connections"),
        goal: "≤ 20 MB",
        unit: "MB",
        method: format!("{field} of a fresh process after {requests} updates"),
    };
    let (resident, peak) = (figure("resident", "VmRSS"), figure("peak", "VmHWM"));
    for (side, server) in all {
        let mut connections = server.target.connections(CONNECTIONS).await?;
        connections.ask(case, requests).await?;
        let memory = server.memory()?;
        let mb = |bytes: u64| anyhow::Ok(f64::from(u32::try_from(bytes / 1_000)?) / 1_000.0);
        table.add(&resident, *side, mb(memory.resident)?);
        table.add(&peak, *side, mb(memory.peak)?);
    }
    Ok(())
}

/// How long answers take at a fixed rate.
async fn paced(
    all: &[(Side, Server)],
    case: &Case,
    requests: u64,
    table: &mut Table,
) -> Result<()> {
    for (side, server) in all {
        let mut connections = server.target.connections(16).await?;
        connections.ask(case, requests / 10).await?;
        let interval = Duration::from_secs(1) / RATE;
        let mut times = connections.ask_paced(case, requests, interval).await?;
        times.sort_unstable();
        for (name, thousandth) in [("p50", 500), ("p99", 990), ("p99.9", 999)] {
            let figure = Figure {
                name: format!("{name} at {RATE} updates a second"),
                goal: "–",
                unit: "ms",
                method: format!(
                    "{requests} requests over 16 connections, each from when it was due to its answer"
                ),
            };
            let time = times.get(times.len() * thousandth / 1_000).context("no answers")?;
            table.add(&figure, *side, time.as_secs_f64() * 1e3);
        }
    }
    Ok(())
}
