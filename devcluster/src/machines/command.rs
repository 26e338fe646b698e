//! The command line and the environment of a pod's process.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};
use kube::ResourceExt as _;

/// Names and values, in the order in which they were defined.
pub(super) type Environment = Vec<(String, String)>;

/// The container's environment behind what every container gets. A value that comes from
/// elsewhere than the pod is an error.
pub(super) fn environment(
    pod: &Pod,
    container: &Container,
    own: Environment,
    ip: &str,
    host_ip: &str,
) -> Result<Environment> {
    let mut environment = own;
    for variable in container.env.iter().flatten() {
        let value = value(variable, pod, &environment, ip, host_ip)
            .with_context(|| format!("environment variable {}", variable.name))?;
        environment.push((variable.name.clone(), value));
    }
    Ok(environment)
}

/// `args` with references to variables resolved, and with every address of this machine as the
/// pod's own.
pub(super) fn arguments<'a>(
    args: impl IntoIterator<Item = &'a String>,
    environment: &Environment,
    ip: &str,
) -> Vec<String> {
    let resolve =
        |arg: &String| expand(arg, environment).replace("0.0.0.0", ip).replace("[::]", ip);
    args.into_iter().map(resolve).collect()
}

fn value(
    variable: &EnvVar,
    pod: &Pod,
    defined: &Environment,
    ip: &str,
    host_ip: &str,
) -> Result<String> {
    let Some(source) = &variable.value_from else {
        return Ok(expand(variable.value.as_deref().unwrap_or_default(), defined));
    };
    let Some(field) = &source.field_ref else {
        bail!("only values and fieldRefs are supported");
    };
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    Ok(match field.field_path.as_str() {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.podIP" | "status.podIPs" => ip.to_owned(),
        "status.hostIP" | "status.hostIPs" => host_ip.to_owned(),
        path => {
            let entry = |prefix| path.strip_prefix(prefix)?.strip_suffix("']");
            match (entry("metadata.labels['"), entry("metadata.annotations['")) {
                (Some(key), _) => pod.labels().get(key).cloned().unwrap_or_default(),
                (_, Some(key)) => pod.annotations().get(key).cloned().unwrap_or_default(),
                _ => bail!("the downward API has no field {path}"),
            }
        }
    })
}

/// Replaces `$(NAME)` where the name is defined, and `$$` by `$`, as Kubernetes does.
fn expand(text: &str, environment: &Environment) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        rest = if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            after
        } else if let Some((name, after)) = reference {
            match environment.iter().rfind(|(known, _)| known == name) {
                Some((_, value)) => expanded.push_str(value),
                None => expanded.extend(["$(", name, ")"]),
            }
            after
        } else {
            expanded.push('$');
            after
        };
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "one", "namespace": "work", "uid": "u",
                "labels": { "a.b/c": "label" }, "annotations": { "note": "annotation" },
            },
            "spec": {
                "nodeName": "machine-0",
                "serviceAccountName": "robot",
                "containers": [{
                    "name": "main",
                    "args": ["--host=0.0.0.0", "--pod=$(POD)", "--cost=$$(POD)", "--x=$(NONE)", "$("],
                    "env": [
                        { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                        { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                        { "name": "L", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['a.b/c']" } } },
                        { "name": "BOTH", "value": "$(POD) on $(HOST) at $(IP)" },
                    ],
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_downward_api_and_references_are_resolved_as_kubernetes_does() {
        let pod = pod();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let own = vec![("HOST".to_owned(), "machine".to_owned())];
        let environment = environment(&pod, container, own, "127.1.2.3", "127.1.2.1").unwrap();
        let values: Vec<_> = environment.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["machine", "one", "127.1.2.3", "label", "one on machine at 127.1.2.3"]);
        let args = arguments(container.args.iter().flatten(), &environment, "127.1.2.3");
        let wanted = ["--host=127.1.2.3", "--pod=one", "--cost=$(POD)", "--x=$(NONE)", "$("];
        assert_eq!(args, wanted);
    }

    #[test]
    fn a_value_from_elsewhere_than_the_pod_is_an_error_that_names_the_variable() {
        let mut pod = pod();
        let source =
            json!({ "name": "S", "valueFrom": { "secretKeyRef": { "key": "k", "name": "s" } } });
        let container = &mut pod.spec.as_mut().unwrap().containers[0];
        container.env.as_mut().unwrap().push(serde_json::from_value(source).unwrap());
        let container = container.clone();
        let error = environment(&pod, &container, vec![], "", "").unwrap_err();
        assert!(format!("{error:#}").starts_with("environment variable S: only "), "{error:#}");
    }
}
