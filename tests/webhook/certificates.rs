//! CAs and what they sign.

use ksm_scale_operator::certificates::Pair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// The name that the API server verifies.
pub(crate) const NAME: &str = "ksm-scale-operator-webhook.monitoring.svc";

/// A CA. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Authority(Arc<CertifiedIssuer<'static, KeyPair>>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self(Arc::new(CertifiedIssuer::self_signed(params, key).unwrap()))
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with a common name and DNS names, and its key.
    pub(crate) fn issue(
        &self,
        common: &str,
        dns: &[&str],
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let dns: Vec<_> = dns.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(dns).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = params.signed_by(&key, &*self.0).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// What the webhook serves.
    pub(crate) fn pair(&self) -> Pair {
        let (certificate, key) = self.issue("webhook", &[NAME]);
        Pair::from_der(vec![certificate], key).unwrap()
    }
}
