//! From a request to its answer, what is cheap first.

use super::{
    KnowledgeOf, Limits, Metrics,
    authorize::Authorizer,
    connections::{Connection, Phase},
};
use crate::{
    admission::{self, Answer, Decision, Endpoint, Knowledge, Verdict},
    allowed::Allowed,
    telemetry::otlp::TRACES,
};
use futures::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Bytes, Incoming},
    header::{self, HeaderValue},
};
use jiff::SignedDuration;
use std::{mem, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tracing::{Instrument as _, Span, field::Empty};

/// How long the API server waits where it does not say: its default for webhooks.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest it ever waits.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);
/// What an answer needs to get back in time.
const MARGIN: Duration = Duration::from_millis(500);

/// What requests are answered from.
pub(super) struct Requests {
    limits: Limits,
    knowledge: KnowledgeOf,
    allowed: Allowed,
    authorizer: Authorizer,
    metrics: Metrics,
    deciding: Semaphore,
    held: Arc<Semaphore>,
}

/// What an answer is sent on, as far as it matters to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may stay.
    Lasting,
    /// It is to be closed after the answer.
    Retiring,
    /// Its client was accepted by CAs that are no longer those of today.
    Outdated,
}

/// A request that is not decided. Its connection is closed, as its body may not have been read.
struct Refused(Box<Answer>);

impl Requests {
    pub(super) fn new(
        limits: Limits,
        knowledge: KnowledgeOf,
        allowed: Allowed,
        client: kube::Client,
        metrics: Metrics,
    ) -> Self {
        Self {
            deciding: Semaphore::new(limits.deciding),
            held: Arc::new(Semaphore::new(limits.held_bytes)),
            authorizer: Authorizer::new(client),
            limits,
            knowledge,
            allowed,
            metrics,
        }
    }

    /// Answers `request`, which has come on `connection`. `standing` is asked twice: when the
    /// request has come, and when its answer goes.
    pub(super) async fn respond(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
        standing: impl Fn() -> Standing,
    ) -> Response<Full<Bytes>> {
        let came = Instant::now();
        connection.enter(Phase::Body);
        let _in_flight = self.metrics.in_flight();
        let endpoint = Endpoint::of_path(request.uri().path());
        let span = span(endpoint);
        let reviewed = self.review(endpoint, request, connection, &standing);
        let (answer, decided) = match reviewed.instrument(span.clone()).await {
            Ok(answer) => (answer, true),
            Err(Refused(answer)) => (*answer, false),
        };
        self.metrics.answered(endpoint, &answer, came.elapsed());
        span.in_scope(|| tell(&answer));
        trace(&span, &answer);
        connection.answered(answer.status == 200);
        let stays = decided && answer.retry_after.is_none() && standing() == Standing::Lasting;
        response(answer, stays)
    }

    async fn review(
        &self,
        endpoint: Option<Endpoint>,
        request: Request<Incoming>,
        connection: &Connection,
        standing: impl Fn() -> Standing,
    ) -> Result<Answer, Refused> {
        let came = Instant::now();
        let endpoint = self.check(endpoint, &request)?;
        if standing() == Standing::Outdated {
            let answer = later("the client CAs have changed: connect again");
            return Err(Refused(Box::new(answer)));
        }
        let deadline = came + time_to_answer(request.uri().query());
        let reading = self.read(request.into_body());
        let (body, _held) = timeout(self.limits.body, reading).await.unwrap_or_else(|_| {
            let limit = self.limits.body;
            Err(refused(408, "Timeout", &format!("the body did not arrive within {limit:?}")))
        })?;
        connection.enter(Phase::Deciding);
        let _slot = self.deciding.try_acquire().map_err(|_| overloaded())?;
        let deciding = AssertUnwindSafe(self.decide(endpoint, &body, deadline));
        Ok(deciding.catch_unwind().await.unwrap_or_else(|_| {
            self.metrics.panicked();
            let message = "the webhook panicked at this request, which is a defect in it: see the operator's log";
            admission::refusal(500, "InternalError", message)
        }))
    }

