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
use std::{borrow::Cow, collections::BTreeMap};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(crate) const METRICS_PORT: u16 = 8080;
pub(crate) const TELEMETRY_PORT: u16 = 8081;

/// What the pods of all slots have in common, as a hash. Whatever else a pod is made of follows
/// from its slot, so serializing one pod is enough to know the revisions of all.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'s> {
    scale: &'s Scale,
    hash: u64,
}

impl<'s> Shape<'s> {
    /// The shape of the pods of `scale`.
    #[must_use]
    pub fn new(scale: &'s Scale) -> Self {
        let first = Slot { index: 0, shard: 0, replica: 0, total: scale.mode.total() };
        // A map of strings and numbers always serializes.
        let text = serde_json::to_string(&pod(scale, first)).unwrap_or_default();
        Self { scale, hash: xxh3_64(text.as_bytes()) }
    }
}

/// A pod as it should be, but for its name.
#[derive(Clone, Debug)]
pub struct Template<'s> {
    /// The slot it fills.
    pub slot: Slot,
    /// Hash of everything that it is made from.
    pub revision: String,
    scale: &'s Scale,
    labels: Vec<(&'static str, Cow<'s, str>)>,
    args: Vec<String>,
}

impl<'s> Template<'s> {
    /// The pod for `slot`.
    #[must_use]
    pub fn new(shape: Shape<'s>, slot: Slot) -> Self {
        let revision = revision(shape, slot);
        let mut labels = labels(shape.scale, slot);
        labels.push((LABEL_REVISION, revision.clone().into()));
        Self { slot, revision, scale: shape.scale, labels, args: args(shape.scale, slot) }
    }

    /// The pod under a name.
    #[must_use]
    pub fn named(&self, name: String) -> Pod {
        let mut pod = pod(self.scale, self.slot);
        let meta = &mut pod.metadata;
        meta.name = Some(name);
        meta.labels = Some(owned(&self.labels));
        meta.owner_references = Some(vec![controller_reference(self.scale)]);
        pod
    }

    /// Whether an observed pod is what this slot should hold: namespace, every label of ours
    /// (the revision among them) and the arguments (R34). Labels that others added don't matter.
    #[must_use]
    pub fn fits(&self, pod: &ObservedPod) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| pod.labels.get(*key).is_some_and(|seen| seen == value))
            && self.scale.namespace == pod.namespace
            && self.args == pod.args
    }

    /// The namespace it is for.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.scale.namespace
    }
}

/// A pod without name, owner and revision.
fn pod(scale: &Scale, slot: Slot) -> Pod {
    Pod {
        metadata: ObjectMeta {
            namespace: Some(scale.namespace.clone()),
            labels: Some(owned(&labels(scale, slot))),
            annotations: Some(BTreeMap::from([(
                ANNOTATION_SAFE_TO_EVICT.to_owned(),
                "true".to_owned(),
            )])),
            ..Default::default()
        },
        spec: Some(spec(scale, slot)),
        ..Default::default()
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

fn labels(scale: &Scale, slot: Slot) -> Vec<(&'static str, Cow<'_, str>)> {
    let number = |n: u32| Cow::Owned(n.to_string());
    let mut labels = vec![
        (LABEL_NAME, KUBE_STATE_METRICS.into()),
        (LABEL_INSTANCE, scale.name.as_str().into()),
        (LABEL_COMPONENT, "exporter".into()),
        (LABEL_SCALE, scale.name.as_str().into()),
        (LABEL_INDEX, number(slot.index)),
    ];
    if let Mode::Sharded(_) = scale.mode {
        labels.extend([
            (LABEL_POD_INDEX, number(slot.index)),
            (LABEL_SHARD_ID, number(slot.shard)),
            (LABEL_SHARD_REPLICA, number(slot.replica)),
            (LABEL_TOTAL_SHARDS, number(slot.total)),
            (LABEL_SHARDING_ENABLED, "true".into()),
        ]);
    }
    labels
}

fn owned(labels: &[(&'static str, Cow<'_, str>)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into_owned())).collect()
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
    let port = |name: &str, port: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
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
fn probe(path: &str, port: u16) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(port.into()),
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
    release(image).is_some_and(|release| release >= (2, 13))
}

/// Major and minor version of a kube-state-metrics image, if its tag is that of a release, such as
/// `v2.20.0`.
#[must_use]
pub fn release(image: &str) -> Option<(u32, u32)> {
    let (_, tag) = image.split('@').next()?.rsplit_once(':')?;
    let mut parts = tag.strip_prefix('v')?.split(['.', '-', '+']).map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
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
fn revision(shape: Shape<'_>, slot: Slot) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let Slot { index, shard, replica, total } = slot;
    let own = [index, shard, replica, total].map(u32::to_le_bytes);
    let mut hash = xxh3_64_with_seed(own.as_flattened(), shape.hash);
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
