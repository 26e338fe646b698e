//! The servers, each a process on a core of its own.

use super::{bodies::Case, load::Target, memory::Memory};
use anyhow::{Context as _, Result, ensure};
use devcluster::{Process, eventually, probe::free_address};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// The servers, of which one works at a time, have the first core, and the load has the second.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

const NAME: &str = "webhook.monitoring.svc";
const DEADLINE: Duration = Duration::from_secs(30);
/// What a server may still have to do when the last answer is there, such as collecting garbage.
const AFTERWARDS: Duration = Duration::from_millis(100);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ours,
    Peer,
    Floor,
}

impl Side {
    pub const ALL: [Self; 3] = [Self::Ours, Self::Peer, Self::Floor];
}

/// What servers are started from.
pub struct Servers {
    /// With certificate and key, under the names that controller-runtime expects, and logs.
    dir: TempDir,
    bundle: String,
    peer: PathBuf,
    pinned: bool,
}

impl Servers {
    /// Builds the peer, makes a certificate, and moves this process to its core.
    pub fn prepare() -> Result<Self> {
        let peer = build_peer()?;
        let dir = tempfile::tempdir()?;
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // ECDSA on P-256 is rcgen's default.
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new([NAME.to_owned()])?.signed_by(&key, &ca)?;
        fs::write(dir.path().join("tls.crt"), leaf.pem())?;
        fs::write(dir.path().join("tls.key"), key.serialize_pem())?;
        Ok(Self { dir, bundle: ca.pem(), peer, pinned: pin()? })
    }

    /// Whether servers and load have a core each.
    pub fn are_pinned(&self) -> bool {
        self.pinned
    }

    /// Starts a fresh server and waits until it answers `case`.
    pub async fn start(&self, side: Side, case: &Case) -> Result<Server> {
        let address = free_address().await?;
        let (_, port) = address.rsplit_once(':').context("no port")?;
        let program = match side {
            Side::Ours | Side::Floor => std::env::current_exe()?,
            Side::Peer => self.peer.clone(),
        };
        let mut line: Vec<_> = Vec::new();
        if self.pinned {
            line.extend(["taskset", "-c", SERVER_CORE].map(PathBuf::from));
        }
        line.push(program);
        let role: &[_] = match side {
            Side::Ours => &["serve"],
            Side::Floor => &["floor"],
            Side::Peer => &[],
        };
        line.extend(role.iter().chain(&["--port", port, "--cert-dir"]).map(PathBuf::from));
        line.push(self.dir.path().to_owned());
        let name = format!("{side:?}").to_lowercase();
        let log = self.dir.path().join(format!("{name}.log"));
        let no_environment: [(&str, &str); 0] = [];
        let process = Process::spawn(&name, &line[0], &line[1..], no_environment, &log)?;
        let target = Target::new(address.parse()?, NAME, &self.bundle)?;
        let answers = eventually("the server answers", DEADLINE, async || {
            target.ask_afresh(case, 1, 1).await.ok()
        });
        answers.await.with_context(|| process.log_tail(20))?;
        Ok(Server { process, target })
    }
}

/// A server that is up. Ends when it is dropped.
pub struct Server {
    process: Process,
    pub target: Target,
}

impl Server {
    /// CPU time of all threads so far, of user and kernel, with nothing under way any more.
    ///
    /// `/proc/PID/stat` has the same in hundredths of a second; here it is in nanoseconds. What is
    /// missing are threads that have ended, which no server has.
    pub async fn cpu(&self) -> Result<Duration> {
        tokio::time::sleep(AFTERWARDS).await;
        let threads = format!("/proc/{}/task", self.process.pid());
        let threads = fs::read_dir(&threads).with_context(|| format!("{threads}: needs Linux"))?;
        let mut used = Duration::ZERO;
        for thread in threads {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let nanos = text.split(' ').next().unwrap_or_default();
            used += Duration::from_nanos(nanos.parse().context("an unknown form of schedstat")?);
        }
        Ok(used)
    }

    pub fn memory(&self) -> Result<Memory> {
        Memory::of(self.process.pid())
    }
}

fn build_peer() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/webhook/peer");
    let peer = Path::new(env!("CARGO_TARGET_TMPDIR")).join("webhook-peer");
    let mut go = Command::new("go");
    go.arg("build").arg("-o").arg(&peer).arg(".").current_dir(source);
    let status = go.status().context(
        "cannot run go, which builds the server to compare with: install Go 1.26 or newer from https://go.dev/dl",
    )?;
    ensure!(status.success(), "go build of benches/webhook/peer failed: see above");
    Ok(peer)
}

/// Moves this process to the load's core, if there is one. To be called while it has one thread.
fn pin() -> Result<bool> {
    if std::thread::available_parallelism()?.get() < 2 {
        eprintln!("one core for servers and load: they take time from each other");
        return Ok(false);
    }
    let pid = std::process::id().to_string();
    let Ok(output) = Command::new("taskset").args(["-pc", LOAD_CORE, &pid]).output() else {
        eprintln!("no taskset (Debian: apt-get install util-linux): nothing is pinned to a core");
        return Ok(false);
    };
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cannot move to core {LOAD_CORE}: {error}");
    Ok(true)
}
