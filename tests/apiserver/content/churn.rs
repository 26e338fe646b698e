//! Objects come and go all the time while the KSMScale is at rest: no audit takes that for a fault
//! (V3), and one that is there is found all the same.

use super::*;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Request, header};
use kube::{
    Client,
    api::{DeleteParams, DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use std::time::Instant;

/// What seems wrong is looked at again four seconds later.
const AUDITED: &[&str] = &["--verify-coverage", "true", "--audit-interval", "16s"];

/// How many of each kind come in a round. As many go: 50 changes.
const COMING: [(&str, u32); 4] = [("ConfigMap", 10), ("Secret", 10), ("Namespace", 1), ("Node", 4)];

/// Rounds from an object's creation to its deletion. As long after that, another one comes that has
/// its name.
const LIFE: u32 = 10;

/// One round a second, unless the machine is too busy for that.
const ROUND: Duration = Duration::from_secs(1);

/// Requests at a time.
const AT_ONCE: usize = 8;

/// Creates the objects of a round, and deletes those of an earlier one. Returns how many these are.
async fn change(client: &Client, round: u32) -> usize {
    let gone = round.checked_sub(LIFE);
    let objects = COMING.iter().flat_map(|&(kind, count)| {
        let of = move |round: u32, comes: bool| {
            (0..count).map(move |at| (kind, format!("churn-{}-{at}", round % (2 * LIFE)), comes))
        };
        of(round, true).chain(gone.into_iter().flat_map(move |round| of(round, false)))
    });
    let objects: Vec<_> = objects.collect();
    let changes = objects.len();
    stream::iter(objects)
        .map(|(kind, name, comes)| async move {
            if comes { come(client, kind, &name).await } else { go(client, kind, &name).await }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
        .expect("the API server takes every change");
    changes
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", kind));
    match kind {
        "ConfigMap" | "Secret" => Api::namespaced_with(client.clone(), "default", &resource),
        _ => Api::all_with(client.clone(), &resource),
    }
}

async fn come(client: &Client, kind: &str, name: &str) -> kube::Result<()> {
    let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    let object = serde_json::from_value(object).expect("an object");
    api(client, kind).create(&PostParams::default(), &object).await.map(drop)
}

async fn go(client: &Client, kind: &str, name: &str) -> kube::Result<()> {
    api(client, kind).delete(name, &DeleteParams::default()).await?;
    if kind == "Namespace" {
        // What the namespace controller does at the end, which is not here.
        let emptied = json!({
            "apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": {"finalizers": []},
        });
        let request = Request::put(format!("/api/v1/namespaces/{name}/finalize"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&emptied).expect("JSON"));
        client.request::<Value>(request.expect("a request")).await?;
    }
    Ok(())
}

/// Of what changed within a second, it is chance whether a pod serves it.
fn busy(_: &str) -> Faults {
    Faults { lag: 1_000, ..Faults::default() }
}

/// Changes 50 objects in each of so many rounds, and goes on until so many audits have ended, and
/// something seemed wrong. None of them may have found a fault.
async fn no_false_alarm(rounds: u32, audits: f64) {
    let mut spec = sharded(3);
    spec["sharding"]["maxReplicasPerShard"] = json!(1);
    let site = Site::start(AUDITED, spec, busy).await;
    let (pods, client) = (site.pods().await, &site.cluster.client);
    let (begin, mut changes) = (Instant::now(), 0);
    let mut ticks = tokio::time::interval(ROUND);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0;
    while round < LIFE + rounds
        || site.audits("whole").await < audits
        || site.audits("look_again").await < 1.0
    {
        ticks.tick().await;
        changes += change(client, round).await;
        round += 1;
        if site.audits("faulty").await > 0.0 {
            let events = site.cluster.events("x").await;
            panic!("a false alarm in round {round}: {events:?}\n{}", site.operator().log());
        }
        if round % 60 == 0 {
            let (whole, again) = (site.audits("whole").await, site.audits("look_again").await);
            println!("round {round}: {changes} changes, {whole} audits, {again} looks again");
        }
        assert!(round < 10 * (LIFE + rounds), "audits do not end: {}", site.operator().log());
    }
    let (whole, again) = (site.audits("whole").await, site.audits("look_again").await);
    let time = begin.elapsed();
    println!(
        "{changes} changes in {round} rounds and {time:?}: {whole} audits, {again} second looks, no alarm"
    );
    assert_eq!(site.pods().await, pods, "nobody was replaced");
    let events = site.cluster.events("x").await;
    let alarm = events.iter().find(|event| {
        event.0.starts_with("Nodes") || event.0 == "PodsFaulty" || event.0 == "PodsUnreachable"
    });
    assert_eq!(alarm, None);

    // They are not blind: a fault is found while objects go on to change.
    site.set(&pods[1], &Faults { ghosts: vec!["nobody".to_owned()], ..busy(&pods[1]) });
    while site.audits("faulty").await < 1.0 {
        ticks.tick().await;
        change(client, round).await;
        round += 1;
        assert!(site.audits("whole").await < whole + 3.0, "not found: {}", site.operator().log());
    }
    site.event("NodesForeign", &["does not exist, node nobody", &pods[1]]).await;
}

#[tokio::test]
async fn v3_objects_that_come_and_go_raise_no_alarm_at_50_changes_a_second() {
    no_false_alarm(20, 2.0).await;
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn v3_soak_objects_that_come_and_go_for_an_hour_raise_no_alarm_at_50_changes_a_second() {
    no_false_alarm(3_600, 150.0).await;
}
