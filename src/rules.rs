//! The rules that join several fields of a spec.
//!
//! One table. Each row says the rule twice, side by side: as CEL for the API server and as a Rust
//! function for everybody else ([`crate::validate`]). [`crate::crd`] writes the CEL half into the
//! CustomResourceDefinition; a test on a real API server holds the two halves equal over one
//! corpus. What a single field can say (bounds, patterns) stands in the schema and nowhere else.

use crate::api::{KSMScaleSpec, Quantities};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The kind of a violation, as in `metav1.StatusCause.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The value breaks a bound, a pattern or a rule.
    FieldValueInvalid,
    /// A field that must be there is not.
    FieldValueRequired,
    /// The value is none of the supported ones.
    FieldValueNotSupported,
    /// The value is one that this cluster's administrator does not allow.
    FieldValueForbidden,
    /// The value is longer than allowed.
    FieldValueTooLong,
    /// The value is of another JSON type.
    FieldValueTypeInvalid,
    /// The field is not part of the resource.
    UnknownField,
}

impl Reason {
    /// The spelling of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FieldValueInvalid => "FieldValueInvalid",
            Self::FieldValueRequired => "FieldValueRequired",
            Self::FieldValueNotSupported => "FieldValueNotSupported",
            Self::FieldValueForbidden => "FieldValueForbidden",
            Self::FieldValueTooLong => "FieldValueTooLong",
            Self::FieldValueTypeInvalid => "FieldValueTypeInvalid",
            Self::UnknownField => "UnknownField",
        }
    }
}

/// A rule over several fields.
pub struct Rule {
    /// Names the rule in tests and metrics.
    pub id: &'static str,
    /// The object `self` of [`Rule::cel`], as property names from the root.
    pub at: &'static [&'static str],
    /// The field at fault, from `at`, in the form of `fieldPath`.
    pub field: &'static str,
    /// What a violation is.
    pub reason: Reason,
    /// The rule for the API server. True where the rule holds.
    pub cel: &'static str,
    /// The rule for everybody else. True where the rule holds.
    pub holds: fn(&KSMScaleSpec) -> bool,
    /// The cause and the fix.
    pub message: &'static str,
}

impl Rule {
    /// The whole path of the field at fault, such as `spec.sharding.shardCount`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}{}", self.at.join("."), self.field)
    }

    /// What a violation says after the path, in the form of the API server.
    #[must_use]
    pub fn text(&self) -> String {
        match self.reason {
            Reason::FieldValueRequired => format!("Required value: {}", self.message),
            _ => format!("Invalid value: {}", self.message),
        }
    }
}

/// Every rule, in the order in which violations are reported.
pub const RULES: &[Rule] = &[
    Rule {
        id: "shard-count-when-enabled",
        at: &["spec", "sharding"],
        field: ".shardCount",
        reason: Reason::FieldValueRequired,
        cel: "!self.enabled || has(self.shardCount)",
        holds: |spec| spec.sharding.as_ref().is_none_or(|s| !s.enabled || s.shard_count.is_some()),
        message: "sharding is enabled without a number of shards: set shardCount to a value from 2 to 10, or enabled to false",
    },
    Rule {
        id: "replica-bounds-ordered",
        at: &["spec", "sharding"],
        field: ".maxReplicasPerShard",
        reason: Reason::FieldValueInvalid,
        cel: "self.maxReplicasPerShard >= self.minReplicasPerShard",
        holds: |spec| {
            let ordered =
                |s: &crate::api::Sharding| s.max_replicas_per_shard >= s.min_replicas_per_shard;
            spec.sharding.as_ref().is_none_or(ordered)
        },
        message: "must not be below minReplicasPerShard (default 1; maxReplicasPerShard defaults to 4): raise maxReplicasPerShard or lower minReplicasPerShard",
    },
    Rule {
        id: "cpu-request-within-limit",
        at: &["spec", "resources"],
        field: ".requests.cpu",
        reason: Reason::FieldValueInvalid,
        cel: "!has(self.requests) || !has(self.requests.cpu) || !has(self.limits) || !has(self.limits.cpu) || !isQuantity(string(self.requests.cpu)) || !isQuantity(string(self.limits.cpu)) || quantity(string(self.requests.cpu)).compareTo(quantity(string(self.limits.cpu))) <= 0",
        holds: |spec| request_within_limit(spec, |q| q.cpu.as_ref()),
        message: "must not be above limits.cpu: lower requests.cpu or raise limits.cpu",
    },
    Rule {
        id: "memory-request-within-limit",
        at: &["spec", "resources"],
        field: ".requests.memory",
        reason: Reason::FieldValueInvalid,
        cel: "!has(self.requests) || !has(self.requests.memory) || !has(self.limits) || !has(self.limits.memory) || !isQuantity(string(self.requests.memory)) || !isQuantity(string(self.limits.memory)) || quantity(string(self.requests.memory)).compareTo(quantity(string(self.limits.memory))) <= 0",
        holds: |spec| request_within_limit(spec, |q| q.memory.as_ref()),
        message: "must not be above limits.memory: lower requests.memory or raise limits.memory",
    },
];

/// The rule that says `message` of `field`, if it is one of these.
#[must_use]
pub fn rule_of(field: &str, message: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.path() == field && message.ends_with(rule.message))
}

fn request_within_limit(spec: &KSMScaleSpec, pick: fn(&Quantities) -> Option<&Quantity>) -> bool {
    let amount = |side: Option<&Quantities>| side.and_then(pick).and_then(|q| nanos(&q.0));
    let Some(resources) = &spec.resources else { return true };
    match (amount(resources.requests.as_ref()), amount(resources.limits.as_ref())) {
        (Some(request), Some(limit)) => request <= limit,
        _ => true,
    }
}

/// The amount in billionths, rounded up as the API server does, or `None` if it is no quantity
/// (the schema's pattern reports that). Saturates beyond 2^127 billionths.
fn nanos(text: &str) -> Option<u128> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(unit);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (binary, decimal): (u32, i32) = match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => (0, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    mantissa = mantissa.saturating_mul(1 << binary);
    let exponent = decimal.saturating_add(9) - i32::try_from(fraction.len()).ok()?;
    // More than 40 digits either way is outside the type, so the loop below is bounded.
    for _ in 0..exponent.unsigned_abs().min(40) {
        mantissa = if exponent > 0 { mantissa.saturating_mul(10) } else { mantissa.div_ceil(10) };
    }
    Some(mantissa)
}

#[cfg(test)]
mod tests {
    use super::nanos;

    #[test]
    fn quantities_compare_by_amount_and_not_by_spelling() {
        assert_eq!(nanos("0.1"), nanos("100m"));
        assert_eq!(nanos("1"), nanos("1e0"));
        assert_eq!(nanos("1Ki"), nanos("1024"));
        assert_eq!(nanos("1.5Gi"), nanos("1536Mi"));
        assert_eq!(nanos("5e-1"), nanos(".5"));
        assert!(nanos("1M") < nanos("1Mi"));
        assert!(nanos("999m") < nanos("1"));
        assert_eq!(nanos("0.1n"), Some(1), "rounds up, as resource.Quantity does");
        assert_eq!(nanos("99999999999999999999999999999999Ei"), Some(u128::MAX));
    }

    #[test]
    fn what_is_no_quantity_has_no_amount() {
        for text in ["", "abc", "1Qi", "1.2.3", "e3", "--1"] {
            assert_eq!(nanos(text), None, "{text:?}");
        }
    }
}
