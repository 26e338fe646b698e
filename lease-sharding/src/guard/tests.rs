use super::*;
use crate::{clock::Clock, partitions::PartitionSet, protocol::Now};
use futures::{channel::oneshot, poll};
use http::{Method, Request, Response};
use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::mpsc;
use tower::{Layer, Service};

/// A ledger whose fence is at 10 s, and a clock that can be set; both times are the same.
struct Scene {
    ledger: Arc<Ledger>,
    ended: mpsc::UnboundedReceiver<u32>,
    time: Arc<(AtomicU64, AtomicU64)>,
}

const FENCE: u64 = 10_000;
const WRITE: u64 = 3_000;

impl Scene {
    fn new() -> Self {
        let time = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let shown = time.clone();
        let clock = Clock::new(move || Now {
            steady: shown.0.load(Ordering::Relaxed),
            wall: shown.1.load(Ordering::Relaxed),
        });
        let (ledger, ended) = Ledger::new(clock, WRITE);
        let ledger = Arc::new(ledger);
        ledger.renew(Some(Now { steady: FENCE, wall: FENCE }), vec![]);
        ledger.gain(&PartitionSet::first(2));
        Self { ledger, ended, time }
    }

    fn set(&self, steady: u64, wall: u64) {
        self.time.0.store(steady, Ordering::Relaxed);
        self.time.1.store(wall, Ordering::Relaxed);
    }
}

fn request(method: Method) -> Request<()> {
    Request::builder().method(method).uri("/api/v1/pods?a=b").body(()).unwrap()
}

/// What a service behind the guard's fence was asked for, after one request of each method.
async fn passed(guard: &Guard) -> Vec<String> {
    let seen = Arc::new(Mutex::new(vec![]));
    let log = seen.clone();
    let mut fenced = guard.fence().layer(tower::service_fn(move |request: Request<()>| {
        log.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
        async { Ok::<_, Infallible>(Response::new(())) }
    }));
    for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let reads = method == Method::GET;
        match fenced.call(request(method)).await {
            Ok(_) => {}
            Err(error) => assert_eq!((reads, error.downcast_ref()), (false, Some(&Refused::Guard))),
        }
    }
    drop(fenced);
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

const READ: [&str; 1] = ["GET /api/v1/pods?a=b"];

#[tokio::test]
async fn s2_a_write_is_sent_only_if_it_ends_before_the_fence_by_either_clock() {
    let scene = Scene::new();
    let guard = scene.ledger.begin(1).unwrap();
    scene.set(FENCE - WRITE, FENCE - WRITE);
    let seen = passed(&guard).await;
    assert_eq!(seen.len(), 5);
    assert_eq!(seen[3], "PATCH /api/v1/pods?a=b&timeout=3000ms");
    for (steady, wall) in [(FENCE - WRITE + 1, 0), (0, FENCE - WRITE + 1)] {
        scene.set(steady, wall);
        assert_eq!(passed(&guard).await, READ);
    }
    // The next renewal arrives, and nothing was lost.
    scene.ledger.renew(Some(Now { steady: 2 * FENCE, wall: 2 * FENCE }), vec![]);
    assert_eq!(passed(&guard).await.len(), 5);
}

#[test]
fn s2_there_is_no_guard_of_what_is_not_owned_or_past_the_fence() {
    let scene = Scene::new();
    assert!(scene.ledger.begin(2).is_none());
    assert!(scene.ledger.begin(1).is_some());
    scene.set(0, FENCE);
    assert!(scene.ledger.begin(1).is_none());
    scene.set(FENCE, 0);
    assert!(scene.ledger.begin(1).is_none());
}

#[tokio::test]
async fn s2_a_revoked_guard_ends_its_work_and_stays_lost() {
    let scene = Scene::new();
    let (guard, other) = (scene.ledger.begin(0).unwrap(), scene.ledger.begin(1).unwrap());
    let mut work = pin!(guard.run(std::future::pending::<()>()));
    assert!(poll!(work.as_mut()).is_pending());
    assert_eq!(scene.ledger.revoke(&PartitionSet::first(1)), PartitionSet::EMPTY);
    assert_eq!(work.await, Err(Lost));
    scene.ledger.gain(&PartitionSet::first(1));
    assert_eq!(passed(&guard).await, READ);
    assert!(other.is_valid() && scene.ledger.begin(0).unwrap().is_valid());
}

#[tokio::test]
async fn s2_a_partition_is_kept_until_the_last_guard_of_it_is_gone() {
    let mut scene = Scene::new();
    let guards = [scene.ledger.begin(0).unwrap(), scene.ledger.begin(0).unwrap()];
    let clone = guards[0].clone();
    let (idle, works) = scene.ledger.stop(&PartitionSet::first(2));
    assert_eq!((idle, works.len()), (PartitionSet::from_iter([1]), 2));
    assert!(scene.ledger.begin(0).is_none() && guards[0].is_valid(), "what runs may end");
    drop(guards);
    assert!(scene.ended.try_recv().is_err());
    drop(clone);
    assert_eq!(scene.ended.try_recv(), Ok(0));
    assert!(scene.ended.try_recv().is_err());
}

#[tokio::test]
async fn s2_a_write_that_nobody_waits_for_any_more_still_keeps_the_partition() {
    let mut scene = Scene::new();
    let guard = scene.ledger.begin(0).unwrap();
    let (answer, answered) = oneshot::channel::<()>();
    let answered = Mutex::new(Some(answered));
    let mut fenced = guard.fence().layer(tower::service_fn(move |_: Request<()>| {
        let answered = answered.lock().unwrap().take().unwrap();
        async { answered.await.map(Response::new) }
    }));
    let write = fenced.call(request(Method::PATCH));
    scene.ledger.stop(&PartitionSet::first(1));
    drop((write, fenced, guard));
    tokio::task::yield_now().await;
    assert!(scene.ended.try_recv().is_err(), "the write may be under way");
    answer.send(()).unwrap();
    assert_eq!(scene.ended.recv().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn s2_a_write_without_an_answer_ends_with_its_time() {
    let mut scene = Scene::new();
    let guard = scene.ledger.begin(0).unwrap();
    let mut fenced = guard.fence().layer(tower::service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<()>, Infallible>>()
    }));
    scene.ledger.stop(&PartitionSet::first(1));
    let error = fenced.call(request(Method::PATCH)).await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Refused::Late(Duration::from_millis(WRITE))));
    drop(guard);
    assert_eq!(scene.ended.recv().await, Some(0));
}

#[tokio::test]
async fn s3_what_is_gained_is_told_to_all_and_again_after_a_time_without_writes() {
    let scene = Scene::new();
    let mut listeners = [scene.ledger.listen(), scene.ledger.listen()];
    let more = PartitionSet::from_iter([5]);
    scene.ledger.gain(&more);
    scene.ledger.resume();
    let all = PartitionSet::first(2).union(&more);
    for listener in &mut listeners {
        let told = [listener.recv().await, listener.recv().await, listener.recv().await];
        assert_eq!(told, [Some(PartitionSet::first(2)), Some(more.clone()), Some(all.clone())]);
    }
    scene.ledger.close();
    assert_eq!(listeners[0].recv().await, None);
}
