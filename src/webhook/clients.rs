//! Which clients may connect, where they have to show a certificate.

use super::{Options, ServeError};
use crate::certificates::pair::{certificates, provider};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{path::Path, sync::Arc};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Who accepts a client.
pub(super) type Verifier = Arc<dyn ClientCertVerifier>;

/// The file with client CAs, as it was read last.
#[derive(Debug)]
pub(super) struct ClientCaFile {
    names: Arc<[String]>,
    path: Arc<Path>,
    pem: Vec<u8>,
}

impl ClientCaFile {
    /// Reads the file, if there is to be one, and makes of it who accepts clients.
    pub(super) fn read(options: &Options) -> Result<Option<(Self, Verifier)>, ServeError> {
        let Some(path) = &options.client_ca else { return Ok(None) };
        let pem = std::fs::read(path)
            .map_err(|source| ServeError::ClientCaFile { path: path.clone(), source })?;
        let names = options.client_names.clone().into();
        let file = Self { names, path: path.as_path().into(), pem };
        let verifier = file.verifier()?;
        Ok(Some((file, verifier)))
    }

    /// Reads the file again. `None` if nothing has changed since it was read last, also if that
    /// gave an error: it is told once.
    pub(super) async fn changed(&mut self) -> Option<Result<Verifier, ServeError>> {
        let read = tokio::fs::read(&self.path).await;
        let pem = read.as_deref().unwrap_or_default();
        if pem == self.pem {
            return None;
        }
        pem.clone_into(&mut self.pem);
        let unread = |source| ServeError::ClientCaFile { path: self.path.to_path_buf(), source };
        Some(read.map_err(unread).and_then(|_| self.verifier()))
    }

    fn verifier(&self) -> Result<Verifier, ServeError> {
        let pem_error = |source| ServeError::ClientCaPem { path: self.path.to_path_buf(), source };
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.pem, "client CA file").map_err(pem_error)? {
            roots.add(ca)?;
        }
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|source| ServeError::ClientCa { path: self.path.to_path_buf(), source })?;
        Ok(Arc::new(Clients { chain, names: Arc::clone(&self.names) }))
    }
}

/// Accepts a client whose certificate a CA has signed and that carries one of the names.
#[derive(Debug)]
struct Clients {
    chain: Verifier,
    /// Empty: any name.
    names: Arc<[String]>,
}

impl Clients {
    fn accepts(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
        let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let alternative = alternative.iter().flat_map(|names| &names.value.general_names);
        let dns = alternative.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        });
        common.chain(dns).any(|name| self.names.iter().any(|accepted| accepted == name))
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        if self.names.is_empty() || self.accepts(end_entity) {
            Ok(verified)
        } else {
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
