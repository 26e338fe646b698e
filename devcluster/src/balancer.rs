//! A load balancer that plays kube-proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// One address of 127.0.0.1 in front of several servers, as a Service is one in front of its pods.
///
/// It is as blind as kube-proxy: it knows what it was told, late. A new connection goes to the next
/// backend in turn, whether that one still listens or not; where nobody listens, the client's
/// connection is closed without an answer. A connection stays with its backend until one of both
/// closes it. The balancer ends when this value is dropped, with every connection through it.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    delay: Duration,
    backends: Arc<Mutex<Backends>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Backends {
    all: Vec<Backend>,
    turn: usize,
}

#[derive(Debug)]
struct Backend {
    address: SocketAddr,
    /// When it is no longer chosen.
    until: Option<Instant>,
    chosen: usize,
}

impl Balancer {
    /// Starts one without backends. `delay` is how long a backend that was withdrawn is still
    /// chosen: on a cluster the time until the last node has heard of it.
    pub async fn start(delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let backends = Arc::default();
        let task = tokio::spawn(serve(listener, Arc::clone(&backends)));
        Ok(Self { address, delay, backends, task })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Chooses `backend` too, from now on: its pod has become Ready.
    pub fn add(&self, backend: SocketAddr) {
        let mut backends = lock(&self.backends);
        backends.all.retain(|known| known.address != backend);
        backends.all.push(Backend { address: backend, until: None, chosen: 0 });
    }

    /// Stops to choose `backend` when the delay is over: its pod is terminating, or not Ready.
    pub fn withdraw(&self, backend: SocketAddr) {
        let until = Instant::now() + self.delay;
        for known in lock(&self.backends).all.iter_mut().filter(|b| b.address == backend) {
            known.until.get_or_insert(until);
        }
    }

    /// How many connections `backend` was chosen for since it was added.
    pub fn chosen(&self, backend: SocketAddr) -> usize {
        let backends = lock(&self.backends);
        backends.all.iter().find(|known| known.address == backend).map_or(0, |b| b.chosen)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backends {
    /// The backend for a connection that comes `now`.
    fn choose(&mut self, now: Instant) -> Option<SocketAddr> {
        let mut open: Vec<_> =
            self.all.iter_mut().filter(|b| b.until.is_none_or(|until| now < until)).collect();
        self.turn = self.turn.wrapping_add(1);
        let turn = self.turn.checked_rem(open.len())?;
        open[turn].chosen += 1;
        Some(open[turn].address)
    }
}

fn lock(backends: &Mutex<Backends>) -> MutexGuard<'_, Backends> {
    // The list is whole after every statement, so a panic elsewhere cannot have broken it.
    backends.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accepts connections until it is dropped, which ends them all.
async fn serve(listener: TcpListener, backends: Arc<Mutex<Backends>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error here is about one connection, or about too many open files.
                let Ok((client, _)) = accepted else { continue };
                let Some(backend) = lock(&backends).choose(Instant::now()) else { continue };
                connections.spawn(carry(client, backend));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries bytes both ways until both sides have closed, or one of them fails.
async fn carry(mut client: TcpStream, backend: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(backend).await else { return };
    // What is small goes out at once, as if nothing stood between.
    if client.set_nodelay(true).is_ok() && server.set_nodelay(true).is_ok() {
        // An error is a connection that was broken off by one side; the other sees that too.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}
