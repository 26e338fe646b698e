//! The stand-in for kube-state-metrics, beside the real one where `KSM_BINARY` names it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use devcluster::kube_state_metrics::{self, Cut, Faults};
use devcluster::probe::{free_address, http_get};
use devcluster::{ControlPlane, Level, Process, eventually};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_mins(2);
const RESOURCES: &str = "--resources=configmaps,namespaces,nodes,pods,secrets";

/// The API server makes ConfigMaps of its own elsewhere.
const MAPS: &str = "kube_configmap_info{namespace=\"default\"";

/// A process, and where it serves.
struct Served {
    process: Process,
    metrics: String,
    telemetry: String,
    faults: PathBuf,
}

impl Served {
    async fn start(
        plane: &ControlPlane,
        program: &Path,
        shard: (u32, u32),
        faults: &Faults,
    ) -> Self {
        let (metrics, telemetry) = (free_address().await.unwrap(), free_address().await.unwrap());
        let name = metrics.replace(':', "-");
        let path = plane.dir().join(format!("{name}.json"));
        faults.write(&path).unwrap();
        let port = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
        let mut args = vec![
            format!("--kubeconfig={}", plane.kubeconfig().display()),
            "--host=127.0.0.1".to_owned(),
            format!("--port={}", port(&metrics)),
            "--telemetry-host=127.0.0.1".to_owned(),
            format!("--telemetry-port={}", port(&telemetry)),
            format!("--shard={}", shard.0),
            format!("--total-shards={}", shard.1),
            RESOURCES.to_owned(),
        ];
        if *faults != Faults::default() || Some(program) != kube_state_metrics::real().as_deref() {
            args.push(format!("--faults={}", path.display()));
        }
        let log = plane.dir().join(format!("ksm-{name}.log"));
        let process = Process::spawn(&name, program, args, [("", ""); 0], &log).unwrap();
        let served = Self { process, metrics, telemetry, faults: path };
        eventually("it serves", DEADLINE, || async {
            http_get(&served.telemetry, "/readyz").await.ok().filter(|answer| answer.0 == 200)
        })
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", served.process.log_tail(20)));
        served
    }

    async fn stand_in(plane: &ControlPlane, shard: (u32, u32), faults: &Faults) -> Self {
        Self::start(plane, &kube_state_metrics::stand_in().unwrap(), shard, faults).await
    }

    async fn text(&self) -> String {
        let (code, text) = http_get(&self.metrics, "/metrics").await.unwrap();
        assert_eq!(code, 200);
        text
    }

    /// The value of each series.
    async fn series(&self) -> BTreeMap<String, String> {
        series(&self.text().await)
    }

    /// How many series begin so.
    async fn count(&self, family: &str) -> usize {
        self.series().await.keys().filter(|series| series.starts_with(family)).count()
    }

    async fn until_count(&self, family: &str, wanted: usize) {
        let what = format!("{wanted} of {family}");
        let found = eventually(&what, DEADLINE, || async {
            (self.count(family).await == wanted).then_some(())
        });
        if let Err(error) = found.await {
            panic!("{error}: {} are there", self.count(family).await);
        }
    }

    fn set(&self, faults: &Faults) {
        faults.write(&self.faults).unwrap();
    }
}

fn series(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect()
}

/// A cluster with something of each kind, and with what is hard to write.
async fn plane() -> ControlPlane {
    let plane = ControlPlane::start(Level::ApiServer).await.unwrap();
    plane.add_nodes(0..40).await.unwrap();
    let params = PostParams::default();
    let maps: Api<ConfigMap> = Api::default_namespaced(plane.admin());
    for n in 0..20 {
        let map = json!({ "metadata": { "name": format!("map-{n}") }, "data": { "a": "b" } });
        maps.create(&params, &serde_json::from_value(map).unwrap()).await.unwrap();
    }
    let secrets: Api<Secret> = Api::default_namespaced(plane.admin());
    let secret = json!({ "metadata": { "name": "secret" } });
    secrets.create(&params, &serde_json::from_value(secret).unwrap()).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::default_namespaced(plane.admin());
    let account = json!({ "metadata": { "name": "default" } });
    accounts.create(&params, &serde_json::from_value(account).unwrap()).await.unwrap();
    let owner = maps.get("map-0").await.unwrap().uid();
    let pods: Api<Pod> = Api::default_namespaced(plane.admin());
    let owners = |name: &str, controller: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": owner, "controller": controller });
    for (name, owners) in [
        ("alone", json!([])),
        ("owned", json!([owners("map-0", json!(true)), owners("map-1", Value::Null)])),
    ] {
        let pod = json!({
            "metadata": { "name": name, "ownerReferences": owners },
            "spec": { "containers": [{ "name": "main", "image": "none" }], "hostNetwork": true },
        });
        pods.create(&params, &serde_json::from_value(pod).unwrap()).await.unwrap();
    }
    let status = json!({ "status": {
        "phase": "Running", "podIP": "127.1.2.3", "hostIP": "127.1.2.1",
        "conditions": [{ "type": "Ready", "status": "Unknown" }],
    }});
    let patch = Patch::Strategic(status);
    pods.patch_status("owned", &PatchParams::default(), &patch).await.unwrap();
    let nodes: Api<Node> = Api::all(plane.admin());
    let spec = json!({ "spec": { "unschedulable": true, "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"] } });
    nodes.patch("node-1", &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    let status = json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }, { "type": "Hostname", "address": "n" }],
        "nodeInfo": {
            "kernelVersion": "6.1 \"odd\\one\"", "osImage": "two\nlines", "kubeletVersion": "v1",
            "containerRuntimeVersion": "none", "systemUUID": "u", "machineID": "", "bootID": "",
            "architecture": "amd64", "operatingSystem": "linux", "kubeProxyVersion": "",
        },
    }});
    let patch = Patch::Merge(status);
    nodes.patch_status("node-1", &PatchParams::default(), &patch).await.unwrap();
    plane
}

