//! Starting a control plane and waiting until it can be used.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use http::Request;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use tokio::sync::Mutex;

use super::components::{self, ADMIN_TOKEN, Layout};
use super::{ControlPlane, Level, kubeconfig, pki, ports};
use crate::process::Process;
use crate::scratch::Scratch;
use crate::tools::{self, Tool};

/// A start takes seconds; many at a time on a small machine take longer.
const DEADLINE: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(50);
const ATTEMPTS: usize = 5;

pub(super) async fn start(level: Level) -> Result<ControlPlane> {
    // An error means that there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Waiting for a build blocks for minutes.
    tokio::task::spawn_blocking(move || tools_for(level)).await??;
    let mut attempt = 1;
    loop {
        match attempt_start(level).await {
            Err(error) if attempt < ATTEMPTS && port_was_taken(&error) => attempt += 1,
            result => return result,
        }
    }
}

fn tools_for(level: Level) -> Result<()> {
    tools::path(Tool::Etcd)?;
    tools::path(Tool::KubeApiserver)?;
    if level >= Level::Nodes {
        tools::path(Tool::Kwok)?;
    }
    Ok(())
}

fn port_was_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("address already in use")
}

async fn attempt_start(level: Level) -> Result<ControlPlane> {
    let scratch = Scratch::new()?;
    let layout = Layout::new(scratch.path(), ports::free()?);
    pki::write(&layout)?;
    fs::write(&layout.tokens, format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"))?;
    let url = layout.server_url();
    kubeconfig::write(&layout.kubeconfig, &url, &layout.ca, ADMIN_TOKEN, "default")?;

    // Together: the API server has enough to do before it needs etcd.
    let mut etcd = components::etcd(&layout, &tools::path(Tool::Etcd)?)?;
    let mut api_server = components::api_server(&layout, &tools::path(Tool::KubeApiserver)?)?;
    api_server_ready(&layout, &mut [&mut etcd, &mut api_server]).await?;

    let admin = kubeconfig::client(&layout.kubeconfig).await?;
    let mut others = vec![etcd];
    if level >= Level::Controllers {
        others.push(components::controller_manager(
            &layout,
            &tools::path(Tool::KubeControllerManager)?,
        )?);
        others.push(components::scheduler(&layout, &tools::path(Tool::KubeScheduler)?)?);
    }
    if level >= Level::Nodes {
        others.push(components::kwok(&layout, &tools::path(Tool::Kwok)?)?);
    }
    if level >= Level::Controllers {
        controllers_ready(&admin, &mut others).await?;
    }
    Ok(ControlPlane {
        level,
        admin,
        kubectl: tools::path(Tool::Kubectl)?,
        layout,
        api_server: Mutex::new(Some(api_server)),
        tokens: Arc::default(),
        others: Mutex::new(others),
        _scratch: scratch,
    })
}

/// Waits until the API server says so itself. `processes` must stay alive meanwhile; the last one is
/// the API server.
pub(super) async fn api_server_ready(
    layout: &Layout,
    processes: &mut [&mut Process],
) -> Result<()> {
    let mut config = kubeconfig::config(&layout.kubeconfig).await?;
    // Retries would only slow down the question.
    config.default_retry = false;
    config.read_timeout = Some(Duration::from_secs(5));
    let client = Client::try_from(config)?;
    let start = Instant::now();
    loop {
        let request = Request::get("/readyz").body(Vec::new())?;
        let Err(error) = client.request_text(request).await else { return Ok(()) };
        for process in &mut *processes {
            alive(process)?;
        }
        if start.elapsed() > DEADLINE {
            let log = processes.last().map(|process| process.log_tail(20)).unwrap_or_default();
            return Err(anyhow!(error).context(format!(
                "the API server was not ready after {} s; the end of its log:\n{log}",
                DEADLINE.as_secs(),
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits for the first thing a controller-manager makes that nearly every test needs.
async fn controllers_ready(admin: &Client, processes: &mut [Process]) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(admin.clone());
    let start = Instant::now();
    while accounts.get_opt("default").await?.is_none() {
        for process in &mut *processes {
            alive(process)?;
        }
        if start.elapsed() > DEADLINE {
            bail!("no ServiceAccount `default` after {} s", DEADLINE.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    // A scheduler or a kwok that cannot start has ended by now.
    processes.iter_mut().try_for_each(alive)
}

/// An error with the end of the log if the process has ended.
pub(super) fn alive(process: &mut Process) -> Result<()> {
    match process.try_wait().context("cannot watch over the control plane")? {
        None => Ok(()),
        Some(status) => bail!(
            "{} ended ({status}); the end of its log:\n{}",
            process.name(),
            process.log_tail(20)
        ),
    }
}
