//! The operator's own CA, and the leaves it signs: ECDSA P-256, which every API server accepts and
//! which costs a fifteenth of RSA at each handshake.
//!
//! Keys and serials are random (by ring). Randomness decides nothing here; time is an argument.

use super::{
    Pair, PairError,
    pair::{certificates, provider, validity},
};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::{fmt, sync::Arc, time::Duration};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How far a certificate's life begins in the past, for clients whose clocks are behind.
const BACKDATED: Duration = Duration::from_hours(1);

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The generator refused.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// The operating system gives no randomness.
    #[error("cannot get randomness for a certificate")]
    Random,
    /// What was made, or read, is no certificate with its key.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The certificate may not sign others.
    #[error("{0} is not the certificate of a CA")]
    NotCa(String),
}

/// A CA's certificate, as a bundle holds it. Equal if every byte is.
#[derive(Clone)]
pub struct Certificate {
    der: CertificateDer<'static>,
    /// Common name of the subject; of our own CAs no two have the same.
    pub name: String,
    /// Begin of its life.
    pub not_before: Timestamp,
    /// End of its life.
    pub not_after: Timestamp,
}

/// A CA: certificate and key. Clones share the key; equal if the certificates are.
#[derive(Clone)]
pub struct Authority {
    /// What clients have to trust.
    pub certificate: Certificate,
    key: Arc<KeyPair>,
}

/// What one replica serves, and by which CA.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The leaf with its key, which exist in memory only.
    pub pair: Pair,
    /// The CA that signed it.
    pub issuer: Certificate,
    /// When to make the next one: after half to two thirds of its life.
    pub renew_at: Timestamp,
}

/// For whom and how long a leaf is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafRequest {
    /// Every name of the server; see [`server_names`].
    pub names: Vec<String>,
    /// From now. The CA's own end is an end for its leaves too.
    pub life: Duration,
    /// Replicas that started together do not renew together: 0 renews after half of the life,
    /// 255 after two thirds.
    pub jitter: u8,
}

/// The names of a Service's server. The API server verifies the third; the others are for people
/// and for clients in the cluster.
#[must_use]
pub fn server_names(service: &str, namespace: &str) -> Vec<String> {
    let in_namespace = format!("{service}.{namespace}");
    let (svc, local) = (format!("{in_namespace}.svc"), format!("{in_namespace}.svc.cluster.local"));
    vec![service.to_owned(), in_namespace, svc, local]
}

impl Certificate {
    /// Reads one certificate.
    ///
    /// # Errors
    /// If it is not X.509.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, PairError> {
        let (not_before, not_after) = validity(&der)?;
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|error| PairError::Certificate(error.to_string()))?;
        let name = parsed.subject().iter_common_name().find_map(|name| name.as_str().ok());
        let name = name.unwrap_or_default().to_owned();
        Ok(Self { der, name, not_before, not_after })
    }

    /// Every certificate of a bundle in PEM.
    ///
    /// # Errors
    /// If there is none, or one is damaged.
    pub fn bundle(pem: &[u8]) -> Result<Vec<Self>, PairError> {
        certificates(pem, "CA bundle")?.into_iter().map(Self::from_der).collect()
    }

    /// Whether its life is over.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.not_after <= now
    }

    /// Whether clients accept it at `now`.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.not_before <= now && !self.is_expired(now)
    }

    /// In PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        let block = pem::Pem::new("CERTIFICATE", self.der.as_ref());
        pem::encode_config(&block, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (until {})", self.name, self.not_after)
    }
}

impl PartialEq for Authority {
    fn eq(&self, other: &Self) -> bool {
        self.certificate == other.certificate
    }
}

impl Eq for Authority {}

impl fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.certificate.fmt(f)
    }
}

impl Authority {
    /// Makes a new CA. Its name carries `generation` and a random part, so that a client's error
    /// tells which one it is, and so that a client never takes one for another of the same name.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn generate(
        generation: u64,
        now: Timestamp,
        life: Duration,
    ) -> Result<Self, AuthorityError> {
        let serial = serial()?;
        let [a, b, c, d, ..] = serial;
        let name =
            format!("ksm-scale-operator CA {generation}-{:08x}", u32::from_be_bytes([a, b, c, d]));
        let mut params = params(&name, serial, now, now.saturating_add(life).unwrap_or(now))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let der = params.self_signed(&key)?.der().clone();
        Ok(Self { certificate: Certificate::from_der(der)?, key: Arc::new(key) })
    }

    /// Reads a CA from PEM.
    ///
    /// # Errors
    /// If one of the two is damaged, they do not belong together, or it is no CA.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, AuthorityError> {
        let pair = Pair::from_pem(certificate, key)?;
        let certificate = Certificate::from_der(pair.leaf().clone())?;
        let is_ca = X509Certificate::from_der(pair.leaf()).is_ok_and(|(_, c)| c.is_ca());
        if !is_ca {
            return Err(AuthorityError::NotCa(certificate.name));
        }
        let key = KeyPair::from_pem(&String::from_utf8_lossy(key))?;
        Ok(Self { certificate, key: Arc::new(key) })
    }

    /// The key in PEM (PKCS#8). For the Secret, and nowhere else.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Signs a leaf for a new key.
    ///
    /// # Errors
    /// If a name is no DNS name, or there is no randomness.
    pub fn issue(&self, request: &LeafRequest, now: Timestamp) -> Result<Leaf, AuthorityError> {
        let (der, key) = self.sign(request, now)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|text| PairError::Key(rustls::Error::General(text.to_owned())))?;
        let pair = Pair::from_der(vec![der], key)?;
        let life = self.end(request, now).duration_since(now).unsigned_abs();
        let spread = life / 6 * u32::from(request.jitter) / 255;
        let renew_at = now.saturating_add(life / 2 + spread).unwrap_or(now);
        Ok(Leaf { pair, issuer: self.certificate.clone(), renew_at })
    }

    /// The same as certificate and key in PEM, for files.
    ///
    /// # Errors
    /// If a name is no DNS name, or there is no randomness.
    pub fn issue_pem(
        &self,
        request: &LeafRequest,
        now: Timestamp,
    ) -> Result<(String, String), AuthorityError> {
        let (der, key) = self.sign(request, now)?;
        Ok((Certificate::from_der(der)?.pem(), key.serialize_pem()))
    }

    fn sign(
        &self,
        request: &LeafRequest,
        now: Timestamp,
    ) -> Result<(CertificateDer<'static>, KeyPair), AuthorityError> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate.der, &*self.key)?;
        let common_name = request.names.first().map_or("", String::as_str);
        let mut params = params(common_name, serial()?, now, self.end(request, now))?;
        let named = CertificateParams::new(request.names.clone())?;
        params.subject_alt_names = named.subject_alt_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &issuer)?.der().clone(), key))
    }

    fn end(&self, request: &LeafRequest, now: Timestamp) -> Timestamp {
        now.saturating_add(request.life).unwrap_or(now).min(self.certificate.not_after)
    }
}

