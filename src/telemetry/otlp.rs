//! Traces over OTLP, for who asks for them (O7).
//!
//! Nobody waits for the collector: ended spans go into a queue of a fixed length, from which a thread
//! of its own sends them. What does not fit is dropped.

use super::chain;
use crate::names::OPERATOR;
use http::{Uri, header, uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchSpanProcessor, SdkTracerProvider},
};
use std::{
    fmt,
    pin::Pin,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpStream, runtime::Handle, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Level, Subscriber};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

/// Target of the spans that are there for traces only: log lines do not see them.
pub const TRACES: &str = "traces";

/// What a collector may take for one request, with all its retries.
const LIMIT: Duration = Duration::from_secs(5);

/// What is left to it when the process ends.
const FLUSH: Duration = Duration::from_secs(3);

/// More than a collector has to say.
const LONGEST_ANSWER: usize = 64 << 10;

/// Where a collector is: `http://host:port`, to which `/v1/traces` is added.
///
/// Plain HTTP only: what listens beside the pod or on its node. TLS to the world is a collector's job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Uri);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is no collector's address: write http://host:port, without TLS (OTLP over HTTP, port 4318)"
            )
        };
        let base: Uri = text.parse().map_err(|_| bad())?;
        if base.scheme() != Some(&uri::Scheme::HTTP) || base.query().is_some() {
            return Err(bad());
        }
        format!("{}/v1/traces", text.trim_end_matches('/')).parse().map(Self).map_err(|_| bad())
    }
}

/// Who sends the spans.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The pod.
    pub pod: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
}

/// Spans on their way to a collector.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends what [`super::init`] is told to trace to `endpoint`, on `runtime`, which must have
    /// other threads than the one that calls [`Self::end`].
    ///
    /// # Errors
    /// If the environment says something of OTLP that cannot be done.
    pub fn start(endpoint: &Endpoint, runtime: Handle, origin: Origin<'_>) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client { runtime, lost: Arc::default() })
            .with_endpoint(endpoint.0.to_string())
            .with_timeout(LIMIT)
            .build()?;
        let attributes = [
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", origin.pod),
            ("k8s.pod.name", origin.pod),
            ("k8s.namespace.name", origin.namespace),
        ];
        let attributes = attributes.map(|(key, value)| KeyValue::new(key, value.to_owned()));
        let resource =
            Resource::builder().with_service_name(OPERATOR).with_attributes(attributes).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).build())
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    /// Takes in the spans of this crate, whatever the filter of log lines is.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(OPERATOR))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|meta| {
                let ours = meta.target() == TRACES || super::is_ours(meta.target());
                ours && *meta.level() <= Level::INFO
            }))
    }

    /// Sends what is left. Blocks the thread, but not for long: whoever does not listen now is not
    /// waited for.
    pub fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::warn!(error = chain(&error), "the last traces may be lost");
        }
    }
}

/// The exporter calls from a thread without a runtime.
struct Client {
    runtime: Handle,
    /// Whether the last request failed: only a change is told.
    lost: Arc<AtomicBool>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

type Sent<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'s, 'a>(&'s self, request: Request<Bytes>) -> Sent<'a>
    where
        's: 'a,
        Self: 'a,
    {
        // A time-out is made on the runtime too: here there is none.
        let sent = self.runtime.spawn(async move { timeout(LIMIT, send(request)).await });
        Box::pin(async move {
            let result = match sent.await {
                Ok(result) => result.unwrap_or_else(|late| Err(late.into())),
                Err(ended) => Err(ended.into()),
            };
            let failed = match &result {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => Some(answer.status().to_string()),
                Err(error) => Some(chain(&**error)),
            };
            match (self.lost.swap(failed.is_some(), Ordering::Relaxed), failed) {
                (false, Some(error)) => {
                    tracing::warn!(error, "the collector does not take traces, they are dropped");
                }
                (true, None) => tracing::info!("the collector takes traces again"),
                _ => {}
            }
            result
        })
    }
}

/// One request on a connection of its own: there is one every few seconds.
async fn send(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut head, body) = request.into_parts();
    let authority = head.uri.authority().ok_or("the address has no host")?.clone();
    let host = authority.host().trim_matches(['[', ']']);
    let connection = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    head.headers.insert(header::HOST, authority.as_str().parse()?);
    head.uri = head.uri.path().parse()?;
    let request = Request::from_parts(head, Full::new(body));
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn o7_a_collector_is_an_address_without_tls_and_nothing_else() {
        let uri = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.0.to_string());
        for (text, expected) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
            ("http://collector/base", "http://collector/base/v1/traces"),
        ] {
            assert_eq!(uri(text).as_deref(), Ok(expected));
        }
        for text in ["", "localhost:4318", "https://localhost:4318", "http://a?b", "/v1/traces"] {
            assert!(uri(text).is_err(), "{text}");
        }
    }
}
