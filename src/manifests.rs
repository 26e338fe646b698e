//! The manifests that are generated: the CRD, the rights the operator needs (O4), the webhooks'
//! configurations, and admission policies in their place.
//!
//! The tables of rights stand here as data. The tests run the operator under exactly these, on a
//! control plane that enforces RBAC, so a right that is missing fails a test.

use crate::{
    allowed::Allowed,
    crd,
    names::{
        CA_SECRET, METRICS_CLUSTER_ROLE, OPERATOR, OPERATOR_NAMESPACE, WEBHOOK_CONFIGURATION,
        WORKLOAD_CLUSTER_ROLE, rbac_group,
    },
};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ServiceAccount},
        rbac::v1::{
            ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
        },
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Serialize;
use std::collections::BTreeMap;

mod cel;
mod certs;
mod policies;
mod webhooks;

pub use certs::certs;

/// A generated file.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Where it stands in the repository.
    pub path: &'static str,
    /// Its YAML documents.
    pub text: String,
}

/// Rights: API group, resources, names (none for all), verbs.
type Rights =
    (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

const READ: &[&str] = &["get", "list", "watch"];

/// What the operator needs in the whole cluster: its own resource, reading what it plans from, and
/// the binding for kube-state-metrics, which it may bind to that one role only.
const CLUSTER_RIGHTS: &[Rights] = &[
    ("monitor.example.com", &["ksmscales"], &[], READ),
    ("monitor.example.com", &["ksmscales/status"], &[], &["patch"]),
    // blockOwnerDeletion in the ownerReferences of what it creates (OwnerReferencesPermissionEnforcement).
    ("monitor.example.com", &["ksmscales/finalizers"], &[], &["update"]),
    // Whether who asks for pods in a namespace may create them there (W5).
    ("authorization.k8s.io", &["subjectaccessreviews"], &[], &["create"]),
    ("", &["nodes"], &[], &["list", "watch"]),
    ("", &["namespaces"], &[], &["get"]),
    ("", &["pods"], &[], READ),
    ("", &["serviceaccounts"], &[], &["get", "list"]),
    ("policy", &["poddisruptionbudgets"], &[], READ),
    (
        "rbac.authorization.k8s.io",
        &["clusterrolebindings"],
        &[],
        &["get", "list", "create", "patch", "delete"],
    ),
    ("rbac.authorization.k8s.io", &["clusterroles"], &[METRICS_CLUSTER_ROLE], &["bind"]),
    // caBundle of its own webhooks (T2).
    (
        "admissionregistration.k8s.io",
        &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
        &[WEBHOOK_CONFIGURATION],
        &["get", "list", "watch", "patch"],
    ),
];

/// The Secret with the CA of the webhooks (T2). RBAC cannot limit `create` to a name.
const CA_RIGHTS: &[Rights] = &[
    ("", &["secrets"], &[], &["create"]),
    ("", &["secrets"], &[CA_SECRET], &["get", "list", "watch", "update"]),
];

/// The Leases by which replicas share their work (S1). Their names are those of pods.
const LEASE_RIGHTS: &[Rights] = &[(
    "coordination.k8s.io",
    &["leases"],
    &[],
    &["get", "list", "watch", "create", "patch", "delete"],
)];

/// What the operator needs in each namespace it puts pods in.
const WORKLOAD_RIGHTS: &[Rights] = &[
    ("", &["pods"], &[], &["create", "delete"]),
    ("", &["serviceaccounts"], &[], &["create", "patch", "delete"]),
    ("policy", &["poddisruptionbudgets"], &[], &["create", "patch", "delete"]),
];

/// Events about cluster-scoped objects go to namespace `default`.
const EVENT_RIGHTS: &[Rights] = &[("events.k8s.io", &["events"], &[], &["create"])];

const LIST_WATCH: &[&str] = &["list", "watch"];

/// What kube-state-metrics lists and watches by default, up to v2.20
/// (`jsonnet/kube-state-metrics/kube-state-metrics.libsonnet`).
const METRICS_RIGHTS: &[Rights] = &[
    (
        "",
        &[
            "configmaps",
            "endpoints",
            "limitranges",
            "namespaces",
            "nodes",
            "persistentvolumeclaims",
            "persistentvolumes",
            "pods",
            "replicationcontrollers",
            "resourcequotas",
            "secrets",
            "serviceaccounts",
            "services",
        ],
        &[],
        LIST_WATCH,
    ),
    (
        "admissionregistration.k8s.io",
        &[
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
            "mutatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "validatingwebhookconfigurations",
        ],
        &[],
        LIST_WATCH,
    ),
    ("apps", &["daemonsets", "deployments", "replicasets", "statefulsets"], &[], LIST_WATCH),
    ("autoscaling", &["horizontalpodautoscalers"], &[], LIST_WATCH),
    ("batch", &["cronjobs", "jobs"], &[], LIST_WATCH),
    ("certificates.k8s.io", &["certificatesigningrequests"], &[], LIST_WATCH),
    ("coordination.k8s.io", &["leases"], &[], LIST_WATCH),
    ("discovery.k8s.io", &["endpointslices"], &[], LIST_WATCH),
    ("networking.k8s.io", &["ingressclasses", "ingresses", "networkpolicies"], &[], LIST_WATCH),
    ("policy", &["poddisruptionbudgets"], &[], LIST_WATCH),
    (
        "rbac.authorization.k8s.io",
        &["clusterrolebindings", "clusterroles", "rolebindings", "roles"],
        &[],
        LIST_WATCH,
    ),
    ("storage.k8s.io", &["storageclasses", "volumeattachments"], &[], LIST_WATCH),
];

type Result<T> = std::result::Result<T, serde_saphyr::ser::Error>;

/// Every generated manifest but [`certs`].
///
/// # Errors
/// Never on a build that passes the tests: the objects are constant.
pub fn all() -> Result<Vec<Manifest>> {
    Ok([base()?, webhooks()?, policies(&Allowed::default())?].concat())
}

/// What the operator needs to run: the CRD and its rights.
///
/// # Errors
/// As [`all`].
pub fn base() -> Result<Vec<Manifest>> {
    Ok(vec![
        Manifest { path: "crds/ksmscales.monitor.example.com.yaml", text: document(&crd::crd())? },
        Manifest { path: "deploy/base/rbac.yaml", text: rbac()? },
    ])
}

/// The webhooks' configurations. Where nobody serves the webhooks, they refuse every change of a
/// KSMScale.
///
/// # Errors
/// As [`all`].
pub fn webhooks() -> Result<Vec<Manifest>> {
    Ok(vec![
        Manifest {
            path: "webhook-config/base/mutating.yaml",
            text: document(&webhooks::mutating())?,
        },
        Manifest {
            path: "webhook-config/base/validating.yaml",
            text: document(&webhooks::validating())?,
        },
    ])
}

/// The admission policies that decide in place of the webhooks, for what `allowed` says.
///
/// # Errors
/// As [`all`].
pub fn policies(allowed: &Allowed) -> Result<Vec<Manifest>> {
    let join = |objects: Vec<serde_json::Value>| {
        let documents: Result<Vec<_>> = objects.iter().map(document).collect();
        documents.map(|documents| documents.join("---\n"))
    };
    Ok(vec![
        Manifest {
            path: "webhook-config/policies/mutating.yaml",
            text: join(policies::mutating())?,
        },
        Manifest {
            path: "webhook-config/policies/validating.yaml",
            text: join(policies::validating(allowed))?,
        },
    ])
}

fn rbac() -> Result<String> {
    let event_role = format!("{OPERATOR}-events");
    let documents = [
        document(&Namespace { metadata: meta(OPERATOR_NAMESPACE, None), ..Default::default() })?,
        document(&ServiceAccount {
            metadata: meta(OPERATOR, Some(OPERATOR_NAMESPACE)),
            ..Default::default()
        })?,
        document(&cluster_role(OPERATOR, CLUSTER_RIGHTS))?,
        document(&ClusterRoleBinding {
            metadata: meta(OPERATOR, None),
            role_ref: role_ref("ClusterRole", OPERATOR),
            subjects: Some(vec![operator()]),
        })?,
        document(&cluster_role(WORKLOAD_CLUSTER_ROLE, WORKLOAD_RIGHTS))?,
        document(&RoleBinding {
            metadata: meta(WORKLOAD_CLUSTER_ROLE, Some(OPERATOR_NAMESPACE)),
            role_ref: role_ref("ClusterRole", WORKLOAD_CLUSTER_ROLE),
            subjects: Some(vec![operator()]),
        })?,
        role(&event_role, "default", EVENT_RIGHTS)?,
        role(CA_SECRET, OPERATOR_NAMESPACE, CA_RIGHTS)?,
        role(&format!("{OPERATOR}-sharding"), OPERATOR_NAMESPACE, LEASE_RIGHTS)?,
        document(&cluster_role(METRICS_CLUSTER_ROLE, METRICS_RIGHTS))?,
    ];
    Ok(documents.join("---\n"))
}

fn document(object: &impl Serialize) -> Result<String> {
    serde_saphyr::to_string(object)
}

fn meta(name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        labels: Some(labels()),
        ..Default::default()
    }
}

