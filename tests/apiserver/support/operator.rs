//! The operator as a process of its own.

use super::SOON;
use devcluster::{
    ControlPlane, Process, Signal, eventually,
    probe::{free_address, http_get},
};
use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
};

/// Times of [`TimingConfig::FAST`](lease_sharding::protocol::TimingConfig::FAST).
const SHARDING: [(&str, &str); 5] = [
    ("--pod-name", "operator"),
    ("--pod-uid", "operator"),
    ("--sharding-lease-duration", "6s"),
    ("--sharding-renew-deadline", "4s"),
    ("--sharding-renew-interval", "1s"),
];

/// The operator's process.
pub struct Operator {
    process: Process,
    name: String,
    health: String,
    metrics: String,
    log: PathBuf,
}

impl Operator {
    /// Starts it without waiting for anything. Unless `args` say otherwise it is the one replica
    /// there is, whose container is restarted if it was there before: it goes on at once.
    pub async fn spawn(plane: &ControlPlane, kubeconfig: &Path, args: &[&str]) -> Self {
        let (health, metrics) = (free_address().await, free_address().await);
        let (health, metrics) = (health.expect("a port"), metrics.expect("a port"));
        let log = plane.dir().join(format!("operator-{}.log", health.replace(':', "-")));
        let mut all =
            vec!["run", "--health-probe-bind-address", &health, "--metrics-bind-address", &metrics];
        if !args.contains(&"--log-filter") {
            all.extend(["--log-filter", "info,ksm_scale_operator=debug"]);
        }
        if !args.contains(&"--settle-time") {
            all.extend(["--settle-time", "0s"]);
        }
        // Pods of the stand-in kubelet have addresses at which nobody is.
        for (flag, off) in [("--verify-coverage", "false"), ("--audit-interval", "0s")] {
            if !args.contains(&flag) {
                all.extend([flag, off]);
            }
        }
        // Most tests are not about what an administrator allows.
        for flag in ["--allowed-namespaces", "--allowed-images"] {
            if !args.contains(&flag) {
                all.extend([flag, "*"]);
            }
        }
        if !args.contains(&"--webhook") {
            all.extend(["--webhook", "off"]);
        }
        for (flag, default) in SHARDING {
            if !args.iter().any(|arg| arg.starts_with(flag)) {
                all.extend([flag, default]);
            }
        }
        all.extend(args);
        let name = all.iter().skip_while(|arg| **arg != "--pod-name").nth(1);
        let name = name.map(|name| (*name).to_owned()).expect("a name");
        let env = [("KUBECONFIG", kubeconfig)];
        let process =
            Process::spawn("operator", env!("CARGO_BIN_EXE_ksm-scale-operator"), all, env, &log);
        Self { process: process.expect("the operator starts"), name, health, metrics, log }
    }

    /// Starts it and waits until it is ready.
    pub async fn start(plane: &ControlPlane, kubeconfig: &Path, args: &[&str]) -> Self {
        let operator = Self::spawn(plane, kubeconfig, args).await;
        operator.until_ready().await;
        operator
    }

    pub async fn until_ready(&self) {
        let ready = eventually("the operator is ready", SOON, || async {
            (self.ask("/readyz").await?.0 == 200).then_some(())
        });
        if let Err(error) = ready.await {
            panic!("{error}; its log:\n{}", self.log());
        }
    }

    /// The value of a metric without labels, or of the line that starts with `name`.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metric_text(name).await.and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }

    /// The same as it is written; `None` if it is not there.
    pub async fn metric_text(&self, name: &str) -> Option<String> {
        let (_, text) = self.ask("/metrics").await.expect("metrics");
        let line = text.lines().find(|l| l.split(' ').next() == Some(name));
        line.and_then(|l| l.rsplit(' ').next()).map(str::to_owned)
    }

    /// Status code and body of `/metrics`, `/healthz` or `/readyz`; `None` while nobody answers.
    pub async fn ask(&self, path: &str) -> Option<(u16, String)> {
        let address = if path == "/metrics" { &self.metrics } else { &self.health };
        http_get(address, path).await.ok()
    }

    /// Where `/metrics` is.
    pub fn metrics_address(&self) -> &str {
        &self.metrics
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How nice its threads are to others, with their names.
    #[cfg(target_os = "linux")]
    pub fn nice_by_thread(&self) -> Vec<(String, i32)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.pid()));
        let nice = |task: std::io::Result<std::fs::DirEntry>| {
            // A thread may have ended since.
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            let (name, numbers) = stat.rsplit_once(')').expect("a name in parentheses");
            let name = name.split_once('(').expect("a name in parentheses").1.to_owned();
            // The 19th of all, see proc_pid_stat(5).
            let nice = numbers.split_whitespace().nth(16).expect("19 fields");
            Some((name, nice.parse().expect("a number")))
        };
        tasks.expect("its threads").filter_map(nice).collect()
    }

    /// SIGSTOP or SIGCONT, for example.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal).expect("a running process");
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill().expect("the operator can be killed");
    }

    /// SIGTERM, and what it ended with.
    pub async fn terminate(mut self) -> ExitStatus {
        self.process.terminate(SOON).await.expect("the operator stops")
    }

    /// Waits until it ends by itself. What it ended with, and its log.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let ended = tokio::time::timeout(SOON, self.process.wait()).await;
        let status = ended.expect("it ends").expect("a status");
        (status, self.log())
    }

    /// Where its log is, also after its end.
    pub fn log_path(&self) -> PathBuf {
        self.log.clone()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
