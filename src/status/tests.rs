use super::{events::notes, *};
use crate::{
    observed::{NamespaceState, ObservedPod},
    plan::{CreateReason, Group, plan},
    validate::{Valid, validate},
};
use jiff::ToSpan;
use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn scale(spec: &Value) -> Valid<Scale> {
    validate(&json!({"metadata": {"name": "x", "uid": "u", "generation": 7}, "spec": spec}))
        .unwrap()
}

fn sharded(count: u32) -> Value {
    json!({"sharding": {"enabled": true, "shardCount": count, "distribution": {"enablePDB": true}}})
}

fn settings() -> Settings {
    Settings { settle: std::time::Duration::ZERO, ..Settings::default() }
}

/// The pods that a plan asks for, Ready since `NOW`.
fn ready_pods(scale: &Valid<Scale>, nodes: u32) -> Vec<ObservedPod> {
    let empty = Observed { nodes, ..Observed::default() };
    let changes = plan(scale, &empty, NOW, &settings()).changes;
    let pods = changes.into_iter().filter_map(|change| match change {
        Change::CreatePod(pod, _) => Some(*pod),
        _ => None,
    });
    pods.map(|pod: Pod| ObservedPod {
        uid: pod.metadata.name.clone().unwrap(),
        life: Life::Running,
        ready_since: Some(NOW),
        ..ObservedPod::new(&pod)
    })
    .collect()
}

fn status_of(old: &KSMScaleStatus, scale: &Valid<Scale>, seen: &Observed) -> KSMScaleStatus {
    status_after(old, scale, seen, &Outcome::default(), NOW).0
}

fn status_after(
    old: &KSMScaleStatus,
    scale: &Valid<Scale>,
    seen: &Observed,
    outcome: &Outcome,
    now: Timestamp,
) -> (KSMScaleStatus, Vec<events::Note>) {
    let (plan, settings) = (plan(scale, seen, now, &settings()), settings());
    let settings = &settings;
    let checked = &Checked::default();
    let inputs =
        Inputs { scale, seen, plan: &plan, outcome, checked, settings, owner: "pod-a", now };
    let new = status(old, &inputs);
    let notes = notes(old, &new, &inputs);
    assert_described(&new);
    (new, notes)
}

/// What is told is also told in the reference of conditions.
fn assert_described(status: &KSMScaleStatus) {
    for Condition { type_, status, reason, .. } in &status.conditions {
        let described = CONDITIONS.iter().find(|described| described.type_ == type_);
        let reasons = described.unwrap_or_else(|| panic!("{type_} is not described")).reasons;
        let known =
            |&&(at, name, _): &&(bool, &str, &str)| (at == (status == "True")) && name == reason;
        assert!(reasons.iter().any(|r| known(&r)), "{type_} {status} {reason} is not described");
    }
}

fn condition<'s>(status: &'s KSMScaleStatus, type_: &str) -> &'s Condition {
    status.conditions.iter().find(|c| c.type_ == type_).unwrap_or_else(|| panic!("no {type_}"))
}

#[test]
fn r10_r36_a_sharded_status_counts_shards_and_names_their_pods() {
    let scale = scale(&sharded(3));
    let mut seen = Observed { nodes: 75, pods: ready_pods(&scale, 75), ..Observed::default() };
    let status = status_of(&KSMScaleStatus::default(), &scale, &seen);
    assert_eq!(status.phase, Some(Phase::Ready));
    assert_eq!((status.node_count, status.desired_replicas), (Some(75), Some(5)));
    assert_eq!(status.observed_generation, Some(7));
    let shards = status.sharding_status.unwrap();
    assert_eq!((shards.total_shards, shards.active_shards), (3, 3));
    let second = &shards.shard_distribution["1"];
    assert_eq!((second.replicas, second.ready), (2, 2));
    assert_eq!(second.pods, ["kube-state-metrics-x-1", "kube-state-metrics-x-4"]);

    seen.pods[1].ready_since = None;
    seen.pods[4].terminating = true;
    let status = status_of(&KSMScaleStatus::default(), &scale, &seen);
    assert_eq!(status.phase, Some(Phase::Incomplete), "shard 1 has no Ready pod that stays");
    assert_eq!(status.current_replicas, Some(4));
}

#[test]
fn r35_a_pod_of_another_shard_count_makes_no_shard_active() {
    let old = scale(&sharded(3));
    let seen = Observed { nodes: 4, pods: ready_pods(&old, 4), ..Observed::default() };
    let status = status_of(&KSMScaleStatus::default(), &scale(&sharded(4)), &seen);
    assert_eq!(status.sharding_status.unwrap().active_shards, 0);
    assert_eq!(status.phase, Some(Phase::Incomplete));
}

