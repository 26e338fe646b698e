//! `certs`: certificates for development, what is stale, and a new CA on request (T3).

use super::print;
use crate::{
    certificates::{Authority, LeafRequest, rotation::Lifetimes, server_names},
    names::{ANNOTATION_ROTATE, CA_SECRET, OPERATOR_NAMESPACE, WEBHOOK_SERVICE},
};
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

mod doctor;

#[derive(Debug, Subcommand)]
pub(super) enum Certs {
    /// Make a CA and a certificate for development: ca.crt, ca.key, tls.crt and tls.key.
    Generate(Generate),
    /// Tell whether the certificate, the CA and both caBundles fit together, and which is stale.
    ///
    /// Exit code 0 if they do, 1 if one is stale, 2 if something cannot be read.
    Doctor(doctor::Doctor),
    /// Ask the running operator for a new CA now. It takes over without a refused call.
    Rotate,
}

#[derive(Debug, Args)]
pub(super) struct Generate {
    /// Where to write the files. The folder is made if it is missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A DNS name of the server; may be given several times. Default: those of the operator's
    /// Service.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Overwrite files that are there.
    #[arg(long)]
    force: bool,
}

impl Certs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the command line is where the clock is read"
        )]
        let now = Timestamp::now();
        match self {
            Self::Generate(generate) => generate.run(now)?,
            Self::Doctor(doctor) => return runtime()?.block_on(doctor.run(now)),
            Self::Rotate => runtime()?.block_on(rotate(now))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The cluster of the kubeconfig, with its own rights.
async fn client() -> anyhow::Result<Client> {
    let config = Config::infer().await.context("cannot find a cluster: set KUBECONFIG")?;
    Client::try_from(config).context("cannot use the cluster's configuration")
}

impl Generate {
    fn run(&self, now: Timestamp) -> anyhow::Result<()> {
        let names = match &self.name[..] {
            [] => server_names(WEBHOOK_SERVICE, OPERATOR_NAMESPACE),
            names => names.to_vec(),
        };
        let lifetimes = Lifetimes::default();
        let authority = Authority::generate(1, now, lifetimes.ca())?;
        // For development there is nobody who would renew it.
        let request = LeafRequest { names, life: lifetimes.ca(), jitter: 0 };
        let (certificate, key) = authority.issue_pem(&request, now).with_context(|| {
            format!("cannot make a certificate for {}", request.names.join(", "))
        })?;
        let files = [
            ("ca.crt", authority.certificate.pem(), 0o644),
            ("ca.key", authority.key_pem(), 0o600),
            ("tls.crt", certificate, 0o644),
            ("tls.key", key, 0o600),
        ];
        fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        let taken: Vec<_> = files
            .iter()
            .map(|(name, ..)| self.out.join(name))
            .filter(|path| path.exists())
            .collect();
        if let Some(first) = taken.first().filter(|_| !self.force) {
            bail!("{} is there already: give --force to overwrite it", first.display());
        }
        for path in taken {
            fs::remove_file(&path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        for (name, text, mode) in files {
            write(&self.out.join(name), &text, mode)?;
        }
        let (folder, end) = (self.out.display(), authority.certificate.not_after);
        print(&format!(
            "ca.crt, ca.key, tls.crt and tls.key are in {folder}, valid until {end}, for {}\ncaBundle of the webhook configurations: base64 -w0 {folder}/ca.crt\n",
            request.names.join(", ")
        ))
    }
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn rotate(now: Timestamp) -> anyhow::Result<()> {
    let api: Api<Secret> = Api::namespaced(client().await?, OPERATOR_NAMESPACE);
    let patch = json!({"metadata": {"annotations": {ANNOTATION_ROTATE: now.to_string()}}});
    api.patch(CA_SECRET, &PatchParams::default(), &Patch::Merge(patch)).await.with_context(|| {
        format!("cannot write the annotation {ANNOTATION_ROTATE} on Secret {OPERATOR_NAMESPACE}/{CA_SECRET}")
    })?;
    print("a new CA is asked for; `ksm-scale-operator certs doctor` shows how far it is\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::Pair;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn t3_certificates_for_development_fit_and_are_not_overwritten_by_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("certs");
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut generate = Generate { out: out.clone(), name: Vec::new(), force: false };
        generate.run(now).unwrap();
        let read = |name: &str| fs::read(out.join(name)).unwrap();
        let pair = Pair::from_pem(&read("tls.crt"), &read("tls.key")).unwrap();
        pair.verify(&read("ca.crt"), "ksm-scale-operator-webhook.monitoring.svc", now).unwrap();
        for key in ["ca.key", "tls.key"] {
            let mode = fs::metadata(out.join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        let before = read("tls.key");
        let refused = generate.run(now).unwrap_err().to_string();
        assert!(refused.contains("ca.crt") && refused.contains("--force"), "{refused}");
        assert_eq!(read("tls.key"), before);
        generate.force = true;
        generate.name = vec!["localhost".into()];
        generate.run(now).unwrap();
        let pair = Pair::from_pem(&read("tls.crt"), &read("tls.key")).unwrap();
        pair.verify(&read("ca.crt"), "localhost", now).unwrap();
    }
}
