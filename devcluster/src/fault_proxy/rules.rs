//! What the proxy knows about requests, and what it decides.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method, Uri, header};
use tokio::sync::watch;

/// A request as the proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRequest {
    /// GET, POST and so on.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The query, without the question mark; empty if there is none.
    pub query: String,
    /// The header `User-Agent`; empty if there is none.
    pub user_agent: String,
    /// Whether the request asks for a change of stored state: POST, PUT, PATCH and DELETE, except
    /// dry runs, ServiceAccounts' tokens and reviews (SelfSubjectAccessReview and the like).
    pub mutating: bool,
    /// Whether the request is a watch.
    pub watch: bool,
}

impl SeenRequest {
    pub(super) fn new(method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let path = uri.path().to_owned();
        let query = uri.query().unwrap_or_default().to_owned();
        let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        let has = |parameter: &str| query.split('&').any(|pair| pair == parameter);
        let read_only = path.starts_with("/apis/authentication.k8s.io/")
            || path.starts_with("/apis/authorization.k8s.io/")
            || (path.contains("/serviceaccounts/") && path.ends_with("/token"))
            || has("dryRun=All");
        let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method);
        Self {
            method: method.clone(),
            mutating: writes && !read_only,
            watch: has("watch=true") || has("watch=1"),
            user_agent: agent.unwrap_or_default().to_owned(),
            path,
            query,
        }
    }

    /// Whether the request is for Events, of either API group.
    pub fn is_event(&self) -> bool {
        self.has_segment("events")
    }

    /// Whether the request is for Leases.
    pub fn is_lease(&self) -> bool {
        self.path.starts_with("/apis/coordination.k8s.io/") && self.has_segment("leases")
    }

    fn has_segment(&self, name: &str) -> bool {
        self.path.split('/').any(|segment| segment == name)
    }
}

/// How the proxy fails a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this HTTP status code and a `metav1.Status` of the matching reason: Conflict
    /// for 409, TooManyRequests for 429, InternalError for 500, ServiceUnavailable for 503.
    Status {
        /// The HTTP status code.
        code: u16,
        /// The header `Retry-After`, in whole seconds.
        retry_after: Option<Duration>,
    },
    /// Never answers.
    Hang,
    /// Closes the connection; the API server does not see the request.
    Close,
    /// Forwards the request and closes the connection instead of answering: the change is made and
    /// the client does not know. Counts towards a cut like any forwarded request.
    LoseAnswer,
}

impl Fault {
    /// A status without `Retry-After`.
    pub const fn status(code: u16) -> Self {
        Self::Status { code, retry_after: None }
    }

    /// 429 with `Retry-After`.
    pub const fn too_many_requests(retry_after: Duration) -> Self {
        Self::Status { code: 429, retry_after: Some(retry_after) }
    }
}

pub(super) struct Rule {
    pub(super) matcher: Box<dyn Fn(&SeenRequest) -> bool + Send + Sync>,
    pub(super) fault: Fault,
    pub(super) times: usize,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({:?} × {})", self.fault, self.times)
    }
}

/// What is to be done with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) fault: Option<Fault>,
    /// Report the answer with [`Shared::answered`], and this number.
    pub(super) counted: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) rules: Vec<Rule>,
    pub(super) cut: Option<usize>,
    /// Which cut it is: answers to requests from before it was set do not count towards it.
    epoch: u64,
    admitted: usize,
    pub(super) answered: usize,
    pub(super) refused: usize,
    pub(super) count_events: bool,
    pub(super) count_leases: bool,
    pub(super) log: Vec<SeenRequest>,
}

impl State {
    pub(super) fn set_cut(&mut self, cut: Option<usize>) {
        self.cut = cut;
        self.epoch += 1;
        (self.admitted, self.answered, self.refused) = (0, 0, 0);
    }

    fn counts(&self, request: &SeenRequest) -> bool {
        request.mutating
            && (self.count_events || !request.is_event())
            && (self.count_leases || !request.is_lease())
    }

