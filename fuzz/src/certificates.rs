//! Certificates, keys and the CA's Secret as anybody may have written them.

use jiff::Timestamp;
use k8s_openapi::ByteString;
use ksm_scale_operator::certificates::{
    Authority, Certificate, Pair,
    pair::verify_chain,
    reload::{Files, Reload, Step},
    rotation::State,
};
use std::collections::BTreeMap;

/// What stands between two parts of an input; in no PEM and in no JSON.
const BETWEEN: u8 = 0xfe;
/// The Secret's keys in the order of an input's parts, with what a part in DER is wrapped as.
const KEYS: [(&str, &str); 6] = [
    ("ca.crt", "CERTIFICATE"),
    ("ca.key", "PRIVATE KEY"),
    ("rotation.json", ""),
    ("next.crt", "CERTIFICATE"),
    ("next.key", "PRIVATE KEY"),
    ("old.crt", "CERTIFICATE"),
];
const NAME: &str = "webhook.monitoring.svc";

/// Anything is judged, and what is read is what is written.
///
/// A part that begins with an ASN.1 sequence is wrapped in PEM, so that bytes reach what is below
/// base64.
pub fn certificates(input: &[u8]) {
    let parts: Vec<_> = input.split(|byte| *byte == BETWEEN).collect();
    let part = |i: usize| parts.get(i).copied().unwrap_or_default();
    let data: BTreeMap<_, _> = (0..KEYS.len().min(parts.len()))
        .map(|i| (KEYS[i].0.to_owned(), ByteString(in_pem(part(i), KEYS[i].1))))
        .collect();
    if let Ok(state) = State::parse(&data) {
        let again = State::parse(&state.data()).expect("what is written is read");
        assert!(again == state, "another state");
    }
    let (chain, key) = (in_pem(part(0), KEYS[0].1), in_pem(part(1), KEYS[1].1));
    let now: Timestamp = "2027-06-01T00:00:00Z".parse().expect("a time");
    let _ = Certificate::bundle(&chain);
    let _ = Authority::from_pem(&chain, &key);
    let pair = Pair::from_pem(&chain, &key);
    if let Ok(pair) = &pair {
        let _ = pair.verify(&chain, NAME, now);
        let _ = verify_chain(&pair.certified.cert, &in_pem(part(3), KEYS[3].1), NAME, now);
    }
    let mut reload = Reload::default();
    let step = reload.next(Ok(Files { certificate: chain, key }), NAME, now);
    assert!(pair.is_ok() || matches!(step, Step::Refuse(_)), "{step:?}");
    assert_eq!(matches!(step, Step::Serve(_)), reload.refusal().is_none());
}

fn in_pem(part: &[u8], tag: &str) -> Vec<u8> {
    if part.first() == Some(&0x30) && !tag.is_empty() {
        pem::encode(&pem::Pem::new(tag, part)).into_bytes()
    } else {
        part.to_vec()
    }
}
