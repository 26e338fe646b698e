//! The rules, alerts and the dashboard for Prometheus (O6): that they are as generated, ask only for
//! what is exported, and do what they say.

#![allow(clippy::panic, reason = "a helper of tests reports as a test does")]

#[path = "prometheus/exported.rs"]
mod exported;
#[path = "prometheus/shipped.rs"]
mod shipped;

use exported::exported;
use ksm_scale_operator::names::{LABEL_SCALE, LABEL_SHARD_ID};
use regex::Regex;
use serde_json::Value;
use shipped::{
    ALERTS, DASHBOARD, DEDUPLICATION, expressions, families, file, monitors, read, rules,
    selectors, write_rules,
};
use std::{collections::BTreeSet, fmt::Write, fs, path::Path, process::Command, sync::LazyLock};

/// What others export and we ask for.
const FOREIGN: [&str; 5] = [
    "up",
    "scrape_samples_scraped",
    "apiserver_admission_webhook_rejection_count",
    "kube_state_metrics_list_total",
    "kube_state_metrics_watch_total",
];

/// Labels that the monitors give to what is scraped.
const OF_THE_SCRAPE: [&str; 4] = ["job", "instance", "ksmscale", "shard"];

/// A series for every object, whichever pods expose it. What is taken away is what the monitor
/// adds; what remains are the labels of kube-state-metrics.
fn deduplication() -> String {
    let mut text = String::from(
        "# Generated from families.txt: UPDATE=1 cargo test --test prometheus\n\
         apiVersion: monitoring.coreos.com/v1\n\
         kind: PrometheusRule\n\
         metadata:\n\
         \x20 name: kube-state-metrics-deduplication\n\
         \x20 namespace: monitoring\n\
         \x20 labels:\n\
         \x20   app.kubernetes.io/part-of: ksm-scale-operator\n\
         spec:\n\
         \x20 groups:\n",
    );
    let mut last = "";
    let families = families();
    for family in &families {
        let resource = family.split('_').nth(1).expect("kube_<resource>_…");
        // Groups are evaluated side by side.
        if resource != last {
            let _ = write!(text, "    - name: kube-state-metrics.{resource}\n      rules:\n");
            last = resource;
        }
        let _ = write!(
            text,
            "        - record: cluster:{family}:max\n          \
             expr: max without (instance, shard, ksmscale) ({family}{{ksmscale!=\"\"}})\n"
        );
    }
    text
}

#[test]
fn o6_every_family_is_deduplicated_by_a_rule_as_generated() {
    let families = families();
    assert!(families.is_sorted() && families.len() > 300, "{} families", families.len());
    let generated = deduplication();
    #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
    if std::env::var("UPDATE").is_ok() {
        fs::write(file(DEDUPLICATION), &generated).expect("the file can be written");
    }
    assert!(read(DEDUPLICATION) == generated, "{DEDUPLICATION}: run `make update`");
}

