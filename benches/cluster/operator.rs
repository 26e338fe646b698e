//! The operator's process, and what the kernel and its metrics say about it.

use super::memory::Memory;
use anyhow::{Context as _, Result, bail, ensure};
use devcluster::{
    ControlPlane, FaultProxy, Process, eventually,
    probe::{free_address, http_get},
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_mins(5);

/// How long a process has to do nothing before it is measured.
const QUIET: Duration = Duration::from_secs(5);

/// Clock ticks in /proc are hundredths of a second on every Linux that Rust's std runs on.
const TICK: Duration = Duration::from_millis(10);

pub struct Operator {
    process: Process,
    metrics: String,
}

impl Operator {
    /// Starts the operator under its ServiceAccount, behind `proxy` if there is one, and waits
    /// until it has all its lists.
    pub async fn start(
        plane: &ControlPlane,
        proxy: Option<&FaultProxy>,
        args: &[&str],
    ) -> Result<Self> {
        let binary = Path::new(env!("CARGO_BIN_EXE_ksm-scale-operator"));
        Self::start_binary(binary, plane, proxy, args).await
    }

    /// The same with a given binary.
    pub async fn start_binary(
        binary: &Path,
        plane: &ControlPlane,
        proxy: Option<&FaultProxy>,
        args: &[&str],
    ) -> Result<Self> {
        let url = proxy.map_or_else(|| plane.server_url(), FaultProxy::url);
        let (namespace, name) = ("monitoring", "ksm-scale-operator");
        let kubeconfig = plane.service_account_kubeconfig_via(&url, namespace, name).await?;
        let (health, metrics) = (free_address().await?, free_address().await?);
        let mut all = vec!["run"];
        all.extend(["--health-probe-bind-address", &health, "--metrics-bind-address", &metrics]);
        for [flag, value] in [["--webhook", "off"], ["--settle-time", "0s"]] {
            if !args.contains(&flag) {
                all.extend([flag, value]);
            }
        }
        all.extend(args);
        let process = Process::spawn(
            "operator",
            binary,
            all,
            [("KUBECONFIG", kubeconfig)],
            &plane.dir().join("operator.log"),
        )?;
        let ready = eventually("the operator is ready", DEADLINE, async || {
            (http_get(&health, "/readyz").await.ok()?.0 == 200).then_some(())
        });
        ready.await.with_context(|| process.log_tail(20))?;
        Ok(Self { process, metrics })
    }

    /// SIGTERM.
    pub async fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(DEADLINE).await?;
        ensure!(
            status.success(),
            "the operator ended with {status}: {}",
            self.process.log_tail(20)
        );
        Ok(())
    }

    /// Reconciles so far.
    pub async fn reconciles(&self) -> Result<u32> {
        let count = self.metric("ksm_scale_operator_reconcile_duration_seconds_count").await?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        Ok(count as u32)
    }

    /// The value of a metric, by its name with its labels.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = http_get(&self.metrics, "/metrics").await?;
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = found.with_context(|| format!("no metric {name}"))?;
        value.parse().with_context(|| format!("the value of {name}"))
    }

    /// Waits until each of `scales` was reconciled and nothing follows from it any more.
    pub async fn until_idle(&self, scales: u32) -> Result<()> {
        let (mut last, begun) = (0, Instant::now());
        loop {
            ensure!(begun.elapsed() < DEADLINE, "{last} reconciles, and there is no end to them");
            tokio::time::sleep(QUIET).await;
            let now = self.reconciles().await?;
            if now == last && now >= scales {
                return Ok(());
            }
            last = now;
        }
    }

    /// Of its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// For how long the thread of this name could have run so far, and another had the core.
    pub fn waited(&self, thread: &str) -> Result<Duration> {
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.trim_end() == thread {
                let text = fs::read_to_string(task.join("schedstat"))?;
                let nanos = text.split(' ').nth(1).context("an unknown form of schedstat")?;
                return Ok(Duration::from_nanos(nanos.parse()?));
            }
        }
        bail!("no thread {thread}")
    }

    /// Audits so far that came to this result.
    pub async fn audits(&self, result: &str) -> f64 {
        let name = format!("ksm_scale_operator_audits_total{{result=\"{result}\"}}");
        self.metric(&name).await.unwrap_or_default()
    }

    /// Waits until there were so many.
    pub async fn until_audits(&self, result: &str, wanted: f64) -> Result<()> {
        let enough = async || (self.audits(result).await >= wanted).then_some(());
        eventually("audits", DEADLINE, enough).await
    }

    /// After a moment without work.
    pub async fn memory_at_rest(&self) -> Result<Memory> {
        tokio::time::sleep(QUIET).await;
        Memory::of(self.process.pid())
    }

    /// CPU time so far, of user and kernel.
    pub fn cpu(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.process.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("{path}: needs Linux"))?;
        // Fields 14 and 15; the second field may contain spaces and ends with a parenthesis.
        let (_, fields) = text.rsplit_once(')').context("an unknown form of /proc/PID/stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
        Ok(TICK * ticks.sum::<Result<u32, _>>()?)
    }
}
