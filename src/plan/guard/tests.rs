use super::*;
use crate::{
    observed::Life,
    plan::{CreateReason, Group, plan},
    validate::{Scale, Valid, validate},
};
use serde_json::json;

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
const SOON: Duration = Duration::from_secs(3);

fn scale(shards: u32) -> Valid<Scale> {
    let spec = json!({"sharding": {"enabled": true, "shardCount": shards}});
    validate(&json!({"metadata": {"name": "x", "uid": "u"}, "spec": spec})).unwrap()
}

fn settings() -> Settings {
    Settings { settle: Duration::ZERO, manage_access: false, ..Settings::default() }
}

fn plan_of(scale: &Valid<Scale>, pods: &[ObservedPod]) -> (Plan, Observed) {
    let seen = Observed { nodes: 4, pods: pods.to_vec(), ..Observed::default() };
    (plan(scale, &seen, NOW, &settings()), seen)
}

/// Applies what is planned, with every new pod Ready.
fn apply(plan: &Plan, pods: &mut Vec<ObservedPod>) {
    for change in plan.changes.iter().filter(|change| change.group() == Group::Pods) {
        match change {
            Change::CreatePod(pod, _) => {
                let pod = ObservedPod::new(pod);
                pods.push(ObservedPod {
                    uid: format!("uid-{}", pod.name),
                    life: Life::Running,
                    ready_since: Some(NOW),
                    ..pod
                });
            }
            Change::DeletePod(gone, _) => pods.retain(|pod| pod.uid != gone.uid),
            _ => {}
        }
    }
}

fn at_rest(shards: u32) -> Vec<ObservedPod> {
    let mut pods = Vec::new();
    let (plan, _) = plan_of(&scale(shards), &pods);
    apply(&plan, &mut pods);
    pods
}

fn names(pods: &[&ObservedPod]) -> Vec<String> {
    pods.iter().map(|pod| pod.name.clone()).collect()
}

fn loss(pod: &ObservedPod, series: usize) -> Loss {
    let examples = vec!["kube_node_info{node=\"a\"}".to_owned()];
    Loss { pod: pod.uid.clone(), series, examples, silent: Some("pod b: no".to_owned()) }
}

/// Goes from 3 shards to 2 until something is deleted.
fn first_delete() -> (Plan, Observed) {
    let mut pods = at_rest(3);
    for _ in 0..10 {
        let (plan, seen) = plan_of(&scale(2), &pods);
        if plan.changes.iter().any(|change| matches!(change, Change::DeletePod(..))) {
            return (plan, seen);
        }
        apply(&plan, &mut pods);
    }
    panic!("nothing is ever deleted");
}

#[test]
fn v1_at_stake_is_what_is_deleted_though_it_serves_and_it_has_to_be_served_by_what_stays() {
    let (plan, seen) = first_delete();
    let stake = plan.at_stake(&seen, NOW, &settings());
    let deleted = plan.changes.iter().filter_map(|change| match change {
        Change::DeletePod(pod, _) => Some(pod.name.clone()),
        _ => None,
    });
    let deleted: Vec<_> = deleted.collect();
    let mut victims = names(&stake.victims);
    victims.sort_by_key(|name| deleted.iter().position(|deleted| deleted == name));
    assert_eq!(victims, deleted);
    assert_eq!(stake.victims.len() + stake.survivors.len(), seen.pods.len());

    let mut unready = seen.clone();
    let survivor = stake.survivors[0].uid.clone();
    for pod in unready.pods.iter_mut().filter(|pod| pod.uid == survivor) {
        pod.ready_since = None;
    }
    let fewer = plan.at_stake(&unready, NOW, &settings());
    assert_eq!(
        fewer.survivors.len() + 1,
        stake.survivors.len(),
        "what is not Ready does not serve"
    );

    let nothing_wanted = Plan { desired: 0, ..plan };
    assert_eq!(nothing_wanted.at_stake(&seen, NOW, &settings()), Stake::default());
}

