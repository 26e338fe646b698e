//! A layer under a client that refuses writes once the guard is lost.

use super::{Guard, Work};
use futures::future::BoxFuture;
use http::{Method, Request, Uri, uri::PathAndQuery};
use std::{
    sync::Weak,
    task::{Context, Poll},
    time::Duration,
};
use tower::{BoxError, Layer, Service};

/// A layer that lets reads pass, and writes only as long as the guard is valid.
///
/// A write is started only if it can end before the fence: it is given
/// [`TimingConfig::write_timeout`](crate::protocol::TimingConfig::write_timeout), here and, as
/// `?timeout=`, on the API server. Dropping the request's future does not stop the write: the
/// partition is kept until its end is known, or its time is over. The layer itself keeps nothing:
/// when the guard is dropped, writes are refused.
#[derive(Clone, Debug)]
pub struct Fence(pub(super) Weak<Work>);

/// Why a write was not made, or may not have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was not sent.
    #[error("not sent: the object may belong to another replica")]
    Guard,
    /// It was sent, and there was no answer in time.
    #[error("no answer to a write within {0:?}: it may have been made or not")]
    Late(Duration),
}

impl Refused {
    /// The refusal in an error of a client that [`Guard::client`] made, if it is one.
    #[must_use]
    pub fn of(error: &kube::Error) -> Option<Self> {
        let kube::Error::Service(error) = error else { return None };
        error.downcast_ref().copied()
    }
}

impl<S> Layer<S> for Fence {
    type Service = Fenced<S>;

    fn layer(&self, inner: S) -> Fenced<S> {
        Fenced { work: self.0.clone(), inner }
    }
}

/// A service behind a [`Fence`].
#[derive(Clone, Debug)]
pub struct Fenced<S> {
    work: Weak<Work>,
    inner: S,
}

impl<S, B> Service<Request<B>> for Fenced<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Into<BoxError> + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
            let answer = self.inner.call(request);
            return Box::pin(async { answer.await.map_err(Into::into) });
        }
        let guard = self.work.upgrade().map(|work| Guard { work }).filter(Guard::is_valid);
        let Some(guard) = guard else { return Box::pin(async { Err(Refused::Guard.into()) }) };
        let limit = Duration::from_millis(guard.work.ledger.write_timeout());
        limit_on_server(request.uri_mut(), limit);
        let answer = self.inner.call(request);
        let write = tokio::spawn(async move {
            let answer = tokio::time::timeout(limit, answer).await;
            drop(guard);
            answer.map_err(|_| Refused::Late(limit))?.map_err(Into::into)
        });
        Box::pin(async { write.await? })
    }
}

/// Asks the API server to give up as well.
fn limit_on_server(uri: &mut Uri, limit: Duration) {
    let separator = if uri.query().is_some() { '&' } else { '?' };
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let limited = format!("{path}{separator}timeout={}ms", limit.as_millis());
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = limited.parse().ok();
    if let Ok(limited) = Uri::from_parts(parts) {
        *uri = limited;
    }
}
