//! The NetworkPolicies fit the pods they are for (O4).

use k8s_openapi::api::{
    apps::v1::Deployment,
    networking::v1::{NetworkPolicy, NetworkPolicyPort},
};
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString};
use ksm_scale_operator::{
    names::{KUBE_STATE_METRICS, LABEL_NAME, LABEL_SCALE},
    observed::Observed,
    plan::{Change, Settings, plan},
    validate::validate,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path};

fn read<T: DeserializeOwned>(path: &str) -> T {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    serde_saphyr::from_str(&text.expect("a file")).expect("an object")
}

/// The ports that are named in the policy's ingress rules.
fn named_ports(policy: &NetworkPolicy) -> Vec<String> {
    let ingress = policy.spec.as_ref().and_then(|spec| spec.ingress.as_deref()).unwrap_or_default();
    let ports = ingress.iter().flat_map(|rule| rule.ports.iter().flatten());
    let named = ports.filter_map(|NetworkPolicyPort { port, .. }| match port.as_ref()? {
        IntOrString::String(name) => Some(name.clone()),
        IntOrString::Int(_) => None,
    });
    named.collect()
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let exact = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    exact
        && selector.match_expressions.iter().flatten().all(|wanted| {
            let value = labels.get(&wanted.key);
            let values = wanted.values.as_deref().unwrap_or_default();
            value.is_some_and(|value| values.is_empty() || values.contains(value))
        })
}

#[test]
fn o4_the_operators_policy_is_for_its_pods_and_opens_each_of_their_ports() {
    let policy: NetworkPolicy = read("deploy/network-policies/operator.yaml");
    let deployment: Deployment = read("deploy/base/deployment.yaml");
    let pod = deployment.spec.expect("a spec").template;
    let labels = pod.metadata.and_then(|meta| meta.labels).expect("labels");
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.clone());
    assert!(selects(&selector.expect("a selector"), &labels));
    let containers = pod.spec.expect("a spec").containers;
    let ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
    let mut ports: Vec<_> = ports.filter_map(|port| port.name.clone()).collect();
    let mut opened = named_ports(&policy);
    ports.sort_unstable();
    opened.sort_unstable();
    assert_eq!(opened, ports);
}

#[test]
fn o4_the_policy_of_kube_state_metrics_is_for_the_pods_that_the_operator_makes() {
    let policy: NetworkPolicy = read("deploy/network-policies/kube-state-metrics.yaml");
    let scale = validate(&json!({"metadata": {"name": "a", "uid": "b"}, "spec": {}}));
    let seen = Observed { nodes: 4, ..Observed::default() };
    let now = jiff::Timestamp::UNIX_EPOCH;
    let plan = plan(&scale.expect("valid"), &seen, now, &Settings::default());
    let pod = plan.changes.iter().find_map(|change| match change {
        Change::CreatePod(pod, _) => Some(pod),
        _ => None,
    });
    let pod = pod.expect("a pod is made");
    let labels = pod.metadata.labels.as_ref().expect("labels");
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.clone());
    let selector = selector.expect("a selector");
    assert!(selects(&selector, labels));
    let foreign = BTreeMap::from([(LABEL_NAME.to_owned(), KUBE_STATE_METRICS.to_owned())]);
    assert!(!selects(&selector, &foreign), "another kube-state-metrics has no {LABEL_SCALE}");
    let spec = pod.spec.as_ref().expect("a spec");
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let ports: Vec<_> = ports.filter_map(|port| port.name.clone()).collect();
    assert_eq!(named_ports(&policy), ports);
    let operator: NetworkPolicy = read("deploy/network-policies/operator.yaml");
    let egress = operator.spec.and_then(|spec| spec.egress).expect("egress");
    let to_it = egress.iter().filter(|rule| {
        let mut to = rule.to.iter().flatten().filter_map(|peer| peer.pod_selector.as_ref());
        to.any(|selector| selects(selector, labels))
    });
    let opened: Vec<_> = to_it.flat_map(|rule| rule.ports.iter().flatten()).collect();
    assert_eq!(opened.len(), ports.len(), "v2: the operator looks at what they serve");
}
