//! The operator is killed after each single write: the next one ends at the same place, and
//! nothing goes unexposed on the way.

use crate::support::*;
use devcluster::{Fate, FaultProxy};
use k8s_openapi::{
    api::{
        core::v1::{Pod, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::ClusterRoleBinding,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use ksm_scale_operator::api::KSMScale;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

const NAME: &str = "killed";
const BINDING: &str = "ksm-scale-operator-kube-state-metrics:monitoring";

fn sharded(shards: u32, image: &str) -> Value {
    json!({
        "monitorImage": image,
        "sharding": {
            "enabled": true, "shardCount": shards,
            "distribution": {"enablePDB": true, "spreadAcrossNodes": true},
        },
    })
}

/// A cluster, an operator behind a proxy and a witness, for one change after the other.
struct Scene {
    cluster: Cluster,
    proxy: FaultProxy,
    operator: Option<Operator>,
    witness: Witness,
}

impl Scene {
    async fn set() -> Self {
        let cluster = Cluster::start(4).await;
        let proxy = FaultProxy::start(&cluster.plane).await.expect("a proxy");
        let witness = Witness::start(&cluster.client).await;
        Self { cluster, proxy, operator: None, witness }
    }

    async fn start_operator(&mut self) {
        self.operator = Some(self.cluster.operator_via(&self.proxy, &[]).await);
    }

    /// Changes the spec and kills the operator after `writes` writes. Returns whether the change
    /// was complete before. Either way an operator runs and the change is complete afterwards.
    async fn change(&mut self, spec: &Value, writes: usize) -> bool {
        self.proxy.cut_after_mutations(writes);
        self.cluster.apply(NAME, spec.clone()).await;
        let complete = tokio::select! {
            () = self.proxy.cut_reached() => false,
            _ = self.cluster.until_settled(NAME) => true,
        };
        if !complete {
            self.operator.take().expect("an operator").kill();
            self.proxy.clear();
            self.start_operator().await;
            self.cluster.until_settled(NAME).await;
        }
        self.proxy.clear();
        complete
    }

    /// What is there, without what tells one run from another: names, UIDs and times.
    async fn end(&self) -> Value {
        // To the operator a pod that was deleted is gone; here it may be on its way out.
        let pods = eventually("nothing is being deleted", SOON, || async {
            let pods = self.cluster.pods("monitoring").list(&ListParams::default()).await.ok()?;
            let is_going = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
            let all_stay = !pods.iter().any(is_going);
            all_stay.then_some(pods)
        });
        let pods = pods.await.expect("pods");
        let mut pods: Vec<_> = pods
            .into_iter()
            .map(|pod| {
                let container = &pod.spec.as_ref().expect("a spec").containers[0];
                json!({
                    "labels": pod.labels(), "annotations": pod.annotations(),
                    "owner": pod.owner_references()[0].name, "args": container.args,
                    "image": container.image,
                })
            })
            .collect();
        pods.sort_by_key(|pod| pod["labels"]["index"].to_string());
        let budgets: Api<PodDisruptionBudget> = Api::all(self.cluster.client.clone());
        let budgets = budgets.list(&ListParams::default()).await.expect("PodDisruptionBudgets");
        let budgets: Vec<_> = budgets
            .into_iter()
            .map(|budget| json!({"name": budget.name_any(), "spec": budget.spec}))
            .collect();
        let accounts: Api<ServiceAccount> =
            Api::namespaced(self.cluster.client.clone(), "monitoring");
        let account = accounts.get("kube-state-metrics").await.expect("the ServiceAccount");
        let bindings: Api<ClusterRoleBinding> = Api::all(self.cluster.client.clone());
        let binding = bindings.get(BINDING).await.expect("the ClusterRoleBinding");
        let owner = |owners: &[OwnerReference]| owners.iter().map(|o| o.name.clone()).collect();
        let access: [Vec<_>; 2] =
            [owner(account.owner_references()), owner(binding.owner_references())];
        let scale = self.cluster.scales().get(NAME).await.expect("the KSMScale");
        json!({"pods": pods, "budgets": budgets, "access": access, "status": comparable(&scale)})
    }
}

/// The status without pod names, times and generations.
fn comparable(scale: &KSMScale) -> Value {
    let mut status = serde_json::to_value(&scale.status).expect("JSON");
    assert_eq!(status["observedGeneration"], json!(scale.metadata.generation));
    status["observedGeneration"] = Value::Null;
    status["lastUpdated"] = Value::Null;
    for condition in status["conditions"].as_array_mut().expect("conditions") {
        condition["lastTransitionTime"] = Value::Null;
        condition["observedGeneration"] = Value::Null;
    }
    let shards = status["shardingStatus"]["shardDistribution"].as_object_mut().expect("shards");
    shards.values_mut().for_each(|shard| shard["pods"] = Value::Null);
    status
}

/// Compares an end with the first one of its kind.
fn same_end(first: &mut Option<Value>, end: &Value, at: &str) {
    let expected = first.get_or_insert_with(|| end.clone());
    assert_eq!(expected, end, "{at}");
}

/// Changes there and back again, killed after one write more each time, until neither is.
async fn there_and_back(there: &Value, back: &Value, pods_then: [usize; 2], ready: Fate) {
    let mut scene = Scene::set().await;
    let kubelet = scene.cluster.kubelet.as_ref().expect("a kubelet");
    kubelet.set_policy(Arc::new(move |_| ready));
    scene.start_operator().await;
    scene.cluster.apply(NAME, back.clone()).await;
    scene.cluster.until_settled(NAME).await;
    let mut ends = [None, None];
    for writes in 1.. {
        let mut complete = true;
        for (turn, spec) in [there, back].into_iter().enumerate() {
            scene.witness.watch();
            complete &= scene.change(spec, writes).await;
            scene.witness.saw_no_gap();
            let end = scene.end().await;
            assert_eq!(end["pods"].as_array().expect("pods").len(), pods_then[turn]);
            same_end(&mut ends[turn], &end, &format!("turn {turn}, after {writes} writes"));
        }
        if complete {
            assert!(writes > 8, "a change of pods takes more than {writes} writes");
            return;
        }
    }
}

#[tokio::test]
async fn r34_r37_killed_after_each_write_of_3_to_5_and_5_to_3_shards() {
    there_and_back(&sharded(5, "k/s:v2.10.1"), &sharded(3, "k/s:v2.10.1"), [5, 3], Fate::READY)
        .await;
}

#[tokio::test]
async fn r34_killed_after_each_write_of_an_image_change() {
    // Later than the operator looks again, which then must not take it for its predecessor's heir.
    let ready = Fate::Ready { after: Duration::from_millis(200) };
    there_and_back(&sharded(3, "k/s:v2.20.0"), &sharded(3, "k/s:v2.10.1"), [3, 3], ready).await;
}

#[tokio::test]
async fn r16_r37_r63_killed_after_each_write_of_a_first_install() {
    let mut scene = Scene::set().await;
    let mut first = None;
    for writes in 1.. {
        scene.start_operator().await;
        let mut kept = BTreeSet::new();
        scene.proxy.cut_after_mutations(writes);
        scene.cluster.apply(NAME, sharded(3, "k/s:v2.10.1")).await;
        let complete = tokio::select! {
            () = scene.proxy.cut_reached() => false,
            _ = scene.cluster.until_settled(NAME) => true,
        };
        scene.operator.take().expect("an operator").kill();
        scene.proxy.clear();
        if !complete {
            kept = uids(&scene.cluster).await;
            scene.start_operator().await;
            scene.cluster.until_settled(NAME).await;
            scene.operator.take().expect("an operator").kill();
        }
        assert!(kept.is_subset(&uids(&scene.cluster).await), "a pod was made twice");
        same_end(&mut first, &scene.end().await, &format!("after {writes} writes"));
        if complete {
            assert!(writes > 5, "an installation takes more than {writes} writes");
            return;
        }
        clean_up(&scene.cluster).await;
    }
}

async fn uids(cluster: &Cluster) -> BTreeSet<String> {
    let pods = cluster.pods("monitoring").list(&ListParams::default()).await.expect("pods");
    pods.iter().filter_map(ResourceExt::uid).collect()
}

/// What the garbage collector would do, and the binding, which the operator would write again.
async fn clean_up(cluster: &Cluster) {
    let (delete, all) = (DeleteParams::default(), ListParams::default());
    cluster.scales().delete(NAME, &delete).await.expect("the KSMScale is deleted");
    cluster.pods("monitoring").delete_collection(&delete, &all).await.expect("no pods");
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), "monitoring");
    budgets.delete_collection(&delete, &all).await.expect("no PodDisruptionBudgets");
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "monitoring");
    let _ = accounts.delete("kube-state-metrics", &delete).await;
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let _ = bindings.delete(BINDING, &delete).await;
    cluster.until_pods("monitoring", &[]).await;
}
