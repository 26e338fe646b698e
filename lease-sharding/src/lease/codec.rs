//! What the protocol says, as a `coordination.k8s.io/v1` Lease, and back.
//!
//! | field | meaning |
//! | --- | --- |
//! | name | `<ring>.<member>` |
//! | label `lease-sharding/ring` | the ring |
//! | `spec.holderIdentity` | `<member>_<pod UID>_<incarnation>`; absent if released or taken away |
//! | `spec.leaseDurationSeconds` | the lease time |
//! | `spec.acquireTime`, `spec.renewTime` | for people and foreign tools; never read |
//! | `spec.leaseTransitions` | [`Record::transitions`] |
//! | annotations `lease-sharding/…` | everything else of a [`Record`] |

use crate::{
    partitions::PartitionSet,
    protocol::{self, Holder, Millis, Record, Stage, Version},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1 as k8s, apimachinery::pkg::apis::meta::v1::MicroTime};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

/// The label that says which ring a Lease belongs to.
pub(crate) const RING_LABEL: &str = "lease-sharding/ring";

const KEYSPACE: &str = "lease-sharding/keyspace";
const PLACEMENT: &str = "lease-sharding/placement";
const CLAIMS: &str = "lease-sharding/claims";
const SEQ: &str = "lease-sharding/seq";
const STAGE: &str = "lease-sharding/stage";
const GENERATION: &str = "lease-sharding/generation";
const TEMPLATE: &str = "lease-sharding/template";

/// What a member says of itself in each write.
#[cfg(any(test, fuzzing))]
pub(super) const ANNOTATIONS: [&str; 6] = [KEYSPACE, PLACEMENT, CLAIMS, SEQ, STAGE, GENERATION];

/// A Lease can't have more partitions than this.
const MOST_BYTES: usize = (1 << 16) / 8;

/// Stands for a process whose name can't be read.
const STRANGER: Holder = Holder { pod: 0, incarnation: 0 };

/// Which pod template a member comes from: `pod-template-hash`, or whatever else changes with a
/// roll-out. Empty if nobody said.
pub(crate) type Template = Arc<str>;

/// The Lease's name: a ring has no dot in its name, so no two rings share one.
pub(super) fn name(ring: &str, member: &str) -> String {
    format!("{ring}.{member}")
}

/// The fields of a Lease that a record stands for, as a merge patch. `now` is when it is renewed;
/// `None` leaves the times as they are.
pub(super) fn fields(member: &str, record: &Record, now: Option<Timestamp>) -> Value {
    let holder = record
        .holder
        .map(|Holder { pod, incarnation }| format!("{member}_{}_{incarnation:032x}", as_uuid(pod)));
    let mut fields = json!({
        "metadata": {"annotations": {
            KEYSPACE: format!("{:016x}", record.keyspace),
            PLACEMENT: format!("{:016x}", record.placement),
            CLAIMS: encode_set(&record.claims),
            SEQ: record.seq.to_string(),
            STAGE: stage_name(record.stage),
            GENERATION: record.generation.to_string(),
        }},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": record.lease / 1_000,
            "leaseTransitions": record.transitions,
        },
    });
    if let Some(now) = now {
        fields["spec"]["renewTime"] = json!(MicroTime(now));
    }
    fields
}

/// Adds to [`fields`] what a member says once, when the Lease becomes its own.
pub(super) fn introduce(fields: &mut Value, ring: &str, template: &str, now: Timestamp) {
    fields["metadata"]["labels"] = json!({RING_LABEL: ring});
    fields["metadata"]["annotations"][TEMPLATE] = json!(template);
    fields["spec"]["acquireTime"] = json!(MicroTime(now));
}

/// Reads a Lease of the ring. `None` if it isn't one, by its name or for want of a version.
///
/// What is not understood counts as held, and as a claim to everything under another keyspace,
/// until it was not renewed for its lease time. A Lease that does not state that has `lease`.
pub(super) fn read(ring: &str, lease: &k8s::Lease, lease_time: Millis) -> Option<protocol::Lease> {
    let name = lease.metadata.name.as_deref()?;
    let member = name.strip_prefix(ring)?.strip_prefix('.')?;
    let version = lease.metadata.resource_version.as_deref()?.parse().ok()?;
    let (spec, annotations) = (lease.spec.clone().unwrap_or_default(), annotations(lease));
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
    let transitions = spec.lease_transitions.and_then(|n| u32::try_from(n).ok());
    let text = |key| annotations.get(key).map(String::as_str);
    let number = |key| text(key)?.parse().ok();
    let claims = text(CLAIMS).and_then(decode_set);
    let understood = claims.is_some() && text(KEYSPACE).and_then(hex).is_some();
    let record = Record {
        holder: holder.map(|holder| parse_holder(&holder).unwrap_or(STRANGER)),
        lease: seconds.filter(|s| *s > 0).map_or(lease_time, |s| s * 1_000),
        keyspace: text(KEYSPACE).and_then(hex).unwrap_or_default(),
        placement: text(PLACEMENT).and_then(hex).unwrap_or_default(),
        claims: claims.unwrap_or_default(),
        seq: number(SEQ).unwrap_or_default(),
        stage: text(STAGE).and_then(parse_stage).unwrap_or(Stage::Joining),
        generation: number(GENERATION).unwrap_or_default(),
        transitions: transitions.unwrap_or_default(),
    };
    let record = if understood || record.holder.is_none() {
        record
    } else {
        Record { keyspace: 0, claims: PartitionSet::first(1), ..record }
    };
    Some(protocol::Lease {
        member: member.into(),
        version: Version(version),
        record: Arc::new(record),
    })
}