#[test]
fn v1_pods_that_never_started_or_have_ended_are_not_looked_at() {
    let mut pods = at_rest(2);
    pods[1].life = Life::Finished;
    let (plan, seen) = plan_of(&scale(2), &pods);
    assert!(plan.changes.iter().any(|change| matches!(change, Change::DeletePod(..))));
    assert_eq!(plan.at_stake(&seen, NOW, &settings()).victims, Vec::<&ObservedPod>::new());
}

#[test]
fn v1_what_would_be_lost_is_kept_and_the_plan_says_which_and_comes_back_soon() {
    let (mut plan, seen) = first_delete();
    let before = plan.changes.len();
    plan.keep(&[], true, SOON, NOW);
    assert_eq!(plan.changes.len(), before, "nothing is lost");
    let stake = plan.at_stake(&seen, NOW, &settings());
    let victim = stake.victims[0].clone();
    plan.keep(&[loss(&victim, 12)], false, SOON, NOW);
    assert_eq!(plan.changes.len(), before - 1);
    assert!(plan.again_in <= SOON);
    assert!(plan.in_progress && !plan.is_at_rest());
    let waiting = plan.waiting.unwrap();
    assert_eq!(waiting.reason, WaitReason::SeriesAtRisk);
    let name = format!("{}/{}", victim.namespace, victim.name);
    for words in [&*name, "12 series are", "such as kube_node_info{node=\"a\"}", "pod b: no"] {
        assert!(waiting.message.contains(words), "{words} in {}", waiting.message);
    }
}

#[test]
fn v1_a_pod_that_does_not_become_ready_is_what_is_waited_for_first() {
    let (mut plan, seen) = first_delete();
    let victim = plan.at_stake(&seen, NOW, &settings()).victims[0].clone();
    let (reason, message) = (WaitReason::PodNotReady, "waiting for pod a".to_owned());
    plan.waiting = Some(Waiting { reason, since: NOW, message });
    plan.keep(&[loss(&victim, 1)], false, SOON, NOW);
    let waiting = plan.waiting.unwrap();
    assert_eq!(waiting.reason, reason);
    assert!(waiting.message.starts_with("waiting for pod a; keeping pod"), "{}", waiting.message);
    assert!(waiting.message.contains("1 series is"), "{}", waiting.message);
}

/// Where objects are shared out by another hash, nothing can go before all successors are there.
#[test]
fn v1_successors_wait_for_a_while_and_are_then_created_so_that_every_change_ends() {
    for (from, to) in [(3, 2), (2, 3), (3, 5), (10, 1 + 1)] {
        let mut pods = at_rest(from);
        let old: Vec<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
        let scale = scale(to);
        let lose_all = |pods: &mut Vec<ObservedPod>, successors_wait| {
            for _ in 0..30 {
                let (mut plan, seen) = plan_of(&scale, pods);
                let stake = plan.at_stake(&seen, NOW, &settings());
                let losses: Vec<Loss> = stake.victims.iter().map(|p| loss(p, 1)).collect();
                plan.keep(&losses, successors_wait, SOON, NOW);
                apply(&plan, pods);
            }
        };
        lose_all(&mut pods, true);
        let new = pods.iter().filter(|pod| !old.contains(&pod.uid)).count();
        let first = (to.saturating_sub(from) as usize).max(1);
        assert!((first..=first + 1).contains(&new), "{from} to {to}: {new}");
        lose_all(&mut pods, false);
        let kept = pods.iter().filter(|pod| old.contains(&pod.uid)).count();
        assert_eq!((pods.len() - kept, kept), (to as usize, from as usize), "{from} to {to}");
        while let (plan, _) = plan_of(&scale, &pods)
            && plan.in_progress
        {
            apply(&plan, &mut pods);
        }
        assert_eq!(pods.len(), to as usize);
    }
}

