//! kube-state-metrics, or what stands in for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::machines::Program;
use crate::tools;

/// Names a binary of the real kube-state-metrics, which then runs in place of the stand-in.
const BINARY: &str = "KSM_BINARY";

/// What is wrong with a stand-in. Nothing by default.
///
/// It is told by a file, `--faults=<path>`, which it reads before anything else and again whenever
/// it changes; a file that is not there is no fault. See [`Faults::write`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// By resource (`nodes`, `pods`): milliseconds after the start of the process before which
    /// nothing is listed.
    pub late: BTreeMap<String, u64>,
    /// Milliseconds from a change of an object to its being served, as when there are very many.
    pub lag: u64,
    /// Serves this shard, and says so on the telemetry port.
    pub shard: Option<u32>,
    /// Shards for so many, and says so on the telemetry port.
    pub total_shards: Option<u32>,
    /// Shares objects out by another hash, as a later version might.
    pub rehashed: bool,
    /// Names of nodes that do not exist and are served.
    pub ghosts: Vec<String>,
    /// By resource: its list ends after so many objects, as when a page of it is lost; what changes
    /// later is served. Lists again when this changes.
    pub truncated: BTreeMap<String, usize>,
    /// By resource: lists again when this changes, and serves nothing of it for so many
    /// milliseconds.
    pub emptied: BTreeMap<String, u64>,
    /// Milliseconds before each answer with metrics.
    pub slow: u64,
    /// Half of the metrics, and an end of the answer.
    pub cut: Option<Cut>,
    /// Ends at once, with code 1.
    pub crash: bool,
    /// Answers no request, whatever it is for.
    pub hang: bool,
}

/// How an answer ends too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// The connection breaks in the middle of a line.
    Connection,
    /// The answer is whole as far as HTTP goes; the tail is missing.
    Tail,
}

impl Faults {
    /// Puts the file in place for a stand-in, or takes other faults back, at once.
    pub fn write(&self, path: &Path) -> Result<()> {
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec(self)?)
            .and_then(|()| fs::rename(&partial, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// What the file says. A file that is not there says nothing.
    pub fn read(path: &Path) -> Result<Self> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("faults in {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// The program for pods of kube-state-metrics: the binary that `KSM_BINARY` names, or the stand-in,
/// which is built if need be (blocks the thread).
///
/// `faults` is the file with the stand-in's faults; the real one has none.
pub fn program(faults: Option<&Path>) -> Result<Program> {
    let kubeconfig = "--kubeconfig=$(KUBECONFIG)".to_owned();
    if let Some(path) = real() {
        return Ok(Program { path, args: vec![kubeconfig], ..Program::default() });
    }
    let faults = faults.map(|path| format!("--faults={}", path.display()));
    let args = std::iter::once(kubeconfig).chain(faults).collect();
    Ok(Program { path: stand_in()?, args, ..Program::default() })
}

/// The real one, if `KSM_BINARY` names it.
pub fn real() -> Option<PathBuf> {
    tools::environment(BINARY)
}

/// The stand-in's binary, as new as its source. Built by the first call in a process, which blocks
/// the thread.
pub fn stand_in() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if built.is_none() {
        *built = Some(build()?);
    }
    built.clone().context("it was just built")
}

/// Tests of other packages have no way to make cargo build a binary of this one first.
fn build() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let mut cargo = Command::new(tools::environment("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--message-format=json", "--bin=kube-state-metrics"]);
    cargo.arg("--manifest-path").arg(manifest);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // What the cargo around says of the package under test would make crates build again whose
    // build scripts look at it.
    let of_package =
        |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_package) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("building the stand-in failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let messages = String::from_utf8(output.stdout)?;
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.context("cargo says nothing of kube-state-metrics")
}
