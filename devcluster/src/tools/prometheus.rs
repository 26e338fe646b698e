//! Prometheus, as Debian ships it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};

use super::{cache_dir, environment};

/// What helps when it is not there and cannot be had.
const REMEDY: &str = "install it (`apt-get install prometheus`, or https://prometheus.io/download) \
                      so that `prometheus` and `promtool` are in PATH";

/// The folder with `prometheus` and `promtool`: one in PATH, or else Debian's package, unpacked into
/// the cache (needs apt-get, but neither root nor an installation). Blocks the thread.
pub fn prometheus() -> Result<PathBuf> {
    let in_path = environment("PATH");
    let folders = in_path.iter().flat_map(std::env::split_paths).collect::<Vec<_>>();
    if let Some(folder) = folders.into_iter().find(|folder| is_whole(folder)) {
        return Ok(folder);
    }
    let cache = cache_dir()?;
    let folder = cache.join("prometheus");
    let programs = folder.join("usr/bin");
    if !is_whole(&programs) {
        fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        unpack(&cache, &folder).with_context(|| format!("no Prometheus: {REMEDY}"))?;
    }
    Ok(programs)
}

fn is_whole(folder: &Path) -> bool {
    ["prometheus", "promtool"].iter().all(|program| folder.join(program).is_file())
}

fn unpack(cache: &Path, folder: &Path) -> Result<()> {
    let partial = tempfile::Builder::new().prefix("prometheus-partial-").tempdir_in(cache)?;
    let run = |command: &mut Command| checked(command.current_dir(partial.path()));
    run(Command::new("apt-get").args(["download", "prometheus"]))?;
    let mut packages = fs::read_dir(partial.path())?.filter_map(|entry| Some(entry.ok()?.path()));
    let package = packages.find(|path| path.extension() == Some("deb".as_ref()));
    let package = package.context("apt-get downloaded nothing")?;
    run(Command::new("dpkg").arg("-x").arg(&package).arg("unpacked"))?;
    match fs::rename(partial.path().join("unpacked"), folder) {
        // Another process was faster.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        renamed => renamed.context("cannot move what was unpacked"),
    }
}

fn checked(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}
