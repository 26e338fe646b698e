//! Asking the API server what a requester may do.

use crate::admission::{Access, Answer};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// Questions at a time. Any pod that reaches the webhook can cause them, so they are few: the API
/// server answers one within milliseconds, and whoever has to wait has a deadline.
const CONCURRENCY: usize = 8;

/// Asks, and remembers nothing: an answer holds for one request only.
pub(super) struct Authorizer {
    reviews: Api<SubjectAccessReview>,
    slots: Semaphore,
}

impl Authorizer {
    pub(super) fn new(client: Client) -> Self {
        Self { reviews: Api::all(client), slots: Semaphore::new(CONCURRENCY) }
    }

    /// The answer to the request that needs `access`, before `deadline`. Asked once: the API server
    /// calls the webhook again if it wants to.
    pub(super) async fn answer(&self, access: Access, deadline: Instant) -> Answer {
        let review = SubjectAccessReview { spec: access.spec(), ..SubjectAccessReview::default() };
        let asking = async {
            // Never closed, so always a slot.
            let _slot = self.slots.acquire().await;
            self.reviews.create(&PostParams::default(), &review).await
        };
        match timeout_at(deadline, asking).await {
            Ok(Ok(SubjectAccessReview { status: Some(status), .. })) => {
                // Both can be set, and a denial wins.
                if status.allowed && status.denied != Some(true) {
                    access.granted()
                } else {
                    access.refused(status.reason.as_deref())
                }
            }
            Ok(Ok(_)) => access.failed("the API server's answer has no status"),
            Ok(Err(error)) => access.failed(&error.to_string()),
            Err(_) => access.failed("the API server did not answer in time"),
        }
    }
}
