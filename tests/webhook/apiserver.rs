//! What of the API server the webhook asks: whether a requester may do something.

use axum::{Router, body::Bytes, http::header, routing::post};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpListener;

/// How SubjectAccessReviews are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Granted,
    Refused,
    /// Granted, after this time.
    Slow(Duration),
    /// Never answered.
    Hangs,
}

/// An API server that knows SubjectAccessReviews alone.
pub(crate) struct ApiServer {
    pub(crate) url: String,
    access: Arc<Mutex<Access>>,
    asked: Arc<AtomicUsize>,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let access = Arc::new(Mutex::new(Access::Granted));
        let asked = Arc::new(AtomicUsize::new(0));
        let (now, count) = (Arc::clone(&access), Arc::clone(&asked));
        let answer = move |body: Bytes| {
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let access = *now.lock().unwrap();
            async move {
                match access {
                    Access::Hangs => std::future::pending().await,
                    Access::Slow(time) => tokio::time::sleep(time).await,
                    Access::Granted | Access::Refused => {}
                }
                let allowed = access != Access::Refused;
                review["status"] = json!({ "allowed": allowed, "reason": "of the test" });
                ([(header::CONTENT_TYPE, "application/json")], review.to_string())
            }
        };
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let router = Router::new().route(path, post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, access, asked }
    }

    pub(crate) fn set(&self, access: Access) {
        *self.access.lock().unwrap() = access;
    }

    /// How many SubjectAccessReviews have come.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
