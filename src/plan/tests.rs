//! Plans against a cluster in memory that does what a control plane does with pods.

use super::*;
use crate::{
    names::{LABEL_INDEX, LABEL_REVISION, LABEL_SHARD_ID, LABEL_TOTAL_SHARDS},
    observed::Life,
    validate::validate,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use world::World;

mod world;

fn settings() -> Settings {
    Settings { settle: Duration::from_secs(1), ..Default::default() }
}

fn scale(spec: &Value) -> Valid<Scale> {
    validate(&json!({
        "apiVersion": "monitor.example.com/v1alpha1",
        "kind": "KSMScale",
        "metadata": {"name": "x", "uid": "scale-uid", "generation": 1},
        "spec": spec,
    }))
    .unwrap()
}

fn sharded(count: u32) -> Value {
    json!({"sharding": {"enabled": true, "shardCount": count}})
}

fn labels_of(world: &World, key: &str) -> Vec<String> {
    let mut pods: Vec<_> = world.pods.iter().map(|(_, p)| p).collect();
    pods.sort_by_key(|p| p.index());
    pods.iter().map(|p| p.labels.get(key).cloned().unwrap_or_default()).collect()
}

#[test]
fn r14_desired_is_the_nodes_divided_by_the_ratio_rounded_up() {
    let scale = scale(&json!({}));
    let table = [(0, 0), (1, 1), (15, 1), (16, 2), (30, 2), (31, 3), (45, 3), (5_000, 334)];
    for (nodes, desired) in table {
        assert_eq!(scale::desired(&scale, nodes), desired, "{nodes} nodes");
    }
}

#[test]
fn r31_sharding_keeps_desired_between_its_bounds() {
    let scale = scale(&sharded(3));
    for (nodes, desired) in
        [(4, 3), (15, 3), (45, 3), (75, 5), (90, 6), (180, 12), (300, 12), (0, 3), (u32::MAX, 12)]
    {
        assert_eq!(scale::desired(&scale, nodes), desired, "{nodes} nodes");
    }
}

#[test]
fn r32_seven_pods_over_three_shards_are_dealt_out_in_turn() {
    let scale = scale(&sharded(3));
    let slots: Vec<_> =
        scale::slots(&scale.mode, 7).map(|s| (s.index, s.shard, s.replica)).collect();
    let expected = [(0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 0, 1), (4, 1, 1), (5, 2, 1), (6, 0, 2)];
    assert_eq!(slots, expected);
}

#[test]
fn r42_recommended_shards_follow_the_number_of_nodes() {
    for (nodes, shards) in [
        (1, 2),
        (60, 2),
        (61, 3),
        (120, 3),
        (121, 5),
        (200, 5),
        (201, 7),
        (280, 7),
        (281, 8),
        (400, 10),
        (5_000, 10),
    ] {
        assert_eq!(scale::recommended(nodes), shards, "{nodes} nodes");
    }
}

#[test]
fn r43_r44_r45_a_shard_count_is_judged_by_nodes_per_shard() {
    let warning = |shards, nodes| match scale::efficiency(&scale(&sharded(shards)).mode, nodes) {
        scale::Efficiency::Misfit(misfit) => Some(misfit.to_string()),
        _ => None,
    };
    let table = [
        (5, 30, Some(("Over", "6.0", 2))),
        (2, 200, Some(("Under", "100.0", 5))),
        (3, 4, Some(("Over", "1.3", 2))),
        (2, 80, None),
        (2, 81, Some(("Under", "40.5", 3))),
        (3, 121, Some(("Under", "40.3", 5))),
        (5, 201, Some(("Under", "40.2", 7))),
        (6, 100, None),
        (7, 100, Some(("Over", "14.3", 3))),
        (10, 149, Some(("Over", "14.9", 5))),
        (10, 400, None),
        (3, 15, Some(("Over", "5.0", 2))),
        (3, 0, None),
        (2, 29, None),
        (10, 401, None),
    ];
    for (shards, nodes, expected) in table {
        let expected = expected.map(|(kind, ratio, to)| {
            let verb = if kind == "Over" { "reducing" } else { "increasing" };
            format!("{kind}-sharded: {shards} shards for {nodes} nodes ({ratio} nodes/shard). Consider {verb} to {to} shards.")
        });
        assert_eq!(warning(shards, nodes), expected);
    }
    let nothing_better = |shards, nodes| {
        matches!(
            scale::efficiency(&scale(&sharded(shards)).mode, nodes),
            scale::Efficiency::NothingBetter(_)
        )
    };
    assert!(nothing_better(2, 29) && nothing_better(10, 401) && !nothing_better(2, 30));
}

#[test]
fn r16_gaps_are_filled_first_and_r17_the_highest_index_goes_first() {
    let scale = scale(&json!({}));
    let mut world = World::new(45);
    assert_eq!(world.settle(&scale).len(), 3);
    world.pods.remove(1);
    world.nodes = 60;
    let steps = world.settle(&scale);
    assert!(steps[0].starts_with("create pod monitoring/kube-state-metrics-x-1:"), "{steps:?}");
    assert!(steps[1].starts_with("create pod monitoring/kube-state-metrics-x-3:"), "{steps:?}");
    world.nodes = 16;
    let steps = world.settle(&scale);
    assert!(steps[0].starts_with("delete pod monitoring/kube-state-metrics-x-3:"), "{steps:?}");
    assert!(steps[1].starts_with("delete pod monitoring/kube-state-metrics-x-2:"), "{steps:?}");
    assert_eq!(world.names(), ["kube-state-metrics-x-0", "kube-state-metrics-x-1"]);
    world.nodes = 0;
    world.settle(&scale);
    assert!(world.pods.is_empty());
}

#[test]
fn r23_r25_sharded_pods_say_their_shard_in_labels_and_arguments() {
    let mut world = World::new(75);
    world.settle(&scale(&sharded(3)));
    assert_eq!(labels_of(&world, LABEL_INDEX), ["0", "1", "2", "3", "4"]);
    assert_eq!(labels_of(&world, LABEL_SHARD_ID), ["0", "1", "2", "0", "1"]);
    assert_eq!(labels_of(&world, LABEL_TOTAL_SHARDS), ["3"; 5]);
    for (_, pod) in &world.pods {
        assert_eq!(pod.slice().map(Slice::ordinal), pod.index().map(|i| i % 3));
    }
}

#[test]
fn r34_a_pod_whose_labels_arguments_or_revision_disagree_is_replaced() {
    let scale = scale(&sharded(2));
    let damage: [fn(&mut ObservedPod); 4] = [
        |pod| drop(pod.labels.insert(LABEL_SHARD_ID.into(), "7".into())),
        |pod| drop(pod.labels.remove(LABEL_REVISION)),
        |pod| pod.args[4] = "--shard=1".into(),
        |pod| drop(pod.labels.insert(LABEL_INDEX.into(), "none".into())),
    ];
    for damage in damage {
        let mut world = World::new(4);
        world.settle(&scale);
        damage(&mut world.pods[0].1);
        let uid = world.pods[0].1.uid.clone();
        let steps = world.settle(&scale);
        assert_eq!(steps.len(), 2, "one created, one deleted: {steps:?}");
        assert!(steps[0].starts_with("create"), "{steps:?}");
        assert!(world.pods.iter().all(|(_, p)| p.uid != uid));
        assert!(Coverage::of(&world.slices()).is_complete());
    }
}

#[test]
fn labels_that_others_add_to_a_pod_do_not_matter() {
    let scale = scale(&sharded(2));
    let mut world = World::new(4);
    world.settle(&scale);
    world.pods[0].1.labels.insert("team".into(), "a".into());
    assert_eq!(world.settle(&scale), Vec::<String>::new());
}

#[test]
fn r39_a_failed_pod_is_replaced_at_once_beside_its_remains() {
    let scale = scale(&json!({}));
    let mut world = World::new(4);
    world.settle(&scale);
    world.pods[0].1.life = Life::Finished;
    let changes: Vec<_> = world.plan(&scale).changes.iter().map(ToString::to_string).collect();
    let pods: Vec<_> = changes.iter().filter(|c| c.contains(" pod ")).collect();
    assert!(
        pods[0].starts_with("delete pod monitoring/kube-state-metrics-x-0: it failed"),
        "{pods:?}"
    );
    assert!(pods[1].starts_with("create pod monitoring/kube-state-metrics-x-0-"), "{pods:?}");
}

#[test]
fn growing_adds_the_new_shards_first_and_then_replaces_one_at_a_time() {
    let mut world = World::new(4);
    world.settle(&scale(&sharded(3)));
    let steps = world.settle(&scale(&sharded(5)));
    let kinds: Vec<&str> = steps.iter().map(|s| s.split(' ').next().unwrap()).collect();
    let mut expected = vec!["create", "create"];
    expected.extend(["create", "delete"].repeat(3).iter());
    // A deletion and the next successor come from one plan.
    assert_eq!(kinds, expected, "{steps:#?}");
    assert!(Coverage::of(&world.slices()).is_complete());
    assert_eq!(labels_of(&world, LABEL_TOTAL_SHARDS), ["5"; 5]);
}

/// Every change of shard count and replicas, from rest: `max(old, new)` pods and one more are
/// enough, and every step is covered.
#[test]
fn every_change_of_layout_needs_one_extra_pod() {
    let layouts: Vec<(u32, u32)> =
        (1..=10).flat_map(|count| [(count, 1), (count, 2)]).filter(|l| *l != (1, 2)).collect();
    let spec = |(count, replicas): (u32, u32)| match count {
        1 => json!({}),
        _ => {
            json!({"sharding": {"enabled": true, "shardCount": count, "minReplicasPerShard": replicas}})
        }
    };
    for (from, to) in layouts.iter().flat_map(|from| layouts.iter().map(move |to| (*from, *to))) {
        let mut world = World::new(4);
        world.settle(&scale(&spec(from)));
        let mut to_spec = spec(to);
        to_spec["monitorImage"] = json!("r/k:v2.20.0");
        let target = scale(&to_spec);
        let mut peak = world.pods.len();
        while world.plan(&target).in_progress {
            world.plan(&target).changes.iter().for_each(|c| world.apply(c));
            peak = peak.max(world.pods.len());
            assert!(Coverage::of(&world.slices()).is_complete(), "{from:?} to {to:?}");
            (0..world.pods.len()).for_each(|at| world.make_ready(at));
            world.tick();
            world.tick();
        }
        let most = (from.0 * from.1).max(to.0 * to.1) as usize + 1;
        assert!(peak <= most, "{from:?} to {to:?} took {peak} pods, more than {most}");
    }
}

#[test]
fn replicas_give_way_to_new_shards_before_old_shards_are_replaced() {
    let mut world = World::new(4);
    let replicated =
        json!({"sharding": {"enabled": true, "shardCount": 3, "minReplicasPerShard": 2}});
    world.settle(&scale(&replicated));
    let steps = world.settle(&scale(&sharded(5)));
    let created: Vec<_> = steps
        .iter()
        .filter_map(|s| s.strip_prefix("create pod monitoring/kube-state-metrics-x-"))
        .collect();
    let indexes: Vec<_> = created.iter().map(|s| &s[..1]).collect();
    assert_eq!(indexes, ["3", "4", "0", "1", "2"], "{steps:#?}");
}

#[test]
fn pods_that_never_started_are_replaced_at_once() {
    let mut world = World::new(4);
    let broken =
        json!({"monitorImage": "r/k:broken", "sharding": {"enabled": true, "shardCount": 3}});
    world.plan(&scale(&broken)).changes.iter().for_each(|c| world.apply(c));
    let plan = world.plan(&scale(&sharded(3)));
    let kinds: Vec<_> =
        plan.changes.iter().map(ToString::to_string).filter(|c| c.contains(" pod ")).collect();
    assert_eq!(kinds.len(), 6, "{kinds:#?}");
    assert!(kinds[..3].iter().all(|c| c.starts_with("delete") && c.ends_with("has not started")));
    assert!(kinds[3..].iter().all(|c| c.starts_with("create")));
}

#[test]
fn a_pod_that_is_being_deleted_does_not_count_as_serving() {
    let scale = scale(&json!({}));
    let mut world = World::new(16);
    world.settle(&scale);
    world.pods[0].1.terminating = true;
    world.nodes = 4;
    let deletes =
        world.plan(&scale).changes.iter().filter(|c| matches!(c, Change::DeletePod(..))).count();
    assert_eq!(deletes, 0, "the other one is the only one that stays");
}

#[test]
fn a_predecessor_stays_while_what_it_exposes_is_exposed_by_nobody_else() {
    let mut world = World::new(4);
    world.settle(&scale(&sharded(2)));
    let target = scale(&sharded(3));
    // The new shard and the first successor serve; then the new shard fails.
    let growth = world.plan(&target);
    growth.changes.iter().for_each(|c| world.apply(c));
    world.make_ready(2);
    world.tick();
    let successor = world.plan(&target);
    successor.changes.iter().for_each(|c| world.apply(c));
    world.make_ready(3);
    world.tick();
    world.pods[2].1.ready_since = None;
    let plan = world.plan(&target);
    assert!(plan.changes.iter().all(|c| !matches!(c, Change::DeletePod(..))), "{:?}", plan.changes);
    assert!(plan.waiting.is_some_and(|w| w.message.contains("kube-state-metrics-x-2")));
}

#[test]
fn r40_turning_sharding_off_and_on_is_a_change_of_layout_like_any_other() {
    let mut world = World::new(4);
    for spec in [json!({}), sharded(3), json!({}), sharded(2)] {
        world.settle(&scale(&spec));
        assert!(Coverage::of(&world.slices()).is_complete());
        assert!(Coverage::of(&world.slices()).duplicates() < f64::EPSILON);
    }
}

#[test]
fn a_step_that_cannot_finish_keeps_what_serves_and_goes_back_at_once() {
    let old = scale(&sharded(3));
    let broken = scale(
        &json!({"monitorImage": "r/k:broken", "sharding": {"enabled": true, "shardCount": 3}}),
    );
    let mut world = World::new(4);
    world.settle(&old);
    let before = world.names().join(",");
    let plan = world.plan(&broken);
    plan.changes.iter().for_each(|c| world.apply(c));
    world.pods[3].1.trouble = Some("ImagePullBackOff: no such image".into());
    for _ in 0..100 {
        world.tick();
        let plan = world.plan(&broken);
        assert!(plan.changes.iter().all(|c| c.group() != Group::Pods), "{:?}", plan.changes);
        let waiting = plan.waiting.unwrap();
        assert_eq!(waiting.reason, WaitReason::PodCannotStart);
        assert!(waiting.message.contains("ImagePullBackOff: no such image"), "{}", waiting.message);
        assert!(waiting.message.contains("replaces kube-state-metrics-x-0"), "{}", waiting.message);
    }
    assert_eq!(world.settle(&old).len(), 1, "the successor that never served goes");
    assert_eq!(world.names().join(","), before);
}

#[test]
fn a_pod_that_is_momentarily_unready_is_not_deleted_while_it_may_serve_alone() {
    let mut world = World::new(4);
    world.settle(&scale(&sharded(3)));
    world.pods[1].1.ready_since = None;
    let plan = world.plan(&scale(&json!({})));
    let deletes = plan.changes.iter().filter(|c| matches!(c, Change::DeletePod(..))).count();
    assert_eq!(deletes, 0, "{:?}", plan.changes);
}

/// A ServiceAccount as the operator makes it, for the KSMScales with these UIDs.
fn account(namespace: &str, owners: &[&str]) -> ServiceAccount {
    let owner = |uid: &&str| json!({"apiVersion": "v1", "kind": "K", "name": "n", "uid": uid});
    serde_json::from_value(json!({"metadata": {
        "name": "kube-state-metrics", "namespace": namespace, "uid": "account-uid",
        "labels": {"app.kubernetes.io/managed-by": "ksm-scale-operator"},
        "ownerReferences": owners.iter().map(owner).collect::<Vec<_>>(),
    }}))
    .unwrap()
}

fn access_changes(accounts: Vec<ServiceAccount>) -> Vec<String> {
    let seen = Observed { nodes: 0, service_accounts: accounts, ..Default::default() };
    let plan = plan(&scale(&json!({})), &seen, Timestamp::UNIX_EPOCH, &settings());
    plan.changes
        .iter()
        .filter(|c| c.to_string().contains("ServiceAccount"))
        .map(|change| match change {
            Change::ApplyServiceAccount(account) => {
                let owners = account.metadata.owner_references.iter().flatten();
                let uids: Vec<_> = owners.map(|o| &*o.uid).collect();
                let uid = account.metadata.uid.as_deref().unwrap_or("new");
                format!("{change}, {uid}, for {}", uids.join(" and "))
            }
            Change::ReleaseServiceAccount(_, owner) => format!("{change} from {owner}"),
            _ => change.to_string(),
        })
        .collect()
}

#[test]
fn r63_a_shared_service_account_is_joined_left_and_deleted_by_the_last() {
    let apply = "apply ServiceAccount monitoring/kube-state-metrics";
    assert_eq!(access_changes(vec![]), [format!("{apply}, new, for scale-uid")]);
    assert_eq!(access_changes(vec![account("monitoring", &["scale-uid"])]), [""; 0]);
    assert_eq!(
        access_changes(vec![account("monitoring", &["other"])]),
        [format!("{apply}, account-uid, for scale-uid")]
    );
    let ours = || account("monitoring", &["scale-uid"]);
    assert_eq!(
        access_changes(vec![ours(), account("old", &["other", "scale-uid"])]),
        ["release ServiceAccount old/kube-state-metrics from scale-uid"]
    );
    assert_eq!(
        access_changes(vec![ours(), account("old", &["scale-uid"])]),
        ["delete ServiceAccount old/kube-state-metrics"]
    );
}

#[test]
fn r63_service_accounts_of_others_are_not_touched() {
    assert_eq!(
        access_changes(vec![account("monitoring", &["scale-uid"]), account("else", &["other"])]),
        [""; 0]
    );
    let mut foreign = account("monitoring", &[]);
    foreign.metadata.labels = None;
    assert_eq!(access_changes(vec![foreign]), [""; 0]);
}

#[test]
fn r20_nothing_is_created_in_a_namespace_that_is_missing() {
    let scale = scale(&json!({}));
    let seen = Observed { nodes: 4, namespace: NamespaceState::Missing, ..Default::default() };
    assert!(plan(&scale, &seen, Timestamp::UNIX_EPOCH, &settings()).changes.is_empty());
}

fn any_spec() -> impl Strategy<Value = (Value, u32)> {
    let sharding = prop_oneof![
        Just(Value::Null),
        (2_u32..=10, 1_u32..=2, 0_u32..=1).prop_map(|(count, min, more)| json!({
            "enabled": true, "shardCount": count,
            "minReplicasPerShard": min, "maxReplicasPerShard": min + more,
        })),
    ];
    (sharding, 0..3, 0..2_usize, 1_u32..80).prop_map(|(sharding, image, namespace, nodes)| {
        (
            json!({
                "monitorImage": format!("r/k:v2.{image}.0"),
                "namespace": (["monitoring", "elsewhere"][namespace]),
                "sharding": sharding,
            }),
            nodes,
        )
    })
}

/// What happens between two writes.
#[derive(Clone, Debug)]
enum Event {
    Ready(prop::sample::Index),
    Unready(prop::sample::Index),
    Write,
    Tick,
    Respec(Value, u32),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => any::<prop::sample::Index>().prop_map(Event::Ready),
        1 => any::<prop::sample::Index>().prop_map(Event::Unready),
        8 => Just(Event::Write),
        4 => Just(Event::Tick),
        1 => any_spec().prop_map(|(spec, nodes)| Event::Respec(spec, nodes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The operator may be killed after every single write, the spec may change at any time, and
    /// pods become Ready in any order and lose it: no pod that may serve is deleted unless what it
    /// exposes stays exposed, so that all objects stay exposed unless a pod fails by itself, and
    /// the change arrives where it should.
    #[test]
    fn no_object_is_ever_left_unexposed(
        (first, nodes) in any_spec(),
        events in prop::collection::vec(any_event(), 0..120),
    ) {
        let mut target = scale(&first);
        let mut world = World::new(nodes);
        world.settle(&target);
        let mut failed = false;
        for event in events {
            let at = |index: prop::sample::Index| index.index(world.pods.len().max(1));
            match event {
                Event::Ready(index) => world.make_ready(at(index)),
                Event::Unready(index) => {
                    let at = at(index);
                    world.pods.get_mut(at).map(|(_, pod)| pod.ready_since.take());
                    failed = true;
                }
                Event::Tick => world.tick(),
                Event::Respec(spec, nodes) => (target, world.nodes) = (scale(&spec), nodes),
                Event::Write => world.write_once(&target),
            }
            let coverage = Coverage::of(&world.slices());
            failed &= !coverage.is_complete();
            prop_assert!(failed || coverage.is_complete(), "{:?}", world.names());
        }
        world.settle(&target);
        prop_assert_eq!(world.pods.len(), scale::desired(&target, world.nodes) as usize);
        prop_assert!(world.pods.iter().all(|(_, p)| p.namespace == target.namespace));
        prop_assert!(Coverage::of(&world.slices()).is_complete());
        let again = world.plan(&target);
        prop_assert!(!again.in_progress && again.changes.iter().all(|c| c.group() != Group::Pods));
    }

    /// The same input gives the same plan, whatever the order in which pods were listed.
    #[test]
    fn plans_are_deterministic((first, nodes) in any_spec(), (second, _) in any_spec()) {
        let mut world = World::new(nodes);
        world.settle(&scale(&first));
        let target = scale(&second);
        let text = |world: &World| {
            world.plan(&target).changes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let before = text(&world);
        world.pods.reverse();
        prop_assert_eq!(before, text(&world));
    }
}
