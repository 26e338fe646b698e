//! What happens to the Secret, the bundles, the clock and the API server.

use super::*;
use kube::api::PostParams;

/// A replica looks every 30 s, whatever it hears, and just has when these tests break something. What
/// is repaired sooner than that, a watch has told it. Usually that takes less than a second, and may
/// take 5 s; a busy machine is no failure.
const BEFORE_THE_NEXT_LOOK: Duration = Duration::from_secs(20);

impl World {
    pub(super) async fn wipe(&self, kind: &str) {
        self.set_bundle(kind, &Value::Null).await;
    }

    pub(super) async fn set_bundle(&self, kind: &str, bundle: &Value) {
        let op = if bundle.is_null() { "remove" } else { "add" };
        let patch = json!([
            {"op": op, "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}
        ]);
        let patch = serde_json::from_value(patch).expect("a patch");
        self.configurations(kind)
            .patch(WEBHOOK_CONFIGURATION, &PatchParams::default(), &Patch::Json::<()>(patch))
            .await
            .expect("patched");
    }

    async fn delete_secret(&self) {
        self.secrets().delete(CA_SECRET, &DeleteParams::default()).await.expect("deleted");
    }

    async fn set_data(&self, data: BTreeMap<String, ByteString>) {
        let mut secret = self.secrets().get(CA_SECRET).await.expect("the Secret");
        secret.data = Some(data);
        self.secrets().replace(CA_SECRET, &PostParams::default(), &secret).await.expect("replaced");
    }
}

#[tokio::test]
async fn t2_a_secret_that_is_lost_or_damaged_is_restored_and_no_call_is_lost() {
    let world = World::start().await;
    let (one, two) = (world.replica().await, world.replica().await);
    let caller = Caller::start(&world);
    for replica in [&one, &two] {
        caller.calls(replica);
        replica.until_ready().await;
    }
    let before = world.until("a CA at rest", |s| s.active.trusted_since.is_some()).await;
    let with = |key: &str, value: Option<&[u8]>| {
        let mut data = before.data();
        match value {
            Some(value) => data.insert(key.into(), ByteString(value.to_vec())),
            None => data.remove(key),
        };
        data
    };
    let other = State::data(&before)["ca.crt"].0.clone();
    let damages = [
        None,
        Some(BTreeMap::new()),
        Some(with("ca.key", None)),
        Some(with("ca.crt", Some(b"-----BEGIN CERTIFICATE-----\nM!I=\n-----END CERTIFICATE-----"))),
        Some(with("ca.key", Some(&other))),
        Some(with("rotation.json", Some(b"{"))),
    ];
    for data in damages {
        let started = Instant::now();
        match data.clone() {
            None => world.delete_secret().await,
            Some(data) => world.set_data(data).await,
        }
        // Whoever restores it may not have heard yet that its CA is trusted, and finds that out again.
        let mut after =
            world.until("the state is restored", |s| s.active.trusted_since.is_some()).await;
        assert!(after.active.trusted_since >= before.active.trusted_since, "{after:?}");
        after.active.trusted_since = before.active.trusted_since;
        assert_eq!(after, before, "{data:?}");
        assert!(started.elapsed() < BEFORE_THE_NEXT_LOOK, "{data:?}: {:?}", started.elapsed());
    }
    caller.was_never_refused().await;
}

#[tokio::test]
async fn t2_a_bundle_that_is_wiped_replaced_or_recreated_is_repaired_and_nothing_else_is_owned() {
    let world = World::start().await;
    let replica = world.replica().await;
    replica.until_ready().await;
    let before = [world.configuration(KINDS[0]).await, world.configuration(KINDS[1]).await];
    for kind in KINDS {
        let repaired = async |what: &str| {
            let started = Instant::now();
            eventually(what, SOON, || async {
                let now = &world.configuration(kind).await["webhooks"];
                let index = usize::from(kind == KINDS[1]);
                (*now == before[index]["webhooks"]).then_some(())
            })
            .await
            .expect("a repair");
            assert!(started.elapsed() < BEFORE_THE_NEXT_LOOK, "{what}: {:?}", started.elapsed());
        };
        world.wipe(kind).await;
        repaired("a wiped bundle is repaired").await;
        let stranger = std::fs::read(world.cluster.plane.ca_path()).expect("a CA");
        world.set_bundle(kind, &json!(ByteString(stranger))).await;
        repaired("a replaced bundle is repaired").await;
        let api = world.configurations(kind);
        api.delete(WEBHOOK_CONFIGURATION, &DeleteParams::default()).await.expect("deleted");
        world.configure(kind).await;
        repaired("a new configuration gets its bundle").await;
        let managed = world.configuration(kind).await["metadata"]["managedFields"].clone();
        let ours = managed.as_array().expect("managers").iter();
        let ours: Vec<_> = ours.filter(|m| m["manager"] == CA_BUNDLE_MANAGER).collect();
        let name = format!(
            "k:{{\"name\":\"{}\"}}",
            before[usize::from(kind == KINDS[1])]["webhooks"][0]["name"].as_str().expect("a name")
        );
        let only = json!({"f:webhooks": {name: {
            ".": {}, "f:name": {}, "f:clientConfig": {"f:caBundle": {}},
        }}});
        assert!(ours.len() == 1 && ours[0]["fieldsV1"] == only, "{ours:#?}");
        assert_eq!(ours[0]["operation"], "Apply");
    }
    replica.until_ready().await;
}

#[tokio::test]
async fn t2_an_expired_ca_is_replaced_before_anybody_is_ready() {
    let world = World::start().await;
    let first = world.replica().await;
    first.until_ready().await;
    drop(first);
    // Stopped for two hours, which is longer than the CA lives.
    let late = || now().saturating_add(Duration::from_hours(2)).expect("a time");
    let before = world.state().await.expect("a state");
    let replica = Replica::start(&world, world.client().await, quick(), late);
    replica.until_ready().await;
    let after = world.state().await.expect("a state");
    assert!(after.generation == before.generation + 1 && after.ca().is_valid(late()), "{after:?}");
    assert!(replica.serving.current().expect("a leaf").not_after > late());
}

/// What the clock of the next test is off by, in seconds.
static OFF: AtomicI64 = AtomicI64::new(0);

#[tokio::test]
async fn t2_a_clock_that_jumps_is_noticed_and_the_leaf_made_anew() {
    let clock = || {
        let off = jiff::SignedDuration::from_secs(OFF.load(Ordering::Relaxed));
        now().saturating_add(off).expect("a time")
    };
    let world = World::start().await;
    let replica = Replica::start(&world, world.client().await, Lifetimes::default(), clock);
    replica.until_ready().await;
    for days in [40, -1] {
        let before = replica.leaf();
        OFF.store(days * 24 * 3_600, Ordering::Relaxed);
        eventually("a leaf for the new time", 2 * SOON, || async {
            let pair = replica.serving.current()?;
            let behind = clock().saturating_sub(Duration::from_mins(5)).ok()?;
            let fits = pair.not_before <= behind && clock() < pair.not_after;
            (fits && replica.leaf() != before && replica.readiness.check().is_ok()).then_some(())
        })
        .await
        .unwrap_or_else(|error| panic!("{days} days: {error}"));
    }
}

#[tokio::test]
async fn t2_an_outage_of_the_api_server_changes_nothing_and_a_start_waits_for_its_end() {
    let world = World::start().await;
    let proxy = FaultProxy::start(&world.cluster.plane).await.expect("a proxy");
    let client = world.client_via(&proxy).await;
    let replica = Replica::start(&world, client.clone(), Lifetimes::default(), now);
    replica.until_ready().await;
    let leaf = replica.leaf();
    world.cluster.plane.stop_api_server().await.expect("an outage");
    let starting = Replica::start(&world, client, Lifetimes::default(), now);
    eventually("the one that starts says what it cannot read", SOON, || async {
        starting.readiness.check().err().filter(|text| text.contains("cannot read"))
    })
    .await
    .expect("a cause");
    // The other has tried as often meanwhile.
    let failed = |r: &&devcluster::SeenRequest| r.path.contains("webhookconfigurations");
    let tried = proxy.requests().iter().filter(failed).count();
    eventually("more passes fail", 2 * SOON, || async {
        assert_eq!(replica.readiness.check(), Ok(()));
        (proxy.requests().iter().filter(failed).count() > tried + 6).then_some(())
    })
    .await
    .expect("passes");
    assert!(replica.leaf() == leaf && replica.readiness.check().is_ok());
    assert!(starting.readiness.check().is_err() && starting.serving.current().is_none());
    world.cluster.plane.start_api_server().await.expect("its end");
    starting.until_ready().await;
    assert_eq!(replica.readiness.check(), Ok(()));
}

#[tokio::test]
async fn t2_who_cannot_read_the_api_server_keeps_a_leaf_that_is_accepted_through_a_rotation() {
    let world = World::start().await;
    let proxy = FaultProxy::start(&world.cluster.plane).await.expect("a proxy");
    // Nothing here waits for the end of a leaf, which a busy machine must not come to. The old CA goes a
    // soak after the switch: those that speak to each other all have the new one.
    let s = Duration::from_secs;
    let lifetimes = Lifetimes::new(s(3_600), s(600), s(5)).expect("lifetimes");
    let deaf = Replica::start(&world, world.client_via(&proxy).await, lifetimes, now);
    deaf.until_ready().await;
    let caller = Caller::start(&world);
    caller.calls(&deaf);
    let leaf = deaf.leaf();
    proxy.fail(|_| true, Fault::status(503));
    let other = Replica::start(&world, world.client().await, lifetimes, now);
    caller.calls(&other);
    other.until_ready().await;
    world.annotate().await;
    let after = world.until("a new CA signs", |state| state.generation == 2).await;
    assert_eq!(after.phase(), Phase::Retire);
    assert!(deaf.leaf() == leaf && deaf.readiness.check().is_ok());
    caller.was_never_refused().await;
}
