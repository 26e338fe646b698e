//! The command line, which is that of kube-state-metrics.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use devcluster::kube_state_metrics::Faults;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::families::Resource;

/// A stand-in for kube-state-metrics.
#[derive(Parser)]
#[command(args_override_self = true)]
pub(crate) struct Arguments {
    /// The shard to serve
    #[arg(long, default_value_t = 0)]
    pub(crate) shard: u32,
    /// The number of shards
    #[arg(long, default_value_t = 1)]
    pub(crate) total_shards: u32,
    /// Comma-separated list of resources; those that are not known here are left out
    #[arg(long)]
    resources: Option<String>,
    /// Comma-separated list of namespaces; all by default
    #[arg(long)]
    namespaces: Option<String>,
    /// Where metrics are served
    #[arg(long, default_value = "::")]
    pub(crate) host: IpAddr,
    /// The port of metrics
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// Where metrics about itself are served
    #[arg(long, default_value = "::")]
    pub(crate) telemetry_host: IpAddr,
    /// The port of metrics about itself
    #[arg(long, default_value_t = 8081)]
    pub(crate) telemetry_port: u16,
    /// The kubeconfig file
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The URL of the API server, in place of the one in the kubeconfig file
    #[arg(long)]
    apiserver: Option<String>,
    /// Not known to the real one: a file that says what is wrong
    #[arg(long)]
    pub(crate) faults: Option<PathBuf>,

    // What the real one takes and what makes no difference here.
    #[arg(long, hide = true)]
    pod: Option<String>,
    #[arg(long, hide = true)]
    pod_namespace: Option<String>,
    #[arg(long, hide = true)]
    metric_labels_allowlist: Option<String>,
    #[arg(long, hide = true)]
    metric_annotations_allowlist: Option<String>,
    #[arg(long, hide = true)]
    metric_allowlist: Option<String>,
    #[arg(long, hide = true)]
    metric_denylist: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    use_apiserver_cache: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_gzip_encoding: Option<bool>,
    #[arg(short, hide = true)]
    v: Option<u8>,
}

impl Arguments {
    /// How to reach the API server. Without a kubeconfig file it is the cluster around.
    pub(crate) async fn client(&self) -> Result<Client> {
        // An error means that there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path)?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
            }
            None => Config::incluster().context("--kubeconfig is missing")?,
        };
        if let Some(url) = &self.apiserver {
            config.cluster_url = url.parse().context("--apiserver")?;
        }
        Ok(Client::try_from(config)?)
    }

    /// The shard that is served, and of how many.
    pub(crate) fn shards(&self, faults: &Faults) -> (u32, u32) {
        let total = faults.total_shards.unwrap_or(self.total_shards);
        (faults.shard.unwrap_or(self.shard), total)
    }

    /// What to serve, in alphabetical order.
    pub(crate) fn resources(&self) -> impl Iterator<Item = Resource> {
        let wanted = |resource: &Resource| {
            let mut wanted = self.resources.iter().flat_map(|list| list.split(','));
            self.resources.is_none() || wanted.any(|name| name.trim() == resource.name())
        };
        Resource::ALL.into_iter().filter(wanted)
    }

    /// The namespaces to look into; `None` is all.
    pub(crate) fn namespaces(&self, resource: Resource) -> Vec<Option<String>> {
        let named = self.namespaces.iter().flat_map(|list| list.split(',')).map(str::trim);
        let named: Vec<_> =
            named.filter(|name| !name.is_empty()).map(|name| Some(name.to_owned())).collect();
        if named.is_empty() || !resource.is_namespaced() { vec![None] } else { named }
    }
}
