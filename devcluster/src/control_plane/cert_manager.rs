//! cert-manager on a control plane.

use anyhow::{Result, ensure};

use super::{ControlPlane, components};
use crate::tools::{self, Tool};

impl ControlPlane {
    /// Installs cert-manager's CustomResourceDefinitions and starts its controllers and its
    /// cainjector, as administrator. Returns when the definitions are served; the process needs a
    /// second more before it issues. Its admission webhook is not there, so objects that it would
    /// refuse are stored. Builds the binary first if need be.
    pub async fn start_cert_manager(&self) -> Result<()> {
        let (program, crds) = tokio::task::spawn_blocking(|| {
            Ok::<_, anyhow::Error>((tools::path(Tool::CertManager)?, tools::cert_manager_crds()?))
        })
        .await??;
        let mut files = Vec::new();
        for crd in &crds {
            files.extend(["-f".as_ref(), crd.as_os_str()]);
        }
        // Server-side: the definitions are too long for the annotation of a client-side apply.
        let apply = ["apply", "--server-side"].map(str::as_ref).into_iter();
        self.run_kubectl(apply.chain(files.iter().copied())).await?;
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"].map(str::as_ref);
        self.run_kubectl(wait.into_iter().chain(files)).await?;
        self.others.lock().await.push(components::cert_manager(&self.layout, &program)?);
        Ok(())
    }

    async fn run_kubectl<'a>(&self, args: impl Iterator<Item = &'a std::ffi::OsStr>) -> Result<()> {
        let output = self.kubectl().args(args).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl failed: {}", said.trim());
        Ok(())
    }
}
