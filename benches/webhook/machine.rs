//! CPU time of the whole machine.

use anyhow::{Context as _, Result};
use std::fs;

/// CPU time so far, in ticks.
#[derive(Clone, Copy)]
pub struct Machine {
    all: u64,
    idle: u64,
    /// Taken away by the host.
    stolen: u64,
}

impl Machine {
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat: needs Linux")?;
        let ticks = text.lines().next().context("an empty /proc/stat")?.split_whitespace();
        let ticks: Vec<u64> = ticks.skip(1).take(8).map(str::parse).collect::<Result<_, _>>()?;
        let [.., idle, wait, _, _, stolen] = ticks[..] else {
            anyhow::bail!("an unknown form of /proc/stat")
        };
        Ok(Self { all: ticks.iter().sum(), idle: idle + wait, stolen })
    }

    /// The shares of the time since `before`, in percent, in which a core was busy, and in which
    /// it was stolen.
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point")]
    pub fn shares_since(self, before: Self) -> (f64, f64) {
        let all = (self.all - before.all).max(1) as f64;
        let (idle, stolen) =
            ((self.idle - before.idle) as f64, (self.stolen - before.stolen) as f64);
        (100.0 - 100.0 * (idle + stolen) / all, 100.0 * stolen / all)
    }
}