/// A Role with its binding.
fn role(name: &str, namespace: &str, rights: &[Rights]) -> Result<String> {
    let role = Role { metadata: meta(name, Some(namespace)), rules: Some(rules(rights)) };
    let binding = RoleBinding {
        metadata: meta(name, Some(namespace)),
        role_ref: role_ref("Role", name),
        subjects: Some(vec![operator()]),
    };
    Ok([document(&role)?, document(&binding)?].join("---\n"))
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/part-of".into(), OPERATOR.into())])
}

fn cluster_role(name: &str, rights: &[Rights]) -> ClusterRole {
    ClusterRole { metadata: meta(name, None), rules: Some(rules(rights)), aggregation_rule: None }
}

fn rules(rights: &[Rights]) -> Vec<PolicyRule> {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let rule = |(group, resources, names, verbs): &Rights| PolicyRule {
        api_groups: Some(list(&[group])),
        resources: Some(list(resources)),
        resource_names: (!names.is_empty()).then(|| list(names)),
        verbs: list(verbs),
        non_resource_urls: None,
    };
    rights.iter().map(rule).collect()
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: rbac_group(), kind: kind.into(), name: name.into() }
}

fn operator() -> Subject {
    Subject {
        kind: "ServiceAccount".into(),
        name: OPERATOR.into(),
        namespace: Some(OPERATOR_NAMESPACE.into()),
        api_group: None,
    }
}
