//! What is shipped for Prometheus and Grafana, on a Prometheus that scrapes a cluster (O6): every
//! query finds what it asks for, and at rest no alert is heard.

mod monitors;

use crate::{
    content::{Site, sound},
    corpus::create,
    kubectl::Terminal,
    policies::scale,
    served::until_judged,
    shipped::{
        ALERTS, DASHBOARD, DEDUPLICATION, expressions, families, read, rules, selectors,
        write_rules,
    },
    support::*,
};
use devcluster::{Prometheus, probe::http_get, prometheus::Series};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use std::{cell::RefCell, collections::BTreeSet, fs, path::Path, time::Duration};

/// What nothing exports on a healthy cluster, as it stands in the queries, and why.
const ABSENT: [(&str, &str); 5] = [
    ("ksm_scale_operator_changes_total{result=\"failure\"}", "the first write that fails makes it"),
    ("ksm_scale_operator_reconcile_errors_total", "the first reconcile that fails makes it"),
    ("kube_state_metrics_list_total{ksmscale!=\"\"}", "newer ones list by watching, as here"),
    ("kube_state_metrics_list_total{ksmscale!=\"\",result=\"error\"}", "likewise"),
    (
        "kube_state_metrics_watch_total{ksmscale!=\"\",result=\"error\"}",
        "the first watch that fails makes it",
    ),
];

/// Replicas that prove what they delete, audit often, and allow what is shipped.
const REPLICA: [&str; 10] = [
    "--lame-duck",
    "0s",
    "--allowed-namespaces",
    "monitoring",
    "--verify-coverage",
    "true",
    "--settle-time",
    "1s",
    "--audit-interval",
    "2s",
];

/// Grafana's `$__rate_interval` for a scrape every 30 s.
const RATE: &str = "2m";

/// The file of rules that are not shipped.
const REST: &str = "rest.yaml";

/// Three shards, each of two pods.
fn spec(nodes_per_monitor: u32) -> Value {
    json!({
        "nodesPerMonitor": nodes_per_monitor,
        "sharding": {"enabled": true, "shardCount": 3, "minReplicasPerShard": 2},
    })
}

#[tokio::test]
async fn o6_every_query_of_dashboard_rules_and_alerts_finds_series_and_no_alert_is_heard_at_rest() {
    let mut site = Site::without_operator(sound).await;
    let webhooks = Webhooks::install(&site.cluster, Duration::ZERO).await;
    eventually("the API server calls nobody", SOON, || async {
        let refused = create(&site.cluster.client, &scale("x", &spec(15))).await.err()?;
        refused.message.contains("failed calling webhook").then_some(())
    })
    .await
    .expect("a call that fails");
    for _ in 0..2 {
        site.operators.push(webhooks.replica(&REPLICA).await.operator);
    }
    until_judged(&site.cluster, &json!({"namespace": "kube-system"})).await;
    // These six pods have rights from their beginning on, which the first of all waits for.
    site.change(json!({})).await;
    site.change(spec(15)).await;

    let prometheus = start(&site).await;
    eventually("everything is scraped", SOON, || async {
        let up = prometheus.query("up == 1").await.ok()?;
        // Two replicas, both ports of six pods, and the API server.
        (up.len() == 2 + 12 + 1).then_some(())
    })
    .await
    .expect("targets that answer");
    let mut terminal = Terminal::new(&site.cluster);
    let apply = "kubectl apply -f -";
    let wrong = scale("x", &json!({"namespace": "kube-system"}));
    assert_eq!(terminal.run(apply, Some(&wrong)).await.0, Some(1));
    assert_eq!(terminal.run(apply, Some(&scale("x", &spec(20)))).await.0, Some(0));
    site.until_settled().await;

    let wrong = RefCell::new(Vec::new());
    let well = eventually("nothing is wrong", SOON, || async {
        *wrong.borrow_mut() = all_wrong(&prometheus).await;
        wrong.borrow().is_empty().then_some(())
    });
    if let Err(error) = well.await {
        panic!("{error}: {:#?}", wrong.borrow());
    }
    let fired = prometheus.query("count_over_time(ALERTS{alertstate=\"firing\"}[10m])").await;
    assert_eq!(fired.expect("an answer"), [], "no alert fired at any time");
}

