//! The HTTPS server of the admission webhooks.
//!
//! ```text
//! accept ─► handshake ─► request: path, method, media type, length, load ─► body ─► admission ─► answer
//!   │ connections: who stays, and for how long                                        └► SubjectAccessReview
//! ```
//!
//! hyper and tokio-rustls without a framework: what matters here is when a connection ends, and a
//! framework hides that. The API server keeps its connections open for 90 s and never sends a
//! request again that met a closed one, so here a connection is closed in three cases only: the
//! client is too slow or too long silent, there are too many, or the server ends.

use crate::{
    admission::{Knowledge, Need},
    allowed::Allowed,
    certificates::PairError,
    readiness::Requirement,
};
use accept::Listening;
use rustls::server::VerifierBuilderError;
use std::{path::PathBuf, sync::Arc, thread, time::Duration};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;

mod accept;
mod authorize;
mod clients;
pub(crate) mod configurations;
mod connections;
pub mod metrics;
pub mod mounted;
mod requests;
pub mod self_managed;
pub mod serving;
mod stream;
mod tls;
pub mod trust;

pub use metrics::Metrics;
pub use self_managed::SelfManaged;
pub use serving::Serving;
pub use tls::TlsVersion;

/// What is known of the cluster, as far as it is needed. `None` while pods or KSMScales are not
/// known yet: the API server is asked to try again. An unknown number of nodes is no reason for
/// `None`; only advice is left out then.
///
/// Called for requests that depend on it, so it has to be fast and must not block.
pub type KnowledgeOf = Arc<dyn Fn(Need<'_>) -> Option<Knowledge> + Send + Sync>;

/// How the server is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The oldest version of TLS that is spoken.
    pub min_tls_version: TlsVersion,
    /// A PEM file with the CAs of clients. With it a client has to present a certificate. The file
    /// is read again when it changes.
    pub client_ca: Option<PathBuf>,
    /// Common names or DNS names, one of which a client's certificate has to carry. Empty: any.
    pub client_names: Vec<String>,
    /// How long the server works on after it was told to drain. At least as long as the cluster
    /// needs to stop sending: a few seconds.
    pub lame_duck: Duration,
    /// Bounds that need no setting.
    pub limits: Limits,
}

/// Bounds on what clients can take up. The defaults are for production, where all of it together
/// stays below 100 MB; tests make them small.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the TLS handshake. The API server gives up after 10 s.
    pub handshake: Duration,
    /// From the first byte of a request to the end of its header.
    pub header: Duration,
    /// From there to the end of its body.
    pub body: Duration,
    /// For a connection without a request. More than the 90 s after which the API server closes
    /// its end. Also before the first request: Go opens connections that it uses later.
    pub idle: Duration,
    /// For the client to read the last answer of a connection and to close its end.
    pub closing: Duration,
    /// For requests that are under way when the lame duck's time is over.
    pub finish: Duration,
    /// How often to look for connections that have taken too long.
    pub sweep: Duration,
    /// How often to look whether the file with client CAs has changed.
    pub reload: Duration,
    /// Open connections. One more displaces one: see `connections`.
    pub connections: usize,
    /// Bytes of one body: object and old object, 3 MiB each, and what is around them.
    pub body_bytes: usize,
    /// Bytes of all bodies that are larger than [`Limits::free_bytes`].
    pub held_bytes: usize,
    /// A body up to this size is never refused for the others' size.
    pub free_bytes: usize,
    /// Requests that are decided at a time. Beyond a few these wait for the API server.
    pub deciding: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            body: Duration::from_secs(10),
            idle: Duration::from_secs(150),
            closing: Duration::from_secs(1),
            finish: Duration::from_secs(10),
            sweep: Duration::from_secs(1),
            reload: Duration::from_secs(10),
            connections: 512,
            body_bytes: 7 << 20,
            held_bytes: 16 << 20,
            free_bytes: 32 << 10,
            deciding: 256,
        }
    }
}

/// Why the server could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The file with client CAs cannot be read.
    #[error("cannot read the client CAs in {}: {source}", .path.display())]
    ClientCaFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There are no certificates in it.
    #[error("cannot use the client CAs in {}: {source}", .path.display())]
    ClientCaPem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PairError,
    },
    /// A certificate in it cannot be a CA.
    #[error("cannot use the client CAs in {}: {source}", .path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: VerifierBuilderError,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The server, ready to be run.
pub struct Server {
    /// The certificate. Without one handshakes fail, so have one before telling anybody.
    pub serving: Serving,
    /// How it is run.
    pub options: Options,
    /// What is known of the cluster.
    pub knowledge: KnowledgeOf,
    /// What KSMScales may ask for.
    pub allowed: Allowed,
    /// For SubjectAccessReviews. It must not try again by itself; best made on the runtime that
    /// runs the server, on which its connections then live.
    pub client: kube::Client,
    /// What is counted.
    pub metrics: Metrics,
}

impl Server {
    /// Serves on `listener` until it was drained and stopped.
    ///
    /// `ready` is met while requests are served, and unmet from `drain` on. After `drain` the
    /// server goes on for the lame duck's time, in which each answer retires its connection, and
    /// longer if `stop` is not yet cancelled by then: cancel it when nothing else has to outlive
    /// the server. Then idle connections are closed and requests under way are answered. Returns
    /// [`Limits::finish`] after that at the latest.
    ///
    /// Dropping the future breaks every connection.
    ///
    /// # Errors
    /// Before anything is served, if the options cannot be used.
    pub async fn serve(
        self,
        listener: TcpListener,
        ready: Requirement,
        drain: CancellationToken,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let lame_duck = self.options.lame_duck;
        let listening = Listening::new(self, drain.clone())?;
        ready.met();
        let end = async {
            drain.cancelled().await;
            ready.unmet(&"draining");
            tracing::info!(?lame_duck, "the webhook drains");
            tokio::join!(tokio::time::sleep(lame_duck), stop.cancelled());
        };
        listening.run(listener, end).await;
        Ok(())
    }
}

/// Runs `serve` on an OS thread with a runtime of its own, so that reconciles, however many, don't
/// keep requests waiting. The result comes when it ends; there is none if it panics.
///
/// # Errors
/// If the system has no thread for it.
pub fn spawn<F>(serve: F) -> std::io::Result<oneshot::Receiver<F::Output>>
where
    F: Future<Output: Send> + Send + 'static,
{
    // One thread answers tens of thousands of requests a second; more would only take memory.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (result, ended) = oneshot::channel();
    thread::Builder::new().name("webhook".to_owned()).spawn(move || {
        // Whoever does not wait for the end does not get the result.
        let _ = result.send(runtime.block_on(serve));
    })?;
    Ok(ended)
}
