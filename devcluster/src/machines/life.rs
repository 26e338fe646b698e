//! The life of one pod, from the pull of its image to the end of its process.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::health::{Health, Probes};
use super::reporter::{RETRY, report};
use super::{Program, Site, command};
use crate::pod_status::{self, Report};
use crate::process::{Process, Signal};

/// Of the second restart in a row; the first one comes at once, and each further one after twice
/// the time. A kubelet begins with 10 s, which is long for a test.
const BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(16);
/// A container that ran for so long is restarted at once again.
const HEALTHY_RUN: Duration = Duration::from_mins(1);

pub(super) struct Life {
    site: Arc<Site>,
    api: Api<Pod>,
    pod: watch::Receiver<Arc<Pod>>,
    ip: String,
    host_ip: String,
    signals: mpsc::UnboundedReceiver<Signal>,
    report: watch::Sender<Report>,
}

/// Why a process is to be no more.
enum End {
    Exited(ExitStatus),
    Unhealthy,
    Deleted,
}

/// The pod is being deleted, and the process is gone or was never there.
struct Deleted;

impl Life {
    pub(super) fn new(
        site: Arc<Site>,
        pod: watch::Receiver<Arc<Pod>>,
        ip: String,
        host_ip: String,
        signals: mpsc::UnboundedReceiver<Signal>,
    ) -> Self {
        let namespace = pod.borrow().namespace().unwrap_or_default();
        let api = Api::namespaced(site.client.clone(), &namespace);
        let (report, _) = watch::channel(Report {
            phase: "Pending",
            ip: None,
            host_ip: Some(host_ip.clone()),
            state: waiting("ContainerCreating"),
            last_state: json!({}),
            restarts: 0,
            started: false,
            ready: false,
        });
        Self { site, api, pod, ip, host_ip, signals, report }
    }

    /// Lives the pod's life. When this is dropped, the process is killed.
    pub(super) async fn run(mut self) {
        // Aborted with this task.
        let mut reporter = JoinSet::new();
        reporter.spawn(report(self.api.clone(), self.pod.clone(), self.report.subscribe()));
        let Err(Deleted) = self.live().await;
        // Its last words could come after the pod is gone.
        reporter.shutdown().await;
        self.delete().await;
    }

    async fn live(&mut self) -> Result<std::convert::Infallible, Deleted> {
        let phase = self.pod.borrow().status.as_ref().and_then(|status| status.phase.clone());
        if matches!(phase.as_deref(), Some("Failed" | "Succeeded")) {
            return Err(self.deletion().await);
        }
        let program = self.pull().await?;
        let kubeconfig = self.kubeconfig().await?;
        let mut in_a_row = 0;
        loop {
            let start = Instant::now();
            let ended = match self.spawn(&program, &kubeconfig) {
                Ok((container, process)) => self.supervise(&container, process).await?,
                Err(error) => {
                    json!({ "exitCode": 128, "reason": "StartError", "message": format!("{error:#}") })
                }
            };
            if !restarts(&self.pod.borrow(), &ended) {
                let phase = if ended["exitCode"] == 0 { "Succeeded" } else { "Failed" };
                self.report.send_modify(|report| {
                    report.phase = phase;
                    report.state = json!({ "terminated": ended });
                });
                return Err(self.deletion().await);
            }
            in_a_row = if start.elapsed() > HEALTHY_RUN { 0 } else { in_a_row + 1 };
            self.report.send_modify(|report| {
                report.state = waiting("CrashLoopBackOff");
                report.last_state = json!({ "terminated": ended });
                report.restarts += 1;
            });
            self.unless_deleted(tokio::time::sleep(back_off(in_a_row) / self.site.pace)).await?;
        }
    }

    /// Waits until there is a program for the image, and until it is pulled.
    async fn pull(&mut self) -> Result<Program, Deleted> {
        loop {
            let pod = Arc::clone(&self.pod.borrow_and_update());
            if pod.metadata.deletion_timestamp.is_some() {
                return Err(Deleted);
            }
            if let Some(program) = (self.site.programs)(&pod) {
                self.report.send_modify(|report| report.state = waiting("ContainerCreating"));
                self.unless_deleted(tokio::time::sleep(program.pull)).await?;
                return Ok(program);
            }
            self.report.send_modify(|report| report.state = waiting("ImagePullBackOff"));
            if self.pod.changed().await.is_err() {
                return Err(Deleted);
            }
        }
    }

