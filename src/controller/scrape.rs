//! What a pod serves, asked for over HTTP.
//!
//! Bounded in everything: time to connect, time in all, bytes, and how many answers are read at
//! once in the whole process. An answer is whole or it is none.

use crate::{
    exposition::{Exposition, Malformed, Sample},
    telemetry::coverage_metrics::CoverageMetrics,
};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{error::Elapsed, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// A pod's network answers within this, or nobody can reach it.
const CONNECT: Duration = Duration::from_secs(2);

/// Three times what Prometheus gives a pod by default: what takes longer, Prometheus does not get.
const WHOLE: Duration = Duration::from_secs(30);

/// More than any kube-state-metrics answers: ten million series.
const MAX_BYTES: u64 = 2 << 30;

/// Answers read at a time, by the whole process. Each costs kube-state-metrics a copy of itself.
const AT_ONCE: usize = 2;

/// OpenMetrics tells where it ends; versions before 2.10 know the older text only.
const ACCEPT: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScrapeError {
    /// The pod has no IP yet.
    #[error("it has no address")]
    NoAddress,
    /// No connection: nobody listens there, or a network policy is in between.
    #[error("cannot connect to {address}: {cause}")]
    Unreachable {
        /// The pod.
        address: SocketAddr,
        /// What the network said.
        cause: String,
    },
    /// A connection, but no whole answer.
    #[error("{address} does not answer {path} as a whole: {cause}")]
    NoAnswer {
        /// The pod.
        address: SocketAddr,
        /// What it was asked for.
        path: &'static str,
        /// How it failed.
        cause: String,
    },
}

/// Reads answers of pods. Clones share its limits.
#[derive(Clone, Debug)]
pub(super) struct Scraper {
    permits: Arc<Semaphore>,
    metrics: CoverageMetrics,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Status(http::StatusCode),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("it does not say where it ends")]
    NoEnd,
    #[error("it takes longer than {WHOLE:?}")]
    TooSlow(#[from] Elapsed),
}

impl Scraper {
    pub(super) fn new(metrics: CoverageMetrics) -> Self {
        Self { permits: Arc::new(Semaphore::new(AT_ONCE)), metrics }
    }

    /// Asks for `path`, and gives `each` every sample as it arrives. If the answer turns out not to
    /// be whole, what was given is void. Cancel safe.
    pub(super) async fn scrape(
        &self,
        ip: Option<IpAddr>,
        port: u16,
        path: &'static str,
        mut each: impl FnMut(Sample<'_>) + Send,
    ) -> Result<(), ScrapeError> {
        let mut bytes = 0;
        let result = self.ask(ip, port, path, &mut bytes, &mut each).await;
        let label = match &result {
            Ok(()) => "whole",
            Err(ScrapeError::NoAnswer { .. }) => "not_whole",
            Err(_) => "unreachable",
        };
        self.metrics.scraped(label, bytes);
        result
    }

    async fn ask(
        &self,
        ip: Option<IpAddr>,
        port: u16,
        path: &'static str,
        bytes: &mut u64,
        each: &mut (impl FnMut(Sample<'_>) + Send),
    ) -> Result<(), ScrapeError> {
        let address = SocketAddr::new(ip.ok_or(ScrapeError::NoAddress)?, port);
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let unreachable = |cause: String| ScrapeError::Unreachable { address, cause };
        let connection = timeout(CONNECT, TcpStream::connect(address)).await;
        let connection = connection
            .map_err(|_| unreachable(format!("no answer within {CONNECT:?}")))?
            .map_err(|error| unreachable(error.to_string()))?;
        let answer = timeout(WHOLE, read(connection, address, path, bytes, each)).await;
        answer.map_err(Fault::from).flatten().map_err(|fault| ScrapeError::NoAnswer {
            address,
            path,
            cause: fault.to_string(),
        })
    }
}

async fn read(
    connection: TcpStream,
    address: SocketAddr,
    path: &str,
    bytes: &mut u64,
    each: &mut (impl FnMut(Sample<'_>) + Send),
) -> Result<(), Fault> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::ACCEPT, ACCEPT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let Ok(request) = request else { return Err(Fault::Status(http::StatusCode::BAD_REQUEST)) };
    let (head, mut body) = sender.send_request(request).await?.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(Fault::Status(head.status));
    }
    let ends = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    if !ends.iter().any(|end| head.headers.contains_key(end)) {
        return Err(Fault::NoEnd);
    }
    let mut exposition = Exposition::default();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        *bytes += piece.len() as u64;
        if *bytes > MAX_BYTES {
            return Err(Fault::TooLong);
        }
        exposition.feed(&piece, each)?;
    }
    Ok(exposition.end(is_openmetrics(&head.headers))?)
}

fn is_openmetrics(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/openmetrics-text"))
}
