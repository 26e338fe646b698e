//! The proxy that fails requests on demand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use devcluster::{ControlPlane, Fault, FaultProxy, Level, SeenRequest, eventually};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(20);

struct Setup {
    proxy: FaultProxy,
    /// As an administrator, past the proxy.
    direct: Api<ConfigMap>,
    /// As a ServiceAccount, through the proxy, without retries.
    proxied: Api<ConfigMap>,
    plane: ControlPlane,
}

async fn setup() -> Setup {
    let plane = ControlPlane::start(Level::ApiServer).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::default_namespaced(plane.admin());
    let account = serde_json::from_value(json!({ "metadata": { "name": "robot" } })).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(plane.admin());
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": { "name": "robot" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": "robot", "namespace": "default" }],
    }))
    .unwrap();
    bindings.create(&PostParams::default(), &binding).await.unwrap();

    let proxy = FaultProxy::start(&plane).await.unwrap();
    let file =
        plane.service_account_kubeconfig_via(&proxy.url(), "default", "robot").await.unwrap();
    let kubeconfig = Kubeconfig::read_from(file).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.default_retry = false;
    let client = Client::try_from(config).unwrap();
    let proxied: Api<ConfigMap> = Api::default_namespaced(client);
    // The authoriser hears of the binding a moment later.
    eventually("the robot may list", DEADLINE, || async {
        proxied.list(&ListParams::default()).await.ok()
    })
    .await
    .unwrap();
    proxy.reset_log();
    let direct = Api::default_namespaced(plane.admin());
    Setup { proxy, direct, proxied, plane }
}

async fn create(api: &Api<ConfigMap>, name: &str) -> Result<(), kube::Error> {
    let map = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
    api.create(&PostParams::default(), &map).await.map(drop)
}

async fn names(api: &Api<ConfigMap>) -> Vec<String> {
    let maps = api.list(&ListParams::default()).await.unwrap();
    maps.into_iter().filter_map(|map| map.metadata.name).collect()
}

