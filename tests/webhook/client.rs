//! A client that treats connections and answers as the API server's does (client-go, net/http).

use crate::{certificates::NAME, server::Webhook};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Body, Bytes},
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use ksm_scale_operator::names::{GROUP, VALIDATE_PATH};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;
type Sender = SendRequest<Full<Bytes>>;

/// How often client-go tries again when it is asked to.
const RETRIES: usize = 10;

pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    tls: TlsConnector,
    /// Where it connects from.
    from: IpAddr,
    /// Idle connections, the last used on top.
    pool: Mutex<Vec<Sender>>,
    keep_alive: bool,
}

/// A certificate and its key.
pub(crate) type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// What TLS is made with.
pub(crate) fn tls(
    trusted: &CertificateDer<'static>,
    identity: Option<Identity>,
    only_tls12: bool,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let version = if only_tls12 { &TLS12 } else { &TLS13 };
    let builder = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) closes: bool,
    pub(crate) retry_after: Option<u64>,
    pub(crate) body: Value,
}

impl Client {
    pub(crate) fn of(webhook: &Webhook) -> Self {
        Self::new(webhook.address, tls(&webhook.authority.der(), None, false))
    }

    pub(crate) fn new(address: SocketAddr, tls: ClientConfig) -> Self {
        let (tls, from) = (TlsConnector::from(Arc::new(tls)), [127, 0, 0, 1].into());
        Self { address, tls, from, pool: Mutex::default(), keep_alive: true }
    }

    /// Connects from another address of this host.
    pub(crate) fn from(self, from: [u8; 4]) -> Self {
        Self { from: from.into(), ..self }
    }

    /// Makes a new connection for each request.
    pub(crate) fn without_keep_alive(self) -> Self {
        Self { keep_alive: false, ..self }
    }

    /// A connection without TLS yet.
    pub(crate) async fn dial(&self) -> Result<TcpStream, Failure> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from, 0).into())?;
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection on which nothing was sent yet.
    pub(crate) async fn connect(&self) -> Result<TlsStream<TcpStream>, Failure> {
        let name = NAME.try_into()?;
        Ok(self.tls.connect(name, self.dial().await?).await?)
    }

    async fn sender(&self) -> Result<Sender, Failure> {
        let (sender, connection) = handshake(TokioIo::new(self.connect().await?)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// The answer to one request, without trying again, on a connection of the pool if there is
    /// one. As in Go, a request of which nothing was sent may go on another connection.
    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Reply, Failure> {
        loop {
            let pooled = self.pool.lock().unwrap().pop();
            let (mut sender, is_new) = match pooled {
                Some(sender) if sender.is_closed() => continue,
                Some(sender) => (sender, false),
                None => (self.sender().await?, true),
            };
            sender.ready().await.or_else(|error| if is_new { Err(error) } else { Ok(()) })?;
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    let reply = reply(answer).await?;
                    if self.keep_alive && !reply.closes {
                        self.pool.lock().unwrap().push(sender);
                    }
                    return Ok(reply);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(error.into_error().into()),
                },
            }
        }
    }

    /// The verdict on a review, with client-go's patience.
    pub(crate) async fn call(&self, review: &Bytes) -> Result<Reply, Failure> {
        for _ in 0..RETRIES {
            let reply = self.send(post(VALIDATE_PATH, review.clone())).await?;
            let may_retry = reply.status == 429 || reply.status >= 500;
            match reply.retry_after.filter(|_| may_retry) {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => return Ok(reply),
            }
        }
        Err("asked to try again for too long".into())
    }

    /// Whether a review that changes nothing is allowed.
    pub(crate) async fn allowed(&self) -> Result<(), Failure> {
        let reply = self.call(&update("healthy", 0)).await?;
        if reply.status == 200 && reply.body["response"]["allowed"] == true {
            Ok(())
        } else {
            Err(format!("{}: {}", reply.status, reply.body).into())
        }
    }
}

async fn reply<B: Body<Error = hyper::Error>>(answer: Response<B>) -> Result<Reply, Failure> {
    let (parts, body) = answer.into_parts();
    let text = |name| parts.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(text(header::CONTENT_TYPE), Some("application/json"));
    Ok(Reply {
        status: parts.status.as_u16(),
        closes: text(header::CONNECTION) == Some("close"),
        retry_after: text(header::RETRY_AFTER).map(|seconds| seconds.parse().unwrap()),
        body: serde_json::from_slice(&body.collect().await?.to_bytes())?,
    })
}

pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path)
        .header(header::HOST, NAME)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A review of an update that leaves the spec alone, with `padding` bytes more than it needs.
pub(crate) fn update(name: &str, padding: usize) -> Bytes {
    review("UPDATE", name, padding)
}

/// A review of a creation, for which the requester's rights are asked.
pub(crate) fn create(name: &str) -> Bytes {
    review("CREATE", name, 0)
}

fn review(operation: &str, name: &str, padding: usize) -> Bytes {
    let of = |nodes_per_monitor: i32| {
        json!({
            "apiVersion": format!("{GROUP}/v1alpha1"),
            "kind": "KSMScale",
            "metadata": { "name": name, "annotations": { "padding": "x".repeat(padding) } },
            "spec": { "nodesPerMonitor": nodes_per_monitor },
        })
    };
    let request = json!({
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": { "group": GROUP, "version": "v1alpha1", "kind": "KSMScale" },
        "resource": { "group": GROUP, "version": "v1alpha1", "resource": "ksmscales" },
        "name": name,
        "operation": operation,
        "userInfo": { "username": "somebody" },
        "oldObject": if operation == "UPDATE" { of(15) } else { Value::Null },
        "object": of(20),
    });
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": request,
    });
    review.to_string().into()
}
