//! The binaries a control plane needs, built once from pinned Go modules.
//!
//! Each folder in this crate's `go` directory is a module: `go.mod` names the tools, `go.sum` pins
//! every byte. Only cert-manager has code of its own, a main function, since its commands are not
//! published. The result goes to the user's cache directory under a name derived from these files,
//! so a second checkout with the same ones finds it there.
//!
//! Where `DEVCLUSTER_BIN_DIR` names a folder with ready binaries (and `kwok-stages/*.yaml`,
//! `cert-manager-crds/*.yaml`), nothing is built.

mod build;
mod prometheus;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

pub use prometheus::prometheus;

/// Names a folder of ready binaries, used instead of a build.
const BIN_DIR: &str = "DEVCLUSTER_BIN_DIR";

/// The folder of kwok's rules, beside its binary.
const STAGES: &str = "kwok-stages";

/// The folder of cert-manager's CustomResourceDefinitions, beside its binary.
const CRDS: &str = "cert-manager-crds";

/// One of the binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// The store of the API server.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// Garbage collection, ServiceAccounts, namespaces, disruption budgets and so on.
    KubeControllerManager,
    /// Binds pods to nodes.
    KubeScheduler,
    /// The command-line client.
    Kubectl,
    /// Plays the machines: nodes become and stay Ready, their pods run.
    Kwok,
    /// cert-manager's controllers and its cainjector in one process, with the issuers SelfSigned
    /// and CA.
    CertManager,
    /// Renders charts.
    Helm,
}

impl Tool {
    /// The file's name, in the cache and in `DEVCLUSTER_BIN_DIR`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubectl => "kubectl",
            Self::Kwok => "kwok",
            Self::CertManager => "cert-manager",
            Self::Helm => "helm",
        }
    }

    fn module(self) -> Module {
        match self {
            Self::Etcd => Module::Etcd,
            Self::Kwok => Module::Kwok,
            Self::CertManager => Module::CertManager,
            Self::Helm => Module::Helm,
            Self::KubeApiserver
            | Self::KubeControllerManager
            | Self::KubeScheduler
            | Self::Kubectl => Module::Kubernetes,
        }
    }
}

/// A folder in `go`, which is built as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    Etcd,
    Kubernetes,
    Kwok,
    CertManager,
    Helm,
}

impl Module {
    /// cert-manager comes after kubernetes: with the packages that they share it takes a quarter of
    /// the time.
    const ALL: [Self; 5] =
        [Self::Etcd, Self::Kubernetes, Self::Kwok, Self::CertManager, Self::Helm];

    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Kubernetes => "kubernetes",
            Self::Kwok => "kwok",
            Self::CertManager => "cert-manager",
            Self::Helm => "helm",
        }
    }

    /// The duration on two cores with empty caches, for those who wait.
    fn usual_duration(self) -> &'static str {
        match self {
            Self::Etcd => "1 minute",
            Self::Kubernetes => "6 to 8 minutes",
            Self::Kwok => "1 to 3 minutes",
            Self::CertManager => "2 minutes",
            Self::Helm => "1 to 2 minutes",
        }
    }

    fn tools(self) -> &'static [Tool] {
        match self {
            Self::Etcd => &[Tool::Etcd],
            Self::Kubernetes => &[
                Tool::KubeApiserver,
                Tool::KubeControllerManager,
                Tool::KubeScheduler,
                Tool::Kubectl,
            ],
            Self::Kwok => &[Tool::Kwok],
            Self::CertManager => &[Tool::CertManager],
            Self::Helm => &[Tool::Helm],
        }
    }

    fn source(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(self.name())
    }
}

/// The path of a binary. Builds the module it belongs to if need be, which takes minutes and
/// reports on standard error; blocks the thread.
pub fn path(tool: Tool) -> Result<PathBuf> {
    let folder = folder(tool.module())?;
    existing(folder.join(tool.file_name()))
}

/// The files with kwok's rules for nodes and pods; builds as [`path`] does.
pub fn kwok_stages() -> Result<Vec<PathBuf>> {
    yaml_files(Module::Kwok, STAGES)
}

/// The files with the CustomResourceDefinitions that cert-manager needs; builds as [`path`] does.
pub fn cert_manager_crds() -> Result<Vec<PathBuf>> {
    yaml_files(Module::CertManager, CRDS)
}

fn yaml_files(module: Module, folder_name: &str) -> Result<Vec<PathBuf>> {
    let name = module.name();
    let folder = folder(module)?.join(folder_name);
    let entries = fs::read_dir(&folder)
        .with_context(|| format!("{name} needs its YAML files in {}", folder.display()))?;
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .filter(|path| path.as_ref().map_or(true, |path| path.extension() == Some("yaml".as_ref())))
        .collect::<Result<Vec<_>>>()?;
    if files.is_empty() {
        bail!("{name} needs its YAML files in {}: there is none", folder.display());
    }
    files.sort();
    Ok(files)
}

/// Makes every binary ready, and says where each one is.
pub fn build_all() -> Result<Vec<(Tool, PathBuf)>> {
    let mut built = Vec::new();
    for module in Module::ALL {
        for tool in module.tools() {
            built.push((*tool, path(*tool)?));
        }
    }
    kwok_stages()?;
    cert_manager_crds()?;
    Ok(built)
}

/// This crate's folder in the user's cache directory.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let cache = environment("XDG_CACHE_HOME")
        .or_else(|| Some(environment("HOME")?.join(".cache")))
        .context("no place for built binaries: set HOME or XDG_CACHE_HOME")?;
    Ok(cache.join("ksm-scale-operator").join("devcluster"))
}

/// Where logs of failed tests go: the workspace's target directory, if there is one.
pub(crate) fn log_archive() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
    let base = if target.is_dir() { target } else { std::env::temp_dir() };
    base.join("devcluster-logs")
}

fn folder(module: Module) -> Result<PathBuf> {
    match environment(BIN_DIR) {
        Some(folder) => Ok(folder),
        None => build::ensure(module),
    }
}

fn existing(file: PathBuf) -> Result<PathBuf> {
    if file.is_file() {
        return Ok(file);
    }
    match environment(BIN_DIR) {
        Some(_) => bail!("{} is missing: {BIN_DIR} must name a folder with it", file.display()),
        None => bail!("{} is missing: remove its folder to build it again", file.display()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests have no command line, so what is set per machine comes from the environment"
)]
pub(crate) fn environment(name: &str) -> Option<PathBuf> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).map(PathBuf::from)
}
