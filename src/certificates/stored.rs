//! The state of the CA as the Secret holds it. The Secret is written by the operator alone, but
//! anyone with rights may have emptied it or mixed it up: reading it is a judgement.

use super::{
    Authority, Certificate,
    rotation::{Announced, Old, State},
};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Display};

/// Certificate and key of the CA that signs.
const ACTIVE: [&str; 2] = ["ca.crt", "ca.key"];
/// The same of the CA that will.
const NEXT: [&str; 2] = ["next.crt", "next.key"];
/// Certificates of those that did.
const OLD: &str = "old.crt";
/// The rest, in JSON.
const ROTATION: &str = "rotation.json";

/// A Secret that is there, and holds no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its key {key} {cause}")]
pub struct Damage {
    /// The key of the Secret's data.
    pub key: &'static str,
    /// What is wrong with it.
    pub cause: String,
}

impl Damage {
    fn new(key: &'static str, cause: &impl Display) -> Self {
        Self { key, cause: format!("cannot be used: {cause}") }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotation {
    generation: u64,
    trusted_since: Option<Timestamp>,
    next_trusted_since: Option<Timestamp>,
    /// One for each certificate in [`OLD`].
    old_until: Vec<Timestamp>,
}

type Data = BTreeMap<String, ByteString>;

impl State {
    /// Reads a Secret's data.
    ///
    /// # Errors
    /// What is missing or does not belong together. There is no half of a state.
    pub fn parse(data: &Data) -> Result<Self, Damage> {
        let text = value(data, ROTATION)?;
        let rotation: Rotation =
            serde_json::from_slice(text).map_err(|error| Damage::new(ROTATION, &error))?;
        let next = NEXT.iter().any(|key| data.contains_key(*key));
        let next = next.then(|| authority(data, NEXT)).transpose()?;
        let old = match data.get(OLD) {
            Some(pem) => Certificate::bundle(&pem.0).map_err(|e| Damage::new(OLD, &e))?,
            None => Vec::new(),
        };
        if old.len() != rotation.old_until.len() {
            let (found, told) = (old.len(), rotation.old_until.len());
            return Err(Damage::new(OLD, &format!("{found} certificates instead of {told}")));
        }
        let old = old.into_iter().zip(rotation.old_until);
        Ok(Self {
            generation: rotation.generation,
            active: Announced {
                authority: authority(data, ACTIVE)?,
                trusted_since: rotation.trusted_since,
            },
            next: next.map(|authority| Announced {
                authority,
                trusted_since: rotation.next_trusted_since,
            }),
            old: old.map(|(certificate, until)| Old { certificate, until }).collect(),
        })
    }

    /// The Secret's data, from which [`State::parse`] reads this state.
    #[must_use]
    pub fn data(&self) -> Data {
        let rotation = Rotation {
            generation: self.generation,
            trusted_since: self.active.trusted_since,
            next_trusted_since: self.next.as_ref().and_then(|next| next.trusted_since),
            old_until: self.old.iter().map(|old| old.until).collect(),
        };
        // Numbers and times: there is nothing in it that JSON has no form for.
        let rotation = serde_json::to_string(&rotation).unwrap_or_default();
        let mut entries = vec![(ROTATION, rotation)];
        let authorities = [(ACTIVE, Some(&self.active)), (NEXT, self.next.as_ref())];
        for ([certificate, key], announced) in authorities {
            if let Some(Announced { authority, .. }) = announced {
                entries.push((certificate, authority.certificate.pem()));
                entries.push((key, authority.key_pem()));
            }
        }
        if !self.old.is_empty() {
            entries.push((OLD, self.old.iter().map(|old| old.certificate.pem()).collect()));
        }
        entries.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes()))).collect()
    }
}

fn value<'d>(data: &'d Data, key: &'static str) -> Result<&'d [u8], Damage> {
    let value = data.get(key).map(|value| value.0.as_slice()).filter(|value| !value.is_empty());
    value.ok_or_else(|| Damage { key, cause: "is missing or empty".into() })
}

fn authority(data: &Data, [certificate, key]: [&'static str; 2]) -> Result<Authority, Damage> {
    let pair = (value(data, certificate)?, value(data, key)?);
    Authority::from_pem(pair.0, pair.1).map_err(|error| Damage::new(certificate, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn state() -> State {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let ca = |generation| Announced {
            authority: Authority::generate(generation, now, Duration::from_hours(24)).unwrap(),
            trusted_since: (generation == 2).then_some(now),
        };
        let old =
            |generation| Old { certificate: ca(generation).authority.certificate, until: now };
        State { generation: 2, active: ca(2), next: Some(ca(3)), old: vec![old(0), old(1)] }
    }

    #[test]
    fn t2_what_is_stored_is_read_back_as_it_was() {
        let whole = state();
        let steady = State { next: None, old: Vec::new(), ..whole.clone() };
        for state in [whole, steady] {
            assert_eq!(State::parse(&state.data()).unwrap(), state);
        }
    }

    #[test]
    fn t2_a_secret_without_any_one_of_its_parts_is_damaged_and_says_which() {
        let data = state().data();
        for key in data.keys() {
            let mut damaged: Vec<Data> = Vec::new();
            for value in [&b""[..], b"-----BEGIN", b"{}", &data["ca.crt"].0, &data["next.key"].0] {
                let same = data[key].0 == value;
                let mut data = data.clone();
                data.insert(key.clone(), ByteString(value.to_vec()));
                damaged.extend((!same).then_some(data));
            }
            let mut without = data.clone();
            without.remove(key);
            damaged.push(without);
            for data in damaged {
                let text = State::parse(&data).unwrap_err().to_string();
                let stem = key.split('.').next().unwrap();
                assert!(text.contains(stem), "{key}: {text}");
                assert!(!text.contains("PRIVATE"), "{text}");
            }
        }
        assert!(State::parse(&Data::new()).is_err());
    }
}
