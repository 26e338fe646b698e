//! Whatever a Lease says, it is read, and what is read is what is written.

use super::codec;
use k8s_openapi::api::coordination::v1 as k8s;
use std::collections::BTreeMap;

const RING: &str = "ring";
const DEFAULT: u64 = 15_000;

/// A Lease as JSON; or, from text that is none, one with a line for the holder and each annotation.
pub(crate) fn leases(input: &[u8]) {
    let lease = serde_json::from_slice(input).unwrap_or_else(|_| of_lines(input));
    let read = codec::read(RING, &lease, DEFAULT);
    let other = codec::read_other(RING, &lease, DEFAULT);
    let _ = codec::generation("template", &[lease]);
    assert_eq!(read.is_some(), other.is_some(), "it is one of the ring for all or for nobody");
    let Some(read) = read else { return };
    assert!(read.record.lease > 0, "it could be taken for dead at once");
    let mut fields = codec::fields(&read.member, &read.record, None);
    fields["metadata"]["name"] = codec::name(RING, &read.member).into();
    fields["metadata"]["resourceVersion"] = read.version.0.to_string().into();
    let written = serde_json::from_value(fields).expect("a Lease");
    let again = codec::read(RING, &written, DEFAULT);
    assert_eq!(again.as_ref(), Some(&read), "another Lease was read than was written");
}

fn of_lines(input: &[u8]) -> k8s::Lease {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.split('\n');
    let mut lease = k8s::Lease::default();
    lease.metadata.name = Some("ring.pod".to_owned());
    lease.metadata.resource_version = Some("1".to_owned());
    let holder_identity = lines.next().map(str::to_owned);
    lease.spec = Some(k8s::LeaseSpec { holder_identity, ..k8s::LeaseSpec::default() });
    let annotations: BTreeMap<_, _> =
        codec::ANNOTATIONS.into_iter().zip(lines).map(|(k, v)| (k.into(), v.into())).collect();
    lease.metadata.annotations = Some(annotations);
    lease
}