    fn decide(&mut self, request: &SeenRequest) -> Verdict {
        let rule = self.rules.iter_mut().find(|rule| rule.times > 0 && (rule.matcher)(request));
        let fault = rule.map(|rule| {
            rule.times = rule.times.saturating_sub(1);
            rule.fault
        });
        let forwarded = matches!(fault, None | Some(Fault::LoseAnswer));
        if !forwarded || !self.counts(request) {
            return Verdict { fault, counted: None };
        }
        if self.cut.is_some_and(|n| self.admitted >= n) {
            self.refused += 1;
            return Verdict { fault: Some(Fault::Close), counted: None };
        }
        self.admitted += 1;
        Verdict { fault, counted: Some(self.epoch) }
    }
}

/// What the proxy's owner and its connections share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changes: watch::Sender<()>,
    /// Counts the orders to break watches.
    pub(super) watch_cuts: watch::Sender<u64>,
    /// Counts the orders to end the requests that hang.
    pub(super) hang_ends: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changes: watch::Sender::new(()),
            watch_cuts: watch::Sender::new(0),
            hang_ends: watch::Sender::new(0),
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A matcher that panicked must not take the other requests with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a request and decides over it.
    pub(super) fn admit(&self, request: SeenRequest) -> Verdict {
        let verdict = {
            let mut state = self.lock();
            let verdict = state.decide(&request);
            state.log.push(request);
            verdict
        };
        self.changed();
        verdict
    }

    /// A counted request was answered by the API server.
    pub(super) fn answered(&self, epoch: u64) {
        let mut state = self.lock();
        if state.epoch == epoch {
            state.answered += 1;
        }
        drop(state);
        self.changed();
    }

    pub(super) fn changed(&self) {
        self.changes.send_replace(());
    }

    pub(super) async fn wait_until(&self, holds: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        while !holds(&self.lock()) {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(method: &Method, uri: &str) -> SeenRequest {
        SeenRequest::new(method, &uri.parse().unwrap(), &HeaderMap::new())
    }

    #[test]
    fn only_requests_for_changes_are_mutating() {
        let map = "/api/v1/namespaces/a/configmaps/b";
        assert!(seen(&Method::PATCH, map).mutating);
        assert!(seen(&Method::DELETE, map).mutating);
        assert!(seen(&Method::PUT, "/api/v1/namespaces/a/pods/b/status?fieldManager=x").mutating);
        assert!(!seen(&Method::GET, map).mutating);
        assert!(!seen(&Method::PATCH, &format!("{map}?fieldManager=x&dryRun=All")).mutating);
        assert!(!seen(&Method::POST, "/api/v1/namespaces/a/serviceaccounts/b/token").mutating);
        assert!(seen(&Method::POST, "/api/v1/namespaces/a/serviceaccounts").mutating);
        let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        assert!(!seen(&Method::POST, reviews).mutating);
    }

    #[test]
    fn watches_are_told_from_lists() {
        assert!(seen(&Method::GET, "/api/v1/pods?labelSelector=a&watch=true").watch);
        assert!(!seen(&Method::GET, "/api/v1/pods?labelSelector=watch").watch);
    }

    #[test]
    fn events_and_leases_count_towards_a_cut_only_when_asked_for() {
        let event = seen(&Method::POST, "/apis/events.k8s.io/v1/namespaces/default/events");
        let lease = seen(&Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/a/leases/b");
        let pod = seen(&Method::POST, "/api/v1/namespaces/a/pods");
        let mut state = State::default();
        state.set_cut(Some(1));
        for request in [&event, &lease] {
            assert_eq!(state.decide(request), Verdict { fault: None, counted: None });
        }
        assert_eq!(state.decide(&pod), Verdict { fault: None, counted: Some(1) });
        assert_eq!(state.decide(&pod).fault, Some(Fault::Close));
        assert_eq!(state.decide(&event).fault, None);
        (state.count_events, state.count_leases) = (true, true);
        for request in [&event, &lease] {
            assert_eq!(state.decide(request).fault, Some(Fault::Close));
        }
        assert_eq!(state.refused, 3);
    }
}
