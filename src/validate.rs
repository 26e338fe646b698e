//! From a KSMScale as written to a [`Scale`] that cannot be wrong.
//!
//! [`validate`] does offline what the API server does with the CRD: prune nulls, set defaults,
//! check the schema, check the rules. It reports *every* violation, with the words of the API
//! server's own field errors. Admission, reconcile and the command line all call it, so they
//! cannot disagree (W2).

use crate::{
    api::{Distribution, KSMScale, Resources},
    names::MAX_NAME_LENGTH,
    rules::{RULES, Reason},
};
use serde_json::Value;
use std::{fmt, num::NonZeroU32, ops::Deref};

mod schema;

use schema::SCHEMA;

/// One reason why an object is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, such as `spec.sharding.shardCount`.
    pub field: String,
    /// What kind of violation.
    pub reason: Reason,
    /// The text after `field: `, such as `Required value: …`.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Every reason why an object is not valid; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            write!(f, "{}{violation}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// A value that [`validate`] accepted. Nothing else makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid<T>(T);

impl<T> Deref for Valid<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// What a valid KSMScale asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Its name, at most [`MAX_NAME_LENGTH`] bytes.
    pub name: String,
    /// Its UID; empty in an object that no API server has seen.
    pub uid: String,
    /// The generation of its spec.
    pub generation: i64,
    /// Nodes one pod serves.
    pub nodes_per_monitor: NonZeroU32,
    /// The image of the pods.
    pub image: String,
    /// The namespace of the pods.
    pub namespace: String,
    /// Requests and limits of the pods.
    pub resources: Resources,
    /// How the pods share the objects.
    pub mode: Mode,
}

/// How the pods share the cluster's objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    /// Every pod exports every object.
    Unsharded,
    /// Each pod exports its shard's objects.
    Sharded(Shards),
}

impl Mode {
    /// Over how many pods one set of series is spread; 1 where every pod exports all.
    #[must_use]
    pub fn total(&self) -> u32 {
        match self {
            Self::Unsharded => 1,
            Self::Sharded(shards) => shards.count,
        }
    }
}

/// Fixed shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Shards {
    /// How many, 2 to 10.
    pub count: u32,
    /// Fewest replicas of each, at least 1.
    pub min_replicas: u32,
    /// Most replicas of each, at least `min_replicas`.
    pub max_replicas: u32,
    /// Whether replicas of a shard prefer different nodes.
    pub spread_across_nodes: bool,
    /// With a PodDisruptionBudget: how many pods a drain may take at a time.
    pub max_unavailable: Option<u32>,
}

/// Parses a KSMScale, given as the JSON its author or the API server wrote.
///
/// # Errors
/// All violations, in the order of the schema and then of [`RULES`]. As in the API server, the
/// rules are not asked where a field is missing or of another type, since they could not answer.
pub fn validate(object: &Value) -> Result<Valid<Scale>, Violations> {
    validate_owned(object.clone())
}

/// [`validate`], of an object that nobody else needs.
///
/// # Errors
/// As [`validate`].
pub fn validate_owned(mut object: Value) -> Result<Valid<Scale>, Violations> {
    schema::prune_nulls_and_default(&mut object, &SCHEMA);
    let mut found = Vec::new();
    schema::check(&object, &SCHEMA, &mut String::new(), &mut found);
    check_name(&object, &mut found);
    let blocks =
        |v: &Violation| !matches!(v.reason, Reason::FieldValueInvalid | Reason::UnknownField);
    if found.iter().any(blocks) {
        return Err(Violations(found));
    }
    let typed: KSMScale = match serde_json::from_value(object) {
        Ok(typed) => typed,
        Err(error) => {
            // A value out of its type's range is out of its bounds too, and has been reported.
            if found.is_empty() {
                found.push(Violation {
                    field: "spec".into(),
                    reason: Reason::FieldValueTypeInvalid,
                    message: format!("Invalid value: {error}"),
                });
            }
            return Err(Violations(found));
        }
    };
    found.extend(RULES.iter().filter(|rule| !(rule.holds)(&typed.spec)).map(|rule| Violation {
        field: rule.path(),
        reason: rule.reason,
        message: rule.text(),
    }));
    if found.is_empty() { Ok(Valid(parse(typed))) } else { Err(Violations(found)) }
}

/// The object as the API server would store it: without nulls, and with every default.
#[must_use]
pub fn defaulted(object: &Value) -> Value {
    let mut object = object.clone();
    schema::prune_nulls_and_default(&mut object, &SCHEMA);
    object
}

/// R12. The schema of `metadata.name` says it too, but the API server reads the name before it.
fn check_name(object: &Value, found: &mut Vec<Violation>) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let message = if name.is_empty() && object["metadata"]["generateName"].is_null() {
        "Required value: name or generateName is required".to_owned()
    } else if !name.is_empty() && !schema::is_dns_subdomain(name) {
        format!(
            "Invalid value: {name:?}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        )
    } else {
        return;
    };
    let reason =
        if name.is_empty() { Reason::FieldValueRequired } else { Reason::FieldValueInvalid };
    debug_assert!(name.len() <= MAX_NAME_LENGTH || !found.is_empty(), "the schema bounds names");
    found.push(Violation { field: "metadata.name".into(), reason, message });
}

/// Total: what could go wrong, the schema and the rules have excluded.
fn parse(object: KSMScale) -> Scale {
    let spec = object.spec;
    let count = |n: i32| u32::try_from(n).unwrap_or(0);
    let mode = match spec.sharding {
        Some(sharding) if sharding.enabled => {
            let distribution: Distribution = sharding.distribution.unwrap_or_default();
            Mode::Sharded(Shards {
                count: count(sharding.shard_count.unwrap_or(2)),
                min_replicas: count(sharding.min_replicas_per_shard),
                max_replicas: count(sharding.max_replicas_per_shard),
                spread_across_nodes: distribution.spread_across_nodes,
                max_unavailable: distribution
                    .enable_pdb
                    .then(|| count(distribution.max_unavailable)),
            })
        }
        _ => Mode::Unsharded,
    };
    Scale {
        name: object.metadata.name.unwrap_or_default(),
        uid: object.metadata.uid.unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        nodes_per_monitor: NonZeroU32::new(count(spec.nodes_per_monitor))
            .unwrap_or(NonZeroU32::MIN),
        image: spec.monitor_image,
        namespace: spec.namespace,
        resources: spec.resources.unwrap_or_default(),
        mode,
    }
}
