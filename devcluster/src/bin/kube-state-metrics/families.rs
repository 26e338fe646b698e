//! What is served of each resource: families, labels and values of kube-state-metrics.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use serde_json::Value;

/// What can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    ConfigMaps,
    Namespaces,
    Nodes,
    Pods,
    Secrets,
}

/// An object as far as it was read: `data` is null where its metadata is all that is needed.
pub(crate) struct Object {
    pub(crate) meta: ObjectMeta,
    pub(crate) data: Value,
}

/// A metric family.
pub(crate) struct Family {
    name: &'static str,
    help: &'static str,
    stable: bool,
    samples: fn(&Object) -> Vec<Sample>,
}

/// Labels beyond those that name the object, and the value.
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: String,
}

impl Resource {
    pub(crate) const ALL: [Self; 5] =
        [Self::ConfigMaps, Self::Namespaces, Self::Nodes, Self::Pods, Self::Secrets];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ConfigMaps => "configmaps",
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Secrets => "secrets",
        }
    }

    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::ConfigMaps => "ConfigMap",
            Self::Namespaces => "Namespace",
            Self::Nodes => "Node",
            Self::Pods => "Pod",
            Self::Secrets => "Secret",
        }
    }

    pub(crate) fn api(self) -> ApiResource {
        let kind = GroupVersionKind::gvk("", "v1", self.kind());
        ApiResource::from_gvk_with_plural(&kind, self.name())
    }

    pub(crate) fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespaces | Self::Nodes)
    }

    /// Whether metadata is all that is needed.
    pub(crate) fn is_metadata_only(self) -> bool {
        matches!(self, Self::ConfigMaps | Self::Secrets)
    }

    pub(crate) fn families(self) -> &'static [Family] {
        match self {
            Self::ConfigMaps => CONFIG_MAPS,
            Self::Namespaces => NAMESPACES,
            Self::Nodes => NODES,
            Self::Pods => PODS,
            Self::Secrets => SECRETS,
        }
    }

    /// The labels that name an object.
    fn identity(self, meta: &ObjectMeta) -> Vec<(&'static str, String)> {
        let namespace = || ("namespace", meta.namespace.clone().unwrap_or_default());
        let name = |label| (label, meta.name.clone().unwrap_or_default());
        match self {
            Self::ConfigMaps => vec![namespace(), name("configmap")],
            Self::Namespaces => vec![name("namespace")],
            Self::Nodes => vec![name("node")],
            Self::Pods => {
                vec![namespace(), name("pod"), ("uid", meta.uid.clone().unwrap_or_default())]
            }
            Self::Secrets => vec![namespace(), name("secret")],
        }
    }
}

impl Family {
    const fn stable(
        name: &'static str,
        help: &'static str,
        samples: fn(&Object) -> Vec<Sample>,
    ) -> Self {
        Self { name, help, stable: true, samples }
    }

    const fn alpha(
        name: &'static str,
        help: &'static str,
        samples: fn(&Object) -> Vec<Sample>,
    ) -> Self {
        Self { name, help, stable: false, samples }
    }

    pub(crate) fn header(&self) -> String {
        let Self { name, help, .. } = self;
        let level = if self.stable { "[STABLE] " } else { "" };
        format!("# HELP {name} {level}{help}\n# TYPE {name} gauge\n")
    }

    /// The lines of an object.
    pub(crate) fn lines(&self, resource: Resource, object: &Object) -> String {
        let mut text = String::new();
        for sample in (self.samples)(object) {
            text.push_str(self.name);
            let mut separator = '{';
            for (label, value) in resource.identity(&object.meta).iter().chain(&sample.labels) {
                text.push(separator);
                separator = ',';
                let value = value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
                text.extend([label, "=\"", &value, "\""]);
            }
            text.extend(["} ", &sample.value, "\n"]);
        }
        text
    }
}

const CONFIG_MAPS: &[Family] = &[
    Family::stable("kube_configmap_info", "Information about configmap.", info),
    Family::stable("kube_configmap_created", "Unix creation timestamp", created),
    Family::alpha(
        "kube_configmap_metadata_resource_version",
        "Resource version representing a specific version of the configmap.",
        resource_version,
    ),
];

const NAMESPACES: &[Family] = &[
    Family::stable("kube_namespace_created", "Unix creation timestamp", created),
    Family::stable("kube_namespace_status_phase", "kubernetes namespace status phase.", |object| {
        one_of("phase", &["Active", "Terminating"], &text(&object.data["status"]["phase"]))
    }),
];

const NODES: &[Family] = &[
    Family::stable("kube_node_created", "Unix creation timestamp", created),
    Family::stable("kube_node_info", "Information about a cluster node.", |object| {
        let (info, spec) = (&object.data["status"]["nodeInfo"], &object.data["spec"]);
        let mut addresses = object.data["status"]["addresses"].as_array().into_iter().flatten();
        let internal = addresses.rfind(|address| address["type"] == "InternalIP");
        vec![Sample::one(vec![
            ("kernel_version", text(&info["kernelVersion"])),
            ("os_image", text(&info["osImage"])),
            ("container_runtime_version", text(&info["containerRuntimeVersion"])),
            ("kubelet_version", text(&info["kubeletVersion"])),
            ("kubeproxy_version", "deprecated".to_owned()),
            ("provider_id", text(&spec["providerID"])),
            ("pod_cidr", text(&spec["podCIDR"])),
            ("system_uuid", text(&info["systemUUID"])),
            ("internal_ip", internal.map(|address| text(&address["address"])).unwrap_or_default()),
        ])]
    }),
    Family::stable(
        "kube_node_spec_unschedulable",
        "Whether a node can schedule new pods.",
        |object| vec![Sample::flag(vec![], object.data["spec"]["unschedulable"] == true)],
    ),
    Family::stable("kube_node_status_condition", "The condition of a cluster node.", |object| {
        let conditions = object.data["status"]["conditions"].as_array().into_iter().flatten();
        let samples = |condition: &Value| {
            let mut samples = condition_statuses("status", condition);
            for sample in &mut samples {
                sample.labels.insert(0, ("condition", text(&condition["type"])));
            }
            samples
        };
        conditions.flat_map(samples).collect()
    }),
    Family::alpha("kube_node_status_addresses", "Node address information.", |object| {
        let addresses = object.data["status"]["addresses"].as_array().into_iter().flatten();
        let sample = |address: &Value| {
            Sample::one(vec![
                ("type", text(&address["type"])),
                ("address", text(&address["address"])),
            ])
        };
        addresses.map(sample).collect()
    }),
];

