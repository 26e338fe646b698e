//! Control planes at every level, and their nodes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use devcluster::{ControlPlane, Level, eventually};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

const DEADLINE: Duration = Duration::from_mins(1);

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "main", "image": "example.com/none" }] },
    }))
    .unwrap()
}

fn account(name: &str) -> ServiceAccount {
    serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap()
}

async fn node_names(client: Client) -> Vec<String> {
    let nodes = Api::<Node>::all(client).list(&ListParams::default()).await.unwrap();
    nodes.into_iter().filter_map(|node| node.metadata.name).collect()
}

async fn user_name(client: &Client) -> String {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    review.unwrap().status.unwrap().user_info.unwrap().username.unwrap()
}

#[tokio::test]
async fn an_api_server_stores_nodes_and_authorises_service_accounts() {
    let plane = ControlPlane::start(Level::ApiServer).await.unwrap();

    plane.add_nodes(0..5).await.unwrap();
    plane.nodes_ready(0..5).await.unwrap();
    plane.remove_nodes(1..4).await.unwrap();
    plane.remove_nodes(1..2).await.unwrap();
    assert_eq!(node_names(plane.admin()).await, ["node-0", "node-4"]);
    let node = Api::<Node>::all(plane.admin()).get("node-0").await.unwrap();
    assert_eq!(node.spec.unwrap().taints, None);

    let output = plane.kubectl().args(["get", "nodes", "-o", "name"]).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "node/node-0\nnode/node-4\n");

    let accounts: Api<ServiceAccount> = Api::default_namespaced(plane.admin());
    accounts.create(&PostParams::default(), &account("robot")).await.unwrap();
    let kubeconfig = plane.service_account_kubeconfig("default", "robot").await.unwrap();
    let robot = plane.client(&kubeconfig).await.unwrap();
    assert_eq!(user_name(&robot).await, "system:serviceaccount:default:robot");
    let error = Api::<Node>::all(robot).list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(&error, kube::Error::Api(s) if s.is_forbidden()), "{error}");

    let missing = plane.service_account_kubeconfig("default", "nobody").await.unwrap_err();
    assert!(format!("{missing:#}").contains("default/nobody"), "{missing:#}");
}

#[tokio::test]
async fn an_api_server_comes_back_with_its_data_after_an_outage() {
    let plane = ControlPlane::start(Level::ApiServer).await.unwrap();
    plane.add_nodes(0..1).await.unwrap();
    let url = plane.server_url();

    plane.stop_api_server().await.unwrap();
    let address = url.trim_start_matches("https://").to_owned();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());

    plane.start_api_server().await.unwrap();
    assert_eq!(plane.server_url(), url);
    assert_eq!(node_names(plane.admin()).await, ["node-0"]);
}

#[tokio::test]
async fn two_control_planes_run_side_by_side() {
    let (one, two) = tokio::try_join!(
        ControlPlane::start(Level::ApiServer),
        ControlPlane::start(Level::ApiServer)
    )
    .unwrap();
    one.add_nodes(0..1).await.unwrap();
    assert_eq!(node_names(one.admin()).await, ["node-0"]);
    assert_eq!(node_names(two.admin()).await, [""; 0]);
    let dir = one.dir().to_owned();
    drop(one);
    assert!(!dir.exists());
    assert_eq!(node_names(two.admin()).await, [""; 0]);
}

#[tokio::test]
async fn the_controllers_collect_garbage() {
    let plane = ControlPlane::start(Level::Controllers).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(plane.admin());
    let create = async |value| {
        let map: ConfigMap = serde_json::from_value(value).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap()
    };
    let owner = create(json!({ "metadata": { "name": "owner" } })).await;
    create(json!({ "metadata": { "name": "owned", "ownerReferences": [{
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner.metadata.uid,
    }]}}))
    .await;
    maps.delete("owner", &kube::api::DeleteParams::default()).await.unwrap();
    eventually("what the owner owned is gone", DEADLINE, || async {
        maps.get_opt("owned").await.unwrap().is_none().then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn nodes_become_ready_and_run_pods() {
    let plane = ControlPlane::start(Level::Nodes).await.unwrap();
    plane.add_kwok_nodes(0..3).await.unwrap();
    plane.nodes_ready(0..3).await.unwrap();

    let namespace: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": "work" } })).unwrap();
    let namespaces: Api<Namespace> = Api::all(plane.admin());
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.admin(), "work");
    eventually("the namespace has its ServiceAccount", DEADLINE, || async {
        accounts.get_opt("default").await.unwrap()
    })
    .await
    .unwrap();

    let pods: Api<Pod> = Api::namespaced(plane.admin(), "work");
    pods.create(&PostParams::default(), &pod("one")).await.unwrap();
    let ready = kube::runtime::wait::conditions::is_pod_running();
    let running = kube::runtime::wait::await_condition(pods, "one", ready);
    let running = tokio::time::timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
    assert!(running.spec.unwrap().node_name.unwrap().starts_with("node-"));
}
