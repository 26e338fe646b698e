use super::*;
use proptest::prelude::*;

fn nodes(range: std::ops::Range<u32>) -> Nodes {
    range.map(|n| (format!("node-{n}"), format!("00000000-0000-0000-0000-{n:012}"))).collect()
}

/// Pods of `total` shards that expose what they should.
fn healthy(nodes: &Nodes, total: u32, replicas: u32) -> Vec<Answer> {
    let answer = |shard: u32, replica: u32| {
        let told = Slice::new(shard, total).unwrap();
        let own = nodes.iter().filter(|(_, uid)| shard_of(uid, total) == shard);
        Answer {
            pod: format!("{shard}-{replica}"),
            name: format!("ksm-{shard}-{replica}"),
            told,
            says: Some(told),
            nodes: Ok(own.map(|(name, _)| name.clone()).collect()),
        }
    };
    (0..total)
        .flat_map(|shard| (0..replicas).map(move |r| (shard, r)))
        .map(|(s, r)| answer(s, r))
        .collect()
}

fn look(nodes: &Nodes, answers: Vec<Answer>) -> Look {
    Look { before: nodes.clone(), after: nodes.clone(), answers }
}

/// Two looks at the same.
fn audit(history: &mut History, look: &Look) -> Faults {
    loop {
        if let Verdict::Audited(faults) = history.record(look) {
            return faults;
        }
    }
}

fn own(answer: &mut Answer) -> &mut Vec<String> {
    answer.nodes.as_mut().unwrap()
}

#[test]
fn v3_a_whole_layout_has_no_faults_whatever_its_shards_and_replicas() {
    let nodes = nodes(0..40);
    for (total, replicas) in [(1, 1), (1, 3), (2, 1), (3, 2), (10, 4)] {
        let look = look(&nodes, healthy(&nodes, total, replicas));
        assert_eq!(look.faults(), Faults::new(), "{total} x {replicas}");
        let exposure = look.exposure(&Faults::new());
        assert_eq!(exposure, Exposure { expected: 40, exposed: 40, ..Exposure::default() });
    }
}

#[test]
fn v3_each_fault_is_named_with_its_pod_and_node() {
    let nodes = nodes(0..20);
    let find = |change: &dyn Fn(&mut Vec<Answer>)| {
        let mut answers = healthy(&nodes, 2, 1);
        change(&mut answers);
        let look = look(&nodes, answers);
        let faults = audit(&mut History::default(), &look);
        let exposure = look.exposure(&faults);
        let texts: Vec<_> =
            faults.iter().map(|(pod, f)| format!("{pod} {}", describe(f))).collect();
        (texts.join(" | "), exposure.to_string())
    };
    let one = |text: &str, counts: &str| (text.to_owned(), counts.to_owned());
    let first = own(&mut healthy(&nodes, 2, 1)[0])[0].clone();
    assert_eq!(
        find(&|a| drop(own(&mut a[0]).remove(0))),
        one(
            &format!("0-0 does not expose node {first}"),
            "19 of 20 nodes exposed, 1 missing, 0 duplicated, 0 foreign"
        )
    );
    assert_eq!(
        find(&|a| own(&mut a[0]).push(first.clone())),
        one(
            &format!("0-0 exposes more than once node {first}"),
            "20 of 20 nodes exposed, 0 missing, 1 duplicated, 0 foreign"
        )
    );
    assert_eq!(
        find(&|a| own(&mut a[1]).push(first.clone())),
        one(
            &format!("1-0 exposes, of other shards, node {first}"),
            "20 of 20 nodes exposed, 0 missing, 0 duplicated, 1 foreign"
        )
    );
    assert_eq!(
        find(&|a| own(&mut a[1]).push("gone".into())),
        one(
            "1-0 exposes, though it does not exist, node gone",
            "20 of 20 nodes exposed, 0 missing, 0 duplicated, 1 foreign"
        )
    );
    assert_eq!(
        find(&|a| a[0].says = Slice::new(1, 2)),
        one(
            "0-0 runs as another shard than its arguments say",
            "20 of 20 nodes exposed, 0 missing, 0 duplicated, 0 foreign"
        )
    );
    let (text, _) = find(&|a| a[0].nodes = Err(Silence::NoAnswer));
    assert_eq!(text, "0-0 does not answer as a whole");
}

