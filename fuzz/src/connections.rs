//! Whatever a client sends, the server answers with HTTP or hangs up, soon, and goes on serving
//! others.

use super::{answers::check_status, reviews::review};
use jiff::Timestamp;
use ksm_scale_operator::{
    admission::Knowledge,
    allowed::Allowed,
    certificates::{Authority, LeafRequest},
    names::VALIDATE_PATH,
    readiness::Readiness,
    webhook::{Limits, Metrics, Options, Server, Serving, TlsVersion},
};
use rustls::{ClientConfig, RootCertStore, pki_types::pem::PemObject as _};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    net::SocketAddr,
    panic,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::Mutex,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

const NAME: &str = "webhook.monitoring.svc";
/// No limit of the server's that matters here is half as long.
const SOON: Duration = Duration::from_secs(20);

/// Longer than the server takes to give up on what does not come.
const SILENCE: Duration = Duration::from_millis(80);

/// One server for all inputs, and another client of it, whose one connection has to last.
struct World {
    runtime: Runtime,
    address: SocketAddr,
    tls: TlsConnector,
    other: Mutex<TlsStream<TcpStream>>,
}

const WORKER: &str = "webhook-server";
static PANICKED: AtomicBool = AtomicBool::new(false);

static WORLD: LazyLock<World> = LazyLock::new(|| {
    // A panic that ends a connection looks like the server hanging up.
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().name() == Some(WORKER) {
            PANICKED.store(true, Ordering::SeqCst);
        }
        before(info);
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(WORKER)
        .enable_all()
        .build()
        .expect("a runtime");
    // A fuzzer's `main` is not Rust's, which sees to it that a write to who has hung up is only an error.
    let broken_pipe = async { signal(SignalKind::pipe()).map(drop) };
    runtime.block_on(broken_pipe).expect("a signal handler");
    let (address, tls) = runtime.block_on(start());
    let other = runtime.block_on(connect(&tls, address));
    World { runtime, address, tls, other: Mutex::new(other) }
});

/// Starts the server, which never ends.
async fn start() -> (SocketAddr, TlsConnector) {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let life = Duration::from_hours(100 * 365 * 24);
    let authority = Authority::generate(1, now, life).expect("a CA");
    let request = LeafRequest { names: vec![NAME.to_owned()], life, jitter: 0 };
    let serving = Serving::default();
    serving.swap(authority.issue(&request, now).expect("a leaf").pair);
    let limits = Limits {
        header: Duration::from_millis(50),
        body: Duration::from_millis(50),
        handshake: Duration::from_millis(200),
        closing: Duration::from_millis(50),
        sweep: Duration::from_millis(10),
        body_bytes: 64 << 10,
        ..Limits::default()
    };
    let options = Options {
        min_tls_version: TlsVersion::V1_3,
        client_ca: None,
        client_names: Vec::new(),
        lame_duck: Duration::ZERO,
        limits,
    };
    // Nobody is there to be asked about requesters.
    let mut config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
    config.default_retry = false;
    let server = Server {
        serving,
        options,
        knowledge: Arc::new(|_| Some(Knowledge::default())),
        allowed: Allowed::default(),
        client: kube::Client::try_from(config).expect("a client"),
        metrics: Metrics::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let ready = Readiness::default().require("the webhook");
    let never = CancellationToken::new();
    tokio::spawn(server.serve(listener, ready, never.clone(), never));

    let mut roots = RootCertStore::empty();
    let root =
        rustls::pki_types::CertificateDer::from_pem_slice(authority.certificate.pem().as_bytes());
    roots.add(root.expect("PEM")).expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (address, TlsConnector::from(Arc::new(config)))
}

async fn connect(tls: &TlsConnector, address: SocketAddr) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(address).await.expect("a connection");
    tcp.set_nodelay(true).expect("an option");
    tls.connect(NAME.try_into().expect("a name"), tcp).await.expect("a handshake")
}

/// The first byte says how the rest is sent: 0 without TLS, otherwise in pieces of so many bytes,
/// and all at once from 128 on.
pub fn connections(input: &[u8]) {
    let Some((how, bytes)) = input.split_first() else { return };
    let World { runtime, address, tls, other } = &*WORLD;
    let all = async {
        if *how == 0 {
            let tcp = TcpStream::connect(address).await.expect("a connection");
            exchange(tcp, bytes, bytes.len()).await;
        } else {
            let size = if *how < 128 { usize::from(*how) } else { bytes.len() };
            let heard = exchange(connect(tls, *address).await, bytes, size).await;
            check_answers(&heard);
        }
        served(&mut *other.lock().await).await;
    };
    runtime.block_on(async { timeout(SOON, all).await.expect("an end, soon") });
    assert!(!PANICKED.load(Ordering::SeqCst), "the server panicked");
}

/// Sends pieces of `size` bytes, hears what comes back, and closes when nothing more comes: for a
/// client that closes at once the server does nothing.
async fn exchange(stream: impl AsyncRead + AsyncWrite, bytes: &[u8], size: usize) -> Vec<u8> {
    let (mut from, mut to) = tokio::io::split(stream);
    let all_sent = Cell::new(false);
    let send = async {
        for piece in bytes.chunks(size.max(1)) {
            // The server may hang up at any time.
            if to.write_all(piece).await.and(to.flush().await).is_err() {
                break;
            }
        }
        all_sent.set(true);
    };
    let mut heard = Vec::new();
    let hear = async {
        loop {
            match timeout(SILENCE, from.read_buf(&mut heard)).await {
                Ok(Ok(1..)) => {}
                Err(_) if !all_sent.get() => {}
                _ => break,
            }
        }
    };
    tokio::join!(send, hear);
    let _ = to.shutdown().await;
    let _ = from.read_to_end(&mut heard).await;
    heard
}

/// Panics unless it is answers of HTTP/1.1, of which the last may be cut short.
fn check_answers(mut heard: &[u8]) {
    while let Some(end) = heard.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
        let lines = str::from_utf8(&heard[..end]).expect("a header is ASCII");
        let (line, fields) = lines.split_once("\r\n").unwrap_or((lines, ""));
        let code = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        let code: u16 = code.unwrap_or_else(|| panic!("no status: {line:?}"));
        let length = fields.lines().find_map(|field| {
            let (name, value) = field.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().expect("a number"))
        });
        heard = &heard[end + 4..];
        let length: usize = length.unwrap_or_default();
        let Some((body, rest)) = heard.split_at_checked(length) else { return };
        heard = rest;
        // Without a body it is hyper's own: 100, 400, 414, 431.
        if !body.is_empty() && code != 200 {
            let body: Value = serde_json::from_slice(body).expect("an answer is JSON");
            check_status(code, &body);
            assert!(!body["message"].as_str().unwrap_or_default().contains("panicked"), "{body}");
        }
    }
}

/// Panics unless a client with a good request gets its verdict.
async fn served(stream: &mut TlsStream<TcpStream>) {
    let object = json!({"metadata": {"name": "x"}, "spec": {}});
    let body = review(&json!({"operation": "UPDATE", "object": object, "oldObject": object}));
    let length = body.len();
    let head = format!(
        "POST {VALIDATE_PATH} HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).await.expect("an open connection");
    stream.flush().await.expect("an open connection");
    let mut answer = Vec::new();
    while !answer.ends_with(b"}}") {
        let read = stream.read_buf(&mut answer).await.expect("an answer");
        assert!(read > 0, "the connection of another client was closed");
    }
    let answer = String::from_utf8(answer).expect("text");
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""allowed":true"#),
        "{answer}"
    );
}
