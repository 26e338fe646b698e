//! What the kernel says of a process's memory.

use anyhow::{Context as _, Result};
use std::fs;

/// Bytes.
#[derive(Clone, Copy)]
pub struct Memory {
    pub resident: u64,
    pub peak: u64,
}

impl Memory {
    /// Of process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).with_context(|| format!("{path}: needs Linux"))?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
        };
        let (resident, peak) = (value("VmRSS:"), value("VmHWM:"));
        Ok(Self { resident: resident.context("no VmRSS")?, peak: peak.context("no VmHWM")? })
    }
}
