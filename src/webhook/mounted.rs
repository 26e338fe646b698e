//! Serves the pair of a mounted directory: a Secret's `tls.crt` and `tls.key`, as cert-manager
//! writes them and the kubelet brings them (T1).
//!
//! The directory is looked at every two seconds. Events of the file system would come sooner, but
//! the kubelet itself is up to 100 s late, and there is no event when a certificate's time is over,
//! when the clock jumps, or after a machine slept. A look is two small files in memory; nothing is
//! parsed unless they changed.

use super::Serving;
use crate::{
    certificates::{
        PairError,
        reload::{Files, Reload, Step},
    },
    readiness::{Readiness, Requirement},
    telemetry::certificate_metrics::CertificateMetrics,
};
use jiff::Timestamp;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

const POLL: Duration = Duration::from_secs(2);

/// The kubelet's link to the folder with the present files. It renames a new link over it, which
/// changes all files in one step.
const DATA: &str = "..data";

/// Serves what stands in `dir` as `server_name`, and what comes after it, until `stop`.
///
/// A pair is served if certificate and key belong together and are valid for that name now. Else
/// what was served before stays, which is logged and counted once for each content; the process is
/// not ready only while what is served is not valid. Never ends before `stop`, and can be dropped
/// at any moment. The requirement counts from this call on, before anything is awaited.
pub fn run(
    dir: PathBuf,
    server_name: String,
    serving: Serving,
    clock: fn() -> Timestamp,
    readiness: &Readiness,
    metrics: CertificateMetrics,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let valid = readiness.require("a valid certificate for the webhook");
    let mut mounted =
        Mounted { dir, server_name, serving, valid, metrics, reload: Reload::default() };
    async move {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let dir = mounted.dir.clone();
            let read = tokio::task::spawn_blocking(move || read(&dir)).await;
            let found = read.unwrap_or_else(|ended| Err(ended.to_string()));
            mounted.look(found, clock());
        }
    }
}

struct Mounted {
    dir: PathBuf,
    server_name: String,
    serving: Serving,
    valid: Requirement,
    metrics: CertificateMetrics,
    reload: Reload,
}

impl Mounted {
    fn look(&mut self, found: Result<Files, String>, now: Timestamp) {
        let dir = self.dir.display();
        match self.reload.next(found, &self.server_name, now) {
            Step::Keep => {}
            Step::Serve(pair) => {
                tracing::info!(%dir, not_after = %pair.not_after, "serving the mounted certificate");
                self.metrics.not_after("leaf", pair.not_after);
                self.metrics.renewed(true);
                self.serving.swap(pair);
            }
            Step::Refuse(cause) => {
                tracing::warn!(%dir, %cause, "the mounted certificate is not served");
                self.metrics.renewed(false);
            }
        }
        match self.serving.current().map(|pair| pair.check(&self.server_name, now)) {
            Some(Ok(())) => self.valid.met(),
            Some(Err(expired)) => self.valid.unmet(&self.cause(&expired)),
            None => self.valid.unmet(&self.cause(&PairError::Empty("directory"))),
        }
    }

    /// What is wrong with what was found, or else with what is served, and where to look.
    fn cause(&self, served: &PairError) -> String {
        let cause = self.reload.refusal().map_or_else(|| served.to_string(), str::to_owned);
        format!(
            "{}: {cause}; see the Certificate that the mounted Secret belongs to (kubectl describe certificate)",
            self.dir.display()
        )
    }
}

/// Reads both files of one moment: from the folder that the kubelet's link leads to, or from `dir`
/// itself where there is no such link.
///
/// The link is resolved once, so a swap between the two reads cannot mix pairs. It can remove the
/// folder, though, and then the next one is read.
fn read(dir: &Path) -> Result<Files, String> {
    let mut folder = resolve(dir)?;
    loop {
        let files = read_file(&folder, "tls.crt")
            .and_then(|certificate| Ok(Files { certificate, key: read_file(&folder, "tls.key")? }));
        let Err(error) = files else { return files };
        let next = resolve(dir)?;
        if next == folder {
            return Err(error);
        }
        folder = next;
    }
}

fn resolve(dir: &Path) -> Result<PathBuf, String> {
    match fs::canonicalize(dir.join(DATA)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(dir.to_owned()),
        result => result.map_err(|error| format!("cannot read {DATA}: {error}")),
    }
}

fn read_file(folder: &Path, name: &str) -> Result<Vec<u8>, String> {
    fs::read(folder.join(name)).map_err(|error| format!("cannot read {name}: {error}"))
}

#[cfg(test)]
mod tests;
