//! Our side: the library's server, as the operator runs it.

use super::bodies::knowledge;
use anyhow::{Context as _, Result};
use http::{Request, Response};
use ksm_scale_operator::{
    allowed::Allowed,
    certificates::Pair,
    readiness::Readiness,
    telemetry::{self, LogFormat},
    webhook::{Limits, Metrics, Options, Server, Serving, TlsVersion},
};
use kube::{Client, client::Body};
use serde_json::json;
use std::{convert::Infallible, fs, path::Path, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves on `port` with the certificate in `cert_dir`, until the process is killed.
#[tokio::main(flavor = "current_thread")]
pub async fn serve(port: u16, cert_dir: &Path) -> Result<()> {
    telemetry::init(LogFormat::Json, "info", None)?;
    let read = |name| fs::read(cert_dir.join(name)).with_context(|| format!("no {name}"));
    let serving = Serving::default();
    serving.swap(Pair::from_pem(&read("tls.crt")?, &read("tls.key")?)?);
    let server = Server {
        serving,
        options: Options {
            min_tls_version: TlsVersion::V1_3,
            client_ca: None,
            client_names: Vec::new(),
            lame_duck: Duration::ZERO,
            limits: Limits::default(),
        },
        knowledge: Arc::new(|_| Some(knowledge())),
        allowed: Allowed::default(),
        client: granting(),
        metrics: Metrics::default(),
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let (ready, never) = (Readiness::default().require("webhook"), CancellationToken::new());
    Ok(server.serve(listener, ready, never.clone(), never).await?)
}

/// An API server without a network, which grants every SubjectAccessReview.
fn granting() -> Client {
    let answer = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {},
        "spec": {},
        "status": {"allowed": true},
    });
    let answer = answer.to_string().into_bytes();
    let grant = move |_: Request<Body>| {
        let answer = Body::from(answer.clone());
        async { Ok::<_, Infallible>(Response::new(answer)) }
    };
    Client::new(tower::service_fn(grant), "default")
}
