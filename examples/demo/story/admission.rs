//! The webhooks: what only they refuse, and a new CA while they are called without a pause.

use crate::{
    report::{Report, seconds},
    stage::{SOON, Stage},
};
use anyhow::{Context as _, Result, ensure};
use devcluster::eventually;
use ksm_scale_operator::{
    api::{KSMScale, KSMScaleSpec},
    names::WEBHOOK_CONFIGURATION,
};
use kube::{Api, Client, Config, api::PostParams, config::KubeConfigOptions};
use std::{
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio::{process::Command, task::JoinSet};

pub async fn forbidden(report: &mut Report, stage: &Stage) -> Result<()> {
    report.step(
        "A spec that is valid, and not allowed here",
        "the webhook refuses namespace and image at once, and says which flag allows them",
    );
    let (stored, answer) =
        stage.try_kubectl(report, "apply -f examples/demo/forbidden.yaml").await?;
    ensure!(!stored, "the spec was accepted");
    for wanted in
        ["spec.namespace", "--allowed-namespaces", "spec.monitorImage", "--allowed-images"]
    {
        ensure!(answer.contains(wanted), "the answer does not say {wanted}");
    }
    report.passed("the messages above, and exit code 1");
    Ok(())
}

/// Calls that go through the webhooks.
#[derive(Default)]
struct Calls {
    answered: AtomicU64,
    failed: AtomicU64,
}

pub async fn new_ca(report: &mut Report, stage: &Stage, operator: &Path) -> Result<()> {
    report.step(
        "A new CA for the webhooks, while they are called without a pause",
        "announced, soaked, switched, retired; not one call fails\n\
         (a soak of 2 s and certificates of 20 s; the defaults are 2 minutes and a week)",
    );
    let before = bundle(stage).await?;
    let calls = Arc::new(Calls::default());
    let mut load = load(stage, &calls).await?;
    let begun = Instant::now();
    run(report, stage, operator, &["certs", "rotate"]).await?;
    let both = eventually("both CAs are trusted", SOON, async || {
        let now = bundle(stage).await.ok()?;
        (now.len() > before.len()).then_some(())
    });
    both.await?;
    report
        .output(&format!("{}: the old CA and the new one are trusted\n", seconds(begun.elapsed())));
    let done = eventually("the old CA is gone", 2 * SOON, async || {
        let now = bundle(stage).await.ok()?;
        (now.len() <= before.len() && now != before).then_some(())
    });
    done.await?;
    report.output(&format!("{}: the new CA alone\n", seconds(begun.elapsed())));
    load.shutdown().await;
    run(report, stage, operator, &["certs", "doctor"]).await?;
    let (answered, failed) =
        (calls.answered.load(Ordering::Relaxed), calls.failed.load(Ordering::Relaxed));
    ensure!(failed == 0 && answered > 100, "{failed} of {} calls failed", answered + failed);
    report.passed(&format!("{answered} calls through the API server, {failed} failed"));
    Ok(())
}

/// The `caBundle` of the validating webhook, as it is live.
async fn bundle(stage: &Stage) -> Result<String> {
    let path = "{.webhooks[0].clientConfig.caBundle}";
    let query =
        format!("get validatingwebhookconfiguration {WEBHOOK_CONFIGURATION} -o jsonpath={path}");
    stage.kubectl(&Report::silent(), &query).await
}

/// Creates a KSMScale again and again, without storing it.
async fn load(stage: &Stage, calls: &Arc<Calls>) -> Result<JoinSet<()>> {
    let kubeconfig = kube::config::Kubeconfig::read_from(stage.plane.kubeconfig())?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // A retry would hide what this is to show.
    config.default_retry = false;
    let mut load = JoinSet::new();
    for worker in 0..2 {
        let scales: Api<KSMScale> = Api::all(Client::try_from(config.clone())?);
        let spec: KSMScaleSpec = serde_json::from_value(serde_json::json!({}))?;
        let scale = KSMScale::new(&format!("call-{worker}"), spec);
        let calls = calls.clone();
        load.spawn(async move {
            let dry = PostParams { dry_run: true, ..PostParams::default() };
            loop {
                let count = match scales.create(&dry, &scale).await {
                    Ok(_) => &calls.answered,
                    Err(_) => &calls.failed,
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    Ok(load)
}

/// Runs the operator's binary as an administrator would.
async fn run(report: &Report, stage: &Stage, operator: &Path, args: &[&str]) -> Result<()> {
    report.command(&format!("ksm-scale-operator {}", args.join(" ")));
    let mut command = Command::new(operator);
    command.args(args).env("KUBECONFIG", stage.plane.kubeconfig()).stdin(Stdio::null());
    let output = command.output().await.context("cannot run the operator")?;
    report.output(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    ensure!(output.status.success(), "it ended with {}", output.status);
    Ok(())
}
