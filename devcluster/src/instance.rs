//! Control planes that stay up in the background, by name.
//!
//! Each has a supervisor, a process that owns a [`ControlPlane`] and holds a lock on a file as long
//! as it lives. The lock, not the presence of files, says whether an instance is up, so that a
//! supervisor that was killed leaves nothing that could mislead.

use std::fs::{self, File, TryLockError};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use crate::control_plane::{ControlPlane, Level};
use crate::{process, tools};

/// The hidden subcommand that runs the supervisor.
pub const SUPERVISE: &str = "supervise";

/// For a start with many nodes on a small machine.
const UP_DEADLINE: Duration = Duration::from_mins(5);
const DOWN_DEADLINE: Duration = Duration::from_secs(30);
/// How long a supervisor tries for the lock, which a glance of another process can hold for a
/// moment.
const LOCK_DEADLINE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(100);

/// A control plane in the background, up or not.
#[derive(Debug, Clone)]
pub struct Instance {
    name: String,
    dir: PathBuf,
}

/// What [`Instance::up`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Up {
    /// It was down, and has been started.
    Started,
    /// It was up already, and has been left as it is.
    Already,
}

impl Instance {
    /// The instance of this name, which consists of lower-case letters, digits and dashes.
    pub fn named(name: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(allowed) {
            bail!("`{name}` is no name: use lower-case letters, digits and dashes");
        }
        let dir = tools::cache_dir()?.join("instances").join(name);
        Ok(Self { name: name.to_owned(), dir })
    }

    /// Whether the instance is up or on its way up.
    pub fn is_up(&self) -> Result<bool> {
        let file = match File::open(self.lock_path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            file => file.context("cannot open the lock")?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error).context("cannot read the lock"),
        }
    }

    /// The administrator's kubeconfig file. An error if the instance is not up.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        if self.is_up()? && self.kubeconfig_path().is_file() {
            return Ok(self.kubeconfig_path());
        }
        bail!("`{0}` is not up: start it with `devcluster up --name {0}`", self.name)
    }

    /// Starts the instance with `nodes` nodes and returns when it is ready. Builds the binaries
    /// first if need be. If the instance is up already it is left alone.
    pub fn up(&self, nodes: u32) -> Result<Up> {
        if self.is_up()? {
            self.wait_until_ready(|| {
                ensure!(self.is_up()?, "`{}` ended while it was coming up", self.name);
                Ok(())
            })?;
            return Ok(Up::Already);
        }
        // In the foreground, where its progress is seen.
        tools::build_all()?;
        // What is left of a supervisor that was killed.
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot make {}", self.dir.display()))?;
        let log = self.dir.join("supervisor.log");
        let output = File::create(&log)?;
        let mut supervisor = Command::new(std::env::current_exe()?)
            .args([SUPERVISE, "--name", &self.name, "--nodes", &nodes.to_string()])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Out of reach of the terminal's Ctrl-C.
            .process_group(0)
            .spawn()
            .context("cannot start the supervisor")?;
        self.wait_until_ready(|| match supervisor.try_wait()? {
            None => Ok(()),
            Some(_) => bail!("`{}` did not come up:\n{}", self.name, process::tail(&log, 30)),
        })?;
        Ok(Up::Started)
    }

    /// Stops the instance and removes its data. `false` if it was not up.
    pub fn down(&self) -> Result<bool> {
        if !self.is_up()? {
            let _ = fs::remove_dir_all(&self.dir);
            return Ok(false);
        }
        for signal in ["-TERM", "-KILL"] {
            let pid =
                fs::read_to_string(self.pid_path()).context("the supervisor has no pid yet")?;
            Command::new("kill").args([signal, pid.trim()]).status().context("cannot run kill")?;
            let start = Instant::now();
            while start.elapsed() < DOWN_DEADLINE {
                if !self.is_up()? {
                    let _ = fs::remove_dir_all(&self.dir);
                    return Ok(true);
                }
                std::thread::sleep(POLL);
            }
        }
        bail!("`{}` does not end; its processes are in {}", self.name, self.dir.display())
    }

    /// Runs the instance in this process until SIGTERM or SIGINT. Meant to be called by
    /// [`Instance::up`], in a process of its own.
    pub async fn supervise(&self, nodes: u32) -> Result<()> {
        let _lock = self.take_lock()?;
        // Before anything is started, so that no signal is missed; a closed terminal is no reason
        // to end.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let _hangup = signal(SignalKind::hangup())?;
        write(&self.pid_path(), &std::process::id().to_string())?;
        let run = async {
            let plane = ControlPlane::start(Level::Nodes).await?;
            plane.add_kwok_nodes(0..nodes).await?;
            plane.nodes_ready(0..nodes).await?;
            write(&self.kubeconfig_path(), &fs::read_to_string(plane.kubeconfig())?)?;
            plane.watch_over().await
        };
        tokio::select! {
            ended = run => ended,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    }

    fn take_lock(&self) -> Result<File> {
        let path = self.lock_path();
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let start = Instant::now();
        while let Err(error) = file.try_lock() {
            if start.elapsed() > LOCK_DEADLINE {
                return Err(error).with_context(|| format!("`{}` is up already", self.name));
            }
            std::thread::sleep(POLL);
        }
        Ok(file)
    }

    /// Waits for the kubeconfig file, the last thing a supervisor makes.
    fn wait_until_ready(&self, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while !self.kubeconfig_path().is_file() {
            alive()?;
            if start.elapsed() > UP_DEADLINE {
                bail!("`{}` is not ready after {} s", self.name, UP_DEADLINE.as_secs());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn pid_path(&self) -> PathBuf {
        self.dir.join("pid")
    }

    fn kubeconfig_path(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }
}

/// Writes a file that is complete as soon as it is there.
fn write(path: &Path, content: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, content)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
