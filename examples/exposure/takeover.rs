//! Which replica of the operator may act on which part of the work, while one of them dies and
//! comes back: as each says in its metrics, ten times a second.

use anyhow::{Result, ensure};
use devcluster::{
    ControlPlane, Level, Process,
    probe::{free_address, http_get},
};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::site::{DEADLINE, NAMESPACE, install};

const REPLICAS: [&str; 3] = ["operator-a", "operator-b", "operator-c"];
/// The one that dies.
const MORTAL: usize = 1;
const METRIC: &str = "sharding_owned_partitions ";
/// As many as there are by default.
const PARTITIONS: u32 = 4_096;
const PERIOD: Duration = Duration::from_millis(100);
const CALM: Duration = Duration::from_secs(3);

struct Stage {
    plane: ControlPlane,
    binary: PathBuf,
    kubeconfig: PathBuf,
    replicas: Vec<(Process, String)>,
    begun: Instant,
    last: [u32; REPLICAS.len()],
    csv: String,
}

/// The record, as CSV: a line for each moment at which somebody's part changed.
pub async fn measure(binary: &Path) -> Result<String> {
    let plane = ControlPlane::start(Level::ApiServer).await?;
    install(&plane).await?;
    let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, "ksm-scale-operator").await?;
    let csv = format!("at_ms,{},event\n", REPLICAS.join(","));
    let mut stage = Stage {
        plane,
        binary: binary.to_owned(),
        kubeconfig,
        replicas: Vec::new(),
        begun: Instant::now(),
        last: [0; REPLICAS.len()],
        csv,
    };
    for name in REPLICAS {
        let replica = stage.spawn(name).await?;
        stage.replicas.push(replica);
    }
    let shared = |owned: &[u32]| owned.iter().all(|&part| part > 0) && sum(owned) == PARTITIONS;
    stage.until("all share the work", shared).await?;
    (stage.begun, stage.csv) = (Instant::now(), stage.csv.lines().take(1).collect());
    stage.csv.push('\n');
    stage.note("");
    stage.rest().await?;
    stage.replicas[MORTAL].0.kill()?;
    stage.note(&format!("{} is killed", REPLICAS[MORTAL]));
    let taken = |owned: &[u32]| owned[MORTAL] == 0 && sum(owned) == PARTITIONS;
    stage.until("others have its part", taken).await?;
    stage.rest().await?;
    stage.replicas[MORTAL] = stage.spawn(REPLICAS[MORTAL]).await?;
    stage.note(&format!("{} is started again", REPLICAS[MORTAL]));
    stage.until("all share the work", shared).await?;
    stage.rest().await?;
    stage.note("");
    Ok(stage.csv)
}

impl Stage {
    async fn spawn(&self, name: &str) -> Result<(Process, String)> {
        let (health, metrics) = (free_address().await?, free_address().await?);
        let args = ["run", "--webhook", "off", "--pod-name", name];
        let addresses =
            ["--health-probe-bind-address", &health, "--metrics-bind-address", &metrics];
        let log = self.plane.dir().join(format!("{name}.log"));
        let env = [("KUBECONFIG", &self.kubeconfig)];
        let process = Process::spawn(name, &self.binary, args.iter().chain(&addresses), env, &log)?;
        Ok((process, metrics))
    }

    /// Looks once, and says whether what is owned is as `wanted`.
    async fn look(&mut self, wanted: &impl Fn(&[u32]) -> bool) -> bool {
        let mut owned = [0; REPLICAS.len()];
        for ((_, metrics), owned) in self.replicas.iter().zip(&mut owned) {
            let answer = tokio::time::timeout(PERIOD, http_get(metrics, "/metrics")).await;
            let Ok(Ok((200, text))) = answer else { continue };
            let value = text.lines().find_map(|line| line.strip_prefix(METRIC));
            *owned = value.and_then(|value| value.parse().ok()).unwrap_or_default();
        }
        if owned != self.last {
            self.last = owned;
            self.note("");
        }
        wanted(&owned)
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&[u32]) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !self.look(&wanted).await {
            ensure!(begun.elapsed() < DEADLINE, "{what}: not so in time: {}", self.csv);
            tokio::time::sleep(PERIOD).await;
        }
        Ok(())
    }

    async fn rest(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.until("a while goes by", |_| begun.elapsed() > CALM).await
    }

    fn note(&mut self, event: &str) {
        let parts: Vec<_> = self.last.iter().map(u32::to_string).collect();
        let at = self.begun.elapsed().as_millis();
        // Writing to a string cannot fail.
        let _ = writeln!(self.csv, "{at},{},{event}", parts.join(","));
    }
}

fn sum(owned: &[u32]) -> u32 {
    owned.iter().sum()
}
