//! Both HTTP servers.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use devcluster::kube_state_metrics::Cut;
use futures::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::State;
use crate::families::{Object, Resource};
use crate::store;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Copy)]
enum Port {
    Metrics,
    Telemetry,
}

/// Serves until something is wrong with a port.
pub(crate) async fn serve(state: Arc<State>) -> Result<Infallible> {
    let arguments = &state.arguments;
    let metrics = listen(arguments.host, arguments.port).await?;
    let telemetry = listen(arguments.telemetry_host, arguments.telemetry_port).await?;
    loop {
        let (accepted, port) = tokio::select! {
            accepted = metrics.accept() => (accepted, Port::Metrics),
            accepted = telemetry.accept() => (accepted, Port::Telemetry),
        };
        // An error here is about one connection, or about too many open files.
        let Ok((stream, _)) = accepted else { continue };
        let state = Arc::clone(&state);
        let service = service_fn(move |request| answer(Arc::clone(&state), port, request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn listen(host: std::net::IpAddr, port: u16) -> Result<TcpListener> {
    let bound = TcpListener::bind((host, port)).await;
    bound.with_context(|| format!("cannot listen on port {port} of {host}"))
}

async fn answer(
    state: Arc<State>,
    port: Port,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let mut faults = state.faults.clone();
    faults.wait_for(|faults| !faults.hang).await?;
    match (port, request.uri().path()) {
        _ if request.method() != Method::GET => words(StatusCode::METHOD_NOT_ALLOWED),
        (Port::Metrics, "/metrics") => metrics(&state, &request).await,
        (Port::Metrics, "/livez") => words(livez(&state).await),
        (Port::Telemetry, "/metrics") => {
            let shards = state.arguments.shards(&state.faults.borrow());
            let answer = Response::builder().header(header::CONTENT_TYPE, TEXT);
            Ok(answer.body(whole(state.telemetry.text(shards)))?)
        }
        // Ready means that the process is up, and not that it has anything to serve.
        (Port::Metrics, "/healthz") | (Port::Telemetry, "/readyz") | (_, "/") => {
            words(StatusCode::OK)
        }
        _ => words(StatusCode::NOT_FOUND),
    }
}

/// As the real one's: whether the API server says that it is alive.
async fn livez(state: &State) -> StatusCode {
    let Ok(request) = Request::get("/livez").body(Vec::new()) else {
        return StatusCode::INTERNAL_SERVER_ERROR;
    };
    match state.client.request_text(request).await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn metrics(state: &State, request: &Request<Incoming>) -> Result<Response<Body>, BoxError> {
    let faults = state.faults.borrow().clone();
    tokio::time::sleep(Duration::from_millis(faults.slow)).await;
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let open_metrics = accept.filter(|accept| accept.contains("application/openmetrics-text"));
    let query = request.uri().query().unwrap_or_default();
    let (only, without) = (listed(query, "resources"), listed(query, "exclude_resources"));

    let ghosts: Vec<Object> = faults.ghosts.iter().map(|name| ghost(name)).collect();
    let mut text = String::new();
    for stores in state.stores.chunk_by(|one, other| one.resource == other.resource) {
        let resource = stores[0].resource;
        let name = resource.name();
        let wanted = only.as_ref().is_none_or(|only| only.contains(name))
            && without.as_ref().is_none_or(|without| !without.contains(name));
        if wanted {
            store::write(
                stores,
                if resource == Resource::Nodes { &ghosts } else { &[] },
                &mut text,
            );
        }
    }
    let mut kind = TEXT.to_owned();
    if let Some(accept) = open_metrics {
        text.push_str("# EOF\n");
        let asked = accept.split([';', ',']).find_map(|part| part.trim().strip_prefix("escaping="));
        kind = format!("{OPEN_METRICS}; escaping={}", asked.unwrap_or("underscores"));
    }
    let answer = Response::builder().header(header::CONTENT_TYPE, kind);
    Ok(answer.body(match faults.cut {
        None => whole(text),
        Some(cut) => cut_off(&text, cut),
    })?)
}

/// The values of a parameter of the query, each of which may be a list.
fn listed<'q>(query: &'q str, name: &str) -> Option<HashSet<&'q str>> {
    let values = query.split('&').filter_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let values: Vec<&str> = values.collect();
    let names = values.iter().flat_map(|value| value.split(',').flat_map(|part| part.split("%2C")));
    (!values.is_empty()).then(|| names.filter(|name| !name.is_empty()).collect())
}

/// A node as it might have been.
fn ghost(name: &str) -> Object {
    let meta = ObjectMeta {
        name: Some(name.to_owned()),
        uid: Some(format!("ghost-{name}")),
        ..ObjectMeta::default()
    };
    Object { meta, data: Value::Null }
}

fn cut_off(text: &str, cut: Cut) -> Body {
    let half = text.floor_char_boundary(text.len() / 2);
    let lines = text[..half].rfind('\n').map_or(0, |end| end + 1);
    match cut {
        Cut::Tail => whole(text[..lines].to_owned()),
        Cut::Connection => {
            let half = Bytes::copy_from_slice(&text.as_bytes()[..half]);
            let frames = [Ok(Frame::data(half)), Err(BoxError::from("cut on purpose"))];
            StreamBody::new(stream::iter(frames)).boxed_unsync()
        }
    }
}

/// The status and its name, as the real one's handlers answer.
fn words(status: StatusCode) -> Result<Response<Body>, BoxError> {
    let name = status.canonical_reason().unwrap_or_default().to_owned();
    Ok(Response::builder().status(status).body(whole(name))?)
}

fn whole(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}