#[test]
fn v1_what_is_at_stake_has_to_be_whole_at_every_look_of_the_settle_time() {
    let (plan, seen) = first_delete();
    let stake = plan.at_stake(&seen, NOW, &settings());
    let settle = Duration::from_secs(30);
    let at = |second| NOW + SignedDuration::from_secs(second);
    let mut looks = Looks::default();
    assert_eq!(looks.wait(&stake, at(0), settle), Duration::ZERO, "nothing is known");
    assert_eq!(looks.record(&stake, false, at(0), settle), settle);
    assert_eq!(looks.record(&stake, false, at(20), settle), Duration::from_secs(10));
    assert_eq!(looks.record(&stake, true, at(25), settle), Duration::ZERO, "look again");
    assert_eq!(looks.record(&stake, false, at(26), settle), settle, "anew");
    assert_eq!(looks.wait(&stake, at(55), settle), Duration::from_secs(1));
    assert_eq!(looks.record(&stake, false, at(56), settle), Duration::ZERO);

    // One that stayed is gone: the others may have what was its only since a moment.
    let mut fewer = stake.clone();
    fewer.survivors.pop();
    assert_eq!(looks.wait(&fewer, at(56), settle), Duration::ZERO);
    assert_eq!(looks.record(&fewer, false, at(56), settle), settle);
    assert_eq!(looks.wait(&stake, at(57), settle), Duration::from_secs(29), "more is as good");
    let mut more = fewer.clone();
    more.victims.extend(stake.survivors.last());
    assert_eq!(looks.record(&more, false, at(58), settle), settle, "another one is to go");
    looks.let_go();
    assert_eq!(looks.wait(&more, at(58), settle), Duration::ZERO);
    assert_eq!(looks.record(&more, false, at(60), Duration::ZERO), Duration::ZERO);
}

#[test]
fn v1_successors_wait_for_two_minutes_in_a_row() {
    let mut looks = Looks::default();
    let held = |looks: &mut Looks, second| looks.hold(NOW + SignedDuration::from_secs(second));
    assert!(held(&mut looks, 0) && held(&mut looks, 119));
    assert!(!held(&mut looks, 120));
    looks.let_go();
    assert!(held(&mut looks, 121));
}

#[test]
fn v5_condemned_pods_get_successors_beside_them_one_at_a_time_and_then_go() {
    let scale = scale(3);
    let mut pods = at_rest(3);
    let condemned: Vec<String> = pods.iter().take(2).map(|pod| pod.uid.clone()).collect();
    for pod in &mut pods {
        pod.condemned = condemned.contains(&pod.uid);
    }
    let mut most = 0;
    for _ in 0..10 {
        let (plan, _) = plan_of(&scale, &pods);
        let created = plan.changes.iter().filter_map(|change| match change {
            Change::CreatePod(_, why) => Some(why),
            _ => None,
        });
        let created: Vec<_> = created.collect();
        assert!(created.len() <= 1, "{created:?}");
        assert!(created.iter().all(|why| matches!(why, CreateReason::Replaces(_))));
        apply(&plan, &mut pods);
        most = most.max(pods.len());
    }
    assert_eq!((pods.len(), most), (3, 4));
    assert!(pods.iter().all(|pod| !pod.condemned));
    assert!(plan_of(&scale, &pods).0.is_at_rest());
}

#[test]
fn v5_a_condemned_pod_stands_in_for_nobody() {
    // 0/3, 1/3, 2/3 are all there and wanted twice; without the condemned one its shard is nobody's.
    let mut pods = at_rest(3);
    let mut double = pods[0].clone();
    double.uid = "double".to_owned();
    double.name = "double".to_owned();
    pods.push(double);
    let (plan, seen) = plan_of(&scale(3), &pods);
    assert_eq!(plan.at_stake(&seen, NOW, &settings()).victims.len(), 1, "one of them is too many");
    pods[0].condemned = true;
    let (plan, _) = plan_of(&scale(3), &pods);
    let gone = plan.changes.iter().filter_map(|change| match change {
        Change::DeletePod(pod, _) => Some(&*pod.uid),
        _ => None,
    });
    assert_eq!(gone.collect::<Vec<_>>(), [&*pods[0].uid], "the other one takes over");
}