#[test]
fn r20_the_phase_follows_the_number_of_pods_and_not_their_readiness() {
    let scale = scale(&json!({}));
    let mut seen = Observed { nodes: 31, pods: ready_pods(&scale, 31), ..Observed::default() };
    seen.pods[0].ready_since = None;
    let phase = |seen: &Observed| status_of(&KSMScaleStatus::default(), &scale, seen).phase;
    assert_eq!(phase(&seen), Some(Phase::Ready));
    seen.nodes = 46;
    assert_eq!(phase(&seen), Some(Phase::Scaling));
    seen.nodes = 31;
    let changed = self::scale(&json!({"monitorImage": "r/k:v2.20.0"}));
    let status = status_of(&KSMScaleStatus::default(), &changed, &seen);
    assert_eq!(status.phase, Some(Phase::Scaling), "three pods, but not those the spec asks for");
}

#[test]
fn r49_a_status_is_equal_to_the_last_one_unless_something_changed() {
    let scale = scale(&sharded(2));
    let mut seen = Observed { nodes: 50, pods: ready_pods(&scale, 50), ..Observed::default() };
    let first = status_of(&KSMScaleStatus::default(), &scale, &seen);
    assert_eq!(first.last_updated.as_ref().map(|t| t.0), Some(NOW));
    let later = NOW + 5.minutes();
    let (second, notes) = status_after(&first, &scale, &seen, &Outcome::default(), later);
    assert_eq!(second, first);
    assert_eq!(notes, []);
    seen.nodes = 51;
    let (third, _) = status_after(&first, &scale, &seen, &Outcome::default(), later);
    assert_eq!(third.last_updated.as_ref().map(|t| t.0), Some(later));
    assert_eq!(third.conditions, first.conditions, "times of conditions stay");
}

#[test]
fn r70_transition_times_change_with_the_status_and_not_with_the_message() {
    let scale = scale(&json!({}));
    let seen = |nodes| Observed { nodes, pods: ready_pods(&scale, nodes), ..Observed::default() };
    let first = status_of(&KSMScaleStatus::default(), &scale, &seen(16));
    let later = NOW + 1.hour();
    let after = |nodes| status_after(&first, &scale, &seen(nodes), &Outcome::default(), later).0;
    let more = after(31);
    assert_ne!(
        condition(&more, "DuplicateMetrics").message,
        condition(&first, "DuplicateMetrics").message
    );
    assert_eq!(condition(&more, "DuplicateMetrics").last_transition_time.0, NOW);
    assert_eq!(condition(&after(1), "DuplicateMetrics").last_transition_time.0, later);
}

#[test]
fn r72_messages_name_the_object_the_cause_and_the_fix() {
    let scale = scale(&json!({"namespace": "nowhere"}));
    let seen = Observed { nodes: 4, namespace: NamespaceState::Missing, ..Observed::default() };
    let status = status_of(&KSMScaleStatus::default(), &scale, &seen);
    for type_ in ["NamespaceReady", "Degraded"] {
        let message = &condition(&status, type_).message;
        assert!(message.contains("namespace nowhere does not exist"), "{message}");
        assert!(message.contains("kubectl create namespace nowhere"), "{message}");
    }
    assert_eq!(condition(&status, "Available").status, "False");
}

fn quota_failure() -> Failure {
    Failure {
        change: Change::CreatePod(Box::default(), CreateReason::Missing),
        reason: FailureReason::QuotaExceeded,
        message: "exceeded quota: pods".into(),
        retry_after: None,
    }
}

#[test]
fn r71_what_fails_again_and_again_is_one_event_and_so_is_its_end() {
    let scale = scale(&json!({}));
    let seen = Observed { nodes: 4, ..Observed::default() };
    let failed = Outcome { applied: vec![], failed: vec![quota_failure()] };
    let empty = KSMScaleStatus::default();
    let (first, notes) = status_after(&empty, &scale, &seen, &failed, NOW);
    let warnings: Vec<_> = notes.iter().filter(|n| n.warning).collect();
    assert_eq!(warnings.len(), 1, "{notes:?}");
    assert_eq!(warnings[0].reason, "QuotaExceeded");
    assert!(warnings[0].message.contains("raise the ResourceQuota"), "{}", warnings[0].message);
    let (second, notes) = status_after(&first, &scale, &seen, &failed, NOW + 1.minute());
    assert_eq!((&second, notes.len()), (&first, 0));
    let seen = Observed { nodes: 4, pods: ready_pods(&scale, 4), ..Observed::default() };
    let (_, notes) = status_after(&second, &scale, &seen, &Outcome::default(), NOW + 2.minutes());
    assert_eq!(notes.iter().map(|n| &*n.reason).collect::<Vec<_>>(), ["DegradedRecovered"]);
}

