//! Building one Go module into the cache.

use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Module, STAGES, cache_dir};
use crate::process::Process;

const HEARTBEAT: Duration = Duration::from_secs(30);

/// Where kwok's module keeps the rules that make nodes Ready and pods run, end and go.
const STAGE_FILES: [&str; 5] = [
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
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
    if module == Module::Kwok {
        copy_stages(module, &partial.0.join(STAGES))?;
    }
    fs::rename(&partial.0, folder)
        .with_context(|| format!("cannot move the build to {}", folder.display()))?;
    say(&format!("built {} in {}", module.name(), duration(start.elapsed())));
    Ok(())
}

fn install(module: Module, ldflags: &str, out: &Path, log: &Path, start: Instant) -> Result<()> {
    let source = module.source();
    let args = ["-C".as_ref(), source.as_os_str()]
        .into_iter()
        .chain(["install", "-trimpath", "-ldflags", ldflags, "tool"].map(str::as_ref));
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

fn copy_stages(module: Module, to: &Path) -> Result<()> {
    let args = ["list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"];
    let stages = PathBuf::from(go(module, &args)?.trim()).join("kustomize/stage");
    fs::create_dir_all(to)?;
    for file in STAGE_FILES {
        let from = stages.join(file);
        let name = from.file_name().context("a stage file has a name")?;
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

/// What a build depends on, as a name. Not a secure hash: it tells pins apart, no more.
fn key(module: Module, ldflags: &str) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for file in ["go.mod", "go.sum"] {
        read(&module.source().join(file))?.hash(&mut hasher);
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