/// The status code of the server's answer, or `None` if there was no answer.
fn code(result: Result<(), kube::Error>) -> Option<u16> {
    match result.unwrap_err() {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

#[tokio::test]
async fn after_a_cut_reads_pass_and_changes_do_not() {
    let Setup { proxy, direct, proxied, plane } = setup().await;
    create(&proxied, "before").await.unwrap();

    proxy.cut_after_mutations(2);
    assert_eq!(proxy.mutations(), 0);
    // What changes nothing does not count.
    assert_eq!(names(&proxied).await, ["before"]);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    proxied
        .create(
            &dry_run,
            &ConfigMap {
                metadata: kube::core::ObjectMeta {
                    name: Some("dry".to_owned()),
                    ..Default::default()
                },
                ..ConfigMap::default()
            },
        )
        .await
        .unwrap();
    create(&proxied, "one").await.unwrap();
    assert_eq!(proxy.mutations(), 1);
    create(&proxied, "two").await.unwrap();
    tokio::time::timeout(DEADLINE, proxy.cut_reached()).await.unwrap();
    assert_eq!(proxy.refused(), 0);

    assert_eq!(code(create(&proxied, "three").await), None);
    assert_eq!(code(proxied.delete("one", &DeleteParams::default()).await.map(drop)), None);
    tokio::time::timeout(DEADLINE, proxy.first_refusal()).await.unwrap();
    assert_eq!((proxy.mutations(), proxy.refused()), (2, 2));
    assert_eq!(names(&proxied).await, ["before", "one", "two"]);
    // Past the proxy everything works.
    create(&direct, "four").await.unwrap();

    proxy.clear();
    create(&proxied, "five").await.unwrap();
    drop(plane);
}

#[tokio::test]
async fn a_rule_answers_with_a_status_as_often_as_it_says() {
    let Setup { proxy, direct, proxied, plane: _plane } = setup().await;
    let posts = |request: &SeenRequest| request.method == http::Method::POST;
    for status in [409, 500, 503] {
        proxy.fail_times(1, posts, Fault::status(status));
        assert_eq!(code(create(&proxied, "map").await), Some(status));
    }
    proxy.fail_times(1, posts, Fault::too_many_requests(Duration::from_secs(2)));
    let error = create(&proxied, "map").await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(status.details.unwrap().retry_after_seconds, 2);

    assert!(names(&direct).await.is_empty());
    create(&proxied, "map").await.unwrap();

    proxy.fail(|request| request.path.ends_with("/configmaps/map"), Fault::status(503));
    assert_eq!(code(proxied.get("map").await.map(drop)), Some(503));
    assert_eq!(code(proxied.get("map").await.map(drop)), Some(503));
    assert_eq!(names(&proxied).await, ["map"]);
}

#[tokio::test]
async fn a_request_can_hang_be_cut_off_or_lose_its_answer() {
    let Setup { proxy, direct, proxied, plane: _plane } = setup().await;
    proxy.fail_times(1, |request| request.mutating, Fault::Hang);
    let hanging = tokio::time::timeout(Duration::from_millis(500), create(&proxied, "one"));
    assert!(hanging.await.is_err());
    proxy.fail_times(1, |request| request.mutating, Fault::Close);
    assert_eq!(code(create(&proxied, "two").await), None);
    proxy.fail_times(1, |request| request.mutating, Fault::LoseAnswer);
    assert_eq!(code(create(&proxied, "three").await), None);
    assert_eq!(names(&direct).await, ["three"]);
    proxy.fail_times(1, |request| request.mutating, Fault::Hang);
    let ended = async {
        while proxy.unmet() > 0 {
            tokio::task::yield_now().await;
        }
        proxy.end_hanging();
    };
    let (answer, ()) = tokio::join!(create(&proxied, "four"), ended);
    assert_eq!(code(answer), None);
}

#[tokio::test]
async fn watches_stream_through_and_can_be_cut() {
    let Setup { proxy, direct, proxied, plane: _plane } = setup().await;
    let params = WatchParams::default().disable_bookmarks();
    let watch = || async { proxied.watch(&params, "0").await.unwrap().boxed() };
    let mut events = watch().await;
    for name in ["one", "two"] {
        create(&direct, name).await.unwrap();
        let event = tokio::time::timeout(DEADLINE, events.try_next()).await.unwrap().unwrap();
        let Some(WatchEvent::Added(map)) = event else { panic!("{event:?}") };
        assert_eq!(map.metadata.name.as_deref(), Some(name));
    }
    proxy.cut_watches();
    let end = tokio::time::timeout(DEADLINE, events.next()).await.unwrap();
    assert!(matches!(end, None | Some(Err(_))), "{end:?}");

    // A new one is served.
    let event = tokio::time::timeout(DEADLINE, watch().await.next()).await.unwrap();
    assert!(matches!(event, Some(Ok(WatchEvent::Added(_)))), "{event:?}");
}

#[tokio::test]
async fn the_log_tells_what_was_asked() {
    let Setup { proxy, proxied, plane, .. } = setup().await;
    names(&proxied).await;
    create(&proxied, "one").await.unwrap();
    let seen: Vec<_> = proxy
        .requests()
        .into_iter()
        .map(|request| (request.method.to_string(), request.path, request.mutating))
        .collect();
    let path = "/api/v1/namespaces/default/configmaps".to_owned();
    assert_eq!(seen, [("GET".to_owned(), path.clone(), false), ("POST".to_owned(), path, true)]);
    proxy.reset_log();
    assert!(proxy.requests().is_empty());

    // The server's own outage looks like one from behind the proxy, and ends like one.
    plane.stop_api_server().await.unwrap();
    assert_eq!(code(create(&proxied, "two").await), None);
    plane.start_api_server().await.unwrap();
    create(&proxied, "three").await.unwrap();
}
