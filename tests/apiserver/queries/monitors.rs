//! The shipped monitors as `scrape_configs`: what prometheus-operator makes of them.

use crate::shipped::monitors;
use serde_json::{Map, Value, json};
use std::path::Path;

/// For replicas of the operator at these addresses, and for the pods in a file that
/// [`Prometheus::with`](devcluster::Prometheus::with) names.
pub fn scrape_configs(operators: &[&str], pods: &Path) -> Vec<Value> {
    let [service, service_monitor, pod_monitor] = monitors();
    let pods = json!({"file_sd_configs": [{"files": [pods]}]});
    let port = &service["spec"]["ports"][0]["name"];
    let mut labels = json!({
        "__meta_kubernetes_namespace": service["metadata"]["namespace"],
        "__meta_kubernetes_service_name": service["metadata"]["name"],
        "__meta_kubernetes_endpoint_port_name": port,
    });
    for (name, value) in service["metadata"]["labels"].as_object().expect("labels") {
        labels[label("service", name)] = value.clone();
        labels[present("service", name)] = json!("true");
    }
    let operators = json!({"static_configs": [{"targets": operators, "labels": labels}]});
    let of_service = service_monitor["spec"]["endpoints"].as_array().expect("endpoints");
    let of_pods = pod_monitor["spec"]["podMetricsEndpoints"].as_array().expect("endpoints");
    let services = of_service.iter().map(|it| scrape("service", &service_monitor, it, &operators));
    services.chain(of_pods.iter().map(|it| scrape("pod", &pod_monitor, it, &pods))).collect()
}

/// One endpoint of a monitor, of what is discovered by `discovery`.
fn scrape(role: &str, monitor: &Value, endpoint: &Value, discovery: &Value) -> Value {
    let (spec, port) = (&monitor["spec"], &endpoint["port"]);
    let port_name = match role {
        "pod" => "__meta_kubernetes_pod_container_port_name",
        _ => "__meta_kubernetes_endpoint_port_name",
    };
    let mut relabelings = selected(role, &spec["selector"]);
    relabelings.push(json!({"source_labels": [port_name], "regex": port, "action": "keep"}));
    let namespace = &monitor["metadata"]["namespace"];
    if spec["namespaceSelector"]["any"] != true {
        let source = ["__meta_kubernetes_namespace"];
        relabelings.push(json!({"source_labels": source, "regex": namespace, "action": "keep"}));
    }
    for (source, target) in [
        ("__meta_kubernetes_namespace", "namespace"),
        ("__meta_kubernetes_service_name", "service"),
        ("__meta_kubernetes_pod_name", "pod"),
        ("__meta_kubernetes_pod_container_name", "container"),
        (port_name, "endpoint"),
    ] {
        relabelings.push(json!({"source_labels": [source], "target_label": target}));
    }
    let job = label(role, spec["jobLabel"].as_str().expect("a label"));
    relabelings.push(json!({"source_labels": [job], "regex": "(.+)", "target_label": "job"}));
    let own = endpoint["relabelings"].as_array().into_iter().flatten();
    relabelings.extend(own.map(in_snake_case));
    let mut scrape = json!({
        "job_name": format!("{role}/{}/{port}", monitor["metadata"]["name"]),
        "honor_labels": endpoint["honorLabels"] == true,
        "relabel_configs": relabelings,
    });
    let discovery = discovery.as_object().expect("an object").clone();
    scrape.as_object_mut().expect("an object").extend(discovery);
    scrape
}

/// Keeps what a selector selects.
fn selected(role: &str, selector: &Value) -> Vec<Value> {
    let of_value = |name: &str, regex: &str| {
        let source = [label(role, name), present(role, name)];
        json!({"source_labels": source, "regex": format!("({regex});true"), "action": "keep"})
    };
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels = labels.map(|(name, value)| of_value(name, value.as_str().expect("text")));
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    let expressions = expressions.map(|expression| {
        let name = expression["key"].as_str().expect("a key");
        let values = expression["values"].as_array().into_iter().flatten();
        let values: Vec<_> = values.map(|value| value.as_str().expect("text")).collect();
        match expression["operator"].as_str() {
            Some("In") => of_value(name, &values.join("|")),
            Some("Exists") => of_value(name, ".*"),
            other => panic!("the operator {other:?}"),
        }
    });
    labels.chain(expressions).collect()
}

fn label(role: &str, name: &str) -> String {
    let sanitized = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!("__meta_kubernetes_{role}_label_{sanitized}")
}

fn present(role: &str, name: &str) -> String {
    label(role, name).replacen("_label_", "_labelpresent_", 1)
}

/// A relabeling as Prometheus spells it.
fn in_snake_case(relabeling: &Value) -> Value {
    let spelled = |name: &String| match name.as_str() {
        "sourceLabels" => "source_labels".to_owned(),
        "targetLabel" => "target_label".to_owned(),
        _ => name.clone(),
    };
    let fields = relabeling.as_object().expect("an object").iter();
    Value::Object(fields.map(|(name, value)| (spelled(name), value.clone())).collect::<Map<_, _>>())
}
