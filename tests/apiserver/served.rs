//! The webhooks, served: the API server calls the operator through a Service, and users see what
//! it says.

use crate::support::*;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn w1_w4_t2_apply_is_answered_by_the_operator_with_every_cause_at_once() {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let _replica = webhooks.replica(&["--lame-duck", "0s"]).await;
    cluster.apply("good", json!({})).await;
    cluster.until_settled("good").await;
}