/// As [`read`], for the Leases of others: claims without a holder, which only a stranger can have
/// written, count until they were not renewed for their lease time.
pub(super) fn read_other(
    ring: &str,
    lease: &k8s::Lease,
    lease_time: Millis,
) -> Option<protocol::Lease> {
    let mut read = read(ring, lease, lease_time)?;
    if read.record.holder.is_none() && !read.record.claims.is_empty() {
        Arc::make_mut(&mut read.record).holder = Some(STRANGER);
    }
    Some(read)
}

/// The generation of a member that comes from `template`, given all Leases of its ring: that of a
/// member of the same template that is there, else one more than anybody's.
///
/// Two that start at the same time agree, as they see the same older ones.
pub(crate) fn generation(template: &str, leases: &[k8s::Lease]) -> u64 {
    let held = |lease: &&k8s::Lease| {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        holder.is_some_and(|holder| !holder.is_empty())
    };
    let number = |lease: &k8s::Lease| annotations(lease).get(GENERATION)?.parse::<u64>().ok();
    let same = |lease: &&k8s::Lease| {
        annotations(lease).get(TEMPLATE).map_or("", String::as_str) == template
    };
    let held: Vec<_> = leases.iter().filter(held).collect();
    let known = held.iter().copied().filter(same).filter_map(number).max();
    let newest = held.iter().copied().filter_map(number).max();
    known.or_else(|| newest.map(|newest| newest.saturating_add(1))).unwrap_or_default()
}

/// A pod's UID as a number: read as a UUID, or hashed if it isn't one, as with static pods.
pub(crate) fn pod_number(uid: &str) -> u128 {
    let hex: String = uid.chars().filter(|c| *c != '-').collect();
    let is_uuid = hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let parsed = u128::from_str_radix(&hex, 16).ok().filter(|_| is_uuid);
    parsed.unwrap_or_else(|| xxhash_rust::xxh3::xxh3_128(uid.as_bytes()))
}

fn annotations(lease: &k8s::Lease) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    lease.metadata.annotations.as_ref().unwrap_or(&NONE)
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn as_uuid(number: u128) -> String {
    let mut text = String::new();
    for (at, digit) in format!("{number:032x}").chars().enumerate() {
        let dash = if matches!(at, 8 | 12 | 16 | 20) { "-" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{dash}{digit}");
    }
    text
}

fn parse_holder(identity: &str) -> Option<Holder> {
    let mut parts = identity.rsplitn(3, '_');
    let incarnation = u128::from_str_radix(parts.next()?, 16).ok()?;
    let pod = u128::from_str_radix(&parts.next()?.replace('-', ""), 16).ok()?;
    parts.next().map(|_| Holder { pod, incarnation })
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Joining => "joining",
        Stage::Active => "active",
        Stage::Draining => "draining",
        Stage::Left => "left",
    }
}

fn parse_stage(name: &str) -> Option<Stage> {
    [Stage::Joining, Stage::Active, Stage::Draining, Stage::Left]
        .into_iter()
        .find(|stage| stage_name(*stage) == name)
}

/// Base64 of a bitmap: bit `p mod 8` of byte `p / 8` stands for partition `p`.
fn encode_set(set: &PartitionSet) -> String {
    let mut bytes = vec![];
    for partition in set.iter() {
        let at = (partition / 8) as usize;
        bytes.resize(bytes.len().max(at + 1), 0_u8);
        bytes[at] |= 1 << (partition % 8);
    }
    STANDARD.encode(bytes)
}

