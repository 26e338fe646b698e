//! The names that the operator shares with the cluster: API group, labels, annotations, the
//! objects it creates. One constant each, so that the code that writes a label and the code that
//! selects by it cannot disagree.

/// API group of [`crate::api::KSMScale`].
pub const GROUP: &str = "monitor.example.com";

/// Field manager of every write, and the value of [`LABEL_MANAGED_BY`].
pub const OPERATOR: &str = "ksm-scale-operator";

/// Name of the container, of the ServiceAccount the pods run as, and prefix of their names.
pub const KUBE_STATE_METRICS: &str = "kube-state-metrics";

/// Namespace and name of the operator's own objects (O4).
pub const OPERATOR_NAMESPACE: &str = "monitoring";

/// The shipped ClusterRole that lets kube-state-metrics list and watch what it exports (R63).
pub const METRICS_CLUSTER_ROLE: &str = "ksm-scale-operator-kube-state-metrics";

/// The shipped ClusterRole with the rights the operator needs in every namespace it puts pods in.
pub const WORKLOAD_CLUSTER_ROLE: &str = "ksm-scale-operator-workload";

/// The Service in [`OPERATOR_NAMESPACE`] through which the API server reaches the webhook (O4).
pub const WEBHOOK_SERVICE: &str = "ksm-scale-operator-webhook";

/// Name of both webhook configurations.
pub const WEBHOOK_CONFIGURATION: &str = "ksm-scale-operator";

/// The mutating webhook in its configuration, and its path on the server (W1).
pub const MUTATING_WEBHOOK: &str = "mutate.ksmscales.monitor.example.com";
/// The validating webhook in its configuration.
pub const VALIDATING_WEBHOOK: &str = "validate.ksmscales.monitor.example.com";
/// Path of the mutating webhook (W1).
pub const MUTATE_PATH: &str = "/mutate-monitor-example-com-v1alpha1-ksmscale";
/// Path of the validating webhook (W1).
pub const VALIDATE_PATH: &str = "/validate-monitor-example-com-v1alpha1-ksmscale";

/// The Secret in [`OPERATOR_NAMESPACE`] with the operator's own CA (T2).
pub const CA_SECRET: &str = "ksm-scale-operator-webhook-ca";

/// The Certificate in [`OPERATOR_NAMESPACE`] that cert-manager issues for the webhook, and the
/// Issuer that signs it (T1). The webhook configurations name it in `inject-ca-from`.
pub const WEBHOOK_CERTIFICATE: &str = "ksm-scale-operator-webhook";
/// The Secret of [`WEBHOOK_CERTIFICATE`], which the operator's pods mount.
pub const WEBHOOK_CERTIFICATE_SECRET: &str = "ksm-scale-operator-webhook-tls";

/// The CA that cert-manager keeps for the webhook: its Certificate and its Secret. Another one than
/// [`CA_SECRET`], so that either way of keeping certificates can follow the other.
pub const CERT_MANAGER_CA: &str = "ksm-scale-operator-cert-manager-ca";
/// Annotation on [`CA_SECRET`]: asks for a new CA, whatever its value; taken away when it is made.
pub const ANNOTATION_ROTATE: &str = "monitor.example.com/rotate";

/// Field manager of `caBundle` in the webhook configurations, and of nothing else (T2).
pub const CA_BUNDLE_MANAGER: &str = "ksm-scale-operator-ca-bundle";

/// Recommended label: the application's name. With [`LABEL_SCALE`] and our ownerReference it says
/// which pods are ours (R29).
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Recommended label: the instance, here the KSMScale's name.
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
/// Recommended label: the component.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Recommended label: who manages the object. On what several KSMScales share it says that the
/// operator made it, and may remove it.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The KSMScale a pod or a PodDisruptionBudget belongs to.
pub const LABEL_SCALE: &str = "ksmscale.example.com";
/// The pod's index, 0..desired-1.
pub const LABEL_INDEX: &str = "index";
/// The same in sharded mode, under the name its users know.
pub const LABEL_POD_INDEX: &str = "pod-index";
/// The shard a pod serves.
pub const LABEL_SHARD_ID: &str = "shard-id";
/// Which of the shard's replicas a pod is.
pub const LABEL_SHARD_REPLICA: &str = "shard-replica";
/// Of how many shards.
pub const LABEL_TOTAL_SHARDS: &str = "total-shards";
/// `"true"` on every pod of a sharded KSMScale.
pub const LABEL_SHARDING_ENABLED: &str = "sharding-enabled";
/// Hash of what the pod was made from; a pod of another revision is replaced (R34).
pub const LABEL_REVISION: &str = "monitor.example.com/revision";

/// Lets the cluster autoscaler drain nodes although our pods' owner is no workload it knows (R46).
pub const ANNOTATION_SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

/// Longest name of a KSMScale: it becomes a label value (R12, RFC 1123 label length).
pub const MAX_NAME_LENGTH: usize = 63;

/// The API group of roles, as a `RoleRef` wants it: newer versions of Kubernetes have it optional.
pub fn rbac_group<T: From<String>>() -> T {
    "rbac.authorization.k8s.io".to_owned().into()
}

/// The name that the API server verifies the webhook's certificate for.
#[must_use]
pub fn webhook_server_name() -> String {
    format!("{WEBHOOK_SERVICE}.{OPERATOR_NAMESPACE}.svc")
}

/// Name of the PodDisruptionBudget of a sharded KSMScale (R37).
#[must_use]
pub fn pod_disruption_budget(scale: &str) -> String {
    format!("ksm-{scale}-shards")
}

/// Name of a pod where it is free (R22).
#[must_use]
pub fn pod(scale: &str, index: u32) -> String {
    format!("{KUBE_STATE_METRICS}-{scale}-{index}")
}

/// Name of a pod that has to exist beside its predecessor (R22).
#[must_use]
pub fn pod_beside(scale: &str, index: u32, revision: &str) -> String {
    let short = revision.get(..5).unwrap_or(revision);
    format!("{KUBE_STATE_METRICS}-{scale}-{index}-{short}")
}

/// Name of the ClusterRoleBinding for the ServiceAccount in `namespace` (R63).
#[must_use]
pub fn cluster_role_binding(namespace: &str) -> String {
    format!("{METRICS_CLUSTER_ROLE}:{namespace}")
}
