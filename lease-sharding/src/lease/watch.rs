//! The Leases of the ring, as they change.

use super::{codec, requests::Requests};
use crate::protocol::Event;
use futures::StreamExt;
use k8s_openapi::api::coordination::v1 as k8s;
use kube::runtime::{
    WatchStreamExt,
    utils::Backoff,
    watcher::{self, watcher},
};
use std::{pin::pin, time::Duration};
use tokio::sync::mpsc;

/// The watch is restored after this time. It is the only one of its process, so it can be short.
const AGAIN: Duration = Duration::from_millis(500);

struct Constant;

impl Iterator for Constant {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        Some(AGAIN)
    }
}

impl Backoff for Constant {
    fn reset(&mut self) {}
}

/// Sends what is seen until nobody listens.
///
/// The member's own renewals come along here several times in each lease time. A watch that shows
/// nothing for that long is dead, whatever TCP believes, and starts again.
pub(super) async fn watch(requests: Requests, news: mpsc::Sender<Event>) {
    let patience = Duration::from_millis(requests.lease_time);
    while !news.is_closed() {
        let config = watcher::Config::default().labels(&requests.selector());
        let mut events = pin!(watcher(requests.api.clone(), config).backoff(Constant));
        let (mut listed, mut failing) = (vec![], false);
        while let Ok(Some(event)) = tokio::time::timeout(patience, events.next()).await {
            tell(&event, &mut failing, &requests.ring);
            if let Some(event) = read(&requests, event, &mut listed)
                && news.send(event).await.is_err()
            {
                return;
            }
        }
        tracing::warn!(ring = %requests.ring, "no news of any Lease for {patience:?}: the watch starts again");
    }
}

/// A list counts as a whole, once it is complete.
fn read(
    requests: &Requests,
    event: watcher::Result<watcher::Event<k8s::Lease>>,
    listed: &mut Vec<crate::protocol::Lease>,
) -> Option<Event> {
    let lease = |lease| codec::read_other(&requests.ring, lease, requests.lease_time);
    match event {
        Ok(watcher::Event::Init) => listed.clear(),
        Ok(watcher::Event::InitApply(one)) => listed.extend(lease(&one)),
        Ok(watcher::Event::InitDone) => return Some(Event::Listed(std::mem::take(listed))),
        Ok(watcher::Event::Apply(one)) => return lease(&one).map(Event::Seen),
        Ok(watcher::Event::Delete(one)) => return lease(&one).map(|l| Event::Gone(l.member)),
        Err(_) => {}
    }
    None
}

/// An outage is told about once.
fn tell<E>(event: &watcher::Result<E>, failing: &mut bool, ring: &str) {
    match event {
        Ok(_) => *failing = false,
        Err(error) if *failing => tracing::debug!(%error, %ring, "watch of Leases interrupted"),
        Err(error) => {
            tracing::warn!(%error, %ring, "watch of Leases interrupted, it is restored");
            *failing = true;
        }
    }
}
