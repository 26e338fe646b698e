//! What is shipped for Prometheus and Grafana, read: rules, alerts, the dashboard, and what they ask for.

use regex::Regex;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

pub(crate) const ALERTS: &str = "deploy/prometheus/alerts.yaml";
pub(crate) const DEDUPLICATION: &str = "deploy/prometheus/deduplication.yaml";
pub(crate) const DASHBOARD: &str = "deploy/grafana/ksm-scale-operator.json";

pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The families of kube-state-metrics.
pub(crate) fn families() -> Vec<String> {
    let lines = read("deploy/prometheus/families.txt");
    lines.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// The Service, the ServiceMonitor and the PodMonitor.
pub(crate) fn monitors() -> [Value; 3] {
    let text = read("deploy/prometheus/monitors.yaml");
    let objects = text.split("---\n").map(serde_saphyr::from_str::<Value>);
    let objects = objects.collect::<Result<Vec<_>, _>>().expect("YAML");
    objects.try_into().unwrap_or_else(|all: Vec<_>| panic!("{} objects", all.len()))
}

/// The spec of a PrometheusRule, which is what Prometheus itself reads.
pub(crate) fn groups(path: &str) -> Value {
    let rule: Value = serde_saphyr::from_str(&read(path)).expect("YAML");
    rule["spec"].clone()
}

pub(crate) fn rules(path: &str) -> Vec<Value> {
    let groups = groups(path)["groups"].as_array().expect("groups").clone();
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

/// Puts rules and alerts into a folder, in the form that Prometheus reads: `rules-alerts.yaml` and
/// `rules-deduplication.yaml`.
pub(crate) fn write_rules(folder: &Path) {
    for path in [ALERTS, DEDUPLICATION] {
        let name = Path::new(path).file_name().expect("a name").to_str().expect("text");
        // JSON is YAML.
        let rules = serde_json::to_string(&groups(path)).expect("JSON");
        fs::write(folder.join(format!("rules-{name}")), rules).expect("written");
    }
}

/// Every expression of a file.
pub(crate) fn expressions(path: &str) -> Vec<String> {
    let value: Value = serde_saphyr::from_str(&read(path)).expect("YAML or JSON");
    let mut found = Vec::new();
    texts_under("expr", &value, &mut found);
    assert!(found.len() > 10, "{path} has {} expressions", found.len());
    found.into_iter().map(str::to_owned).collect()
}

/// Every text under a key, at any depth.
fn texts_under<'v>(key: &str, value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == key => found.push(text),
                    other => texts_under(key, other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts_under(key, item, found)),
        _ => {}
    }
}

/// The metrics that an expression asks for, with their label matchers.
pub(crate) fn selectors(expr: &str) -> Vec<(String, String)> {
    const KEYWORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];
    static RANGE_OR_GROUPING: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
            .expect("a regex")
    });
    static NAME: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#""[^"]*"|([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\}|\()?"#).expect("a regex")
    });
    // A matcher may hold brackets, as a regex does.
    let expr = in_matchers(expr, '[', '\u{1}');
    let expr = RANGE_OR_GROUPING.replace_all(&expr, "");
    let names = NAME.captures_iter(&expr).filter_map(|found| {
        let name = found.get(1)?.as_str();
        let after = found.get(2).map_or("", |after| after.as_str());
        (after != "(" && !KEYWORDS.contains(&name))
            .then(|| (name.into(), in_matchers(after, '\u{1}', '[')))
    });
    names.collect()
}

/// With one character for another between quotes.
fn in_matchers(expr: &str, from: char, to: char) -> String {
    let mut quoted = false;
    let other = |c: char| {
        quoted ^= c == '"';
        if quoted && c == from { to } else { c }
    };
    expr.chars().map(other).collect()
}
