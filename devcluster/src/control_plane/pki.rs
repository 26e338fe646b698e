//! Keys and certificates of one control plane.

use std::fs;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::components::Layout;

/// Names under which clients on this machine and pods reach the API server.
const SERVER_NAMES: [&str; 6] = [
    "127.0.0.1",
    "localhost",
    "10.0.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
];

/// Writes a CA, a certificate for the API server (made here because a server that makes its own
/// takes an RSA key, which is slow) and the key pair that signs ServiceAccounts' tokens.
pub(super) fn write(layout: &Layout) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.distinguished_name.push(DnType::CommonName, "devcluster-ca");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca_certificate = ca.self_signed(&ca_key)?;

    let server_key = KeyPair::generate()?;
    let mut server = CertificateParams::new(SERVER_NAMES.map(str::to_owned))?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = server.signed_by(&server_key, &Issuer::new(ca, ca_key))?;

    let account_key = KeyPair::generate()?;
    for (path, pem) in [
        (&layout.ca, ca_certificate.pem()),
        (&layout.server_certificate, certificate.pem()),
        (&layout.server_key, server_key.serialize_pem()),
        (&layout.account_key, account_key.serialize_pem()),
        (&layout.account_public_key, account_key.public_key_pem()),
    ] {
        fs::write(path, pem).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