const PODS: &[Family] = &[
    Family::stable("kube_pod_created", "Unix creation timestamp", created),
    Family::stable("kube_pod_info", "Information about pod.", |object| {
        let (status, spec) = (&object.data["status"], &object.data["spec"]);
        let owners = object.meta.owner_references.iter().flatten();
        let controller = owners.into_iter().find(|owner| owner.controller == Some(true));
        vec![Sample::one(vec![
            ("host_ip", text(&status["hostIP"])),
            ("pod_ip", text(&status["podIP"])),
            ("node", text(&spec["nodeName"])),
            ("created_by_kind", controller.map(|owner| owner.kind.clone()).unwrap_or_default()),
            ("created_by_name", controller.map(|owner| owner.name.clone()).unwrap_or_default()),
            ("priority_class", text(&spec["priorityClassName"])),
            ("host_network", (spec["hostNetwork"] == true).to_string()),
        ])]
    }),
    Family::stable("kube_pod_owner", "Information about the Pod's owner.", |object| {
        let sample = |kind: &str, name: &str, controller: &str| {
            Sample::one(vec![
                ("owner_kind", kind.to_owned()),
                ("owner_name", name.to_owned()),
                ("owner_is_controller", controller.to_owned()),
            ])
        };
        match object.meta.owner_references.as_deref().unwrap_or_default() {
            [] => vec![sample("", "", "")],
            owners => owners
                .iter()
                .map(|owner| {
                    let controller = owner.controller.unwrap_or_default().to_string();
                    sample(&owner.kind, &owner.name, &controller)
                })
                .collect(),
        }
    }),
    Family::stable("kube_pod_status_phase", "The pods current phase.", |object| {
        match object.data["status"]["phase"].as_str() {
            Some(phase) => {
                one_of("phase", &["Pending", "Succeeded", "Failed", "Unknown", "Running"], phase)
            }
            None => vec![],
        }
    }),
    Family::stable(
        "kube_pod_status_ready",
        "Describes whether the pod is ready to serve requests.",
        |object| {
            let conditions = object.data["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions.filter(|condition| condition["type"] == "Ready");
            ready.flat_map(|condition| condition_statuses("condition", condition)).collect()
        },
    ),
];

const SECRETS: &[Family] = &[
    Family::stable("kube_secret_info", "Information about secret.", info),
    Family::stable("kube_secret_created", "Unix creation timestamp", created),
    Family::alpha(
        "kube_secret_metadata_resource_version",
        "Resource version representing a specific version of secret.",
        resource_version,
    ),
];

impl Sample {
    fn one(labels: Vec<(&'static str, String)>) -> Self {
        Self::flag(labels, true)
    }

    fn flag(labels: Vec<(&'static str, String)>, holds: bool) -> Self {
        Self { labels, value: u8::from(holds).to_string() }
    }
}

fn info(_: &Object) -> Vec<Sample> {
    vec![Sample::one(vec![])]
}

fn created(object: &Object) -> Vec<Sample> {
    let time = object.meta.creation_timestamp.as_ref();
    let seconds = time.and_then(|time| u64::try_from(time.0.as_second()).ok());
    seconds.map(|seconds| Sample { labels: vec![], value: number(seconds) }).into_iter().collect()
}

fn resource_version(object: &Object) -> Vec<Sample> {
    let version = object.meta.resource_version.as_ref().and_then(|version| version.parse().ok());
    version.map(|version| Sample { labels: vec![], value: number(version) }).into_iter().collect()
}

fn one_of(label: &'static str, values: &[&str], actual: &str) -> Vec<Sample> {
    values
        .iter()
        .map(|&value| Sample::flag(vec![(label, value.to_owned())], value == actual))
        .collect()
}

fn condition_statuses(label: &'static str, condition: &Value) -> Vec<Sample> {
    one_of(label, &["true", "false", "unknown"], &text(&condition["status"]).to_lowercase())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// An integer as Go writes a float with `%g` and the shortest precision: with an exponent from
/// 10^21 on if it has more than 21 digits, or from as many digits as it needs, but at least 6.
fn number(value: u64) -> String {
    if value < 1_000_000 {
        return value.to_string();
    }
    #[expect(clippy::cast_precision_loss, reason = "the real one stores a double, too")]
    let scientific = format!("{:e}", value as f64);
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    format!("{digits}e+{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_in_go() {
        let table = [(0, "0"), (999_999, "999999"), (1_000_000, "1e+06")];
        let large = [(1_763_845_162, "1.763845162e+09"), (12_345_678, "1.2345678e+07")];
        for (value, text) in table.into_iter().chain(large) {
            assert_eq!(number(value), text);
        }
    }
}