#[test]
fn a_conflict_is_nobodys_news() {
    let scale = scale(&json!({}));
    let failure = Failure { reason: FailureReason::Conflict, ..quota_failure() };
    let outcome = Outcome { applied: vec![], failed: vec![failure] };
    let seen = Observed { nodes: 4, pods: ready_pods(&scale, 4), ..Observed::default() };
    let (status, _) = status_after(&KSMScaleStatus::default(), &scale, &seen, &outcome, NOW);
    assert_eq!(condition(&status, "Degraded").status, "False");
}

#[test]
fn a_pod_that_takes_too_long_makes_the_ksmscale_degraded_after_the_deadline() {
    let scale = scale(&json!({}));
    let mut pods = ready_pods(&scale, 4);
    pods[0] = ObservedPod { created: NOW, ready_since: None, ..pods[0].clone() };
    let seen = Observed { nodes: 4, pods, ..Observed::default() };
    let degraded = |now| {
        let (status, _) =
            status_after(&KSMScaleStatus::default(), &scale, &seen, &Outcome::default(), now);
        condition(&status, "Degraded").reason.clone()
    };
    assert_eq!(degraded(NOW + 10.minutes()), "AsExpected");
    assert_eq!(degraded(NOW + 10.minutes() + 1.second()), "ProgressDeadlineExceeded");
}

#[test]
fn a_spec_that_is_not_valid_is_told_and_leaves_the_rest_of_the_status() {
    let valid = scale(&json!({}));
    let seen = Observed { nodes: 4, pods: ready_pods(&valid, 4), ..Observed::default() };
    let old = status_of(&KSMScaleStatus::default(), &valid, &seen);
    let bad = json!({"metadata": {"name": "x"}, "spec": {"nodesPerMonitor": 3, "namespace": "A"}});
    let violations = validate(&bad).unwrap_err();
    let new = rejected(&old, "pod-a", 8, &violations, NOW + 1.minute());
    let degraded = condition(&new, "Degraded");
    assert_eq!((&*degraded.status, &*degraded.reason), ("True", "InvalidSpec"));
    for field in ["spec.nodesPerMonitor", "spec.namespace"] {
        assert!(degraded.message.contains(field), "{}", degraded.message);
    }
    assert_eq!((new.desired_replicas, new.phase), (old.desired_replicas, old.phase));
    assert_eq!(condition(&new, "Available"), condition(&old, "Available"));
    assert_eq!(rejected(&new, "pod-a", 8, &violations, NOW + 2.minutes()), new);
}

