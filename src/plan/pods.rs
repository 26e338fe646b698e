//! What a pod looks like (R22–R30, R46).

use crate::{
    api::{Quantities, Resources},
    names::{
        ANNOTATION_SAFE_TO_EVICT, KUBE_STATE_METRICS, LABEL_COMPONENT, LABEL_INDEX, LABEL_INSTANCE,
        LABEL_NAME, LABEL_POD_INDEX, LABEL_REVISION, LABEL_SCALE, LABEL_SHARD_ID,
        LABEL_SHARD_REPLICA, LABEL_SHARDING_ENABLED, LABEL_TOTAL_SHARDS,
    },
    observed::ObservedPod,
    plan::scale::Slot,
    validate::{Mode, Scale},
};
use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, Container, ContainerPort, HTTPGetAction, Pod, PodAffinityTerm,
        PodAntiAffinity, PodSecurityContext, PodSpec, Probe, ResourceRequirements, SeccompProfile,
        SecurityContext, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::Resource;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

const METRICS_PORT: i32 = 8080;
const TELEMETRY_PORT: i32 = 8081;

/// A pod as it should be, but for its name.
#[derive(Clone, Debug)]
pub struct Template {
    /// The slot it fills.
    pub slot: Slot,
    /// Hash of everything below.
    pub revision: String,
    pod: Pod,
}

impl Template {
    /// The pod for `slot`.
    #[must_use]
    pub fn new(scale: &Scale, slot: Slot) -> Self {
        let mut pod = Pod {
            metadata: ObjectMeta {
                namespace: Some(scale.namespace.clone()),
                labels: Some(labels(scale, slot)),
                annotations: Some(BTreeMap::from([(
                    ANNOTATION_SAFE_TO_EVICT.to_owned(),
                    "true".to_owned(),
                )])),
                ..Default::default()
            },
            spec: Some(spec(scale, slot)),
            ..Default::default()
        };
        let revision = revision(&pod);
        pod.metadata.owner_references = Some(vec![controller_reference(scale)]);
        if let Some(labels) = &mut pod.metadata.labels {
            labels.insert(LABEL_REVISION.to_owned(), revision.clone());
        }
        Self { slot, revision, pod }
    }

    /// The pod under a name.
    #[must_use]
    pub fn named(&self, name: String) -> Pod {
        let mut pod = self.pod.clone();
        pod.metadata.name = Some(name);
        pod
    }

    /// Whether an observed pod is what this slot should hold: namespace, every label of ours
    /// (the revision among them) and the arguments (R34). Labels that others added don't matter.
    #[must_use]
    pub fn fits(&self, pod: &ObservedPod) -> bool {
        let meta = &self.pod.metadata;
        let ours = meta.labels.iter().flatten();
        meta.namespace.as_deref() == Some(&pod.namespace)
            && ours.into_iter().all(|(key, value)| pod.labels.get(key) == Some(value))
            && self.args() == Some(&pod.args)
    }

    /// The namespace it is for.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.pod.metadata.namespace.as_deref()
    }

    fn args(&self) -> Option<&Vec<String>> {
        self.pod.spec.as_ref()?.containers.first()?.args.as_ref()
    }
}

/// The reference that makes a KSMScale the controller of what it owns alone.
#[must_use]
pub fn controller_reference(scale: &Scale) -> OwnerReference {
    let flag = Some(true);
    OwnerReference { controller: flag, block_owner_deletion: flag, ..owner_reference(scale) }
}

/// The reference for what several KSMScales own together.
#[must_use]
pub fn owner_reference(scale: &Scale) -> OwnerReference {
    use crate::api::KSMScale;
    OwnerReference {
        api_version: KSMScale::api_version(&()).into_owned(),
        kind: KSMScale::kind(&()).into_owned(),
        name: scale.name.clone(),
        uid: scale.uid.clone(),
        ..Default::default()
    }
}

