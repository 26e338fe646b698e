//! Carrying requests to the API server and answers back.

use std::error::Error;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::rules::{Fault, SeenRequest, Shared};

type BoxError = Box<dyn Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// Headers that belong to one connection, and must not be carried to another.
const HOP_BY_HOP: [header::HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::HOST];

/// Accepts connections until it is dropped, which ends them all.
pub(super) async fn serve(listener: TcpListener, server: Client, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error here is about one connection, or about too many open files.
                let Ok((stream, _)) = accepted else { continue };
                let (server, shared) = (server.clone(), Arc::clone(&shared));
                let service =
                    service_fn(move |request| handle(request, server.clone(), Arc::clone(&shared)));
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // An error is a connection that was closed, by a client or on purpose.
                connections.spawn(async move { drop(connection.await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one request. An error closes the connection without an answer.
async fn handle(
    request: Request<Incoming>,
    server: Client,
    shared: Arc<Shared>,
) -> Result<Answer, BoxError> {
    let seen = SeenRequest::new(request.method(), request.uri(), request.headers());
    // Before the request goes out: no order to break watches, or to end what hangs, may be missed.
    let mut hang_ends = shared.hang_ends.subscribe();
    let watch_cuts = seen.watch.then(|| shared.watch_cuts.subscribe());
    let verdict = shared.admit(seen);
    match verdict.fault {
        Some(Fault::Status { code, retry_after }) => {
            return failure(code, retry_after.map(|after| after.as_secs()));
        }
        Some(Fault::Hang) => {
            // An error means that the proxy has ended.
            let _ = hang_ends.changed().await;
            return Err("closed on purpose".into());
        }
        Some(Fault::Close) => return Err("closed on purpose".into()),
        Some(Fault::LoseAnswer) | None => {}
    }
    let Some(epoch) = verdict.counted else {
        let answer = send(request, &server).await?;
        return match verdict.fault {
            Some(_) => Err("answer lost on purpose".into()),
            None => Ok(stream_through(answer, watch_cuts)),
        };
    };
    // In a task of its own: once the API server has been asked, its answer counts even if the client
    // hangs up.
    let answered = tokio::spawn(async move {
        let (parts, body) = send(request, &server).await?.into_parts();
        let bytes = body.collect().await?.to_bytes();
        shared.answered(epoch);
        Ok::<_, BoxError>(Response::from_parts(parts, bytes))
    });
    let answer = answered.await??;
    match verdict.fault {
        Some(_) => Err("answer lost on purpose".into()),
        None => Ok(answer.map(whole)),
    }
}

async fn send(request: Request<Incoming>, server: &Client) -> Result<Response<Body>, BoxError> {
    let (mut parts, body) = request.into_parts();
    remove_hop_by_hop(&mut parts.headers);
    let body = Body::from(body.collect().await?.to_bytes());
    let mut answer = server.send(Request::from_parts(parts, body)).await?;
    remove_hop_by_hop(answer.headers_mut());
    Ok(answer)
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Passes an answer on as it arrives, until `cuts` changes.
fn stream_through(answer: Response<Body>, cuts: Option<watch::Receiver<u64>>) -> Answer {
    answer.map(|body| {
        let frames = body.into_data_stream().map_ok(Frame::data).map_err(BoxError::from);
        match cuts {
            Some(cuts) => StreamBody::new(until_cut(frames, cuts)).boxed_unsync(),
            None => StreamBody::new(frames).boxed_unsync(),
        }
    })
}

/// The frames until `cuts` changes; then an error, which breaks the connection.
fn until_cut<S>(
    frames: S,
    cuts: watch::Receiver<u64>,
) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>>
where
    S: Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + Unpin + 'static,
{
    stream::unfold((frames, cuts), |(mut frames, mut cuts)| async move {
        let item = tokio::select! {
            item = frames.next() => item?,
            _ = cuts.changed() => Err("watch cut on purpose".into()),
        };
        Some((item, (frames, cuts)))
    })
}

fn failure(code: u16, retry_after: Option<u64>) -> Result<Answer, BoxError> {
    let code = StatusCode::from_u16(code)?;
    let reason = match code {
        StatusCode::CONFLICT => "Conflict",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        StatusCode::GATEWAY_TIMEOUT => "Timeout",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        _ => "Unknown",
    };
    let mut status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "failed by devcluster's proxy",
        "reason": reason,
        "code": code.as_u16(),
    });
    let mut response = Response::builder().status(code);
    if let Some(seconds) = retry_after {
        status["details"] = json!({ "retryAfterSeconds": seconds });
        response = response.header(header::RETRY_AFTER, seconds);
    }
    let response = response.header(header::CONTENT_TYPE, "application/json");
    Ok(response.body(whole(Bytes::from(status.to_string())))?)
}

fn whole(bytes: Bytes) -> UnsyncBoxBody<Bytes, BoxError> {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
