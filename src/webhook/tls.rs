//! TLS as the API server speaks it to a Service: HTTP/1.1 only, and no resumption.

use super::{Serving, clients::Verifier};
use crate::certificates::pair::provider;
use clap::ValueEnum;
use rustls::{
    AlertDescription, Error, ServerConfig, SupportedProtocolVersion,
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};
use std::{io, sync::Arc};

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsVersion {
    /// TLS 1.2, for API servers that were forbidden to speak 1.3.
    #[value(name = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[value(name = "1.3")]
    V1_3,
}

/// From the newest to the oldest.
static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

impl TlsVersion {
    fn and_newer(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::V1_2 => &VERSIONS,
            Self::V1_3 => &VERSIONS[..1],
        }
    }
}

/// How handshakes are made. With `clients`, only with whom it accepts.
pub(super) fn config(
    serving: &Serving,
    oldest: TlsVersion,
    clients: Option<Verifier>,
) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(oldest.and_newer())?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(serving.clone()));
    // HTTP/2 is never used to reach a Service, and has attacks of its own.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // The API server resumes no sessions, and who does would not have to show a certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Every value of [`failure`].
pub(super) const FAILURES: [&str; 6] =
    [REFUSED_BY_CLIENT, CLIENT_CERTIFICATE, INCOMPATIBLE, NO_CERTIFICATE, PROTOCOL, CONNECTION];

const REFUSED_BY_CLIENT: &str = "refused_by_client";
const CLIENT_CERTIFICATE: &str = "client_certificate";
const INCOMPATIBLE: &str = "incompatible";
const NO_CERTIFICATE: &str = "no_certificate";
const PROTOCOL: &str = "protocol";
const CONNECTION: &str = "connection";

/// Why a handshake failed, for metrics.
pub(super) fn failure(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        // It does not trust our certificate.
        Some(Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate,
        )) => REFUSED_BY_CLIENT,
        Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)) => CLIENT_CERTIFICATE,
        Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => INCOMPATIBLE,
        Some(Error::General(_)) => NO_CERTIFICATE,
        Some(_) => PROTOCOL,
        None => CONNECTION,
    }
}
