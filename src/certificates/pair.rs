//! A certificate chain with the key of its leaf.

use jiff::{SignedDuration, Timestamp};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The one crypto provider of this process.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(ring::default_provider()));
    PROVIDER.clone()
}

/// Why a pair cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// Not PEM, or not what was looked for.
    #[error("the {what} cannot be read as PEM: {source}")]
    Pem {
        /// `certificate`, `private key` or `CA bundle`.
        what: &'static str,
        /// Where it fails.
        source: pem::Error,
    },
    /// PEM, but no certificate in it.
    #[error("no certificate in the {0}")]
    Empty(&'static str),
    /// PEM, but not X.509.
    #[error("the certificate cannot be parsed: {0}")]
    Certificate(String),
    /// The key cannot be used, or is the key of another certificate.
    #[error("the private key does not fit the certificate: {0}")]
    Key(rustls::Error),
    /// The API server would not accept it for this name.
    #[error("the certificate is not valid for {name}: {cause}")]
    Name {
        /// The name that the API server verifies.
        name: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Its time has not come, or is over.
    #[error("the certificate is valid from {not_before} to {not_after}, and it is {now}")]
    Time {
        /// Begin.
        not_before: Timestamp,
        /// End.
        not_after: Timestamp,
        /// The time it was checked for.
        now: Timestamp,
    },
    /// No CA of the bundle verifies it.
    #[error("no CA in the bundle verifies the certificate: {0}")]
    Untrusted(rustls::Error),
}

/// A chain and its key that belong together.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What rustls serves.
    pub certified: Arc<CertifiedKey>,
    /// Begin of the leaf's life.
    pub not_before: Timestamp,
    /// End of the leaf's life.
    pub not_after: Timestamp,
}

impl Pair {
    /// Reads a chain (leaf first) and its key, PKCS#8, SEC1 or PKCS#1.
    ///
    /// # Errors
    /// If either is no PEM, or the key is not the leaf's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let chain = certificates(chain, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|source| PairError::Pem { what: "private key", source })?;
        Self::from_der(chain, key)
    }

    /// The same from DER.
    ///
    /// # Errors
    /// If the key is not the leaf's.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, PairError> {
        let (not_before, not_after) = validity(chain.first().ok_or(PairError::Empty("chain"))?)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(PairError::Key)?;
        Ok(Self { certified: Arc::new(certified), not_before, not_after })
    }

    /// The leaf.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        // `from_der` refuses an empty chain.
        &self.certified.cert[0]
    }

    /// Whether the pair can be served as `server_name` at `now`: the name is among its
    /// subjectAltNames, and it is neither too early nor too late.
    ///
    /// # Errors
    /// What is in the way.
    pub fn check(&self, server_name: &str, now: Timestamp) -> Result<(), PairError> {
        let name_error = |cause: String| PairError::Name { name: server_name.to_owned(), cause };
        let name = ServerName::try_from(server_name).map_err(|e| name_error(e.to_string()))?;
        let leaf = rustls::server::ParsedCertificate::try_from(self.leaf())
            .map_err(|error| PairError::Certificate(error.to_string()))?;
        rustls::client::verify_server_name(&leaf, &name).map_err(|e| name_error(e.to_string()))?;
        let (not_before, not_after) = (self.not_before, self.not_after);
        if now < not_before || now > not_after {
            return Err(PairError::Time { not_before, not_after, now });
        }
        Ok(())
    }

    /// Whether a client that trusts `bundle` (PEM) alone would accept the pair as `server_name`
    /// at `now`, which is how the API server treats `caBundle`.
    ///
    /// # Errors
    /// Why it would not.
    pub fn verify(
        &self,
        bundle: &[u8],
        server_name: &str,
        now: Timestamp,
    ) -> Result<(), PairError> {
        self.check(server_name, now)?;
        verify_chain(&self.certified.cert, bundle, server_name, now)
    }
}

/// The same as [`Pair::verify`] for a chain, leaf first, whose key is elsewhere.
///
/// # Errors
/// Why the client would not accept it.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    bundle: &[u8],
    server_name: &str,
    now: Timestamp,
) -> Result<(), PairError> {
    let (leaf, intermediates) = chain.split_first().ok_or(PairError::Empty("chain"))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(bundle, "CA bundle")?);
    let untrusted = |text: String| PairError::Untrusted(rustls::Error::General(text));
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| untrusted(error.to_string()))?;
    let name = ServerName::try_from(server_name).map_err(|e| untrusted(e.to_string()))?;
    let since_epoch = now.duration_since(Timestamp::UNIX_EPOCH).max(SignedDuration::ZERO);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(since_epoch.as_secs().unsigned_abs()));
    verifier
        .verify_server_cert(leaf, intermediates, &name, &[], now)
        .map(drop)
        .map_err(PairError::Untrusted)
}

/// Every certificate in a PEM text; other sections and comments are skipped.
///
/// # Errors
/// If a section is damaged, or there is none.
pub fn certificates(
    pem: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, PairError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| PairError::Pem { what, source })?;
    if found.is_empty() { Err(PairError::Empty(what)) } else { Ok(found) }
}

/// Begin and end of a certificate's life.
///
/// # Errors
/// If it cannot be parsed.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), PairError> {
    let unreadable = |error: String| PairError::Certificate(error);
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| unreadable(error.to_string()))?;
    let time = |seconds: i64| {
        Timestamp::from_second(seconds).map_err(|error| unreadable(error.to_string()))
    };
    let validity = parsed.validity();
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd,
    };

    const NAME: &str = "webhook.monitoring.svc";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(by: &CertifiedIssuer<'_, KeyPair>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 2, 1);
        (params.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn t1_a_pair_is_good_for_its_name_its_time_and_whoever_trusts_its_ca() {
        let (ca, other) = (authority(), authority());
        let (certificate, key) = leaf(&ca);
        let pair = Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let now = at("2026-01-15T00:00:00Z");
        assert!(pair.check(NAME, now).is_ok());
        assert!(pair.verify(ca.pem().as_bytes(), NAME, now).is_ok());
        let both = format!("# old\n{}\n# new\n{}", other.pem(), ca.pem());
        assert!(pair.verify(both.as_bytes(), NAME, now).is_ok());

        let refused = pair.verify(other.pem().as_bytes(), NAME, now);
        assert!(matches!(refused, Err(PairError::Untrusted(_))), "{refused:?}");
        let refused = pair.check("other.monitoring.svc", now);
        assert!(matches!(refused, Err(PairError::Name { .. })), "{refused:?}");
        for now in ["2025-12-31T23:59:59Z", "2026-02-01T00:00:01Z"] {
            let refused = pair.check(NAME, at(now));
            assert!(matches!(refused, Err(PairError::Time { .. })), "{refused:?}");
        }
    }

    #[test]
    fn t1_what_is_no_pair_says_which_half_is_at_fault() {
        let ca = authority();
        let ((certificate, key), (_, stranger)) = (leaf(&ca), leaf(&ca));
        let text = |chain: &str, key: &str| {
            Pair::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string()
        };
        assert!(text("", &key).contains("no certificate in the certificate"));
        assert!(text(&certificate, "").contains("private key"));
        assert!(text(&certificate, &stranger).contains("does not fit"));
        let damaged = certificate.replacen("MII", "M!I", 1);
        assert!(text(&damaged, &key).contains("certificate cannot be"));
    }
}
