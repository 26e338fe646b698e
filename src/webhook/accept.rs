//! Accepting connections, and the life of each.

use super::{
    Options, ServeError, Server, Serving,
    clients::ClientCaFile,
    connections::{Connections, End, Open, Phase},
    metrics::Metrics,
    requests::{Requests, Standing},
    stream::{Stream, Tls},
    tls,
};
use arc_swap::ArcSwap;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::BufReader,
    net::{TcpListener, TcpStream},
    task::{JoinSet, yield_now},
    time::{Instant, interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A client that is silent for so long is asked whether it is still there, so that firewalls on the
/// way do not forget the connection, and its end is noticed. What Go's servers do.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long to wait when the system has no socket for a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// What is read from the system at a time: about the largest record of TLS.
const READ: usize = 16 << 10;
/// The largest header, and what is read of a body at a time.
const BUFFER: usize = 64 << 10;

/// A server that can be run.
pub(super) struct Listening {
    shared: Arc<Shared>,
    client_ca: Option<ClientCaFile>,
}

/// What all connections share.
struct Shared {
    options: Options,
    serving: Serving,
    /// Swapped when the client CAs change.
    tls: ArcSwap<ServerConfig>,
    connections: Arc<Connections>,
    requests: Requests,
    metrics: Metrics,
    /// From when on an answer retires its connection.
    drain: CancellationToken,
    /// From when on a connection ends when it is idle.
    close: CancellationToken,
}

impl Listening {
    pub(super) fn new(server: Server, drain: CancellationToken) -> Result<Self, ServeError> {
        let Server { serving, options, knowledge, allowed, client, metrics } = server;
        let (client_ca, clients) = ClientCaFile::read(&options)?.unzip();
        let limits = options.limits.clone();
        let shared = Shared {
            tls: ArcSwap::new(tls::config(&serving, options.min_tls_version, clients)?),
            connections: Connections::new(limits.clone(), metrics.clone()),
            requests: Requests::new(limits, knowledge, allowed, client, metrics.clone()),
            options,
            serving,
            metrics,
            drain,
            close: CancellationToken::new(),
        };
        Ok(Self { shared: Arc::new(shared), client_ca })
    }

    /// Serves until `end`, and then what is under way.
    pub(super) async fn run(self, listener: TcpListener, end: impl Future<Output = ()>) {
        let Self { shared, client_ca } = self;
        if let Err(error) = set_options(&listener) {
            tracing::warn!(%error, "connections have the system's options");
        }
        let serve = async {
            let mut open = JoinSet::new();
            tokio::select! {
                never = accept(&shared, &listener, &mut open) => match never {},
                () = end => {}
            }
            drop(listener);
            shared.close.cancel();
            let finish = async { while open.join_next().await.is_some() {} };
            if timeout(shared.options.limits.finish, finish).await.is_err() {
                tracing::warn!(connections = open.len(), "breaking off requests under way");
            }
        };
        tokio::select! {
            () = serve => {}
            never = sweep(&shared) => match never {},
            never = reload(&shared, client_ca) => match never {},
        }
    }
}

/// Options of all connections. Linux hands them on from the listener, so none costs a call.
fn set_options(listener: &TcpListener) -> std::io::Result<()> {
    let socket = SockRef::from(listener);
    // Answers are small and go out at once.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE))
}

async fn accept(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    open: &mut JoinSet<()>,
) -> Infallible {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    // Without a place for it, it is closed.
                    if let Some(place) = shared.connections.open(peer.ip()) {
                        open.spawn(attend(Arc::clone(shared), tcp, peer, place));
                    }
                    // In a flood, those that are open come before those that come.
                    yield_now().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = open.join_next() => {}
        }
    }
}

/// Ends connections that have taken too long, one timer for all of them.
async fn sweep(shared: &Shared) -> Infallible {
    let mut ticks = interval(shared.options.limits.sweep);
    loop {
        ticks.tick().await;
        shared.connections.sweep(Instant::now());
    }
}

/// Takes up changes of the client CAs. What cannot be used changes nothing.
async fn reload(shared: &Shared, client_ca: Option<ClientCaFile>) -> Infallible {
    let Some(mut file) = client_ca else { return std::future::pending().await };
    loop {
        sleep(shared.options.limits.reload).await;
        let Some(changed) = file.changed().await else { continue };
        let config = changed.and_then(|clients| {
            let oldest = shared.options.min_tls_version;
            Ok(tls::config(&shared.serving, oldest, Some(clients))?)
        });
        shared.metrics.client_ca_reloaded(config.is_ok());
        match config {
            Ok(config) => {
                shared.tls.store(config);
                tracing::info!("the client CAs have changed");
            }
            Err(error) => tracing::error!(%error, "the client CAs of before stay in use"),
        }
    }
}

/// One connection, from its handshake to its end.
async fn attend(shared: Arc<Shared>, tcp: TcpStream, peer: SocketAddr, place: Open) {
    let config = shared.tls.load_full();
    let Some(tls) = shake_hands(&shared, Arc::clone(&config), tcp, peer, &place).await else {
        return;
    };
    place.enter(Phase::Idle);
    let standing = || {
        if !Arc::ptr_eq(&config, &shared.tls.load()) {
            Standing::Outdated
        } else if shared.drain.is_cancelled() {
            Standing::Retiring
        } else {
            Standing::Lasting
        }
    };
    let (connection, requests) = (place.connection(), &shared.requests);
    let service = service_fn(|request| {
        let answer = requests.respond(request, &place, standing);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let stream = TokioIo::new(Stream::new(tls, connection));
    // Without a timer of hyper's: its time-out for headers would close idle connections as well.
    let mut builder = http1::Builder::new();
    let mut serving = pin!(
        builder.max_buf_size(BUFFER).header_read_timeout(None).serve_connection(stream, service)
    );
    let mut retiring = false;
    loop {
        tokio::select! {
            // An error is a connection that was broken off by the client.
            _ = serving.as_mut() => return,
            () = shared.close.cancelled(), if !retiring => {
                retiring = true;
                serving.as_mut().graceful_shutdown();
            }
            why = place.ended() => {
                shared.metrics.ended(why);
                if retiring || why != End::Idle {
                    return;
                }
                retiring = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Sets up TLS. `None` if that fails or takes too long.
async fn shake_hands(
    shared: &Shared,
    config: Arc<ServerConfig>,
    tcp: TcpStream,
    peer: SocketAddr,
    place: &Open,
) -> Option<Tls> {
    let failed = |reason, error: &dyn std::fmt::Display| {
        shared.metrics.handshake_failed(reason);
        tracing::debug!(%peer, reason, %error, "no TLS handshake");
    };
    tokio::select! {
        accepted = TlsAcceptor::from(config).accept(BufReader::with_capacity(READ, tcp)) => match accepted {
            Ok(tls) => {
                shared.metrics.shook_hands();
                Some(tls)
            }
            Err(error) => {
                failed(tls::failure(&error), &error);
                None
            }
        },
        why = place.ended() => {
            shared.metrics.ended(why);
            failed(why.as_str(), &"ended by the server");
            None
        }
    }
}
