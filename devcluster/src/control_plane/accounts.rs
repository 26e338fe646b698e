//! Identities for programs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};

use super::kubeconfig;

/// A ServiceAccount's token lives for a day: longer than any use of a control plane.
const TOKEN_SECONDS: i64 = 24 * 60 * 60;

/// Gives out the identities of ServiceAccounts, as kubeconfig files.
#[derive(Clone)]
pub(crate) struct Accounts {
    pub(crate) admin: Client,
    /// The API server's.
    pub(crate) url: String,
    pub(crate) ca: PathBuf,
    /// Where the files go.
    pub(crate) dir: PathBuf,
    pub(crate) given: Arc<AtomicUsize>,
}

impl Accounts {
    /// A kubeconfig file for the server at `url`.
    pub(crate) async fn kubeconfig(
        &self,
        url: &str,
        namespace: &str,
        name: &str,
    ) -> Result<PathBuf> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(TOKEN_SECONDS),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("no token for ServiceAccount {namespace}/{name}"))?;
        let token = answer.status.context("the token request was answered without a token")?.token;
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{namespace}-{name}-{number}.kubeconfig"));
        kubeconfig::write(&path, url, &self.ca, &token, namespace)?;
        Ok(path)
    }
}
