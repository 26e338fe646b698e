//! Building one Go module into the cache.

use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{CRDS, Module, STAGES, cache_dir};
use crate::process::Process;

const HEARTBEAT: Duration = Duration::from_secs(30);

/// Where kwok's module keeps the rules that make nodes Ready and pods run, end and go.
const STAGE_FILES: &[&str] = &[
    "kustomize/stage/node/fast/node-initialize.yaml",
    "kustomize/stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "kustomize/stage/pod/fast/pod-ready.yaml",
    "kustomize/stage/pod/fast/pod-complete.yaml",
    "kustomize/stage/pod/fast/pod-delete.yaml",
];

/// Where cert-manager's module keeps the CustomResourceDefinitions of what is built of it. Its
/// controllers watch ClusterIssuers too, and wait for that watch.
const CRD_FILES: &[&str] = &[
    "deploy/crds/cert-manager.io_certificaterequests.yaml",
    "deploy/crds/cert-manager.io_certificates.yaml",
    "deploy/crds/cert-manager.io_clusterissuers.yaml",
    "deploy/crds/cert-manager.io_issuers.yaml",
];

/// What [`ensure`] found before, by module: asking Go takes a tenth of a second.
static FOUND: Mutex<Vec<(Module, PathBuf)>> = Mutex::new(Vec::new());

/// The folder with the module's binaries, built now if no build with these pins is in the cache.
pub(super) fn ensure(module: Module) -> Result<PathBuf> {
    // Not held during a build: the file lock keeps builds apart, also within one process.
    let found = || FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, folder)) = found().iter().find(|(known, _)| *known == module) {
        return Ok(folder.clone());
    }
    let folder = find_or_build(module)?;
    found().push((module, folder.clone()));
    Ok(folder)
}

fn find_or_build(module: Module) -> Result<PathBuf> {
    let ldflags = ldflags(module)?;
    let cache = cache_dir()?;
    let folder = cache.join(format!("{}-{}", module.name(), key(module, &ldflags)?));
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    // One lock for all modules: two builds at a time only slow each other down.
    let _lock = lock(&cache.join("build.lock"))?;
    if !folder.is_dir() {
        build(module, &ldflags, &cache, &folder)?;
    }
    Ok(folder)
}

/// Removed on drop unless renamed before; killed builds leave it for the next one to remove.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn build(module: Module, ldflags: &str, cache: &Path, folder: &Path) -> Result<()> {
    let partial = Partial(cache.join(format!("{}-partial", module.name())));
    // The lock is held, so what is there was left by a build that was killed.
    let _ = fs::remove_dir_all(&partial.0);
    fs::create_dir_all(&partial.0)?;
    let log = cache.join(format!("{}-build.log", module.name()));
    let _ = fs::remove_file(&log);
    say(&format!(
        "building {} from its Go modules, once; this takes {} on two cores (log: {})",
        module.name(),
        module.usual_duration(),
        log.display(),
    ));
    let start = Instant::now();
    install(module, ldflags, &partial.0, &log, start)?;
    // etcd's package is called after its folder.
    let server = partial.0.join("server");
    if module == Module::Etcd && server.is_file() {
        fs::rename(server, partial.0.join("etcd"))?;
    }
    match module {
        Module::Kwok => copy(module, "sigs.k8s.io/kwok", STAGE_FILES, &partial.0.join(STAGES))?,
        Module::CertManager => {
            let from = "github.com/cert-manager/cert-manager";
            copy(module, from, CRD_FILES, &partial.0.join(CRDS))?;
        }
        Module::Etcd | Module::Kubernetes | Module::Helm => {}
    }
    fs::rename(&partial.0, folder)
        .with_context(|| format!("cannot move the build to {}", folder.display()))?;
    say(&format!("built {} in {}", module.name(), duration(start.elapsed())));
    Ok(())
}

fn install(module: Module, ldflags: &str, out: &Path, log: &Path, start: Instant) -> Result<()> {
    let source = module.source();
    let packages = if module == Module::CertManager { "." } else { "tool" };
    let args = ["-C".as_ref(), source.as_os_str()]
        .into_iter()
        .chain(["install", "-trimpath", "-ldflags", ldflags, packages].map(str::as_ref));
    let env = environment().into_iter().chain([("GOBIN", out.as_os_str())]);
    let mut go = Process::spawn("go install", "go", args, env, log)?;
    let status = loop {
        if let Some(status) = go.wait_blocking(HEARTBEAT)? {
            break status;
        }
        say(&format!("still building {} after {}", module.name(), duration(start.elapsed())));
    };
    if !status.success() {
        bail!(
            "building {} failed after {} ({status}); the end of {}:\n{}",
            module.name(),
            duration(start.elapsed()),
            log.display(),
            go.log_tail(20),
        );
    }
    Ok(())
}

/// Copies files of a Go module that `module` depends on into a new folder.
fn copy(module: Module, dependency: &str, files: &[&str], to: &Path) -> Result<()> {
    let dir = go(module, &["list", "-m", "-f", "{{.Dir}}", dependency])?;
    fs::create_dir_all(to)?;
    for file in files {
        let from = Path::new(dir.trim()).join(file);
        let name = from.file_name().context("a file has a name")?;
        // Read and written, not copied: files in the module cache are read-only.
        let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        fs::write(to.join(name), text)?;
    }
    Ok(())
}

/// The linker's flags. Without a version of its own an API server reports `v0.0.0-master`.
fn ldflags(module: Module) -> Result<String> {
    if module != Module::Kubernetes {
        return Ok("-s -w".to_owned());
    }
    let go_mod = read(&module.source().join("go.mod"))?;
    let version = go_mod
        .lines()
        .find_map(|line| {
            line.trim().trim_start_matches("require ").strip_prefix("k8s.io/kubernetes ")
        })
        .and_then(|rest| rest.split_whitespace().next())
        .context("the go.mod of kubernetes does not require k8s.io/kubernetes")?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    Ok(format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} \
         -X {package}.gitMinor={minor}"
    ))
}

/// What a build depends on, as a name. Not a secure hash: it tells contents apart, no more.
fn key(module: Module, ldflags: &str) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for file in ["go.mod", "go.sum"] {
        read(&module.source().join(file))?.hash(&mut hasher);
    }
    if module == Module::CertManager {
        read(&module.source().join("main.go"))?.hash(&mut hasher);
    }
    ldflags.hash(&mut hasher);
    go(module, &["env", "GOVERSION", "GOOS", "GOARCH"])?.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// Settings of the user's that would change the result are switched off.
fn environment() -> [(&'static str, &'static std::ffi::OsStr); 3] {
    [("CGO_ENABLED", "0".as_ref()), ("GOFLAGS", "".as_ref()), ("GOWORK", "off".as_ref())]
}

fn go(module: Module, args: &[&str]) -> Result<String> {
    let source = module.source();
    let output = Command::new("go").args(args).current_dir(source).envs(environment()).output();
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "`go` is not in PATH, and the control plane is built from Go modules: install Go \
             (https://go.dev/dl), or set DEVCLUSTER_BIN_DIR to a folder with ready binaries"
        ),
        output => output.context("cannot run go")?,
    };
    if !output.status.success() {
        bail!("go {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say("waiting for a build in another process");
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cache"),
    }
    Ok(file)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn duration(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    if seconds < 60 {
        format!("{seconds} s")
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// Straight to standard error: `eprintln!` is swallowed in a test, where people wait just as well.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "devcluster: {line}");
}