#[test]
fn v3_a_node_that_one_of_two_replicas_exposes_is_not_missing_but_that_pod_has_a_fault() {
    let nodes = nodes(0..20);
    let mut answers = healthy(&nodes, 1, 2);
    let node = own(&mut answers[1]).remove(7);
    let look = look(&nodes, answers);
    let faults = audit(&mut History::default(), &look);
    assert_eq!(faults, [("0-1".to_owned(), [Fault::Missing(node)].into())].into());
    assert_eq!(look.exposure(&faults).missing, 0);
}

#[test]
fn v3_what_is_seen_only_once_is_no_fault() {
    let nodes = nodes(0..20);
    let mut answers = healthy(&nodes, 2, 1);
    own(&mut answers[0]).remove(0);
    let (bad, good) = (look(&nodes, answers), look(&nodes, healthy(&nodes, 2, 1)));
    let mut history = History::default();
    assert_eq!(history.record(&bad), Verdict::LookAgain);
    assert_eq!(history.record(&good), Verdict::Audited(Faults::new()));
    assert_eq!(history.record(&good), Verdict::Audited(Faults::new()));
}

#[test]
fn v5_a_pod_is_condemned_when_it_failed_three_audits_in_a_row() {
    let nodes = nodes(0..20);
    let mut answers = healthy(&nodes, 2, 1);
    own(&mut answers[1]).clear();
    let (bad, good) = (look(&nodes, answers), look(&nodes, healthy(&nodes, 2, 1)));
    let mut history = History::default();
    for expected in [false, false, true, true] {
        audit(&mut history, &bad);
        assert_eq!(history.condemned().eq(["1-0"]), expected);
    }
    audit(&mut history, &good);
    assert_eq!(history.condemned().count(), 0);
    audit(&mut history, &bad);
    assert_eq!(history.condemned().count(), 0, "the row begins anew");
}

#[test]
fn v5_a_fault_of_all_pods_condemns_none() {
    let nodes = nodes(0..20);
    // Each runs as the other.
    let mut answers = healthy(&nodes, 2, 1);
    let [first, second] = &mut answers[..] else { panic!("two pods") };
    std::mem::swap(&mut first.nodes, &mut second.nodes);
    let (bad, mut history) = (look(&nodes, answers), History::default());
    for _ in 0..=STRIKES {
        assert_eq!(audit(&mut history, &bad).len(), 2, "it is told");
        assert_eq!(history.condemned().count(), 0);
    }
}

proptest! {
    /// Each pod sees the nodes as they were at some time of the look, and repeats that in the next:
    /// nothing that changes in between is ever a fault.
    #[test]
    fn v3_nodes_that_come_and_go_cause_no_false_alarm(
        total in 1_u32..=10,
        steps in prop::collection::vec((0_u32..30, any::<bool>()), 1..40),
        ask in prop::collection::vec(0.0_f64..1.0, 10),
    ) {
        let mut cluster = nodes(0..15);
        let mut then = vec![cluster.clone()];
        for (number, (node, joins)) in (0_u32..).zip(&steps) {
            let name = format!("node-{node}");
            if *joins {
                // One that left and comes back is another.
                cluster.entry(name).or_insert_with(|| format!("uid-{number}"));
            } else {
                cluster.remove(&name);
            }
            then.push(cluster.clone());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index")]
        let at = |fraction: f64| &then[(fraction * (then.len() - 1) as f64) as usize];
        let mut answers = healthy(&cluster, total, 1);
        for (shard, answer) in answers.iter_mut().enumerate() {
            *answer = healthy(at(ask[shard]), total, 1).swap_remove(shard);
        }
        let look = Look { before: then[0].clone(), after: cluster.clone(), answers };
        let faults = look.faults();
        // A node that joined and left within the look was in neither list.
        for fault in faults.values().flatten() {
            let Fault::Ghost(name) = fault else { panic!("{fault:?}") };
            prop_assert!(then.iter().any(|nodes| nodes.contains_key(name)));
        }
        let mut history = History::default();
        history.record(&look);
        let settled = Look { before: cluster.clone(), after: cluster.clone(), answers: healthy(&cluster, total, 1) };
        prop_assert_eq!(history.record(&settled), Verdict::Audited(Faults::new()));
    }
}
