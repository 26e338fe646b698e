//! `make exposure`: what stays exposed while 3 shards become 5 and 5 become 3, three ways.
//!
//! The same cluster, the same pods with the same delays, the same sampler; only who changes the
//! shards differs. The samples go to docs/pictures/exposure.csv, from which `make pictures` draws,
//! and docs/exposure.md says what they mean.

#![allow(unreachable_pub, reason = "modules of one program, with the visibility of a library")]

mod autosharding;
mod operator;
mod record;
#[path = "../../benches/coverage/rest.rs"]
mod rest;
mod rolling;
mod site;
mod takeover;

use anyhow::{Context as _, Result};
use clap::Parser;
use record::Record;
use site::Site;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// The changes that each way makes, one after the other.
const CHANGES: [(u32, u32); 2] = [(3, 5), (5, 3)];

/// Measures what is exposed while the number of shards changes.
#[derive(Parser)]
struct Args {
    /// The operator's binary; by default the one that was built beside this program
    #[arg(long, value_name = "FILE")]
    operator: Option<PathBuf>,
    /// Nodes of the cluster, beside the one on which the pods run
    #[arg(long, default_value_t = 99)]
    nodes: u32,
    /// ConfigMaps
    #[arg(long, default_value_t = 500)]
    config_maps: u32,
    /// Measure in place of that how replicas of the operator share the work while one dies
    #[arg(long)]
    takeover: bool,
    /// Where the data goes, as exposure.csv or takeover.csv
    #[arg(long, value_name = "FOLDER", default_value = "docs/pictures")]
    output: PathBuf,
}

/// Who changes the number of shards. Each starts with the first of [`CHANGES`].
enum Way {
    Operator(operator::Operator),
    Rolling,
    Autosharding,
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Operator(_) => "operator",
            Self::Rolling => "rolling",
            Self::Autosharding => "autosharding",
        }
    }

    async fn start(&self, site: &Site, shards: u32) -> Result<()> {
        match self {
            Self::Operator(_) => operator::set(site, shards).await,
            Self::Rolling => rolling::start(site, shards).await,
            Self::Autosharding => autosharding::start(site, shards).await,
        }
    }

    /// Returns when whoever makes the change says that it is done.
    async fn change(&self, site: &Site, from: u32, to: u32) -> Result<()> {
        match self {
            Self::Operator(_) => operator::set(site, to).await,
            Self::Rolling => rolling::change(site, from, to).await,
            Self::Autosharding => autosharding::change(site, from, to).await,
        }
    }

    async fn end(self, site: &Site) -> Result<()> {
        match self {
            Self::Operator(operator) => operator.end(site).await?,
            Self::Rolling => rolling::end(site).await?,
            Self::Autosharding => autosharding::end(site).await?,
        }
        site.until_no_pods().await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // Only one provider is compiled in, but rustls asks for a choice; it can be made only once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let begun = Instant::now();
    let say = |what: &str| eprintln!("[{:4} s] {what}", begun.elapsed().as_secs());
    let operator = operator_binary(&args)?;
    let (name, text) = if args.takeover {
        ("takeover.csv", takeover::measure(&operator).await?)
    } else {
        ("exposure.csv", measure(&args, &operator, say).await?)
    };
    let output = Path::new(env!("CARGO_MANIFEST_DIR")).join(&args.output).join(name);
    fs::write(&output, text).with_context(|| format!("writing {}", output.display()))?;
    say(&format!("wrote {name}"));
    Ok(())
}

async fn measure(args: &Args, operator: &Path, say: impl Fn(&str)) -> Result<String> {
    say("starting a control plane");
    let site = Site::start(args.nodes, args.config_maps).await?;
    let mut record = Record::default();
    say("starting the operator");
    let operator = operator::Operator::start(&site, operator).await?;
    for way in [Way::Operator(operator), Way::Rolling, Way::Autosharding] {
        let name = way.name();
        say(&format!("{name}: bringing up {} shards", CHANGES[0].0));
        way.start(&site, CHANGES[0].0).await?;
        for (from, to) in CHANGES {
            say(&format!("{name}: from {from} to {to}"));
            let samples = site.watch(to, way.change(&site, from, to)).await?;
            record.add(name, &format!("{from}-{to}"), &samples);
        }
        way.end(&site).await?;
    }
    Ok(record.csv().to_owned())
}

fn operator_binary(args: &Args) -> Result<PathBuf> {
    let beside = || {
        // target/debug/examples/exposure
        let own = std::env::current_exe().ok()?;
        Some(own.parent()?.parent()?.join("ksm-scale-operator"))
    };
    args.operator.clone().or_else(beside).context("cannot find the operator")
}
