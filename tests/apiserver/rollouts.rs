//! No call is lost while replicas end or are replaced (W7).
//!
//! What takes the numbers of a real cluster is run by `make soak`, the same in short by every test.

use crate::support::*;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// For how long an ended replica gets connections, for how long it serves, and how many calls are
/// made at least.
struct Form {
    delay: Duration,
    lame_duck: &'static str,
    calls: u64,
}

const SHORT: Form = Form { delay: Duration::from_secs(2), lame_duck: "4s", calls: 1_000 };

/// A slow cluster, the shipped lame duck.
const LONG: Form = Form { delay: PROXY_DELAY, lame_duck: "15s", calls: 50_000 };

/// The first replica, which finds no CA. How long it takes to Ready is printed: it depends on the
/// machine, and so is no test.
async fn first(webhooks: &Webhooks<'_>, args: &[&str]) -> Replica {
    let begun = Instant::now();
    let replica = webhooks.replica(args).await;
    println!("without a Secret Ready after {:?}", begun.elapsed());
    replica
}

async fn one_of_two_ends(form: &Form) {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, form.delay).await;
    let args = ["--lame-duck", form.lame_duck];
    let (ending, _staying) = (first(&webhooks, &args).await, webhooks.replica(&args).await);
    let load = Load::start(&webhooks, &[Duration::ZERO]).await;
    load.until(form.calls / 2).await;
    let (address, before) = (ending.address, webhooks.balancer.chosen(ending.address));
    webhooks.retire(ending).await;
    load.more(100).await;
    load.until(form.calls).await;
    let late = webhooks.balancer.chosen(address) - before;
    load.none_failed(&format!("SIGTERM, {late} connections after it")).await;
    // How many depends on the machine.
    assert!(late > 0, "no connection came after SIGTERM");
}

#[tokio::test]
async fn w7_a_replica_that_ends_serves_until_nobody_is_sent_to_it() {
    one_of_two_ends(&SHORT).await;
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn w7_soak_a_replica_that_ends_serves_until_nobody_is_sent_to_it() {
    one_of_two_ends(&LONG).await;
}

/// Replaces two replicas `rounds` times as a Deployment does with maxSurge 1 and maxUnavailable 0:
/// one more is started first, and the next while the oldest is still ending.
async fn all_are_replaced(form: &Form, rounds: usize) {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, form.delay).await;
    let args = ["--lame-duck", form.lame_duck];
    let mut replicas =
        VecDeque::from([webhooks.replica(&args).await, webhooks.replica(&args).await]);
    let load = Load::start(&webhooks, &[Duration::ZERO]).await;
    replicas.push_back(webhooks.replica(&args).await);
    for _ in 0..2 * rounds {
        let oldest = replicas.pop_front().expect("a replica");
        let ((), next) = tokio::join!(webhooks.retire(oldest), webhooks.replica(&args));
        replicas.push_back(next);
        load.more(10).await;
    }
    load.until(form.calls).await;
    load.none_failed(&format!("{rounds} rolling replacements")).await;
}

#[tokio::test]
async fn w7_no_call_is_lost_while_all_replicas_are_replaced() {
    all_are_replaced(&SHORT, 2).await;
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn w7_soak_no_call_is_lost_while_all_replicas_are_replaced() {
    all_are_replaced(&LONG, 10).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn w7_where_work_waits_for_a_core_the_webhook_goes_before_reconciles() {
    let cluster = Cluster::start(1).await;
    let webhooks = Webhooks::install(&cluster, PROXY_DELAY).await;
    let replica = webhooks.replica(&[]).await;
    let threads = replica.operator.nice_by_thread();
    let (webhook, others): (Vec<_>, Vec<_>) =
        threads.iter().partition(|(name, _)| name == "webhook");
    let [(_, webhook)] = webhook.as_slice() else { panic!("one webhook's thread: {threads:?}") };
    assert!(others.len() > 1 && others.iter().all(|(_, nice)| nice > webhook), "{threads:?}");
}
