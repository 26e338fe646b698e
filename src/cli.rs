//! The command line. Here, and only here, the clock and the environment are read.

use crate::{
    manifests::{self, Manifest},
    names::OPERATOR,
};
use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use std::{io::Write as _, process::ExitCode};

mod allowed;
mod certs;
mod files;
mod plan;
mod run;
mod sarif;
mod sharding;
mod validate;
mod webhook;

/// Scales kube-state-metrics with the cluster, without one missing series.
#[derive(Debug, Parser)]
#[command(name = "ksm-scale-operator", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator. It finds the cluster by KUBECONFIG, or by its ServiceAccount in a pod.
    Run(Box<run::Run>),
    /// Check KSMScales in files as the API server would, without one.
    ///
    /// Exit code 0 if all are valid, 1 if one is not, 2 if a file cannot be read.
    Validate(validate::Validate),
    /// Show the pods that a KSMScale asks for, and the steps of a change.
    Plan(plan::Plan),
    /// Certificates of the webhooks: make some for development, find out what is stale, rotate.
    #[command(subcommand)]
    Certs(certs::Certs),
    /// Print the CustomResourceDefinition of KSMScale.
    Crd,
    /// Print what the operator needs in a cluster: the CRD, and its rights.
    Manifests,
    /// Print the admission policies that decide in place of the webhooks, for what is allowed.
    Policies(allowed::AllowedArgs),
    /// Print a script that completes this command line in a shell.
    ///
    /// In bash: source <(ksm-scale-operator completions bash)
    Completions {
        /// The shell.
        shell: Shell,
    },
}

impl Cli {
    /// Does what the command line says, and returns the exit code.
    ///
    /// # Errors
    /// Whatever keeps it from being done, with its causes.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(run) => run.run()?,
            Command::Validate(validate) => return validate.run(),
            Command::Plan(plan) => plan.run()?,
            Command::Certs(certs) => return certs.run(),
            Command::Crd => {
                let crd = manifests::base()?.into_iter().find(|m| m.path.starts_with("crds/"));
                print(&crd.map(|crd| crd.text).unwrap_or_default())?;
            }
            Command::Manifests => print_all(&manifests::base()?)?,
            Command::Policies(args) => print_all(&manifests::policies(&args.allowed())?)?,
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), OPERATOR, &mut script);
                let script = String::from_utf8(script)?;
                // clap_complete for bash spells a name with hyphens in two ways that never meet.
                let (label, state) =
                    ("ksm__subcmd__scale__subcmd__operator", "ksm__scale__operator");
                print(&script.replace(label, state))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_all(manifests: &[Manifest]) -> anyhow::Result<()> {
    let texts: Vec<_> =
        manifests.iter().map(|Manifest { path, text }| format!("# {path}\n{text}")).collect();
    print(&texts.join("---\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    let result = std::io::stdout().write_all(text.as_bytes());
    match result {
        // Whoever read us has had enough, as with `| head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}
