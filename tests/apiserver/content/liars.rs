//! Successors that are Ready and do not serve what they should: the change waits, says for what, and
//! goes back when the spec does (V1, V6).

use super::*;

const OLD: [&str; 2] = ["kube-state-metrics-x-0", "kube-state-metrics-x-1"];

/// Two shards are to be three, of which each pod has these faults.
async fn waits_and_goes_back(faults: Faults, words: &[&str]) {
    stand_in_only();
    let of = move |pod: &str| if OLD.contains(&pod) { Faults::default() } else { faults.clone() };
    let site = Site::start(VERIFY, sharded(2), of).await;
    let sampler = site.sampler().await;
    site.cluster.apply("x", sharded(3)).await;
    let told = eventually("it says what it waits for", LONG, || async {
        let status = site.cluster.scales().get("x").await.ok()?.status?;
        let message = condition(&status, "Progressing").2;
        words.iter().all(|word| message.contains(word)).then_some(status)
    });
    let status = told.await.unwrap_or_else(|error| panic!("{error}\n{}", site.operator().log()));
    let (_, _, message) = condition(&status, "Progressing");
    assert!(message.contains("keeping pod monitoring/kube-state-metrics-x-"), "{message}");
    assert!(message.contains("such as kube_"), "{message}");
    let change = status.change.clone().expect("a change under way");
    assert_eq!((change.from, change.to), (2, 3));
    assert!(change.step > 1 && change.step <= change.of, "{change:?}");
    assert!(change.waiting_for.is_some_and(|text| text.contains("served by no other pod")));
    assert_eq!(condition(&status, "CoverageVerified").0, "True");

    // The spec goes back, and so do the pods: those that serve are still there.
    site.change(sharded(2)).await;
    assert_eq!(site.pods().await, OLD);
    assert_eq!(site.until_settled().await.change, None);
    nothing_was_missing(&sampler, "there and back");
}

#[tokio::test]
async fn v1_v6_a_pod_stays_while_its_successor_never_syncs() {
    waits_and_goes_back(all_late(3_600_000), &["served by no other pod"]).await;
}

#[tokio::test]
async fn v1_v6_a_pod_stays_while_its_successor_serves_another_shard_than_it_says() {
    let lying = Faults { shard: Some(1), ..Faults::default() };
    waits_and_goes_back(lying, &["served by no other pod"]).await;
}

/// As long as it takes: an answer may take 30 s, and each look waits for it.
#[tokio::test]
#[ignore = "long: make soak"]
async fn v1_v6_soak_a_pod_stays_while_its_successor_answers_too_slowly() {
    let slow = Faults { slow: 35_000, ..Faults::default() };
    let words = ["served by no other pod", "as a whole", "longer than 30s"];
    waits_and_goes_back(slow, &words).await;
}