#[tokio::test]
async fn shards_serve_every_object_once_and_follow_changes() {
    let plane = plane().await;
    let whole = Served::stand_in(&plane, (0, 1), &Faults::default()).await;
    whole.until_count(MAPS, 20).await;
    whole.until_count("kube_node_info{", 40).await;
    let mut shards = Vec::new();
    for shard in 0..3 {
        shards.push(Served::stand_in(&plane, (shard, 3), &Faults::default()).await);
    }
    eventually("the shards serve what one alone does, and nothing twice", DEADLINE, || async {
        let mut all = Vec::new();
        for shard in &shards {
            all.extend(shard.series().await.into_keys());
        }
        all.sort_unstable();
        let whole: Vec<String> = whole.series().await.into_keys().collect();
        (all == whole).then_some(())
    })
    .await
    .unwrap();

    let nodes: Api<Node> = Api::all(plane.admin());
    nodes.delete("node-0", &DeleteParams::default()).await.unwrap();
    plane.add_nodes(100..102).await.unwrap();
    whole.until_count("kube_node_info{", 41).await;
    let (_, some) = http_get(&whole.metrics, "/metrics?resources=nodes").await.unwrap();
    assert!(some.contains("kube_node_info{") && !some.contains(MAPS));
    let (_, text) = http_get(&shards[2].telemetry, "/metrics").await.unwrap();
    assert!(text.contains("\nkube_state_metrics_shard_ordinal{shard_ordinal=\"2\"} 2\n"), "{text}");
    assert!(text.contains("\nkube_state_metrics_total_shards 3\n"), "{text}");
    assert!(!text.contains("list_total"), "{text}");
}

#[tokio::test]
async fn it_is_ready_before_it_serves_anything() {
    let plane = plane().await;
    let late = BTreeMap::from([("nodes".to_owned(), 3_600_000)]);
    let faults = Faults { late, ..Faults::default() };
    let served = Served::stand_in(&plane, (0, 1), &faults).await;
    served.until_count(MAPS, 20).await;
    assert_eq!(served.count("kube_node_info{").await, 0);
    assert_eq!(http_get(&served.telemetry, "/readyz").await.unwrap().0, 200);
    served.set(&Faults::default());
    served.until_count("kube_node_info{", 40).await;
}

#[tokio::test]
async fn each_fault_comes_and_goes_when_it_is_told() {
    let plane = plane().await;
    let mut served = Served::stand_in(&plane, (0, 1), &Faults::default()).await;
    served.until_count("kube_node_info{", 40).await;
    let nodes = |n: usize| BTreeMap::from([("nodes".to_owned(), n)]);
    let millis = BTreeMap::from([("nodes".to_owned(), 3_600_000)]);
    let third = expected_of_shard(&plane, (1, 3)).await;
    assert!((1..40).contains(&third));

    for (faults, count) in [
        (Faults { ghosts: vec!["ghost".to_owned()], ..Faults::default() }, 41),
        (Faults { truncated: nodes(13), ..Faults::default() }, 13),
        (Faults { emptied: millis, ..Faults::default() }, 0),
        (Faults { shard: Some(1), total_shards: Some(3), ..Faults::default() }, third),
    ] {
        served.set(&faults);
        served.until_count("kube_node_info{", count).await;
        served.set(&Faults::default());
        served.until_count("kube_node_info{", 40).await;
    }

    served.set(&Faults { cut: Some(Cut::Tail), ..Faults::default() });
    eventually("the tail is missing", DEADLINE, || async {
        (!served.text().await.contains("kube_secret_info")).then_some(())
    })
    .await
    .unwrap();
    assert!(served.text().await.ends_with('\n'));
    served.set(&Faults { cut: Some(Cut::Connection), ..Faults::default() });
    eventually("the connection breaks", DEADLINE, || async {
        let text = http_get(&served.metrics, "/metrics").await.ok().map(|answer| answer.1);
        text.is_none_or(|text| !text.ends_with('\n')).then_some(())
    })
    .await
    .unwrap();
    served.set(&Faults { hang: true, ..Faults::default() });
    eventually("no answer comes", DEADLINE, || async {
        let answer = http_get(&served.metrics, "/healthz");
        tokio::time::timeout(Duration::from_millis(500), answer).await.is_err().then_some(())
    })
    .await
    .unwrap();
    served.set(&Faults { slow: 700, ..Faults::default() });
    eventually("answers come late", DEADLINE, || async {
        let start = std::time::Instant::now();
        served.text().await;
        (start.elapsed() > Duration::from_millis(700)).then_some(())
    })
    .await
    .unwrap();
    served.set(&Faults { crash: true, ..Faults::default() });
    assert_eq!(served.process.wait().await.unwrap().code(), Some(1));
}

