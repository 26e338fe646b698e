//! The Go library, in both versions, with the same members and keys.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::{path::Path, process::Command};

/// What it answered, and how long that took at best. Counts are of all trials together.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Report {
    pub(super) version: String,
    pub(super) lookup_ns: f64,
    pub(super) lookup_pair_ns: f64,
    pub(super) rebuild_us: f64,
    pub(super) least_most_ns: f64,
    /// Of each key, with 10 members.
    pub(super) owners: Vec<String>,
    /// The least and the most of 10 members.
    pub(super) loads: [usize; 2],
    pub(super) add_moves: Vec<usize>,
    pub(super) roll_moves: Vec<usize>,
}

/// Builds it and lets it answer.
pub(super) fn ask() -> Result<[Report; 2]> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("consistent-peer");
    let mut go = Command::new("go");
    go.arg("build").arg("-o").arg(&program).arg(".").current_dir(source);
    let status = go.status().context(
        "cannot run go, which builds the library to compare with: install Go 1.26 or newer from https://go.dev/dl",
    )?;
    ensure!(status.success(), "go build of benches/peer failed: see above");
    let output = Command::new(program).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("the peer's report")
}
