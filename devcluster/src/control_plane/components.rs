//! The processes of a control plane and their command lines.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::Process;
use crate::tools;

/// The token of the administrator. It guards nothing but a server on the loopback interface.
pub(super) const ADMIN_TOKEN: &str = "admin";

/// The files and ports of one control plane.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) tokens: PathBuf,
    pub(super) ca: PathBuf,
    pub(super) server_certificate: PathBuf,
    pub(super) server_key: PathBuf,
    pub(super) account_key: PathBuf,
    pub(super) account_public_key: PathBuf,
    pub(super) audit_policy: PathBuf,
    pub(super) audit_log: PathBuf,
    pub(super) server_port: u16,
    etcd_port: u16,
    etcd_peer_port: u16,
}

impl Layout {
    pub(super) fn new(dir: &Path, [server_port, etcd_port, etcd_peer_port]: [u16; 3]) -> Self {
        Self {
            dir: dir.to_owned(),
            kubeconfig: dir.join("kubeconfig"),
            tokens: dir.join("tokens.csv"),
            ca: dir.join("ca.crt"),
            server_certificate: dir.join("server.crt"),
            server_key: dir.join("server.key"),
            account_key: dir.join("service-account.key"),
            account_public_key: dir.join("service-account.pub"),
            audit_policy: dir.join("audit.yaml"),
            audit_log: dir.join("audit.log"),
            server_port,
            etcd_port,
            etcd_peer_port,
        }
    }

    pub(super) fn server_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.server_port)
    }

    fn spawn(&self, name: &str, program: &Path, args: &[String]) -> Result<Process> {
        let log = self.dir.join(format!("{name}.log"));
        Process::spawn(name, program, args, [("", ""); 0], &log)
    }
}

pub(super) fn etcd(layout: &Layout, program: &Path) -> Result<Process> {
    let client = format!("http://127.0.0.1:{}", layout.etcd_port);
    let peer = format!("http://127.0.0.1:{}", layout.etcd_peer_port);
    let args = [
        format!("--data-dir={}", layout.dir.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // The data need not survive the machine.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    layout.spawn("etcd", program, &args)
}

pub(super) fn api_server(layout: &Layout, program: &Path) -> Result<Process> {
    let mut args = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", layout.etcd_port),
        // Keeps servers apart that meet at the same etcd because a port changed hands.
        format!("--etcd-prefix=/{}", layout.server_port),
        format!("--tls-cert-file={}", layout.server_certificate.display()),
        format!("--tls-private-key-file={}", layout.server_key.display()),
        format!("--secure-port={}", layout.server_port),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", layout.account_public_key.display()),
        format!("--service-account-signing-key-file={}", layout.account_key.display()),
        "--authorization-mode=RBAC".to_owned(),
        format!("--token-auth-file={}", layout.tokens.display()),
        "--allow-privileged=true".to_owned(),
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement".to_owned(),
        // Without a controller-manager nobody would take away the taint this one adds.
        "--disable-admission-plugins=TaintNodesByCondition".to_owned(),
        // Its configuration is written and watched at each start, and nothing here queues.
        "--enable-priority-and-fairness=false".to_owned(),
        "--profiling=false".to_owned(),
    ];
    if layout.audit_policy.exists() {
        args.push(format!("--audit-policy-file={}", layout.audit_policy.display()));
        args.push(format!("--audit-log-path={}", layout.audit_log.display()));
    }
    layout.spawn("kube-apiserver", program, &args)
}

pub(super) fn controller_manager(layout: &Layout, program: &Path) -> Result<Process> {
    let mut args = controller(layout);
    args.extend([
        format!("--service-account-private-key-file={}", layout.account_key.display()),
        format!("--root-ca-file={}", layout.ca.display()),
        "--use-service-account-credentials".to_owned(),
    ]);
    layout.spawn("kube-controller-manager", program, &args)
}

pub(super) fn scheduler(layout: &Layout, program: &Path) -> Result<Process> {
    layout.spawn("kube-scheduler", program, &controller(layout))
}

pub(super) fn kwok(layout: &Layout, program: &Path) -> Result<Process> {
    let mut args = vec![
        format!("--kubeconfig={}", layout.kubeconfig.display()),
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake".to_owned(),
        "--node-lease-duration-seconds=40".to_owned(),
    ];
    for stage in tools::kwok_stages()? {
        args.push(format!("--config={}", stage.display()));
    }
    layout.spawn("kwok", program, &args)
}

pub(super) fn cert_manager(layout: &Layout, program: &Path) -> Result<Process> {
    let args = [format!("-kubeconfig={}", layout.kubeconfig.display())];
    layout.spawn("cert-manager", program, &args)
}

/// Flags the controller-manager and the scheduler share. Nobody asks them anything: no port.
fn controller(layout: &Layout) -> Vec<String> {
    let kubeconfig = layout.kubeconfig.display();
    vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        // The default limits alone delay the start by seconds.
        "--kube-api-qps=500".to_owned(),
        "--kube-api-burst=1000".to_owned(),
    ]
}
