//! The webhooks of the operator itself: how soon after a start they can be called.

use super::{Row, operator::Operator};
use anyhow::{Context as _, Result, ensure};
use devcluster::{ControlPlane, Level, probe::free_address};
use ksm_scale_operator::{
    manifests,
    names::{CA_SECRET, WEBHOOK_SERVICE},
};
use std::{process::Stdio, time::Instant};
use tokio::io::AsyncWriteExt as _;

const STARTS: usize = 5;

pub async fn measure(say: &impl Fn(&str), rows: &mut Vec<Row>) -> Result<()> {
    let plane = ControlPlane::start(Level::ApiServer).await?;
    super::Fleet::prepare(&plane, 45, 0).await?;
    let address = free_address().await?;
    let flags =
        ["--webhook", "self-managed", "--webhook-bind-address", &address, "--lame-duck", "0s"];
    cold_starts(&plane, &address, &flags, say, rows).await
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
