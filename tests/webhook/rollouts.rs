//! Nothing is lost while replicas come and go, and while the certificate changes (W7).

use crate::{
    apiserver::Access,
    certificates::Authority,
    client::{Client, create, post, tls, update},
    server::{DEADLINE, Webhook, options},
};
use devcluster::{Balancer, eventually};
use ksm_scale_operator::{names::VALIDATE_PATH, webhook::Options};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

/// Calls that go on until it is ended.
struct Load {
    workers: JoinSet<()>,
    end: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Load {
    /// Calls with pooled connections and with a new one for each call, to whom `authority` vouches
    /// for.
    fn start(address: SocketAddr, authority: &Authority) -> Self {
        let mut load = Self {
            workers: JoinSet::new(),
            end: Arc::default(),
            calls: Arc::default(),
            failures: Arc::default(),
        };
        let pooled = Arc::new(Client::new(address, tls(&authority.der(), None, false)));
        let fresh = Client::new(address, tls(&authority.der(), None, false)).without_keep_alive();
        for client in [pooled.clone(), pooled.clone(), pooled.clone(), pooled, Arc::new(fresh)] {
            let (end, calls, failures) =
                (load.end.clone(), load.calls.clone(), load.failures.clone());
            load.workers.spawn(async move {
                while !end.load(Ordering::SeqCst) {
                    if let Err(error) = client.allowed().await {
                        failures.lock().unwrap().push(format!("{error} {error:?}"));
                    }
                    calls.fetch_add(1, Ordering::SeqCst);
                    // About 200 calls a second from each.
                    sleep(Duration::from_millis(5)).await;
                }
            });
        }
        load
    }

    /// Waits for `more` calls.
    async fn go_on(&self, more: usize) {
        let until = self.calls.load(Ordering::SeqCst) + more;
        eventually("calls are made", DEADLINE, || async {
            (self.calls.load(Ordering::SeqCst) >= until).then_some(())
        })
        .await
        .unwrap();
    }

    /// Ends it, and fails if one call has.
    async fn end(mut self) {
        self.end.store(true, Ordering::SeqCst);
        while self.workers.join_next().await.is_some() {}
        let (calls, failures) = (self.calls.load(Ordering::SeqCst), self.failures.lock().unwrap());
        println!("{} of {calls} calls failed", failures.len());
        assert!(failures.is_empty(), "{} of {calls} calls failed: {failures:#?}", failures.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn w7_no_call_is_lost_while_the_certificate_and_its_ca_change() {
    let webhook = Webhook::start(options()).await;
    let load = Load::start(webhook.address, &webhook.authority);
    for _ in 0..20 {
        let leaf = webhook.authority.pair();
        webhook.serving.swap(leaf);
        load.go_on(20).await;
    }
    load.end().await;
    let refused = "tls_handshake_failures_total{reason=\"refused_by_client\"}";
    assert_eq!(webhook.metric(refused), 0);

    // The next handshake presents what was swapped in.
    let open = Client::of(&webhook);
    open.allowed().await.unwrap();
    webhook.serving.swap(Authority::new("other").pair());
    open.allowed().await.unwrap();
    assert!(Client::of(&webhook).allowed().await.is_err());
    webhook.metric_becomes(refused, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn w7_no_call_is_lost_while_all_replicas_are_replaced_one_after_the_other() {
    // The load balancer hears of the end after a second, and a busy machine later than that.
    let balancer = Balancer::start(Duration::from_secs(1)).await.unwrap();
    let lame_duck = || Options { lame_duck: Duration::from_secs(4), ..options() };
    // One CA for all of them.
    let authority = Authority::new("webhook-ca");
    let start = || async {
        let webhook = Webhook::start_by(authority.clone(), lame_duck()).await;
        balancer.add(webhook.address);
        webhook
    };
    let mut replicas = vec![start().await, start().await];
    let load = Load::start(balancer.address(), &authority);
    load.go_on(100).await;
    for _ in 0..3 {
        let mut old = replicas.remove(0);
        replicas.push(start().await);
        // SIGTERM; the endpoint is removed at the same time.
        old.drain.cancel();
        old.stop.cancel();
        balancer.withdraw(old.address);
        let ready = || async { old.readiness.check().is_err().then_some(()) };
        eventually("it is no longer ready", Duration::from_secs(2), ready).await.unwrap();
        timeout(DEADLINE, &mut old.ended).await.unwrap().unwrap();
        assert_eq!(old.metric("connections"), 0);
    }
    load.go_on(100).await;
    assert!(replicas.iter().all(|replica| balancer.chosen(replica.address) > 0));
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn w7_a_lame_duck_answers_everybody_and_retires_their_connections() {
    let lame_duck = Duration::from_millis(1500);
    let mut webhook = Webhook::start(Options { lame_duck, ..options() }).await;
    let (client, idle) = (Client::of(&webhook), Client::of(&webhook));
    assert_eq!(webhook.readiness.check(), Ok(()));
    idle.allowed().await.unwrap();
    let reply = client.send(post(VALIDATE_PATH, update("a", 0))).await.unwrap();
    assert!(!reply.closes);

    let begin = tokio::time::Instant::now();
    webhook.drain.cancel();
    eventually("it is no longer ready", DEADLINE, || async { webhook.readiness.check().err() })
        .await
        .unwrap();
    assert_eq!(webhook.readiness.check().unwrap_err(), "waiting for the webhook: draining\n");
    // The connection of before, and a new one.
    for handshakes in [2, 3] {
        let reply = client.send(post(VALIDATE_PATH, update("a", 0))).await.unwrap();
        assert!(reply.status == 200 && reply.closes);
        assert_eq!(webhook.metric("tls_handshakes_total"), handshakes);
    }
    // Something else of the process is not done.
    assert!(timeout(lame_duck + Duration::from_millis(300), &mut webhook.ended).await.is_err());
    assert_eq!(webhook.metric("connections"), 1, "what is idle stays, and can be used");
    client.allowed().await.unwrap();
    webhook.stop.cancel();
    timeout(DEADLINE, &mut webhook.ended).await.unwrap().unwrap();
    assert!(begin.elapsed() > lame_duck);
    assert!(client.dial().await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn w7_what_is_under_way_at_the_end_is_answered() {
    let mut webhook = Webhook::start(options()).await;
    webhook.apiserver.set(Access::Slow(Duration::from_millis(700)));
    let client = Client::of(&webhook);
    let call = tokio::spawn(async move { client.call(&create("a")).await.unwrap().status });
    eventually("the call is being decided", DEADLINE, || async {
        (webhook.apiserver.asked() == 1).then_some(())
    })
    .await
    .unwrap();
    webhook.drain.cancel();
    webhook.stop.cancel();
    timeout(DEADLINE, &mut webhook.ended).await.unwrap().unwrap();
    assert_eq!(call.await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn w7_nobody_can_hold_up_the_end() {
    let mut options = options();
    options.limits.finish = Duration::from_millis(300);
    let mut webhook = Webhook::start(options).await;
    webhook.apiserver.set(Access::Hangs);
    let client = Client::of(&webhook);
    let call = tokio::spawn(async move { client.call(&create("a")).await.is_err() });
    eventually("the call is being decided", DEADLINE, || async {
        (webhook.apiserver.asked() == 1).then_some(())
    })
    .await
    .unwrap();
    webhook.drain.cancel();
    webhook.stop.cancel();
    timeout(Duration::from_secs(5), &mut webhook.ended).await.unwrap().unwrap();
    assert!(call.await.unwrap(), "broken off");
}
