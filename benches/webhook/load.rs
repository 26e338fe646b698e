//! The load: reviews as the API server sends them, over TLS 1.3 and HTTP/1.1, and every answer
//! looked at.

use super::bodies::Case;
use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use ksm_scale_operator::certificates::pair::{certificates, provider};
use rustls::{
    ClientConfig, RootCertStore, client::Resumption, pki_types::ServerName, version::TLS13,
};
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    sync::{Mutex, mpsc},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

/// Who is asked.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Target {
    /// The server at `address`, whose certificate for `name` a CA of `bundle` (PEM) has signed.
    pub fn new(address: SocketAddr, name: &str, bundle: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(bundle.as_bytes(), "CA bundle")?);
        let mut tls = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Each handshake a whole one, as the API server makes them.
        tls.resumption = Resumption::disabled();
        let name = ServerName::try_from(name.to_owned())?;
        Ok(Self { address, name, tls: TlsConnector::from(Arc::new(tls)) })
    }

    async fn connect(&self) -> Result<Connection> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let tls = self.tls.connect(self.name.clone(), tcp).await?;
        let (sender, connection) = handshake(TokioIo::new(tls)).await?;
        let driver = tokio::spawn(async move {
            // What goes wrong here goes wrong for the request as well.
            let _ = connection.await;
        });
        Ok(Connection { sender, driver })
    }

    /// `requests` requests of `case`, each on a connection of its own, `concurrency` at a time.
    pub async fn ask_afresh(&self, case: &Case, requests: u64, concurrency: usize) -> Result<()> {
        let next = Cell::new(0);
        let one_by_one = (0..concurrency).map(async |_| {
            while let Some(number) = take(&next, requests) {
                let mut connection = self.connect().await?;
                connection.ask(case, number).await?;
                connection.close().await?;
            }
            anyhow::Ok(())
        });
        try_join_all(one_by_one).await.map(drop)
    }

    /// Opens `count` connections that stay.
    pub async fn connections(&self, count: usize) -> Result<Connections> {
        try_join_all((0..count).map(|_| self.connect())).await.map(Connections)
    }
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Connection {
    async fn ask(&mut self, case: &Case, number: u64) -> Result<()> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}?timeout=10s", case.path()))
            .header(header::HOST, "webhook.monitoring.svc")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT_ENCODING, "gzip")
            .body(Full::new(case.body(number)))?;
        self.sender.ready().await.with_context(|| format!("{}: closed", case.name))?;
        let answer = self.sender.send_request(request).await.context(case.name)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.context(case.name)?.to_bytes();
        ensure!(status == 200, "{}: {status} {}", case.name, String::from_utf8_lossy(&body));
        case.check(number, &body)
    }

    async fn close(self) -> Result<()> {
        drop(self.sender);
        self.driver.await.context("closing a connection")
    }
}

/// Open connections. Dropping them closes them.
pub struct Connections(Vec<Connection>);

impl Connections {
    /// `requests` requests of `case`, on each connection one after the other.
    pub async fn ask(&mut self, case: &Case, requests: u64) -> Result<()> {
        let next = &Cell::new(0);
        let one_by_one = self.0.iter_mut().map(|connection| async move {
            while let Some(number) = take(next, requests) {
                connection.ask(case, number).await?;
            }
            anyhow::Ok(())
        });
        try_join_all(one_by_one).await.map(drop)
    }

    /// `requests` requests of `case`, one every `interval`, whether or not those before have their
    /// answers. Returns how long each took from the moment at which it was due, so that waiting
    /// for a connection counts.
    pub async fn ask_paced(
        &mut self,
        case: &Case,
        requests: u64,
        interval: Duration,
    ) -> Result<Vec<Duration>> {
        let due = &Mutex::new(pace(requests, interval));
        let times = &RefCell::new(Vec::new());
        let one_by_one = self.0.iter_mut().map(|connection| async move {
            loop {
                let next = due.lock().await.recv().await;
                let Some((number, at)) = next else { return anyhow::Ok(()) };
                connection.ask(case, number).await?;
                times.borrow_mut().push(at.elapsed());
            }
        });
        try_join_all(one_by_one).await?;
        Ok(times.take())
    }
}

/// When each request is due. A thread of its own, since the runtime's timers count milliseconds.
fn pace(requests: u64, interval: Duration) -> mpsc::UnboundedReceiver<(u64, Instant)> {
    let (sender, due) = mpsc::unbounded_channel();
    thread::spawn(move || {
        let mut at = Instant::now();
        for number in 0..requests {
            at += interval;
            thread::sleep(at.saturating_duration_since(Instant::now()));
            // Nobody waits any more after an error.
            if sender.send((number, at)).is_err() {
                return;
            }
        }
    });
    due
}

fn take(next: &Cell<u64>, end: u64) -> Option<u64> {
    let number = next.get();
    next.set(number + 1);
    (number < end).then_some(number)
}
