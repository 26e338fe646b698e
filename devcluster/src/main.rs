//! `devcluster`: a control plane for trying things by hand.

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use devcluster::instance::{Instance, Up};
use devcluster::tools::{self, Tool};

/// A real Kubernetes control plane on this machine: etcd, kube-apiserver, kube-controller-manager,
/// kube-scheduler, and nodes simulated by kwok.
///
/// Its programs are built from Go modules, once (13 minutes on two cores; needs Go), into
/// ~/.cache/ksm-scale-operator. Set DEVCLUSTER_BIN_DIR to a folder of ready binaries to use those
/// instead.
#[derive(Parser)]
#[command(after_help = "Examples:
  alias devcluster='cargo run -q -p devcluster --'
  devcluster up --nodes 100
  export KUBECONFIG=$(devcluster kubeconfig)
  kubectl get nodes             # or: devcluster kubectl -- get nodes
  devcluster down")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the programs, unless that is done, and print where they are
    Build,
    /// Start a control plane in the background, and wait until it is ready
    Up(Nodes),
    /// Stop a control plane and remove its data
    Down(Name),
    /// Run kubectl as administrator of a control plane
    Kubectl {
        #[command(flatten)]
        name: Name,
        /// Arguments for kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Print the path of the administrator's kubeconfig file
    Kubeconfig(Name),
    /// Run a control plane in the foreground; `up` starts this in the background
    #[command(name = devcluster::instance::SUPERVISE, hide = true)]
    Supervise(Nodes),
}

#[derive(Args)]
struct Name {
    /// Which control plane: there can be several at a time
    #[arg(long, default_value = "default")]
    name: String,
}

#[derive(Args)]
struct Nodes {
    #[command(flatten)]
    name: Name,
    /// Simulated nodes to begin with
    #[arg(long, default_value_t = 3)]
    nodes: u32,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Build => {
            for (tool, path) in tools::build_all()? {
                println!("{:24} {}", tool.file_name(), path.display());
            }
            match tools::prometheus() {
                Ok(folder) => {
                    println!("{:24} {}", "prometheus", folder.join("prometheus").display());
                }
                // Most tests do without.
                Err(error) => eprintln!("devcluster: {error:#}"),
            }
        }
        Command::Up(Nodes { name, nodes }) => up(&name.name, nodes)?,
        Command::Down(Name { name }) => {
            let was_up = Instance::named(&name)?.down()?;
            println!("`{name}` {}", if was_up { "is down" } else { "was not up" });
        }
        Command::Kubectl { name, args } => {
            let kubeconfig = Instance::named(&name.name)?.kubeconfig()?;
            let mut kubectl = std::process::Command::new(tools::path(Tool::Kubectl)?);
            // Returns only if it fails.
            let error = kubectl.args(args).env("KUBECONFIG", kubeconfig).exec();
            return Err(error).context("cannot run kubectl");
        }
        Command::Kubeconfig(Name { name }) => {
            println!("{}", Instance::named(&name)?.kubeconfig()?.display());
        }
        Command::Supervise(Nodes { name, nodes }) => {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(Instance::named(&name.name)?.supervise(nodes))?;
        }
    }
    Ok(())
}

fn up(name: &str, nodes: u32) -> Result<()> {
    let instance = Instance::named(name)?;
    match instance.up(nodes)? {
        Up::Started => println!("`{name}` is up with {nodes} nodes."),
        Up::Already => println!("`{name}` is up already; nothing was changed."),
    }
    println!();
    println!("  export KUBECONFIG={}", instance.kubeconfig()?.display());
    println!("  devcluster kubectl --name {name} -- get nodes");
    println!("  devcluster down --name {name}");
    Ok(())
}