#[test]
fn o6_the_monitors_name_labels_and_ports_that_are_there() {
    let [service, operator, pods] = monitors();
    let deployment: Value =
        serde_saphyr::from_str(&read("deploy/base/deployment.yaml")).expect("YAML");
    let pod = &deployment["spec"]["template"];
    let ports = &pod["spec"]["containers"][0]["ports"];
    let names: Vec<_> = ports.as_array().expect("ports").iter().map(|port| &port["name"]).collect();
    for (label, value) in service["spec"]["selector"].as_object().expect("a selector") {
        assert_eq!(&pod["metadata"]["labels"][label], value);
    }
    assert!(names.contains(&&service["spec"]["ports"][0]["targetPort"]));
    assert_eq!(operator["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]);
    assert_eq!(operator["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    let endpoints = pods["spec"]["podMetricsEndpoints"].as_array().expect("endpoints");
    assert_eq!(endpoints[0]["honorLabels"], true, "labels are those of the objects");
    for (endpoint, port) in endpoints.iter().zip(["http-metrics", "telemetry"]) {
        assert_eq!(endpoint["port"], port);
        let relabelings = endpoint["relabelings"].as_array().expect("relabelings");
        for (label, target) in [(LABEL_SHARD_ID, "shard"), (LABEL_SCALE, "ksmscale")] {
            let source = label.replace(['-', '.', '/'], "_");
            let source = format!("__meta_kubernetes_pod_label_{source}");
            let wanted = |r: &Value| r["sourceLabels"][0] == source && r["targetLabel"] == target;
            assert!(relabelings.iter().any(wanted), "{port}: no {target} from {source}");
        }
    }
}

/// The samples of `/metrics`: names, and labels as they stand there.
fn samples(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = lines.filter_map(|line| line.rsplit_once(' '));
    sample.map(|(name, _)| name.split_once('{').unwrap_or((name, ""))).collect()
}

/// Whether label matchers select a sample with these labels.
fn selects(matchers: &str, labels: &str) -> bool {
    static MATCHER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r#"(\w+)\s*(=~|!=|=)\s*"([^"]*)""#).expect("a regex"));
    MATCHER.captures_iter(matchers).all(|matcher| {
        let (label, operator, value) = (&matcher[1], &matcher[2], &matcher[3]);
        let wanted = match operator {
            "=~" => format!("(^|,){label}=\"({value})\""),
            "=" => format!("(^|,){label}=\"{}\"", regex::escape(value)),
            _ => String::new(),
        };
        OF_THE_SCRAPE.contains(&label) || Regex::new(&wanted).expect("a regex").is_match(labels)
    })
}

#[test]
fn o6_o7_rules_alerts_and_dashboard_ask_only_for_what_is_exported() {
    let exported = exported();
    // A gauge may have no value before there is something to tell.
    let samples = samples(&exported);
    let ours = |name: &str, matchers: &str| {
        samples.iter().any(|sample| sample.0 == name && selects(matchers, sample.1))
            || exported.contains(&format!("# TYPE {name} gauge"))
    };
    let families = families();
    let recorded: BTreeSet<String> =
        rules(DEDUPLICATION).iter().filter_map(|r| Some(r["record"].as_str()?.into())).collect();
    for path in [ALERTS, DEDUPLICATION, DASHBOARD] {
        for expr in expressions(path) {
            let selectors = selectors(&expr);
            assert!(!selectors.is_empty(), "{path}: {expr}");
            for (name, matchers) in selectors {
                assert!(
                    FOREIGN.contains(&&*name)
                        || recorded.contains(&name)
                        || families.binary_search(&name).is_ok()
                        || ours(&name, &matchers),
                    "{path}: nobody exports {name}{matchers}, in {expr}"
                );
            }
        }
    }
}

#[test]
fn o6_every_alert_has_a_runbook_page_and_unit_tests_that_let_it_fire_and_be_silent() {
    let tests: Value = serde_saphyr::from_str(&read("tests/prometheus/alerts.yaml")).expect("YAML");
    let mut cases = BTreeSet::new();
    for case in tests["tests"].as_array().expect("tests") {
        for alert in case["alert_rule_test"].as_array().into_iter().flatten() {
            let fires = alert["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
            cases.insert((alert["alertname"].as_str().expect("a name").to_owned(), fires));
        }
    }
    let mut pages: BTreeSet<_> = fs::read_dir(file("docs/runbooks"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    pages.remove("README.md");
    for rule in rules(ALERTS) {
        let name = rule["alert"].as_str().expect("an alert");
        let page = format!("{name}.md");
        assert_eq!(rule["annotations"]["runbook"], format!("docs/runbooks/{page}"));
        assert!(pages.remove(&page), "docs/runbooks/{page} is missing");
        let text = read(&format!("docs/runbooks/{page}"));
        assert!(text.starts_with(&format!("# {name}\n")), "{page}");
        for part in ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"] {
            assert!(text.contains(&format!("\n{part}\n")), "{page} has no {part}");
        }
        for fires in [true, false] {
            assert!(cases.contains(&(name.into(), fires)), "no unit test has {name} fire: {fires}");
        }
    }
    assert!(pages.is_empty(), "pages without an alert: {pages:?}");
}

/// Runs promtool on the rules in the form that Prometheus reads.
fn promtool(args: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    write_rules(folder.path());
    for path in [ALERTS, DEDUPLICATION] {
        let name = Path::new(path).file_name().expect("a name");
        fs::copy(file("tests/prometheus").join(name), folder.path().join(name)).expect("copied");
    }
    let programs = devcluster::tools::prometheus().expect("Prometheus");
    let output = Command::new(programs.join("promtool")).args(args).current_dir(&folder).output();
    let output = output.expect("promtool runs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {args:?}\n{text}");
}

#[test]
#[ignore = "needs Prometheus, which make tools fetches: make prometheus"]
fn o6_prometheus_takes_the_rules() {
    promtool(&["check", "rules", "rules-alerts.yaml", "rules-deduplication.yaml"]);
}

#[test]
#[ignore = "needs Prometheus, which make tools fetches: make prometheus"]
fn o6_alerts_and_rules_do_what_their_unit_tests_say() {
    promtool(&["test", "rules", "alerts.yaml", "deduplication.yaml"]);
}
