//! The KSMScale resource as the API server stores it (R1–R12).
//!
//! These types say the *shape* and, through their doc comments and attributes, the schema's
//! descriptions, defaults and bounds. What one field alone cannot say stands in [`crate::rules`];
//! [`crate::crd`] joins both into the CustomResourceDefinition. The controller never works on
//! these types: [`crate::validate`] parses them into [`crate::validate::Scale`] first.

#![expect(clippy::duplicated_attributes, reason = "kube repeats keys inside printcolumn(…)")]

use k8s_openapi::{
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{Condition, Time},
    },
    schemars,
};
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Nodes that one pod serves unless the spec says otherwise (R3).
pub const DEFAULT_NODES_PER_MONITOR: i32 = 15;
/// The image unless the spec says otherwise (R4).
pub const DEFAULT_MONITOR_IMAGE: &str =
    "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.10.1";
/// The pods' namespace unless the spec says otherwise (R5).
pub const DEFAULT_NAMESPACE: &str = "monitoring";
/// The largest number of shards (R8). Coverage arithmetic relies on it being small.
pub const MAX_SHARD_COUNT: i32 = 10;
/// Replicas of a shard beyond which a spec is a typing error.
pub const MAX_REPLICAS_PER_SHARD: i32 = 100;

/// An image reference as the OCI distribution specification writes it, without the parts that
/// only a registry can judge.
const IMAGE_PATTERN: &str = r"^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$";
/// An RFC 1123 label.
const DNS_LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A Kubernetes quantity that is not negative.
const QUANTITY_PATTERN: &str =
    r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";

/// Says how many nodes one kube-state-metrics pod serves.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "monitor.example.com",
    version = "v1alpha1",
    kind = "KSMScale",
    plural = "ksmscales",
    singular = "ksmscale",
    status = "KSMScaleStatus",
    doc = "A KSMScale scales kube-state-metrics with the number of nodes in the cluster.",
    derive = "PartialEq",
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodeCount"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas"),
    printcolumn(name = "Current", type_ = "integer", json_path = ".status.currentReplicas"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".status.owner", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct KSMScaleSpec {
    /// How many nodes one pod serves.
    #[serde(default = "default_nodes_per_monitor")]
    #[schemars(range(min = 9, max = i32::MAX))]
    pub nodes_per_monitor: i32,
    /// The kube-state-metrics image.
    #[serde(default = "default_monitor_image")]
    #[schemars(length(min = 1, max = 512), regex(pattern = IMAGE_PATTERN))]
    pub monitor_image: String,
    /// The namespace of the pods. It has to exist.
    #[serde(default = "default_namespace")]
    #[schemars(length(min = 1, max = 63), regex(pattern = DNS_LABEL_PATTERN))]
    pub namespace: String,
    /// Refuse to delete the KSMScale while it has pods. Set it to false first.
    #[serde(default)]
    pub deletion_protection: bool,
    /// Requests and limits of each pod's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Fixed shards, each pod serving one. Absent or disabled, every pod exports every object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharding: Option<Sharding>,
}

/// Compute resources of one container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Quantities>,
    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Quantities>,
}

/// An amount of CPU and of memory.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct Quantities {
    /// CPU, such as 250m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity_schema")]
    pub cpu: Option<Quantity>,
    /// Memory, such as 256Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity_schema")]
    pub memory: Option<Quantity>,
}

/// Fixed shards and the bounds of their replicas.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sharding {
    /// Whether the pods are shards. False keeps the other settings for later.
    pub enabled: bool,
    /// How many shards. Required when enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = MAX_SHARD_COUNT))]
    pub shard_count: Option<i32>,
    /// The fewest replicas of each shard.
    #[serde(default = "default_min_replicas_per_shard")]
    #[schemars(range(min = 1, max = MAX_REPLICAS_PER_SHARD))]
    pub min_replicas_per_shard: i32,
    /// The most replicas of each shard.
    #[serde(default = "default_max_replicas_per_shard")]
    #[schemars(range(min = 1, max = MAX_REPLICAS_PER_SHARD))]
    pub max_replicas_per_shard: i32,
    /// How pods are placed and protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
}