/// What every certificate of ours has. rcgen's own defaults are a life from 1975 to 4096, serials
/// that repeat with the key, and no link to the issuer's key.
fn params(
    common_name: &str,
    serial: [u8; 16],
    now: Timestamp,
    end: Timestamp,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = date(now.saturating_sub(BACKDATED).unwrap_or(now));
    params.not_after = date(end);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 127 random bits: a serial is positive and at most 20 bytes long (RFC 5280, 4.1.2.2).
fn serial() -> Result<[u8; 16], AuthorityError> {
    let mut serial = [0; 16];
    provider().secure_random.fill(&mut serial).map_err(|_| AuthorityError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn date(at: Timestamp) -> OffsetDateTime {
    // Both types hold whole seconds from year -9999 to 9999.
    OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn request(jitter: u8) -> LeafRequest {
        LeafRequest { names: server_names("webhook", "monitoring"), life: 6 * DAY, jitter }
    }

    #[test]
    fn t2_a_leaf_has_what_an_api_server_asks_for() {
        let ca = Authority::generate(7, now(), 365 * DAY).unwrap();
        let leaf = ca.issue(&request(0), now()).unwrap();
        let bundle = ca.certificate.pem();
        for name in ["webhook", "webhook.monitoring", "webhook.monitoring.svc"] {
            leaf.pair.verify(bundle.as_bytes(), name, now()).unwrap();
        }
        let (_, parsed) = X509Certificate::from_der(leaf.pair.leaf()).unwrap();
        assert!(parsed.extended_key_usage().unwrap().unwrap().value.server_auth && !parsed.is_ca());
        let (_, issuer) = X509Certificate::from_der(&ca.certificate.der).unwrap();
        assert!(issuer.is_ca() && ca.certificate.name.starts_with("ksm-scale-operator CA 7-"));
        let extension = |c: &X509Certificate<'_>, oid: &str| {
            c.extensions().iter().any(|e| e.oid.to_id_string() == oid)
        };
        assert!(extension(&parsed, "2.5.29.35"), "authority key identifier");
        assert!(extension(&issuer, "2.5.29.14"), "subject key identifier");
        assert_eq!(now().duration_since(leaf.pair.not_before).as_hours(), 1);
    }

    #[test]
    fn t2_no_two_certificates_share_a_serial_and_no_two_cas_a_name() {
        let make = || Authority::generate(1, now(), DAY).unwrap();
        let (one, two) = (make(), make());
        assert_ne!(one.certificate.name, two.certificate.name);
        let serial = |leaf: Leaf| {
            let der = leaf.pair.leaf().to_vec();
            X509Certificate::from_der(&der).unwrap().1.raw_serial_as_string()
        };
        let leaf = || one.issue(&request(0), now()).unwrap();
        assert_ne!(serial(leaf()), serial(leaf()));
    }

    #[test]
    fn t2_a_leaf_is_renewed_between_half_and_two_thirds_and_never_outlives_its_ca() {
        let ca = Authority::generate(1, now(), 365 * DAY).unwrap();
        let renewal = |jitter| ca.issue(&request(jitter), now()).unwrap().renew_at;
        let after = |days| now().saturating_add(days * DAY).unwrap();
        assert_eq!([renewal(0), renewal(255)], [after(3), after(4)]);
        let short = Authority::generate(1, now(), DAY).unwrap();
        let leaf = short.issue(&request(0), now()).unwrap();
        assert_eq!(leaf.pair.not_after, short.certificate.not_after);
    }

    #[test]
    fn t2_a_ca_is_read_back_from_pem_and_a_leaf_is_none() {
        let ca = Authority::generate(1, now(), DAY).unwrap();
        let pem = (ca.certificate.pem(), ca.key_pem());
        let read = Authority::from_pem(pem.0.as_bytes(), pem.1.as_bytes()).unwrap();
        assert_eq!(read, ca);
        assert!(!format!("{read:?}").contains("PRIVATE"));
        let (leaf, key) = ca.issue_pem(&request(0), now()).unwrap();
        let refused = Authority::from_pem(leaf.as_bytes(), key.as_bytes());
        assert!(matches!(refused, Err(AuthorityError::NotCa(_))), "{refused:?}");
    }
}