    /// The identity of the pod's ServiceAccount, as soon as the API server gives it.
    async fn kubeconfig(&mut self) -> Result<PathBuf, Deleted> {
        let (accounts, pod) = (self.site.accounts.clone(), Arc::clone(&self.pod.borrow()));
        let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let (namespace, name) = (pod.namespace().unwrap_or_default(), name.unwrap_or_default());
        self.unless_deleted(async move {
            loop {
                match accounts.kubeconfig(&accounts.url, &namespace, &name).await {
                    Ok(path) => return path,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        })
        .await
    }

    fn spawn(
        &self,
        program: &Program,
        kubeconfig: &std::path::Path,
    ) -> Result<(Container, Process)> {
        let pod = Arc::clone(&self.pod.borrow());
        let container = container(&pod).context("a pod has a container")?.clone();
        let name = pod.name_any();
        let own = vec![
            ("HOSTNAME".to_owned(), name.clone()),
            ("KUBECONFIG".to_owned(), kubeconfig.display().to_string()),
        ];
        let environment = command::environment(&pod, &container, own, &self.ip, &self.host_ip)?;
        let given = container.args.iter().flatten().chain(&program.args);
        let args = command::arguments(given, &environment, &self.ip);
        let uid = pod.uid().unwrap_or_default();
        let log =
            self.site.accounts.dir.join(format!("pod-{name}-{}.log", &uid[..8.min(uid.len())]));
        let process = Process::spawn(&name, &program.path, args, environment, &log)?;
        Ok((container, process))
    }

    /// Stays with a process until it has ended, and returns how, as a terminated container's state.
    async fn supervise(
        &mut self,
        container: &Container,
        mut process: Process,
    ) -> Result<Value, Deleted> {
        let mut probes = Probes::start(container, &self.ip, self.site.pace);
        let began = pod_status::now();
        let end = loop {
            let health = *probes.health.borrow_and_update();
            self.report_running(health, &began);
            if !health.alive {
                break End::Unhealthy;
            }
            if self.pod.borrow_and_update().metadata.deletion_timestamp.is_some() {
                break End::Deleted;
            }
            tokio::select! {
                status = process.wait() => match status {
                    Ok(status) => break End::Exited(status),
                    // Only this process waits for its children: it cannot be.
                    Err(_) => break End::Unhealthy,
                },
                Ok(()) = probes.health.changed() => {}
                Ok(()) = self.pod.changed() => {}
                Some(signal) = self.signals.recv() => {
                    // An error is a process that has ended, which is seen next.
                    let _ = process.signal(signal);
                }
            }
        };
        drop(probes);
        let status = match end {
            End::Exited(status) => Ok(status),
            End::Unhealthy | End::Deleted => {
                let grace = grace_period(&self.pod.borrow());
                process.terminate(grace).await
            }
        };
        if matches!(end, End::Deleted) {
            return Err(Deleted);
        }
        self.report.send_modify(|report| (report.started, report.ready) = (false, false));
        // A process that was killed has no code.
        let code = status.ok().and_then(|status| status.code()).unwrap_or(137);
        Ok(json!({
            "exitCode": code,
            "reason": if code == 0 { "Completed" } else { "Error" },
            "startedAt": began,
            "finishedAt": pod_status::now(),
        }))
    }

    fn report_running(&self, health: Health, began: &Value) {
        self.report.send_modify(|report| {
            report.phase = "Running";
            report.ip = Some(self.ip.clone());
            report.state = json!({ "running": { "startedAt": began } });
            (report.started, report.ready) = (health.started, health.ready);
        });
    }

    async fn unless_deleted<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Deleted> {
        tokio::select! {
            value = what => Ok(value),
            deleted = self.deletion() => Err(deleted),
        }
    }

    /// Waits until somebody deletes the pod.
    async fn deletion(&mut self) -> Deleted {
        let deleted = |pod: &Arc<Pod>| pod.metadata.deletion_timestamp.is_some();
        // An error means that nobody looks after the pod any more, and comes with the task's end.
        let _ = self.pod.wait_for(deleted).await;
        Deleted
    }

    /// Ends a deletion: says that nothing runs any more. Finalizers make it wait on, without us.
    async fn delete(&self) {
        let pod = Arc::clone(&self.pod.borrow());
        let uid = Preconditions { uid: pod.uid(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(uid);
        loop {
            match self.api.delete(&pod.name_any(), &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                    return;
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }
}

fn waiting(reason: &str) -> Value {
    json!({ "waiting": { "reason": reason } })
}

fn container(pod: &Pod) -> Option<&Container> {
    pod.spec.as_ref()?.containers.first()
}

fn grace_period(pod: &Pod) -> Duration {
    let of_spec = |spec: &PodSpec| spec.termination_grace_period_seconds;
    let seconds = pod.metadata.deletion_grace_period_seconds;
    let seconds = seconds.or_else(|| pod.spec.as_ref().and_then(of_spec)).unwrap_or(30);
    Duration::from_secs(seconds.try_into().unwrap_or_default())
}

fn restarts(pod: &Pod, ended: &Value) -> bool {
    match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("Never") => false,
        Some("OnFailure") => ended["exitCode"] != 0,
        _ => true,
    }
}

/// Before the restart that follows `in_a_row` ends in a row.
fn back_off(in_a_row: u32) -> Duration {
    match in_a_row.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => LONGEST_BACK_OFF.min(BACK_OFF * 2_u32.pow(doublings.min(4))),
    }
}
