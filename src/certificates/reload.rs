//! What follows from a look at a directory with a mounted pair.

use super::Pair;
use jiff::Timestamp;
use std::fmt;

/// The content of both files, as of one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    /// `tls.crt`: the chain, leaf first.
    pub certificate: Vec<u8>,
    /// `tls.key`.
    pub key: Vec<u8>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key, not even in a test's output.
        f.write_str("Files")
    }
}

/// What to do after a look.
#[derive(Debug)]
pub enum Step {
    /// There is nothing new to do or to tell.
    Keep,
    /// Serve this from now on.
    Serve(Pair),
    /// Go on with what is served. What was found cannot be served, for this cause; it is told once
    /// for each content.
    Refuse(String),
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Reload {
    served: Option<Files>,
    refused: Option<Refused>,
}

#[derive(Debug)]
struct Refused {
    found: Result<Files, String>,
    cause: String,
}

impl Reload {
    /// Decides on what a look found: both files, or why they cannot be read.
    ///
    /// Every byte counts, so a chain in which an intermediate alone has changed is served too. What
    /// was refused is judged again at each look: a certificate may be too early by a clock that is
    /// seconds behind.
    pub fn next(
        &mut self,
        found: Result<Files, String>,
        server_name: &str,
        now: Timestamp,
    ) -> Step {
        if self.served.is_some() && found.as_ref().ok() == self.served.as_ref() {
            self.refused = None;
            return Step::Keep;
        }
        match judge(&found, server_name, now) {
            Ok(pair) => {
                *self = Self { served: found.ok(), refused: None };
                Step::Serve(pair)
            }
            Err(_) if self.refused.as_ref().is_some_and(|r| r.found == found) => Step::Keep,
            Err(cause) => {
                self.refused = Some(Refused { found, cause: cause.clone() });
                Step::Refuse(cause)
            }
        }
    }

    /// Why what the last look found is not served; `None` if it is.
    pub fn refusal(&self) -> Option<&str> {
        self.refused.as_ref().map(|refused| &*refused.cause)
    }
}

fn judge(found: &Result<Files, String>, server_name: &str, now: Timestamp) -> Result<Pair, String> {
    let files = found.as_ref().map_err(Clone::clone)?;
    let pair = Pair::from_pem(&files.certificate, &files.key).map_err(|e| e.to_string())?;
    pair.check(server_name, now).map_err(|e| e.to_string())?;
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::pair::certificates;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd,
    };

    const NAME: &str = "webhook.monitoring.svc";
    const NOW: &str = "2026-01-15T00:00:00Z";

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn params(names: &[&str]) -> CertificateParams {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 2, 1);
        params
    }

    fn authority() -> Issuer {
        let mut params = params(&[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn files(by: &Issuer, name: &str) -> Files {
        let key = KeyPair::generate().unwrap();
        let certificate = params(&[name]).signed_by(&key, by).unwrap().pem();
        Files { certificate: certificate.into(), key: key.serialize_pem().into() }
    }

    /// What is served after the looks, and the causes that were told.
    fn looks(reload: &mut Reload, found: &[Result<Files, String>]) -> (Vec<Pair>, Vec<String>) {
        let (mut served, mut told) = (Vec::new(), Vec::new());
        for found in found {
            match reload.next(found.clone(), NAME, at(NOW)) {
                Step::Keep => {}
                Step::Serve(pair) => served.push(pair),
                Step::Refuse(cause) => told.push(cause),
            }
        }
        (served, told)
    }

    /// Fault 6: whatever is put there instead of a good pair.
    #[test]
    fn t1_what_cannot_be_served_is_told_once_and_what_is_served_stays() {
        let ca = authority();
        let (good, other) = (files(&ca, NAME), files(&ca, NAME));
        let with = |certificate: &[u8], key: &[u8]| {
            Ok(Files { certificate: certificate.into(), key: key.into() })
        };
        let cases = [
            (with(b"", b""), "no certificate"),
            (with(&good.certificate, b""), "private key"),
            (with(b"-----BEGIN CERTIFICATE-----\nMII!\n", &good.key), "certificate"),
            (with(&good.certificate, &other.key), "does not fit"),
            (Ok(files(&ca, "other.monitoring.svc")), "not valid for webhook.monitoring.svc"),
            (Err("cannot read tls.crt".to_owned()), "cannot read tls.crt"),
        ];
        let mut reload = Reload::default();
        assert_eq!(looks(&mut reload, &[Ok(good.clone())]).0.len(), 1);
        for (bad, words) in cases {
            let (served, told) = looks(&mut reload, &[bad.clone(), bad.clone(), bad]);
            assert!(served.is_empty());
            assert!(matches!(&told[..], [cause] if cause.contains(words)), "{words}: {told:?}");
        }
        assert!(reload.refusal().is_some());
        looks(&mut reload, &[Ok(good.clone())]);
        assert_eq!(reload.refusal(), None);
        let (served, told) = looks(&mut reload, &[Ok(good), Ok(other.clone()), Ok(other)]);
        assert_eq!((served.len(), told.len()), (1, 0), "the good pair came back, then a new one");
    }

    /// Fault 8, and a clock that is behind.
    #[test]
    fn t1_a_pair_is_served_only_in_its_time_and_as_soon_as_that_has_come() {
        let early = files(&authority(), NAME);
        let mut reload = Reload::default();
        let mut look = |now: &str| reload.next(Ok(early.clone()), NAME, at(now));
        assert!(matches!(look("2025-12-31T23:59:58Z"), Step::Refuse(_)));
        assert!(matches!(look("2025-12-31T23:59:59Z"), Step::Keep));
        assert!(matches!(look("2026-01-01T00:00:00Z"), Step::Serve(_)));

        let mut after_restart = Reload::default();
        let expired = after_restart.next(Ok(early), NAME, at("2026-02-01T00:00:01Z"));
        assert!(matches!(&expired, Step::Refuse(cause) if cause.contains("2026-02-01")));
    }

    /// Fault 13.
    #[test]
    fn t1_an_intermediate_that_changes_alone_is_served() {
        let intermediates = [authority(), authority()];
        let Files { certificate: leaf, key } = files(&authority(), NAME);
        let chain = |by: &Issuer| Files {
            certificate: [leaf.as_slice(), by.pem().as_bytes()].concat(),
            key: key.clone(),
        };
        let found: Vec<_> = intermediates.iter().map(|by| Ok(chain(by))).collect();
        let (served, _) = looks(&mut Reload::default(), &found);
        assert_eq!(served.len(), 2);
        for (pair, intermediate) in served.iter().zip(&intermediates) {
            let expected = certificates(intermediate.pem().as_bytes(), "chain").unwrap();
            assert_eq!(pair.certified.cert[1..], expected);
        }
    }
}
