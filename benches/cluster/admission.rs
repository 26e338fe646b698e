//! The webhooks of the operator itself: how soon after a start they can be called, and how soon
//! they answer while the controller has a thousand KSMScales to look at.

use super::{
    NO_REQUEUE, Row,
    bodies::{Case, Cases},
    load::{Connections, Target},
    operator::Operator,
};
use anyhow::{Context as _, Result, ensure};
use devcluster::{ControlPlane, Kubelet, Level, probe::free_address};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use ksm_scale_operator::{
    api::KSMScale,
    manifests,
    names::{CA_SECRET, WEBHOOK_CONFIGURATION, WEBHOOK_SERVICE, webhook_server_name},
};
use kube::{Api, api::PostParams};
use serde_json::json;
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt as _, process::Command};

const STARTS: usize = 5;
const SCALES: u32 = 1_000;
/// Requests a second.
const RATE: u32 = 1_000;
/// Of the webhook.
const THREAD: &str = "webhook";
/// Of one measurement.
const SECONDS: u32 = 10;

pub async fn measure(say: &impl Fn(&str), rows: &mut Vec<Row>) -> Result<()> {
    let plane = ControlPlane::start(Level::ApiServer).await?;
    let fleet = super::Fleet::prepare(&plane, 45, 0).await?;
    fleet.make_nodes().await?;
    let _kubelet = Kubelet::start(plane.admin(), Kubelet::always_ready());
    let address = free_address().await?;
    let flags =
        ["--webhook", "self-managed", "--webhook-bind-address", &address, "--lame-duck", "0s"];
    cold_starts(&plane, &address, &flags, say, rows).await?;
    say(&format!("{SCALES} KSMScales"));
    let operator = Operator::start(&plane, None, &[&flags[..], &NO_REQUEUE].concat()).await?;
    make_scales(&plane).await?;
    say("until they are at rest");
    operator.until_idle(SCALES).await?;
    let made = operator.reconciles().await?;
    rows.push(Row {
        figure: "reconciles until so many KSMScales are at rest",
        goal: "–",
        measured: format!("{made} for {SCALES}"),
        method: "created one after the other, a pod each".into(),
    });
    let cores = set_apart(&plane, &operator).await?;
    paced(&plane, &address, &operator, cores, say, rows).await?;
    operator.stop().await
}

/// Gives etcd and the API server a core to themselves, as if they were another machine. Says how.
async fn set_apart(plane: &ControlPlane, operator: &Operator) -> Result<&'static str> {
    let dir = plane.dir().to_string_lossy().into_owned();
    let servers = Command::new("pgrep").args(["-f", &dir]).output().await;
    let servers = servers.map(|found| String::from_utf8_lossy(&found.stdout).into_owned());
    let servers = servers.unwrap_or_default();
    let ours = [std::process::id(), operator.pid()].map(|pid| pid.to_string());
    let ours = ours.iter().map(|pid| ("0", pid.as_str()));
    let mut pinned = !servers.is_empty();
    for (core, pid) in servers.lines().map(|pid| ("1", pid)).chain(ours) {
        let taskset = Command::new("taskset").args(["-apc", core, pid]).output().await;
        pinned &= taskset.is_ok_and(|output| output.status.success());
    }
    Ok(if pinned {
        "load and operator share one core, API server and etcd the other"
    } else {
        "load, operator, API server and etcd share the cores (no pgrep or taskset to pin them with)"
    })
}

