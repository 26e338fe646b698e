//! `/healthz`, `/readyz` and `/metrics` (O1).

use crate::{readiness::Readiness, telemetry::metrics::Metrics};
use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

/// Connections that wait to be accepted. The system may have a smaller bound.
const QUEUE: u32 = 4096;

/// An address to listen on: `127.0.0.1:8080`, or `:8080` for every address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindAddress {
    /// This address.
    Exact(SocketAddr),
    /// Every address, over IPv6 and IPv4 where the host has them.
    AnyHost(u16),
}

impl FromStr for BindAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is no address: write host:port, such as 127.0.0.1:8080, or :8080");
        match text.strip_prefix(':') {
            Some(port) => port.parse().map(Self::AnyHost).map_err(|_| bad()),
            None => text.parse().map(Self::Exact).map_err(|_| bad()),
        }
    }
}

impl BindAddress {
    /// Starts to listen. To be called on the runtime that is to accept.
    ///
    /// # Errors
    /// If the port is taken or the address is not this host's.
    pub fn bind(self) -> std::io::Result<TcpListener> {
        match self {
            Self::Exact(address) => listen(address),
            // A host without IPv6 refuses the first.
            Self::AnyHost(port) => listen((Ipv6Addr::UNSPECIFIED, port).into())
                .or_else(|_| listen((Ipv4Addr::UNSPECIFIED, port).into())),
        }
    }
}

/// As `TcpListener::bind`, whose queue is so short that a burst of connections overflows it. Who
/// finds it full waits for a second and more.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// Liveness and readiness. Liveness never depends on the cluster.
pub fn health(readiness: Readiness) -> Router {
    let ready = move || async move {
        match readiness.check() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(waiting) => (StatusCode::SERVICE_UNAVAILABLE, waiting),
        }
    };
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready))
}

/// The metrics, in OpenMetrics format.
pub fn metrics(metrics: Metrics) -> Router {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Router::new().route(
        "/metrics",
        get(move || async move { ([(header::CONTENT_TYPE, TYPE)], metrics.text()) }),
    )
}

/// Serves until `stop`, then finishes what is under way.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

#[cfg(test)]
mod tests {
    use super::BindAddress;

    #[test]
    fn o1_addresses_are_read_as_in_other_operators() {
        assert_eq!(":8080".parse(), Ok(BindAddress::AnyHost(8080)));
        assert_eq!("127.0.0.1:8081".parse(), Ok(BindAddress::Exact(([127, 0, 0, 1], 8081).into())));
        assert!("8080".parse::<BindAddress>().unwrap_err().contains(":8080"));
        assert!(":80800".parse::<BindAddress>().is_err());
    }
}