    /// What can be said without the body, in the order of its cost.
    fn check(
        &self,
        endpoint: Option<Endpoint>,
        request: &Request<Incoming>,
    ) -> Result<Endpoint, Refused> {
        let (method, path, headers) = (request.method(), request.uri().path(), request.headers());
        let Some(endpoint) = endpoint else {
            return Err(refused(404, "NotFound", &format!("{path:?} is the path of no webhook")));
        };
        if method != Method::POST {
            let message = format!("{method} is not allowed: a review comes by POST");
            return Err(refused(405, "MethodNotAllowed", &message));
        }
        if !headers.get(header::CONTENT_TYPE).is_some_and(is_json) {
            let message = "the media type has to be application/json";
            return Err(refused(415, "UnsupportedMediaType", message));
        }
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        if length.and_then(|length| length.parse().ok()) > Some(self.limits.body_bytes) {
            return Err(self.too_large());
        }
        if self.deciding.available_permits() == 0 {
            return Err(overloaded());
        }
        Ok(endpoint)
    }

    fn too_large(&self) -> Refused {
        let limit = self.limits.body_bytes;
        let message = format!("the body is larger than {limit} bytes");
        refused(413, "RequestEntityTooLarge", &message)
    }

    /// The whole body, and its share of what all bodies may take up.
    async fn read(
        &self,
        mut body: Incoming,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Refused> {
        // What has a length has been found to be within bounds.
        let expected = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        // Most come in one piece, which then is not copied.
        let (mut first, mut all, mut held) = (Bytes::new(), Vec::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                refused(400, "BadRequest", &format!("the body breaks off: {error}"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let before = first.len().max(all.len());
            let length = before + data.len();
            if length > self.limits.body_bytes {
                return Err(self.too_large());
            }
            self.hold(&mut held, length)?;
            if before == 0 {
                first = data;
                continue;
            }
            if all.is_empty() {
                all = Vec::with_capacity(expected.unwrap_or(length));
                all.extend_from_slice(&mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
        self.metrics.read(first.len().max(all.len()));
        Ok((if all.is_empty() { first } else { all.into() }, held))
    }

    /// Takes a share of `length` bytes in all.
    fn hold(&self, held: &mut Option<OwnedSemaphorePermit>, length: usize) -> Result<(), Refused> {
        if length <= self.limits.free_bytes {
            return Ok(());
        }
        let more = length - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(more).map_err(|_| self.too_large())?;
        let share = Arc::clone(&self.held).try_acquire_many_owned(more);
        let share = share.map_err(|_| overloaded())?;
        match held {
            Some(held) => held.merge(share),
            None => *held = Some(share),
        }
        Ok(())
    }

    async fn decide(&self, endpoint: Endpoint, body: &[u8], deadline: Instant) -> Answer {
        let review = match admission::parse(endpoint, body) {
            Ok(review) => review,
            Err(answer) => return answer,
        };
        let known = review.need().map_or_else(|| Some(Knowledge::default()), &*self.knowledge);
        let Some(knowledge) = known else {
            return later("the operator has just started and does not know the cluster yet");
        };
        match review.decide(&knowledge, &self.allowed) {
            Decision::Final(answer) => answer,
            Decision::NeedsAccess(access) => self.authorizer.answer(*access, deadline).await,
        }
    }
}

/// For traces. Off, it costs one look at a flag.
fn span(endpoint: Option<Endpoint>) -> Span {
    tracing::info_span!(
        target: TRACES,
        "webhook",
        otel.kind = "server",
        webhook = endpoint.map(Endpoint::as_str),
        operation = Empty,
        ksmscale = Empty,
        uid = Empty,
        verdict = Empty,
        rules = Empty,
        http.response.status_code = Empty,
        otel.status_code = Empty,
    )
}

fn trace(span: &Span, answer: &Answer) {
    if span.is_disabled() {
        return;
    }
    let record = &answer.record;
    let cut = |text: &str| text.chars().take(253).collect::<String>();
    span.record("operation", record.operation);
    span.record("ksmscale", cut(&record.name));
    span.record("uid", cut(&record.uid));
    span.record("verdict", record.verdict.as_str());
    span.record("rules", record.rules.join(","));
    span.record("http.response.status_code", answer.status);
    if record.verdict == Verdict::Failed {
        span.record("otel.status_code", "ERROR");
    }
}

fn refused(status: u16, reason: &str, message: &str) -> Refused {
    Refused(Box::new(admission::refusal(status, reason, message)))
}

/// Has the API server try again, by itself and on a new connection, which may lead to another
/// replica.
fn later(message: &str) -> Answer {
    let answer = admission::refusal(503, "ServiceUnavailable", message);
    Answer { retry_after: Some(1), ..answer }
}

fn overloaded() -> Refused {
    Refused(Box::new(later("there are too many requests at once")))
}

/// Whether a media type is JSON, with whatever parameters.
fn is_json(media_type: &HeaderValue) -> bool {
    let media_type = media_type.to_str().unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// How long the answer may take. The API server says how long it waits, as `?timeout=10s`.
fn time_to_answer(query: Option<&str>) -> Duration {
    let mut parameters = query.unwrap_or_default().split('&');
    let asked = parameters.find_map(|parameter| parameter.strip_prefix("timeout="));
    let asked = asked.and_then(|text| text.parse::<SignedDuration>().ok());
    let asked = asked.and_then(|asked| Duration::try_from(asked).ok());
    let timeout = asked.unwrap_or(DEFAULT_TIMEOUT);
    let timeout = timeout.min(LONGEST_TIMEOUT);
    timeout.saturating_sub(MARGIN.min(timeout / 4))
}

/// A line for each refusal. The texts are the requester's: quoted, and cut.
fn tell(answer: &Answer) {
    let record = &answer.record;
    let cut = |text: &str| text.chars().take(253).collect::<String>();
    let who = || (cut(&record.uid), cut(&record.user), cut(&record.name));
    match record.verdict {
        Verdict::Denied => {
            let (uid, user, name) = who();
            tracing::info!(?uid, ?user, ?name, rules = ?record.rules, "denied");
        }
        Verdict::Failed => {
            let (uid, user, name) = who();
            tracing::warn!(?uid, ?user, ?name, code = answer.status, "no verdict");
        }
        Verdict::BadRequest => tracing::debug!(code = answer.status, "bad request"),
        Verdict::Allowed | Verdict::Patched => {}
    }
}

fn response(answer: Answer, stays: bool) -> Response<Full<Bytes>> {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    const CLOSE: HeaderValue = HeaderValue::from_static("close");
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    if !stays {
        headers.insert(header::CONNECTION, CLOSE);
    }
    if let Some(seconds) = answer.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if answer.status == 405 {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::{is_json, time_to_answer};
    use std::time::Duration;

    #[test]
    fn w5_the_time_to_answer_follows_the_api_servers_patience() {
        let millis = |query: &str| time_to_answer(Some(query)).as_millis();
        assert_eq!(millis("timeout=5s"), 4500);
        assert_eq!(millis("a=b&timeout=1s"), 750);
        assert_eq!(millis("timeout=0s"), 0);
        assert_eq!(millis("timeout=1h"), 29_500);
        let endless = format!("timeout={}h", "9".repeat(40));
        for not_said in ["", "timeout=-5s", "timeout=x", "timeouts=1s", &endless] {
            assert_eq!(millis(not_said), 9500, "{not_said}");
        }
        assert_eq!(time_to_answer(None), Duration::from_millis(9500));
    }

    #[test]
    fn w6_json_is_json_with_whatever_parameters() {
        let is = |text: &'static str| is_json(&text.parse().unwrap());
        assert!(is("application/json") && is("Application/JSON ; charset=utf-8"));
        assert!(!is("") && !is("text/plain") && !is("application/jsonx") && !is("text/json"));
    }
}
