//! The webhooks as a cluster has them: configurations that name a Service, a Service, several
//! replicas behind it, and kube-proxy's delay between a replica's readiness and its traffic.

use super::{Cluster, Operator, apply_yaml};
use devcluster::{Balancer, FaultProxy};
use ksm_scale_operator::{
    manifests,
    names::{self, OPERATOR, OPERATOR_NAMESPACE},
};
use std::{net::SocketAddr, path::Path, time::Duration};

/// For how long a replica that is leaving still gets connections.
pub const PROXY_DELAY: Duration = Duration::from_secs(8);

/// The Service in front of the replicas.
pub struct Webhooks<'c> {
    cluster: &'c Cluster,
    pub balancer: Balancer,
}

/// A replica of the operator that serves webhooks.
pub struct Replica {
    pub operator: Operator,
    pub address: SocketAddr,
}

impl<'c> Webhooks<'c> {
    /// Applies the shipped configurations and a Service for them. The API server resolves the
    /// Service as on any cluster; that it leads to this machine is all that is special about it.
    pub async fn install(cluster: &'c Cluster, delay: Duration) -> Self {
        let balancer = Balancer::start(delay).await.expect("a balancer");
        let port = balancer.address().port();
        let name = names::WEBHOOK_SERVICE;
        let service = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: monitoring}}, spec: {{type: ExternalName, externalName: localhost, ports: [{{port: {port}}}]}}}}"
        );
        apply_yaml(&cluster.client, &service).await;
        let webhooks = Self { cluster, balancer };
        webhooks.configure().await;
        webhooks
    }

    /// Applies the shipped configurations.
    pub async fn configure(&self) {
        let port = format!("port: {}", self.balancer.address().port());
        for manifest in manifests::webhooks().expect("manifests") {
            let text = manifest.text.replace("port: 443", &port);
            apply_yaml(&self.cluster.client, &text).await;
        }
    }

    pub fn cluster(&self) -> &'c Cluster {
        self.cluster
    }

    /// Starts a replica without waiting.
    pub async fn spawn(&self, args: &[&str]) -> Replica {
        let plane = &self.cluster.plane;
        let account = plane.service_account_kubeconfig(OPERATOR_NAMESPACE, OPERATOR);
        self.spawn_as(&account.await.expect("a token"), args).await
    }

    /// The same with a proxy between it and the API server.
    pub async fn spawn_via(&self, proxy: &FaultProxy, args: &[&str]) -> Replica {
        let (plane, url) = (&self.cluster.plane, proxy.url());
        let account = plane.service_account_kubeconfig_via(&url, OPERATOR_NAMESPACE, OPERATOR);
        self.spawn_as(&account.await.expect("a token"), args).await
    }

    async fn spawn_as(&self, kubeconfig: &Path, args: &[&str]) -> Replica {
        let address = devcluster::probe::free_address().await.expect("a port");
        // No two replicas are one pod.
        let name = format!("webhook-{}", address.rsplit(':').next().unwrap_or_default());
        let mut all = vec!["--webhook-bind-address", &address];
        if !args.contains(&"--pod-name") {
            all.extend(["--pod-name", &name, "--pod-uid", &name]);
        }
        if !args.contains(&"--webhook") {
            all.extend(["--webhook", "self-managed"]);
        }
        all.extend(args);
        let operator = Operator::spawn(&self.cluster.plane, kubeconfig, &all).await;
        Replica { operator, address: address.parse().expect("an address") }
    }

    /// Waits until a replica is ready, and sends it traffic, as an endpoints controller does.
    pub async fn admit(&self, replica: &Replica) {
        replica.operator.until_ready().await;
        self.balancer.add(replica.address);
    }

    /// A replica with traffic.
    pub async fn replica(&self, args: &[&str]) -> Replica {
        let replica = self.spawn(args).await;
        self.admit(&replica).await;
        replica
    }

    /// SIGTERM to a replica; traffic ends as late after it as the balancer says. Returns when its
    /// process has ended.
    pub async fn retire(&self, replica: Replica) {
        let stopping = replica.operator.terminate();
        self.balancer.withdraw(replica.address);
        let status = stopping.await;
        assert!(status.success(), "{status}");
    }
}