/// How many nodes a shard has, by one that was told so from the start.
async fn expected_of_shard(plane: &ControlPlane, shard: (u32, u32)) -> usize {
    let served = Served::stand_in(plane, shard, &Faults::default()).await;
    eventually("the shard serves its nodes", DEADLINE, || async {
        let count = served.count("kube_node_info{").await;
        // A store is filled within microseconds of its first object.
        tokio::time::sleep(Duration::from_millis(200)).await;
        (count > 0 && served.count("kube_node_info{").await == count).then_some(count)
    })
    .await
    .unwrap()
}

/// Names of the families that have a header in `text`.
fn families(text: &str) -> BTreeSet<&str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next()).collect()
}

/// The lines about these families, headers included, in order.
fn lines_of<'t>(text: &'t str, wanted: &BTreeSet<&str>) -> Vec<&'t str> {
    let name = |line: &'t str| {
        let line = line.strip_prefix("# HELP ").or(line.strip_prefix("# TYPE ")).unwrap_or(line);
        line.split([' ', '{']).next().unwrap_or_default()
    };
    let mut lines: Vec<_> = text.lines().filter(|line| wanted.contains(name(line))).collect();
    lines.sort_unstable();
    lines
}

/// The type of the answer to whoever accepts so, and whether it ends with an end.
async fn form(address: &str, accept: &str) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.0\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let headers = answer.split("\r\n\r\n").next().unwrap().lines();
    let kind = headers.map(str::to_lowercase).find(|line| line.starts_with("content-type"));
    (kind.unwrap(), answer.ends_with("\n# EOF\n"))
}

#[tokio::test]
#[ignore = "needs KSM_BINARY, the path of a real kube-state-metrics"]
async fn the_stand_in_serves_byte_for_byte_what_the_real_one_does() {
    let real = kube_state_metrics::real().expect("KSM_BINARY names a kube-state-metrics");
    let plane = plane().await;
    for shard in [(0, 1), (0, 3), (1, 3), (2, 3)] {
        let real = Served::start(&plane, &real, shard, &Faults::default()).await;
        let stand_in = Served::stand_in(&plane, shard, &Faults::default()).await;
        let same = eventually("both serve the same", DEADLINE, || async {
            let (one, other) = (real.text().await, stand_in.text().await);
            let served = families(&other);
            // A shard may have no Secret and no Pod.
            let is_synced = other.contains(MAPS) && served.contains("kube_node_info");
            (is_synced && lines_of(&one, &served) == lines_of(&other, &served)).then_some(())
        });
        if same.await.is_err() {
            let (one, other) = (real.text().await, stand_in.text().await);
            let served = families(&other);
            assert_eq!(lines_of(&one, &served), lines_of(&other, &served), "shard {shard:?}");
        }
        for accept in [
            "*/*",
            // Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        ] {
            assert_eq!(
                form(&real.metrics, accept).await,
                form(&stand_in.metrics, accept).await,
                "{accept}"
            );
        }
        for path in ["/metrics", "/readyz", "/healthz", "/livez", "/", "/none"] {
            for (one, other) in
                [(&real.metrics, &stand_in.metrics), (&real.telemetry, &stand_in.telemetry)]
            {
                let codes =
                    (http_get(one, path).await.unwrap().0, http_get(other, path).await.unwrap().0);
                assert_eq!(codes.0, codes.1, "{path} of {one} and {other}");
            }
        }
        let (_, one) = http_get(&real.telemetry, "/metrics").await.unwrap();
        let (_, other) = http_get(&stand_in.telemetry, "/metrics").await.unwrap();
        let served = families(&other);
        assert_eq!(served.len(), 3, "{other}");
        assert_eq!(lines_of(&one, &served), lines_of(&other, &served));
        assert_eq!(one.contains("list_total{"), other.contains("list_total{"));
    }
}