/// A Prometheus with the shipped rules, which scrapes as the shipped monitors say, and the API server.
async fn start(site: &Site) -> Prometheus {
    let plane = &site.cluster.plane;
    let folder = plane.dir().join("rules");
    fs::create_dir(&folder).expect("a folder");
    write_rules(&folder);
    fs::write(folder.join(REST), rest(site).await.to_string()).expect("written");
    let operators: Vec<_> = site.operators.iter().map(Operator::metrics_address).collect();
    let configuration = |pods: &Path| {
        let mut scrapes = monitors::scrape_configs(&operators, pods);
        scrapes.push(api_server(site));
        json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [folder.join("*.yaml")],
            "scrape_configs": scrapes,
        })
    };
    Prometheus::with(plane, configuration).await.expect("Prometheus")
}

fn api_server(site: &Site) -> Value {
    let plane = &site.cluster.plane;
    let kubeconfig = fs::read_to_string(plane.kubeconfig()).expect("a kubeconfig");
    let kubeconfig: Value = serde_saphyr::from_str(&kubeconfig).expect("YAML");
    let address = plane.server_url();
    json!({
        "job_name": "apiserver",
        "scheme": "https",
        "tls_config": {"ca_file": plane.ca_path()},
        "authorization": {"credentials": kubeconfig["users"][0]["user"]["token"]},
        "static_configs": [{"targets": [address.trim_start_matches("https://")]}],
        // It has very many.
        "metric_relabel_configs": [
            {"source_labels": ["__name__"], "regex": "apiserver_admission_.*", "action": "keep"},
        ],
    })
}

/// A series for each family that is in none of the pods: the stand-in has few. That the real
/// kube-state-metrics has them, families.txt says.
async fn rest(site: &Site) -> Value {
    let pods: Api<Pod> = Api::all(site.cluster.client.clone());
    let mut served = String::new();
    for pod in pods.list(&ListParams::default()).await.expect("pods") {
        let address = pod.status.and_then(|status| status.pod_ip).expect("an address");
        let (_, text) = http_get(&format!("{address}:8080"), "/metrics").await.expect("metrics");
        served += &text;
    }
    let is_served = |family: &str| served.contains(&format!("\n{family}{{"));
    let families = families().into_iter().filter(|family| !is_served(family));
    let rules = families.map(
        |family| json!({"record": family, "expr": "vector(1)", "labels": {"ksmscale": "none"}}),
    );
    json!({"groups": [{"name": "rest", "rules": rules.collect::<Vec<_>>()}]})
}

async fn all_wrong(prometheus: &Prometheus) -> Vec<String> {
    let mut wrong = refused_or_empty(prometheus).await;
    wrong.extend(rules_that_do_nothing(prometheus).await);
    wrong.extend(families_left_twice(prometheus).await);
    wrong.extend(metrics_without_a_word(prometheus).await);
    wrong
}

async fn ask(prometheus: &Prometheus, query: &str) -> Vec<Series> {
    prometheus.query(query).await.unwrap_or_else(|error| panic!("{query}: {error:#}"))
}

/// The metrics that a selector finds.
async fn names(prometheus: &Prometheus, selector: &str) -> BTreeSet<String> {
    let found = ask(prometheus, &format!("group by (__name__) ({selector})")).await;
    let name = |series: &Series| series.labels["__name__"].as_str().expect("a name").to_owned();
    found.iter().map(name).collect()
}

