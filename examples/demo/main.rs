//! `make demo`: the operator on a real Kubernetes control plane on this machine, step by step.
//!
//! Every step says what it does, what it expects and what it saw; the first one that does not go
//! as expected ends the demo with a failure. In a terminal the cluster then stays up to look
//! around; otherwise everything is taken down again.

#![allow(unreachable_pub, reason = "modules of one program, with the visibility of a library")]

mod machines;
mod report;
mod stage;
mod story;
mod witness;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use report::{Report, seconds};
use stage::{SOON, Stage};
use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// Shows the operator on a real control plane.
#[derive(Parser)]
struct Args {
    /// The operator's binary; by default the one that was built beside this demo
    #[arg(long, value_name = "FILE")]
    operator: Option<PathBuf>,
    /// No colours. There are none anyway if standard output is no terminal
    #[arg(long, env = "NO_COLOR", value_parser = clap::builder::FalseyValueParser::new())]
    no_color: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Only one provider is compiled in, but rustls asks for a choice; it can be made only once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let (to_terminal, from_terminal) = (io::stdout().is_terminal(), io::stdin().is_terminal());
    let mut report = Report::new(to_terminal && !args.no_color, story::STEPS);
    match run(&args, &mut report, to_terminal && from_terminal).await {
        Ok(code) => code,
        Err(error) => {
            report.paragraph(&format!("The demo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args, report: &mut Report, stay: bool) -> Result<ExitCode> {
    let operator = operator_binary(args)?;
    let mut signals = Signals::new()?;
    report.paragraph(story::INTRODUCTION);
    let mut stage = tokio::select! {
        told = story::tell(report, &operator) => told?,
        () = signals.next() => {
            report.paragraph("Interrupted: everything is taken down.");
            return Ok(ExitCode::from(130));
        }
    };
    report.summary();
    if stay {
        story::invite(&stage, report).await?;
        tokio::select! {
            () = signals.next() => {}
            _ = enter() => {}
            ended = stage.plane.watch_over() => ended?,
        }
    }
    take_down(&mut stage, report).await?;
    Ok(ExitCode::SUCCESS)
}

/// A line on standard input, or its end. The thread is left behind: nothing can wake a read.
fn enter() -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::stdin().read_line(&mut String::new());
        let _ = sender.send(());
    });
    receiver
}

/// The operator first: it has to stop properly while there is still an API server.
async fn take_down(stage: &mut Stage, report: &Report) -> Result<()> {
    let begun = Instant::now();
    for replica in &mut stage.replicas {
        let status = replica.process.terminate(SOON).await?;
        ensure!(status.success(), "SIGTERM ended {} with {status}", replica.name);
    }
    let took = seconds(begun.elapsed());
    report.paragraph(&format!(
        "The replicas stopped on SIGTERM, one after the other, within {took}; now the control plane goes, with its data."
    ));
    Ok(())
}

fn operator_binary(args: &Args) -> Result<PathBuf> {
    let beside = || {
        // target/debug/examples/demo
        let own = std::env::current_exe().ok()?;
        Some(own.parent()?.parent()?.join("ksm-scale-operator"))
    };
    let path = args.operator.clone().or_else(beside).context("cannot find the operator")?;
    ensure!(
        path.is_file(),
        "{} is missing: build it with `cargo build`, or name one with --operator",
        path.display()
    );
    Ok(path)
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.interrupt.recv() => {}, _ = self.terminate.recv() => {} }
    }
}