#[test]
fn r37_the_budget_is_an_integer_below_desired_and_goes_with_its_option() {
    let scale = scale(&sharded(3));
    let seen = Observed { nodes: 90, ..Observed::default() };
    let budgets = |scale: &Valid<Scale>, seen: &Observed| -> Vec<Change> {
        let changes = plan(scale, seen, NOW, &settings()).changes;
        changes.into_iter().filter(|c| c.group() == Group::Disruption).collect()
    };
    let [Change::ApplyBudget(budget)] = &budgets(&scale, &seen)[..] else { panic!("one budget") };
    let said = serde_json::to_value(budget).unwrap();
    assert_eq!(said["metadata"]["name"], "ksm-x-shards");
    assert_eq!(
        said["spec"],
        json!({
            "minAvailable": 5,
            "selector": {"matchLabels": {"ksmscale.example.com": "x", "sharding-enabled": "true"}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        })
    );
    let there = Observed { budgets: vec![(**budget).clone()], ..seen.clone() };
    assert!(budgets(&scale, &there).is_empty(), "nothing to do once it is there");
    let mut unbudgeted = sharded(3);
    unbudgeted["sharding"]["distribution"]["enablePDB"] = json!(false);
    for spec in [unbudgeted, json!({})] {
        let changes = budgets(&self::scale(&spec), &there);
        assert!(matches!(changes[..], [Change::DeleteBudget(_)]), "{spec}: {changes:?}");
    }
    let mut moved = sharded(3);
    moved["namespace"] = json!("elsewhere");
    let moved = self::scale(&moved);
    let both = Observed { pods: ready_pods(&scale, 90), ..there.clone() };
    let changes = budgets(&moved, &both);
    assert!(
        matches!(changes[..], [Change::ApplyBudget(_)]),
        "kept while it guards pods: {changes:?}"
    );
    let changes = budgets(&moved, &there);
    assert!(
        matches!(changes[..], [Change::DeleteBudget(_), Change::ApplyBudget(_)]),
        "{changes:?}"
    );
    let zero = json!({"sharding": {"enabled": true, "shardCount": 2, "distribution": {"enablePDB": true, "maxUnavailable": 9}}});
    let [Change::ApplyBudget(budget)] = &budgets(&self::scale(&zero), &seen)[..] else {
        panic!("one budget")
    };
    assert_eq!(serde_json::to_value(budget).unwrap()["spec"]["minAvailable"], 0);
}

#[test]
fn r29_a_budget_of_our_name_that_is_not_ours_is_left_alone_and_told() {
    let scale = scale(&sharded(3));
    let mut foreign = PodDisruptionBudget::default();
    foreign.metadata.name = Some("ksm-x-shards".into());
    foreign.metadata.namespace = Some("monitoring".into());
    let seen = Observed {
        nodes: 4,
        budgets: vec![foreign],
        pods: ready_pods(&scale, 4),
        ..Observed::default()
    };
    assert!(
        plan(&scale, &seen, NOW, &settings())
            .changes
            .iter()
            .all(|c| c.group() != Group::Disruption)
    );
    let status = status_of(&KSMScaleStatus::default(), &scale, &seen);
    let degraded = condition(&status, "Degraded");
    assert_eq!(degraded.reason, "NameTaken");
    assert!(degraded.message.contains("monitoring/ksm-x-shards"), "{}", degraded.message);
}

#[test]
fn r38_the_backup_interval_depends_on_the_mode() {
    let at_rest = |spec: &Value| {
        let scale = scale(spec);
        let seen = Observed { nodes: 50, pods: ready_pods(&scale, 50), ..Observed::default() };
        plan(&scale, &seen, NOW, &Settings::default()).again_in.as_secs()
    };
    let settled = |spec: &Value| {
        let scale = scale(spec);
        let seen = Observed { nodes: 50, pods: ready_pods(&scale, 50), ..Observed::default() };
        let now = NOW + 1.hour();
        plan(&scale, &seen, now, &Settings::default()).again_in.as_secs()
    };
    assert_eq!((settled(&json!({})), settled(&sharded(3))), (60, 120));
    assert_eq!(at_rest(&json!({})), 30, "sooner where a pod settles before");
}

fn report(missing: u32) -> crate::audit::Report {
    let exposure =
        crate::audit::Exposure { expected: 4, exposed: 4 - missing, missing, ..Default::default() };
    let fault = crate::audit::Fault::Missing("node-1".to_owned());
    let faulty = (missing > 0).then(|| ("ksm-x-0".to_owned(), [fault].into()));
    crate::audit::Report { exposure, faults: faulty.into_iter().collect() }
}

/// The status of a KSMScale at rest after a look at its pods.
fn status_checked(
    old: &KSMScaleStatus,
    checked: &Checked,
    settings: &Settings,
    now: Timestamp,
) -> (KSMScaleStatus, Vec<events::Note>) {
    let scale = &scale(&json!({}));
    let seen = &Observed { nodes: 4, pods: ready_pods(scale, 4), ..Observed::default() };
    let plan = &plan(scale, seen, now, settings);
    let outcome = &Outcome::default();
    let inputs = Inputs { scale, seen, plan, outcome, checked, settings, owner: "pod-a", now };
    let new = status(old, &inputs);
    let notes = notes(old, &new, &inputs);
    assert_described(&new);
    (new, notes)
}

#[test]
fn v4_coverage_is_written_when_a_number_changes_and_else_once_an_hour() {
    let audited = |old: &KSMScaleStatus, missing, now| {
        let checked = Checked { reached: Some(Ok(())), report: Some(report(missing)) };
        status_checked(old, &checked, &settings(), now)
    };
    let (first, _) = audited(&KSMScaleStatus::default(), 0, NOW);
    let coverage = first.coverage.clone().unwrap();
    assert_eq!((coverage.expected, coverage.exposed, coverage.last_audit.0), (4, 4, NOW));
    assert_eq!(condition(&first, "CoverageComplete").status, "True");
    assert_eq!(audited(&first, 0, NOW + 59.minutes()).0, first, "nothing new");
    let (unseen, _) = status_checked(&first, &Checked::default(), &settings(), NOW + 2.hours());
    assert_eq!(unseen, first, "what was not looked at stays as it was said");
    let (later, notes) = audited(&first, 0, NOW + 1.hour());
    assert_eq!(later.coverage.unwrap().last_audit.0, NOW + 1.hour());
    assert_eq!(notes, []);

    let (broken, notes) = audited(&first, 1, NOW + 1.minute());
    assert_eq!(broken.coverage.as_ref().unwrap().missing, 1);
    let complete = condition(&broken, "CoverageComplete");
    assert_eq!((&*complete.status, &*complete.reason), ("False", "NodesMissing"));
    assert!(complete.message.contains("pod ksm-x-0 does not expose node node-1"), "{complete:?}");
    assert_eq!(
        notes.iter().map(|n| (n.warning, &*n.reason)).collect::<Vec<_>>(),
        [(true, "NodesMissing")]
    );
    assert_eq!(audited(&broken, 1, NOW + 2.minutes()).1, [], "told once");
    let (_, notes) = audited(&broken, 0, NOW + 3.minutes());
    assert_eq!(
        notes.iter().map(|n| (n.warning, &*n.reason)).collect::<Vec<_>>(),
        [(false, "CoverageCompleteRecovered")]
    );

    let never = Settings { audit_interval: std::time::Duration::ZERO, ..settings() };
    let (off, _) = status_checked(&broken, &Checked::default(), &never, NOW + 3.minutes());
    assert_eq!(off.coverage, None);
    assert!(off.conditions.iter().all(|c| c.type_ != "CoverageComplete"), "{off:?}");
}

#[test]
fn v2_whether_deletes_are_proven_is_told_with_the_cause_and_a_flag_is_no_news() {
    let reached = |old: &KSMScaleStatus, reached| {
        status_checked(old, &Checked { reached, report: None }, &settings(), NOW)
    };
    let (new, _) = reached(&KSMScaleStatus::default(), None);
    assert!(new.conditions.iter().all(|c| c.type_ != "CoverageVerified"), "not known yet");
    let (good, _) = reached(&new, Some(Ok(())));
    assert_eq!(condition(&good, "CoverageVerified").status, "True");
    let (bad, notes) = reached(&good, Some(Err("pod a: cannot connect".to_owned())));
    assert!(condition(&bad, "CoverageVerified").message.contains("pod a: cannot connect"));
    assert_eq!(
        notes.iter().map(|n| (n.warning, &*n.reason)).collect::<Vec<_>>(),
        [(true, "PodsUnreachable")]
    );
    assert_eq!(reached(&bad, None).0, bad);
    let off = Settings { verify_coverage: false, ..settings() };
    let (off, notes) = status_checked(&KSMScaleStatus::default(), &Checked::default(), &off, NOW);
    assert_eq!(condition(&off, "CoverageVerified").reason, "Disabled");
    assert!(notes.iter().all(|note| note.reason != "Disabled"), "{notes:?}");
}

#[test]
fn v6_a_change_counts_its_steps_from_its_beginning_to_its_end() {
    let (from, to) = (scale(&sharded(3)), scale(&sharded(5)));
    let mut pods = ready_pods(&from, 4);
    let mut old = status_of(
        &KSMScaleStatus::default(),
        &from,
        &Observed { nodes: 4, pods: pods.clone(), ..Observed::default() },
    );
    assert_eq!(old.change, None);
    old.observed_generation = Some(6);
    let (mut steps, mut now) = (Vec::new(), NOW);
    loop {
        now += 1.minute();
        let seen = Observed { nodes: 4, pods: pods.clone(), ..Observed::default() };
        old = status_after(&old, &to, &seen, &Outcome::default(), now).0;
        let Some(change) = old.change.clone() else { break };
        assert_eq!((change.from, change.to, change.since.0), (3, 5, NOW + 1.minute()));
        assert_ne!(old.phase, Some(Phase::Ready));
        steps.push((change.step, change.of));
        for change in plan(&to, &seen, now, &settings()).changes {
            match change {
                Change::CreatePod(pod, _) => pods.push(ObservedPod {
                    uid: format!("new-{}", pod.metadata.name.clone().unwrap()),
                    life: Life::Running,
                    ready_since: Some(NOW),
                    ..ObservedPod::new(&pod)
                }),
                Change::DeletePod(gone, _) => pods.retain(|pod| pod.uid != gone.uid),
                _ => {}
            }
        }
    }
    assert_eq!(old.phase, Some(Phase::Ready));
    let of = steps[0].1;
    assert_eq!(steps[0], (1, of));
    assert!(
        steps.is_sorted() && steps.iter().all(|step| step.1 == of && step.0 <= of),
        "{steps:?}"
    );
    assert!(steps.len() > 3, "{steps:?}");
}
