//! Members in this process: what they ask of the API server, and of each other.

use crate::stage::{NAMESPACE, SOON, Stage, config, key, maps, pod};
use devcluster::{SeenRequest, eventually};
use futures::StreamExt;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::{Controller, controller::Action, watcher},
};
use lease_sharding::{
    End, JoinError, Sharding,
    hash::KeyHash,
    keys::{Key, Keyspace},
    protocol::TimingConfig,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::json;
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

async fn join_as(kubeconfig: &Path, ring: &str, name: &str) -> Sharding {
    let builder = Sharding::builder(config(kubeconfig).await, ring, pod(name));
    builder.timing(TimingConfig::FAST).join().await.expect("a member")
}

async fn join(stage: &Stage, ring: &str, name: &str) -> Sharding {
    join_as(&stage.kubeconfig, ring, name).await
}

/// How many of the objects each may act on.
fn shares(members: &[&Sharding]) -> Vec<usize> {
    let share = |member: &&Sharding| maps().filter(|map| member.guard(&key(map)).is_some()).count();
    members.iter().map(share).collect()
}

async fn until_shares(members: &[&Sharding], what: &str, wanted: impl Fn(&[usize]) -> bool) {
    let reached = eventually(what, SOON, || async { wanted(&shares(members)).then_some(()) });
    if let Err(error) = reached.await {
        panic!("{error}: {:?}", shares(members));
    }
}

fn leases(stage: &Stage, namespace: &str) -> Api<Lease> {
    Api::namespaced(stage.client.clone(), namespace)
}

#[tokio::test]
async fn s1_at_rest_there_are_only_heartbeats_and_leaving_hands_over() {
    let stage = Stage::set().await;
    let (proxy, kubeconfig) = stage.proxy().await;
    let mut registry = Registry::default();
    let builder = Sharding::builder(config(&kubeconfig).await, "ring", pod("a"));
    let a = builder.timing(TimingConfig::FAST).metrics(&mut registry).join().await.expect("a");
    let b = join(&stage, "ring", "b").await;
    until_shares(&[&a, &b], "both work", |s| s[0] > 0 && s[1] > 0 && s[0] + s[1] == 12).await;
    assert_eq!(a.owner(&key("map-0")), b.owner(&key("map-0")));
    proxy.reset_log();
    // One that is not answered in time is followed by a read: a busy machine may need a while.
    let seen = eventually("five heartbeats, and nothing else between", SOON, || async {
        let heartbeat = |request: &SeenRequest| {
            let lease = "/apis/coordination.k8s.io/v1/namespaces/work/leases/ring.a";
            (request.method.as_str(), &*request.path) == ("PATCH", lease)
        };
        proxy.requests().windows(5).any(|five| five.iter().all(heartbeat)).then_some(())
    });
    seen.await.expect("heartbeats");
    let mut text = String::new();
    encode(&mut text, &registry).expect("text");
    for metric in ["ring_member_count 2\n", "tombstones_total ", "fences_total "] {
        assert!(text.contains(&format!("sharding_{metric}")), "{metric} is not in\n{text}");
    }
    assert_eq!(a.leave().await, End::Left);
    until_shares(&[&a, &b], "b has all", |s| *s == [0, 12]).await;
}

#[tokio::test]
async fn s2_a_guard_of_a_deleted_lease_is_lost_and_its_member_joins_again() {
    let stage = Stage::set().await;
    let a = join(&stage, "ring", "a").await;
    until_shares(&[&a], "a has all", |s| *s == [12]).await;
    let change = Patch::Merge(json!({"data": {"a": "b"}}));
    let written = eventually("a guarded write", SOON, || async {
        let guard = a.guard(&key("map-0"))?;
        let maps: Api<ConfigMap> = Api::namespaced(guard.client(&stage.client), NAMESPACE);
        maps.patch("map-0", &PatchParams::default(), &change).await.ok()?;
        Some((guard, maps))
    });
    let (guard, maps) = written.await.expect("a write");
    leases(&stage, NAMESPACE).delete("ring.a", &DeleteParams::default()).await.expect("deleted");
    tokio::time::timeout(SOON, guard.lost()).await.expect("the guard is lost");
    let refused = maps.patch("map-0", &PatchParams::default(), &change).await;
    let refused = refused.expect_err("refused").to_string();
    assert!(refused.contains("another replica"), "{refused}");
    drop((guard, maps));
    until_shares(&[&a], "a has all again", |s| *s == [12]).await;
}

#[tokio::test]
async fn s2_a_second_process_of_a_pod_ends_the_first() {
    let stage = Stage::set().await;
    let first = join(&stage, "ring", "a").await;
    until_shares(&[&first], "it has all", |s| *s == [12]).await;
    let second = join(&stage, "ring", "a").await;
    assert_eq!(first.ended().await, End::Superseded);
    until_shares(&[&first, &second], "the second has all", |s| *s == [0, 12]).await;
}

#[tokio::test]
async fn s6_a_rolling_change_of_the_partition_count_is_safe_and_unsafe_times_are_refused() {
    let stage = Stage::set().await;
    let (a, b) = (join(&stage, "ring", "a").await, join(&stage, "ring", "b").await);
    until_shares(&[&a, &b], "the old ones have all", |s| s[0] > 0 && s[0] + s[1] == 12).await;
    let builder = Sharding::builder(config(&stage.kubeconfig).await, "ring", pod("c"));
    let c = builder.timing(TimingConfig::FAST).keyspace(Keyspace::new(KeyHash::Xxh3, 509));
    let c = c.join().await.expect("c");
    assert_eq!(a.leave().await, End::Left);
    until_shares(&[&b, &c], "the old one has all", |s| *s == [12, 0]).await;
    assert_eq!(b.leave().await, End::Left);
    until_shares(&[&b, &c], "the new one has all", |s| *s == [0, 12]).await;

    let unsafe_times = TimingConfig { fence: 6_000, ..TimingConfig::FAST };
    let builder = Sharding::builder(config(&stage.kubeconfig).await, "ring", pod("d"));
    let refused = builder.timing(unsafe_times).join().await.expect_err("unsafe").to_string();
    assert!(refused.contains("fence * (1 + clock error) <= lease"), "{refused}");
}

/// Parent and child, and who reconciled the parent.
fn reconcile_parents(
    stage: &Stage,
    sharding: Sharding,
    log: Arc<Mutex<Vec<(String, String)>>>,
    name: &'static str,
) {
    let maps: Api<ConfigMap> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let controller =
        Controller::new(maps.clone(), watcher::Config::default().labels("work=shared"));
    let gained = sharding.gained_objects(controller.store());
    let run = controller
        .owns(maps, watcher::Config::default().labels("work=child"))
        .reconcile_on(gained)
        .run(
            move |parent, log: Arc<Mutex<Vec<_>>>| {
                let guard = sharding.guard(&Key::of(&*parent));
                if guard.is_some() {
                    log.lock().expect("the log").push((name.to_owned(), parent.name_any()));
                }
                async { Ok::<_, kube::Error>(Action::await_change()) }
            },
            |_, _, _| Action::await_change(),
            log,
        )
        .for_each(|_| std::future::ready(()));
    tokio::spawn(run);
}

#[tokio::test]
async fn weakness_8_an_event_of_a_child_is_worked_on_by_the_owner_of_its_parent() {
    let stage = Stage::set().await;
    let log = Arc::new(Mutex::new(vec![]));
    let (a, b) = (join(&stage, "ring", "a").await, join(&stage, "ring", "b").await);
    for (name, member) in [("a", &a), ("b", &b)] {
        reconcile_parents(&stage, member.clone(), log.clone(), name);
    }
    until_shares(&[&a, &b], "both work", |s| s[0] > 0 && s[1] > 0 && s[0] + s[1] == 12).await;
    let worked = |log: &Mutex<Vec<(String, String)>>| -> BTreeSet<(String, String)> {
        log.lock().expect("the log").iter().cloned().collect()
    };
    eventually("s3: all that was gained is reconciled, without any event", SOON, || async {
        let parents: BTreeSet<_> = worked(&log).into_iter().map(|(_, map)| map).collect();
        (parents.len() == 12).then_some(())
    })
    .await
    .expect("reconciled");
    log.lock().expect("the log").clear();
    let api: Api<ConfigMap> = Api::namespaced(stage.client.clone(), NAMESPACE);
    for map in maps() {
        let parent = api.get(&map).await.expect("the parent");
        stage
            .create::<ConfigMap>(
                NAMESPACE,
                json!({"metadata": {
                    "name": format!("child-of-{map}"), "labels": {"work": "child"},
                    "ownerReferences": [parent.controller_owner_ref(&())],
                }}),
            )
            .await;
    }
    let expected: BTreeSet<(String, String)> =
        maps().map(|map| (a.owner(&key(&map)).expect("an owner").to_string(), map)).collect();
    eventually("each child's event reaches its parent's owner", SOON, || async {
        worked(&log).is_superset(&expected).then_some(())
    })
    .await
    .expect("reconciled");
    assert_eq!(worked(&log), expected, "nobody else works on a parent");
}

#[tokio::test]
async fn weakness_17_two_operators_have_two_rings_in_one_namespace_or_in_two() {
    let stage = Stage::set().await;
    stage.create_namespace("elsewhere").await;
    let admin = stage.plane.kubeconfig();
    let one = join_as(admin, "ring", "a").await;
    // Its name begins as the other's, and its member's Lease could be taken for one of that ring.
    let two = join_as(admin, "ring-a", "b").await;
    let elsewhere = lease_sharding::Pod { namespace: "elsewhere".into(), ..pod("b") };
    let three = Sharding::builder(config(admin).await, "ring", elsewhere);
    let three = three.timing(TimingConfig::FAST).join().await.expect("a member");
    let all = [&one, &two, &three];
    until_shares(&all, "each is alone in its ring", |s| *s == [12, 12, 12]).await;
    for (member, name) in all.iter().zip(["a", "b", "b"]) {
        assert_eq!(member.owner(&key("map-0")).as_deref(), Some(name));
    }
}

#[tokio::test]
async fn weakness_18_a_member_needs_rights_in_its_namespace_only_and_reads_its_rings_leases_only() {
    let stage = Stage::set().await;
    let (proxy, kubeconfig) = stage.proxy().await;
    proxy.reset_log();
    // Its ServiceAccount has a Role, and no ClusterRole.
    let member = join_as(&kubeconfig, "ring", "a").await;
    until_shares(&[&member], "it works", |s| *s == [12]).await;
    for request in proxy.requests() {
        let inside =
            request.path.starts_with("/apis/coordination.k8s.io/v1/namespaces/work/leases");
        assert!(inside, "{request:?}");
        let reads_all = request.method == "GET" && request.path.ends_with("/leases");
        assert!(
            !reads_all || request.query.contains("lease-sharding%2Fring%3Dring"),
            "{request:?}"
        );
    }

    let elsewhere = lease_sharding::Pod { namespace: "default".into(), ..pod("a") };
    let refused = Sharding::builder(config(&kubeconfig).await, "ring", elsewhere).join().await;
    let Err(JoinError::List { namespace, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(namespace, "default");
}

/// The control plane admits with OwnerReferencesPermissionEnforcement.
#[tokio::test]
async fn weakness_19_leases_have_no_owner_references_so_that_no_more_rights_are_needed() {
    let stage = Stage::set().await;
    let member = join(&stage, "ring", "a").await;
    until_shares(&[&member], "it works", |s| *s == [12]).await;
    let lease = leases(&stage, NAMESPACE).get("ring.a").await.expect("the Lease");
    assert_eq!(lease.metadata.owner_references, None);
    assert_eq!(lease.labels()[Sharding::RING_LABEL], "ring");
    assert!(lease.spec.expect("a spec").holder_identity.expect("a holder").starts_with("a_"));
}

#[tokio::test]
async fn weakness_20_two_rings_and_a_controller_of_leases_live_in_one_process() {
    let stage = Stage::set().await;
    let client = Client::try_from(config(&stage.kubeconfig).await).expect("a client");
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let controller = Controller::new(api, watcher::Config::default())
        .run(
            |lease: Arc<Lease>, seen: Arc<Mutex<BTreeSet<String>>>| async move {
                seen.lock().expect("the set").insert(lease.name_any());
                Ok::<_, kube::Error>(Action::await_change())
            },
            |_, _, _| Action::await_change(),
            seen.clone(),
        )
        .for_each(|_| std::future::ready(()));
    tokio::spawn(controller);
    let (one, two) = (join(&stage, "one", "a").await, join(&stage, "two", "a").await);
    until_shares(&[&one, &two], "each has all of its ring", |s| *s == [12, 12]).await;
    let both = BTreeSet::from(["one.a".to_owned(), "two.a".to_owned()]);
    eventually("the controller sees both Leases", SOON, || async {
        (*seen.lock().expect("the set") == both).then_some(())
    })
    .await
    .expect("seen");
}

/// A Lease with the ring's label and nothing that is understood: written by hand, or by another
/// version.
#[tokio::test]
async fn weakness_16_a_strange_lease_holds_work_up_for_the_lease_time_and_no_longer() {
    let stage = Stage::set().await;
    let strange = json!({
        "metadata": {"name": "ring.strange", "labels": {"lease-sharding/ring": "ring"}},
        "spec": {"holderIdentity": "somebody", "renewTime": "2026-01-01T00:00:00.000000Z"},
    });
    stage.create::<Lease>(NAMESPACE, strange).await;
    let begun = Instant::now();
    let member = join(&stage, "ring", "a").await;
    until_shares(&[&member], "it was taken away", |s| *s == [12]).await;
    let waited = begun.elapsed();
    assert!(
        waited > Duration::from_millis(TimingConfig::FAST.lease),
        "{waited:?}: it may be alive"
    );
    let list = leases(&stage, NAMESPACE).list(&ListParams::default()).await.expect("leases");
    let strange =
        list.iter().find(|lease| lease.name_any() == "ring.strange").expect("it is there");
    assert_eq!(strange.spec.as_ref().and_then(|spec| spec.holder_identity.clone()), None);
}
