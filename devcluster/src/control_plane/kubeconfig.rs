//! kubeconfig files, and clients made from them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

/// Writes a kubeconfig file with a token for one server. (JSON is YAML.)
pub(super) fn write(path: &Path, url: &str, ca: &Path, token: &str, namespace: &str) -> Result<()> {
    let name = "devcluster";
    let mut cluster = json!({ "server": url });
    if url.starts_with("https:") {
        cluster["certificate-authority"] = json!(ca);
    }
    let content = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": name, "cluster": cluster }],
        "users": [{ "name": name, "user": { "token": token } }],
        "contexts": [{
            "name": name,
            "context": { "cluster": name, "user": name, "namespace": namespace },
        }],
        "current-context": name,
    });
    fs::write(path, format!("{content:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// How to reach the server a kubeconfig file names.
pub(super) async fn config(path: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

/// A client with the identity in a kubeconfig file.
pub(super) async fn client(path: &Path) -> Result<Client> {
    Ok(Client::try_from(config(path).await?)?)
}