fn decode_set(text: &str) -> Option<PartitionSet> {
    let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() <= MOST_BYTES)?;
    let bits =
        |(base, byte): (u32, u8)| (0..8).filter(move |b| byte >> b & 1 == 1).map(move |b| base + b);
    Some((0..).step_by(8).zip(bytes).flat_map(bits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Millis = 15_000;

    fn record(claims: PartitionSet) -> Record {
        Record {
            holder: Some(Holder { pod: 7, incarnation: u128::MAX }),
            lease: 6_000,
            keyspace: u64::MAX,
            placement: 3,
            claims,
            seq: 12,
            stage: Stage::Active,
            generation: 4,
            transitions: 2,
        }
    }

    fn lease(mut fields: Value) -> k8s::Lease {
        fields["metadata"]["name"] = json!("ring.pod-a");
        fields["metadata"]["resourceVersion"] = json!("42");
        serde_json::from_value(fields).unwrap()
    }

    fn written(record: &Record) -> k8s::Lease {
        lease(fields("pod-a", record, Some(Timestamp::UNIX_EPOCH)))
    }

    proptest! {
        #[test]
        fn s2_what_is_written_is_read_again(
            claims in proptest::collection::vec(0_u32..1 << 16, 0..50), pod: u128, seq: u64,
        ) {
            let holder = Some(Holder { pod, incarnation: 9 });
            let record = Record { holder, seq, ..record(claims.into_iter().collect()) };
            let read = read("ring", &written(&record), LEASE).unwrap();
            prop_assert_eq!(&*read.record, &record);
            prop_assert_eq!((&*read.member, read.version), ("pod-a", Version(42)));
        }

        #[test]
        fn s2_no_annotation_is_too_strange_to_be_read(
            key in 0_usize..6, value in ".{0,40}", identity in ".{0,80}",
        ) {
            let mut lease = written(&record(PartitionSet::first(3)));
            let key = ANNOTATIONS[key];
            lease.metadata.annotations.as_mut().unwrap().insert(key.into(), value);
            lease.spec.as_mut().unwrap().holder_identity = Some(identity);
            prop_assert!(read("ring", &lease, LEASE).is_some());
        }
    }

    #[test]
    fn s2_a_lease_looks_as_documented() {
        let vacated = record(PartitionSet::first(3)).vacated();
        let mut first = fields("pod-a", &record([0, 9].into_iter().collect()), None);
        introduce(&mut first, "ring", "5d8f", Timestamp::UNIX_EPOCH);
        assert_eq!(
            first,
            json!({
                "metadata": {
                    "labels": {"lease-sharding/ring": "ring"},
                    "annotations": {
                        "lease-sharding/keyspace": "ffffffffffffffff",
                        "lease-sharding/placement": "0000000000000003",
                        "lease-sharding/claims": "AQI=",
                        "lease-sharding/seq": "12",
                        "lease-sharding/stage": "active",
                        "lease-sharding/generation": "4",
                        "lease-sharding/template": "5d8f",
                    },
                },
                "spec": {
                    "holderIdentity": "pod-a_00000000-0000-0000-0000-000000000007_ffffffffffffffffffffffffffffffff",
                    "leaseDurationSeconds": 6, "leaseTransitions": 2,
                    "acquireTime": "1970-01-01T00:00:00.000000Z",
                },
            })
        );
        let patch = fields("pod-a", &vacated, None);
        assert_eq!(
            patch["spec"],
            json!({"holderIdentity": null, "leaseDurationSeconds": 6, "leaseTransitions": 3})
        );
        // The size that the largest default claim has.
        assert_eq!(encode_set(&PartitionSet::first(4_096)).len(), 684);
    }

    #[test]
    fn s2_a_lease_of_another_ring_is_none_of_ours() {
        let lease = written(&record(PartitionSet::EMPTY));
        assert!(read("rin", &lease, LEASE).is_none() && read("ring.pod", &lease, LEASE).is_none());
    }

    /// A Lease with the label, a renewTime and nothing else ends the process elsewhere.
    #[test]
    fn weakness_16_a_lease_without_a_duration_or_claims_is_feared_for_the_default_time() {
        let strange = lease(json!({"metadata": {}, "spec": {
            "holderIdentity": "pod-a", "renewTime": "2026-01-01T00:00:00.000000Z",
        }}));
        let read = read("ring", &strange, LEASE).unwrap();
        assert_eq!((read.record.lease, read.record.holder), (LEASE, Some(STRANGER)));
        assert!(!read.record.claims.is_empty() && read.record.keyspace == 0);
        assert!(super::read("ring", &lease(json!({"metadata": {}})), LEASE).is_some());
    }

    #[test]
    fn s2_claims_without_a_holder_count_for_others_and_not_for_the_one_who_wrote_them() {
        let emptied = written(&Record { holder: None, ..record(PartitionSet::first(2)) });
        assert_eq!(read("ring", &emptied, LEASE).unwrap().record.holder, None);
        assert_eq!(read_other("ring", &emptied, LEASE).unwrap().record.holder, Some(STRANGER));
    }

    #[test]
    fn s1_a_pod_is_known_by_its_uid_also_if_that_is_no_uuid() {
        assert_eq!(
            as_uuid(pod_number("0f5c8d0e-4f5a-4b58-9d3c-0c1f8c0a9b11")),
            "0f5c8d0e-4f5a-4b58-9d3c-0c1f8c0a9b11"
        );
        assert_ne!(pod_number("a"), pod_number("b"));
    }

    #[test]
    fn s6_a_generation_is_that_of_the_template_or_a_new_one() {
        let of = |template: &str, generation: u64| {
            let mut fields =
                fields("pod-a", &Record { generation, ..record(PartitionSet::EMPTY) }, None);
            introduce(&mut fields, "ring", template, Timestamp::UNIX_EPOCH);
            lease(fields)
        };
        assert_eq!(generation("old", &[]), 0);
        assert_eq!(generation("old", &[of("old", 4), of("new", 5)]), 4);
        assert_eq!(generation("next", &[of("old", 4), of("new", 5)]), 6);
        assert_eq!(generation("", &[of("", 0)]), 0);
    }
}