fn labels(scale: &Scale, slot: Slot) -> BTreeMap<String, String> {
    let mut labels = vec![
        (LABEL_NAME, KUBE_STATE_METRICS.to_owned()),
        (LABEL_INSTANCE, scale.name.clone()),
        (LABEL_COMPONENT, "exporter".to_owned()),
        (LABEL_SCALE, scale.name.clone()),
        (LABEL_INDEX, slot.index.to_string()),
    ];
    if let Mode::Sharded(_) = scale.mode {
        labels.extend([
            (LABEL_POD_INDEX, slot.index.to_string()),
            (LABEL_SHARD_ID, slot.shard.to_string()),
            (LABEL_SHARD_REPLICA, slot.replica.to_string()),
            (LABEL_TOTAL_SHARDS, slot.total.to_string()),
            (LABEL_SHARDING_ENABLED, "true".to_owned()),
        ]);
    }
    labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn args(scale: &Scale, slot: Slot) -> Vec<String> {
    let mut args = vec![
        "--host=0.0.0.0".to_owned(),
        format!("--port={METRICS_PORT}"),
        "--telemetry-host=0.0.0.0".to_owned(),
        format!("--telemetry-port={TELEMETRY_PORT}"),
    ];
    if let Mode::Sharded(_) = scale.mode {
        args.extend([format!("--shard={}", slot.shard), format!("--total-shards={}", slot.total)]);
    }
    args
}

fn spec(scale: &Scale, slot: Slot) -> PodSpec {
    let port = |name: &str, container_port| ContainerPort {
        name: Some(name.to_owned()),
        container_port,
        protocol: Some("TCP".to_owned()),
        ..Default::default()
    };
    PodSpec {
        service_account_name: Some(KUBE_STATE_METRICS.to_owned()),
        affinity: spread(scale, slot),
        security_context: Some(PodSecurityContext {
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..Default::default()
        }),
        containers: vec![Container {
            name: KUBE_STATE_METRICS.to_owned(),
            image: Some(scale.image.clone()),
            args: Some(args(scale, slot)),
            ports: Some(vec![
                port("http-metrics", METRICS_PORT),
                port("telemetry", TELEMETRY_PORT),
            ]),
            resources: resources(&scale.resources),
            liveness_probe: Some(probe("/healthz", METRICS_PORT)),
            readiness_probe: Some(if serves_readyz(&scale.image) {
                probe("/readyz", TELEMETRY_PORT)
            } else {
                probe("/", METRICS_PORT)
            }),
            security_context: Some(restricted()),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// R28: what the Pod Security Standard `restricted` asks for, and a read-only root.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(65534),
        ..Default::default()
    }
}

/// R27. Liveness never asks the API server (`/livez` would), or an outage of it would restart
/// every pod at once.
fn probe(path: &str, port: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(port),
            ..Default::default()
        }),
        initial_delay_seconds: Some(5),
        timeout_seconds: Some(5),
        ..Default::default()
    }
}

/// Whether the image is known to answer `/readyz`: a tag of v2.13 or later. An image known by
/// digest or by another tag gets the probe that every release answers.
fn serves_readyz(image: &str) -> bool {
    let tag = image.split('@').next().and_then(|name| name.rsplit_once(':')).map(|(_, tag)| tag);
    let version = tag.and_then(|tag| tag.strip_prefix('v')).unwrap_or_default();
    let mut parts = version.split(['.', '-', '+']).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (2, 13),
        _ => false,
    }
}

/// R30: replicas of a shard prefer different nodes.
fn spread(scale: &Scale, slot: Slot) -> Option<Affinity> {
    let Mode::Sharded(shards) = &scale.mode else { return None };
    shards.spread_across_nodes.then(|| Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                WeightedPodAffinityTerm {
                    weight: 100,
                    pod_affinity_term: PodAffinityTerm {
                        label_selector: Some(LabelSelector {
                            match_labels: Some(BTreeMap::from([
                                (LABEL_SCALE.to_owned(), scale.name.clone()),
                                (LABEL_SHARD_ID.to_owned(), slot.shard.to_string()),
                            ])),
                            match_expressions: None,
                        }),
                        topology_key: "kubernetes.io/hostname".to_owned(),
                        ..Default::default()
                    },
                },
            ]),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn resources(resources: &Resources) -> Option<ResourceRequirements> {
    let amounts = |side: &Option<Quantities>| {
        let side = side.as_ref()?;
        let named = [("cpu", &side.cpu), ("memory", &side.memory)];
        let set: BTreeMap<String, Quantity> = named
            .into_iter()
            .filter_map(|(name, amount)| Some((name.to_owned(), amount.clone()?)))
            .collect();
        (!set.is_empty()).then_some(set)
    };
    let (requests, limits) = (amounts(&resources.requests), amounts(&resources.limits));
    (requests.is_some() || limits.is_some()).then_some(ResourceRequirements {
        requests,
        limits,
        claims: None,
    })
}

/// Ten letters and digits for a pod without name and owner. The alphabet is the one of
/// `k8s.io/apimachinery/pkg/util/rand`: no vowels, so no words.
fn revision(pod: &Pod) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    // A map of strings and numbers always serializes.
    let mut hash = xxh3_64(serde_json::to_string(pod).unwrap_or_default().as_bytes());
    let mut letter = || {
        let (rest, digit) = (hash / 27, hash % 27);
        hash = rest;
        usize::try_from(digit).ok().and_then(|i| ALPHABET.get(i)).map_or('b', |&b| char::from(b))
    };
    (0..10).map(|_| letter()).collect()
}

#[cfg(test)]
mod tests {
    use super::serves_readyz;

    #[test]
    fn r27_only_releases_from_2_13_on_are_asked_for_readyz() {
        for image in
            ["k/s:v2.13.0", "k/s:v2.20.0", "k/s:v3.0.0-rc.1", "r:5000/k/s:v2.14.1@sha256:00"]
        {
            assert!(serves_readyz(image), "{image}");
        }
        for image in
            ["k/s:v2.10.1", "k/s:latest", "k/s", "r:5000/k/s", "k/s@sha256:00", "k/s:2.20.0"]
        {
            assert!(!serves_readyz(image), "{image}");
        }
    }
}
