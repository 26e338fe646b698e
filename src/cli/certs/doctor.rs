//! `certs doctor`: the Secret or the mounted pair, both caBundles and what is served, side by side.

use super::{client, print};
use crate::{
    certificates::{
        Certificate, Pair,
        pair::{provider, verify_chain},
        rotation::State,
    },
    names::{CA_SECRET, OPERATOR_NAMESPACE, webhook_server_name},
    webhook::{
        configurations::{self, Configuration},
        self_managed::secret,
    },
};
use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{fmt, fs, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// Something is stale.
const STALE: u8 = 1;
/// It could not be found out.
const UNREADABLE: u8 = 2;

/// How long the server may take for a handshake.
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(in crate::cli) struct Doctor {
    /// The folder with tls.crt and tls.key, if cert-manager or somebody else makes them. Default:
    /// the operator's own CA in its Secret.
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// A replica to ask for the certificate it serves, such as localhost:10250 after
    /// `kubectl port-forward`.
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: String,
    /// What is wrong, and what to do.
    trouble: Option<(String, &'static str)>,
    note: String,
}

/// What certificates come from.
enum Source {
    SelfManaged(Box<State>),
    Mounted(Box<Pair>),
}

impl Doctor {
    pub(in crate::cli) async fn run(&self, now: Timestamp) -> anyhow::Result<ExitCode> {
        match self.findings(now).await {
            Ok(findings) => {
                print(&findings.iter().map(ToString::to_string).collect::<String>())?;
                let stale = findings.iter().any(|finding| finding.trouble.is_some());
                Ok(if stale { ExitCode::from(STALE) } else { ExitCode::SUCCESS })
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                Ok(ExitCode::from(UNREADABLE))
            }
        }
    }

    async fn findings(&self, now: Timestamp) -> anyhow::Result<Vec<Finding>> {
        let client = client().await?;
        let served = match &self.connect {
            Some(address) => Some((address.as_str(), served(address).await?)),
            None => None,
        };
        let bundles = configurations::read(&client)
            .await
            .context("cannot read the webhook configurations")?;
        let mut findings = Vec::new();
        let source = if let Some(folder) = &self.cert_dir {
            let read = |name: &str| {
                let path = folder.join(name);
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
            };
            let pair = Pair::from_pem(&read("tls.crt")?, &read("tls.key")?);
            mounted(pair, now, &mut findings)
        } else {
            let found = secret::read(&client)
                .await
                .with_context(|| format!("cannot read Secret {OPERATOR_NAMESPACE}/{CA_SECRET}"))?;
            self_managed(found, now, &mut findings)
        };
        for bundle in &bundles {
            findings.push(of_bundle(bundle, source.as_ref(), now));
        }
        if let Some((address, chain)) = served {
            findings.push(of_served(address, &chain, &bundles, now));
        }
        Ok(findings)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, trouble, note } = self;
        match trouble {
            None => writeln!(f, "ok     {what}: {note}"),
            Some((cause, remedy)) => writeln!(f, "STALE  {what}: {cause}\n       fix: {remedy}"),
        }
    }
}

fn mounted(
    pair: Result<Pair, crate::certificates::PairError>,
    now: Timestamp,
    findings: &mut Vec<Finding>,
) -> Option<Source> {
    let checked = pair.and_then(|pair| pair.check(&webhook_server_name(), now).map(|()| pair));
    let what = "tls.crt and tls.key".to_owned();
    match checked {
        Ok(pair) => {
            let note = format!("valid until {}", pair.not_after);
            findings.push(Finding { what, trouble: None, note });
            Some(Source::Mounted(Box::new(pair)))
        }
        Err(error) => {
            let remedy = "look at whoever writes them: kubectl describe certificate -n monitoring";
            let trouble = Some((error.to_string(), remedy));
            findings.push(Finding { what, trouble, note: String::new() });
            None
        }
    }
}

fn self_managed(
    found: secret::Found,
    now: Timestamp,
    findings: &mut Vec<Finding>,
) -> Option<Source> {
    let what = format!("Secret {OPERATOR_NAMESPACE}/{CA_SECRET}");
    let remedy = "the operator makes and repairs it within seconds: look at its log and /readyz";
    let (state, cause) = match found.state {
        Ok(Some(state)) if state.ca().is_valid(now) => (Some(state), None),
        Ok(Some(state)) => {
            let cause = format!("its CA {:?} is not valid now ({now})", state.ca());
            (Some(state), Some(cause))
        }
        Ok(None) => (None, Some("it is not there".to_owned())),
        Err(damage) => (None, Some(damage.to_string())),
    };
    let note = state.as_ref().map(|state| {
        let names: Vec<_> = state.trusted().map(|ca| ca.name.as_str()).collect();
        let (ca, phase) = (state.ca(), state.phase().as_str());
        format!("{ca:?} signs, phase {phase}, trusted: {}", names.join(", "))
    });
    let trouble = cause.map(|cause| (cause, remedy));
    findings.push(Finding { what, trouble, note: note.unwrap_or_default() });
    state.map(|state| Source::SelfManaged(Box::new(state)))
}

fn of_bundle(bundle: &Configuration, source: Option<&Source>, now: Timestamp) -> Finding {
    let verdict = match source {
        Some(Source::Mounted(pair)) => bundle.verify(pair, &webhook_server_name(), now),
        Some(Source::SelfManaged(state)) => bundle.trusts(state.trusted()),
        None => bundle.is_there(),
    };
    let remedy = match source {
        Some(Source::Mounted(_)) => {
            "cert-manager's cainjector writes it: look at its log, and at the annotation cert-manager.io/inject-ca-from"
        }
        _ => "the operator writes it within seconds: look at its log and /readyz",
    };
    let names: Vec<_> = bundle.bundles().concat().iter().map(|ca| ca.name.clone()).collect();
    Finding {
        what: bundle.to_string(),
        trouble: verdict.err().map(|cause| (cause, remedy)),
        note: format!("caBundle holds {}", names.join(", ")),
    }
}

fn of_served(
    address: &str,
    chain: &[CertificateDer<'static>],
    bundles: &[Configuration],
    now: Timestamp,
) -> Finding {
    let refused = bundles.iter().flat_map(|bundle| {
        let pem = |cas: Vec<Certificate>| cas.iter().map(Certificate::pem).collect::<String>();
        bundle.bundles().into_iter().map(move |cas| (bundle.to_string(), pem(cas)))
    });
    let trouble = refused.into_iter().find_map(|(what, pem)| {
        let error = verify_chain(chain, pem.as_bytes(), &webhook_server_name(), now).err()?;
        Some((
            format!("{what} does not verify it: {error}"),
            "if the lines above are ok, the replica is stale: look at its /readyz, or restart it",
        ))
    });
    let leaf = chain.first().and_then(|leaf| Certificate::from_der(leaf.clone()).ok());
    let note = leaf.map(|leaf| format!("valid until {}, verified", leaf.not_after));
    Finding { what: format!("served by {address}"), trouble, note: note.unwrap_or_default() }
}

/// The chain that a server presents, whatever it is.
async fn served(address: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny))
        .with_no_client_auth();
    let name = ServerName::try_from(webhook_server_name())?;
    let handshake = async {
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    let stream = timeout(CONNECT, handshake)
        .await
        .map_err(anyhow::Error::from)
        .and_then(|connected| connected.map_err(anyhow::Error::from))
        .with_context(|| format!("no TLS handshake with {address}"))?;
    let chain = stream.get_ref().1.peer_certificates();
    Ok(chain.unwrap_or_default().iter().map(|der| der.clone().into_owned()).collect())
}

/// Looking at a certificate is no trust in it: nothing is sent after the handshake.
#[derive(Debug)]
struct AcceptAny;

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
