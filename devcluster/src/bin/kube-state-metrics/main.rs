//! A stand-in for kube-state-metrics, which no package registry has.
//!
//! It takes the arguments of the real one, lists and watches the same API, keeps the same objects of
//! its shard and writes the same text: `tests/kube_state_metrics.rs` compares both. It serves fewer
//! resources and families, and does on demand what the real one does by accident ([`Faults`]).

mod arguments;
mod families;
mod reflector;
mod server;
mod shard;
mod store;
mod telemetry;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Parser as _;
use devcluster::kube_state_metrics::Faults;
use kube::Client;
use tokio::sync::watch;

use arguments::Arguments;
use store::Store;
use telemetry::Telemetry;

/// Between two looks at the file with the faults.
const POLL: Duration = Duration::from_millis(20);

/// What all parts share.
struct State {
    arguments: Arguments,
    client: Client,
    faults: watch::Receiver<Faults>,
    stores: Vec<Store>,
    telemetry: Telemetry,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kube-state-metrics: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let path = arguments.faults.clone().unwrap_or_default();
    let (sender, faults) = watch::channel(Faults::read(&path)?);
    let client = arguments.client().await?;
    let stores = arguments.resources().flat_map(|resource| {
        let namespaces = arguments.namespaces(resource).into_iter();
        namespaces.map(move |namespace| Store::new(resource, namespace))
    });
    let stores = stores.collect();
    let state =
        Arc::new(State { arguments, client, faults, stores, telemetry: Telemetry::default() });
    for index in 0..state.stores.len() {
        tokio::spawn(reflector::keep(Arc::clone(&state), index));
    }
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        served = server::serve(Arc::clone(&state)) => match served? {},
        () = follow(&path, sender) => Ok(ExitCode::FAILURE),
        _ = term.recv() => Ok(ExitCode::SUCCESS),
    }
}

/// Follows the file with the faults until it says to crash.
async fn follow(path: &Path, faults: watch::Sender<Faults>) {
    while !faults.borrow().crash {
        tokio::time::sleep(POLL).await;
        // What cannot be read is what was read before.
        let Ok(now) = Faults::read(path) else { continue };
        faults.send_if_modified(|faults| std::mem::replace(faults, now.clone()) != now);
    }
}
