//! Discovery of pods, as Prometheus' own `kubernetes_sd_configs` with `role: pod` does it: Debian
//! builds Prometheus without that. The targets go into a file, which Prometheus watches.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

/// Keeps the file as the API server has the pods, for ever.
pub(super) async fn follow(client: Client, file: PathBuf) {
    let events = watcher(Api::<Pod>::all(client), watcher::Config::default()).default_backoff();
    pin_mut!(events);
    let mut pods = HashMap::new();
    let mut listing = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                pods.clear();
                listing = true;
            }
            Ok(Event::InitDone) => listing = false,
            Ok(Event::InitApply(pod) | Event::Apply(pod)) => {
                pods.insert(pod.uid().unwrap_or_default(), targets(&pod));
            }
            Ok(Event::Delete(pod)) => drop(pods.remove(&pod.uid().unwrap_or_default())),
            // Errors are retried by the stream itself.
            Err(_) => {}
        }
        if !listing {
            // A disk that is full shows in the tests as targets that are missing.
            let _ = write(&file, pods.values().flatten());
        }
    }
}

fn write<'a>(file: &Path, targets: impl Iterator<Item = &'a Value>) -> Result<()> {
    let partial = file.with_extension("partial");
    fs::write(&partial, serde_json::to_vec(&targets.collect::<Vec<_>>())?)?;
    Ok(fs::rename(partial, file)?)
}

/// One for each port of each container, as soon as the pod has an address.
fn targets(pod: &Pod) -> Vec<Value> {
    let Some(ip) = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()) else {
        return vec![];
    };
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers
        .flat_map(|container| container.ports.iter().flatten().map(move |port| (container, port)));
    let target = |(container, port): (&Container, &ContainerPort)| {
        json!({
            "targets": [format!("{ip}:{}", port.container_port)],
            "labels": labels(pod, container, port),
        })
    };
    ports.map(target).collect()
}

fn labels(pod: &Pod, container: &Container, port: &ContainerPort) -> BTreeMap<String, String> {
    let status = pod.status.as_ref();
    let meta = |name: &str| format!("__meta_kubernetes_{name}");
    let mut labels = BTreeMap::from([
        (meta("namespace"), pod.namespace().unwrap_or_default()),
        (meta("pod_name"), pod.name_any()),
        (meta("pod_uid"), pod.uid().unwrap_or_default()),
        (meta("pod_ip"), status.and_then(|it| it.pod_ip.clone()).unwrap_or_default()),
        (meta("pod_phase"), status.and_then(|it| it.phase.clone()).unwrap_or_default()),
        (meta("pod_container_name"), container.name.clone()),
        (meta("pod_container_port_name"), port.name.clone().unwrap_or_default()),
        (meta("pod_container_port_number"), port.container_port.to_string()),
    ]);
    for (name, value) in pod.labels() {
        let sanitized = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        labels.insert(meta(&format!("pod_label_{sanitized}")), value.clone());
        labels.insert(meta(&format!("pod_labelpresent_{sanitized}")), "true".to_owned());
    }
    labels
}