/// Placement and protection of the pods of a sharded KSMScale.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Distribution {
    /// Prefer different nodes for the replicas of a shard.
    #[serde(default)]
    pub spread_across_nodes: bool,
    /// Keep a PodDisruptionBudget over the pods.
    #[serde(default, rename = "enablePDB")]
    pub enable_pdb: bool,
    /// How many pods a drain may take at a time. 0 blocks every drain.
    #[serde(default = "default_max_unavailable")]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub max_unavailable: i32,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            spread_across_nodes: false,
            enable_pdb: false,
            max_unavailable: default_max_unavailable(),
        }
    }
}

/// What the operator last saw and did (R10).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KSMScaleStatus {
    /// Nodes in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_count: Option<i32>,
    /// Pods there should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// Pods there were when the last reconcile began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_replicas: Option<i32>,
    /// Ready, Scaling or Incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The replica of the operator that wrote this status, by its pod's name. It works on this
    /// KSMScale until another one is named here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When this status last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<Time>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Available, Progressing, Degraded and what explains them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The shards, in sharded mode only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharding_status: Option<ShardingStatus>,
    /// How far a change of the pods has come, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<ChangeStatus>,
    /// How the nodes are exposed, as last compared with what the pods serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<CoverageStatus>,
}

/// How far a change of the pods has come (V6).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangeStatus {
    /// Pods there were when it began.
    pub from: i32,
    /// Pods there are to be.
    pub to: i32,
    /// The step that is being made or waited for, from 1.
    pub step: i32,
    /// Steps in all: a pod that is created, replaced or deleted is one or two.
    pub of: i32,
    /// When it began.
    pub since: Time,
    /// What has to happen before the next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

/// Nodes by how they are exposed (V4). They stand for all objects.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CoverageStatus {
    /// Nodes there are.
    pub expected: i32,
    /// Of these, exposed by a pod of their shard.
    pub exposed: i32,
    /// Of these, not.
    pub missing: i32,
    /// Of these, exposed twice by one pod.
    pub duplicated: i32,
    /// Exposed by a pod of another shard, or not existing.
    pub foreign: i32,
    /// When that was found. Renewed hourly if nothing else changes.
    pub last_audit: Time,
}

/// The shards of a KSMScale.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardingStatus {
    /// Shards there should be.
    pub total_shards: i32,
    /// Shards with at least one Ready pod of the current shard count.
    pub active_shards: i32,
    /// Pods of each shard, by shard number.
    #[serde(default)]
    pub shard_distribution: BTreeMap<String, ShardStatus>,
    /// Advice when the shard count does not fit the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// The pods of one shard.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct ShardStatus {
    /// Pods of the shard.
    pub replicas: i32,
    /// Of these, Ready ones.
    pub ready: i32,
    /// Their names.
    #[serde(default)]
    pub pods: Vec<String>,
}

/// The state of a KSMScale in one word (R20, R36).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Phase {
    /// The pods are those the spec asks for.
    Ready,
    /// Pods are being created, replaced or deleted.
    Scaling,
    /// Sharded mode: a shard has no Ready pod of the current shard count.
    Incomplete,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

fn default_nodes_per_monitor() -> i32 {
    DEFAULT_NODES_PER_MONITOR
}

fn default_monitor_image() -> String {
    DEFAULT_MONITOR_IMAGE.to_owned()
}

fn default_namespace() -> String {
    DEFAULT_NAMESPACE.to_owned()
}

fn default_min_replicas_per_shard() -> i32 {
    1
}

fn default_max_replicas_per_shard() -> i32 {
    4
}

fn default_max_unavailable() -> i32 {
    1
}

/// Integers are allowed because people write `cpu: 1`.
fn quantity_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maxLength": 32,
        "pattern": QUANTITY_PATTERN,
    })
}
