//! Child processes that cannot outlive their parent.
//!
//! A child runs under a guard, a small shell script in a process group of its own, whose standard
//! input is a pipe from this process. The kernel closes that pipe when this process ends, however
//! it ends, and the guard then kills the child. This needs neither `unsafe` nor the cooperation of
//! the child, and works on every Unix.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The guard: descriptor 3 is the pipe from the parent. Signal names come in as lines; its end
/// means that the parent is gone. The first line of output is the child's process id.
///
/// A background job of a shell loses its standard input, hence descriptor 3. Shells report ends by
/// signals on standard error, which has no place in the child's log. A child that was
/// killed takes its whole group with it, so that nothing it started stays behind.
const GUARD: &str = r#"
exec 3<&0 </dev/null
"$@" 3<&- >&2 &
child=$!
echo "$child"
exec >&2
(
    while read -r signal <&3; do kill -s "$signal" "$child" 2>/dev/null; done
    kill -s KILL "$child" 2>/dev/null
) &
reader=$!
exec 2>/dev/null
wait "$child"
code=$?
kill -s KILL "$reader"
wait "$reader"
if [ "$code" -eq 137 ]; then kill -s KILL 0; fi
exit "$code"
"#;

/// How often a wait looks whether the child has ended.
const POLL: Duration = Duration::from_millis(10);

/// A signal that [`Process::signal`] can send.
///
/// SIGINT is not among them: a shell's background job starts with it ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Asks the child to end.
    Term,
    /// Freezes the child, connections and locks included.
    Stop,
    /// Lets a frozen child go on.
    Cont,
    /// Ends the child at once.
    Kill,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Stop => "STOP",
            Self::Cont => "CONT",
            Self::Kill => "KILL",
        }
    }
}

/// A child process with its output in a log file.
///
/// The child is killed and reaped when this value is dropped, and killed when this process ends
/// for any reason, SIGKILL included.
#[derive(Debug)]
pub struct Process {
    name: String,
    guard: Child,
    /// `None` once the child was told to die.
    control: Option<ChildStdin>,
    pid: u32,
    log_path: PathBuf,
}

impl Process {
    /// Starts `program` with `args`, and `env` added to this process's environment.
    ///
    /// Output is appended to the file `log_path`, standard input is empty. `name` stands in error
    /// messages. A program that cannot be executed is not an error here: the child then ends at
    /// once with code 127 or 126, and the log says why.
    pub fn spawn<A, E, K, V>(
        name: &str,
        program: impl AsRef<OsStr>,
        args: A,
        env: E,
        log_path: &Path,
    ) -> Result<Self>
    where
        A: IntoIterator<Item: AsRef<OsStr>>,
        E: IntoIterator<Item = (K, V)>,
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path)
            .with_context(|| format!("cannot open {name}'s log {}", log_path.display()))?;
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(program)
            .args(args)
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start sh for {name}"))?;
        let control = guard.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = guard.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let pid = line.trim().parse().with_context(|| format!("{name} did not start"))?;
        Ok(Self { name: name.to_owned(), guard, control, pid, log_path: log_path.to_owned() })
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The child's own process id (not the guard's).
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file with the child's output.
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// The last `lines` lines of the child's output so far.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log_path, lines)
    }

    /// Sends a signal. It arrives a moment after this returns. An error means that the child has
    /// ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let Some(control) = &mut self.control else { bail!("{} has ended", self.name) };
        writeln!(control, "{}", signal.name()).with_context(|| format!("{} has ended", self.name))
    }

    /// The exit status if the child has ended.
    ///
    /// A child that was ended by a signal other than SIGKILL has the code 128 + signal, as in a
    /// shell (143 for SIGTERM); one that was killed has no code.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.guard.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits until the child has ended by itself; see [`Process::try_wait`] for the status.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks the child to end (SIGTERM), and kills it after `grace`.
    pub async fn terminate(&mut self, grace: Duration) -> Result<ExitStatus> {
        // An error here means that it has ended already, which is what is wanted.
        let _ = self.signal(Signal::Term);
        match tokio::time::timeout(grace, self.wait()).await {
            Ok(status) => status,
            Err(_) => self.kill(),
        }
    }

    /// Kills the child and returns when it is gone (milliseconds; blocks the thread).
    pub fn kill(&mut self) -> Result<ExitStatus> {
        drop(self.control.take());
        self.guard.wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// As [`Process::wait`], for callers outside an async runtime: `None` after `limit`.
    pub(crate) fn wait_blocking(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let status = self.try_wait()?;
            if status.is_some() || start.elapsed() >= limit {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left to hear of an error.
        let _ = self.kill();
    }
}

/// The last `lines` lines of a file, or nothing where it cannot be read.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let skip = text.lines().count().saturating_sub(lines);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}
