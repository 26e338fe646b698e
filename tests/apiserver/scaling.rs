//! Pods follow nodes.

use crate::support::*;
use ksm_scale_operator::api::Phase;
use serde_json::json;

#[tokio::test]
async fn r21_the_first_reconcile_creates_one_pod_and_tells_what_it_saw_before() {
    let cluster = Cluster::start(10).await;
    let operator = cluster.operator().await;
    let history = History::of(&cluster, "dev-ksm").await;
    cluster.apply("dev-ksm", json!({})).await;
    cluster.until_settled("dev-ksm").await;
    let first = &history.statuses()[0];
    assert_eq!(
        (first.node_count, first.desired_replicas, first.current_replicas),
        (Some(10), Some(1), Some(0))
    );
    assert_eq!(first.phase, Some(Phase::Scaling));
    let last = cluster.status("dev-ksm").await;
    assert_eq!((last.current_replicas, last.phase), (Some(1), Some(Phase::Ready)));
    assert_eq!(last.sharding_status, None);
    cluster.until_pods("monitoring", &["kube-state-metrics-dev-ksm-0"]).await;
    assert!(operator.terminate().await.success());
}