/// Queries that Prometheus does not take, graphs with nothing on them, and selectors that find
/// nothing, or something although they are said not to.
async fn refused_or_empty(prometheus: &Prometheus) -> Vec<String> {
    let (mut wrong, mut asked) = (Vec::new(), BTreeSet::new());
    let is_absent = |selector: &str| ABSENT.iter().any(|(absent, _)| *absent == selector);
    for path in [ALERTS, DEDUPLICATION, DASHBOARD] {
        for expr in expressions(path) {
            let expr = expr.replace("$__rate_interval", RATE);
            assert!(!expr.contains('$'), "another variable of Grafana's: {expr}");
            let selectors = selectors(&expr).into_iter();
            let selectors: Vec<_> = selectors.map(|(name, labels)| name + &labels).collect();
            let may_be_empty = path != DASHBOARD || selectors.iter().any(|s| is_absent(s));
            let shown = |series: &Series| series.values.iter().any(|(_, value)| !value.is_nan());
            match prometheus.query(&expr).await {
                Err(error) => wrong.push(format!("{path}: {expr}: {error:#}")),
                Ok(found) if may_be_empty || found.iter().any(shown) => {}
                Ok(_) => wrong.push(format!("{path}: {expr} shows nothing")),
            }
            asked.extend(selectors);
        }
    }
    for selector in &asked {
        let found = !ask(prometheus, &format!("group({selector})")).await.is_empty();
        // On a busy machine a write may well have failed.
        if !found && !is_absent(selector) {
            wrong.push(format!("{selector} finds nothing"));
        }
    }
    let unasked = ABSENT.iter().filter(|(absent, _)| !asked.contains(*absent));
    wrong.extend(unasked.map(|(absent, _)| format!("nobody asks for {absent}")));
    wrong
}

/// Rules that fail or record nothing, and alerts that are heard.
async fn rules_that_do_nothing(prometheus: &Prometheus) -> Vec<String> {
    let data = prometheus.data("/api/v1/rules").await.expect("rules");
    let groups = data["groups"].as_array().expect("groups").iter();
    let groups = groups.filter(|group| !group["file"].as_str().is_some_and(|f| f.ends_with(REST)));
    let all: Vec<_> = groups.flat_map(|group| group["rules"].as_array().expect("rules")).collect();
    assert_eq!(all.len(), rules(ALERTS).len() + rules(DEDUPLICATION).len());
    let recorded = names(prometheus, "{__name__=~\"cluster:.+\"}").await;
    let wrong = |rule: &&Value| {
        let name = rule["name"].as_str().expect("a name");
        let (health, state) = (&rule["health"], &rule["state"]);
        if health != "ok" {
            Some(format!("{name} is {health}: {}", rule["lastError"]))
        } else if rule["type"] == "recording" {
            (!recorded.contains(name)).then(|| format!("{name} records nothing"))
        } else {
            (state == "firing").then(|| format!("{name} is {state}: {}", rule["alerts"]))
        }
    };
    all.iter().filter_map(wrong).collect()
}

/// Families of the pods without a rule, or with one that leaves something twice. All pods of a
/// shard serve the same.
async fn families_left_twice(prometheus: &Prometheus) -> Vec<String> {
    let (mut wrong, known) = (Vec::new(), families());
    let of_objects =
        "{job=\"kube-state-metrics\",__name__=~\"kube_.+\",__name__!~\"kube_state_.+\"}";
    let served = names(prometheus, of_objects).await;
    assert!(served.len() > 10, "{served:?}");
    for family in served {
        let query = format!("count({family}{{ksmscale=\"x\"}}) == 2 * count(cluster:{family}:max)");
        if known.binary_search(&family).is_err() {
            wrong.push(format!("{family} is not in families.txt"));
        } else if ask(prometheus, &query).await.is_empty() {
            wrong.push(format!("not so: {query}"));
        }
    }
    wrong
}

/// Metrics of the operator that its page does not name.
async fn metrics_without_a_word(prometheus: &Prometheus) -> Vec<String> {
    let page = read("docs/reference/metrics.md");
    let own = "{job=\"ksm-scale-operator\",__name__!~\"up|scrape_.+|ALERTS.*\"}";
    let told = |name: &String| {
        let parts = ["", "_bucket", "_sum", "_count"].into_iter();
        let mut names = parts.filter_map(|part| name.strip_suffix(part));
        names.any(|name| page.contains(&format!("| `{name}` |")))
    };
    let names = names(prometheus, own).await.into_iter().filter(|name| !told(name));
    names.map(|name| format!("{name} is not in docs/reference/metrics.md")).collect()
}