/// The same calls twice: while the controller rests, and while a node that joins has woken it.
async fn paced(
    plane: &ControlPlane,
    address: &str,
    operator: &Operator,
    cores: &str,
    say: &impl Fn(&str),
    rows: &mut Vec<Row>,
) -> Result<()> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(plane.admin());
    let webhooks = api.get(WEBHOOK_CONFIGURATION).await?.webhooks.context("webhooks")?;
    let bundle = webhooks.into_iter().next().and_then(|w| w.client_config.ca_bundle);
    let bundle = String::from_utf8(bundle.context("a caBundle")?.0)?;
    let target = Target::new(address.parse()?, &webhook_server_name(), &bundle)?;
    let mut update = Cases::new()?.update;
    // Of all the others.
    update.warned = true;
    let mut connections = target.connections(16).await?;
    say("paced calls, nothing to reconcile");
    let (idle, idle_wait) = ask(&mut connections, &update, operator).await?;
    say("paced calls, everything to reconcile");
    let before = operator.reconciles().await?;
    plane.add_nodes(45..46).await?;
    let (busy, busy_wait) = ask(&mut connections, &update, operator).await?;
    let reconciles = operator.reconciles().await? - before;
    ensure!(reconciles >= SCALES / 4, "only {reconciles} reconciles ran meanwhile");
    rows.push(Row {
        figure: "the webhook's thread waits for a core",
        goal: "–",
        measured: format!(
            "{} µs a request, {} µs while nothing reconciles",
            busy_wait.as_micros(),
            idle_wait.as_micros()
        ),
        method: "the second number of /proc/PID/task/TID/schedstat, in the times of the two below"
            .into(),
    });
    for (figure, times, what) in [
        ("p99 of the webhook, controller idle", idle, "nothing to reconcile".to_owned()),
        (
            "p99 of the webhook, controller busy",
            busy,
            format!("{reconciles} reconciles of {SCALES} KSMScales meanwhile"),
        ),
    ] {
        rows.push(Row {
            figure,
            goal: "–",
            measured: percentiles(times),
            method: format!(
                "{RATE} updates a second for {SECONDS} s on 16 connections, from when each was due; {what}; {cores}"
            ),
        });
    }
    Ok(())
}

/// How long each paced call took, and how long the webhook's thread waited for a core, divided by
/// them.
async fn ask(
    connections: &mut Connections,
    update: &Case,
    operator: &Operator,
) -> Result<(Vec<Duration>, Duration)> {
    let start = operator.waited(THREAD)?;
    let interval = Duration::from_secs(1) / RATE;
    let times = connections.ask_paced(update, u64::from(RATE * SECONDS), interval).await?;
    Ok((times, operator.waited(THREAD)?.saturating_sub(start) / (RATE * SECONDS)))
}

/// One pod each, however many nodes there are.
async fn make_scales(plane: &ControlPlane) -> Result<()> {
    let api: Api<KSMScale> = Api::all(plane.admin());
    for i in 0..SCALES {
        let scale = serde_json::from_value(json!({
            "apiVersion": "monitor.example.com/v1alpha1",
            "kind": "KSMScale",
            "metadata": {"name": format!("bench-{i}")},
            "spec": {"nodesPerMonitor": 10_000},
        }))?;
        api.create(&PostParams::default(), &scale).await?;
    }
    Ok(())
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    format!("{:.2} ms (p50 {:.2} ms, max {:.1} ms)", at(99), at(50), at(100))
}

/// Starts the operator again and again, each time without Secret and without a trusted CA.
async fn cold_starts(
    plane: &ControlPlane,
    address: &str,
    flags: &[&str],
    say: &impl Fn(&str),
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (_, port) = address.rsplit_once(':').context("an address has a port")?;
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {WEBHOOK_SERVICE}, namespace: monitoring}}, spec: {{type: ExternalName, externalName: localhost, ports: [{{port: {port}}}]}}}}"
    );
    let webhooks = manifests::webhooks()?;
    let texts = webhooks.iter().map(|m| m.text.replace("port: 443", &format!("port: {port}")));
    let documents = [service].into_iter().chain(texts).collect::<Vec<_>>().join("\n---\n");
    let mut times = Vec::new();
    for start in 1..=STARTS {
        say(&format!("cold start {start} of {STARTS}"));
        kubectl(plane, &["delete", "--ignore-not-found", "-f", "-"], &documents).await?;
        let secret = ["delete", "--ignore-not-found", "secret", "-n", "monitoring", CA_SECRET];
        kubectl(plane, &secret, "").await?;
        kubectl(plane, &["apply", "-f", "-"], &documents).await?;
        let begun = Instant::now();
        let operator = Operator::start(plane, None, flags).await?;
        times.push(begun.elapsed());
        operator.stop().await?;
    }
    times.sort_unstable();
    rows.push(Row {
        figure: "cold start to Ready, no Secret",
        goal: "≤ 2 s",
        measured: format!("{} ms, max {} ms", times[STARTS / 2].as_millis(), times[STARTS - 1].as_millis()),
        method: format!("median of {STARTS}; from the start of the process to 200 of /readyz, which says that both live caBundles verify what is served"),
    });
    Ok(())
}

async fn kubectl(plane: &ControlPlane, args: &[&str], input: &str) -> Result<()> {
    let mut command = plane.kubectl();
    let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    ensure!(child.wait().await?.success(), "kubectl {args:?} failed");
    Ok(())
}
