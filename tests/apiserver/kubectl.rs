//! What users read: kubectl's own words before the operator's webhooks, as golden text in
//! `tests/golden/kubectl/`. `UPDATE=1 cargo test --test apiserver kubectl` writes it.

use crate::{
    policies::scale,
    served::{STRICT, until_judged},
    support::*,
};
use kube::api::ListParams;
use serde_json::{Value, json};
use std::{fmt::Write, path::Path, process::Stdio, time::Duration};
use tokio::io::AsyncWriteExt;

/// An administrator's terminal, and all that can be read on it.
pub struct Terminal<'c> {
    cluster: &'c Cluster,
    text: String,
}

impl<'c> Terminal<'c> {
    pub fn new(cluster: &'c Cluster) -> Self {
        Self { cluster, text: String::new() }
    }

    /// Runs a command line that begins with `kubectl`, as a shell does, with `input` on its
    /// standard input. Returns its exit code and what it printed, with causes in order: the API
    /// server judges fields in none.
    pub async fn run(&mut self, line: &str, input: Option<&Value>) -> (Option<i32>, String) {
        let input = input.map(Value::to_string).unwrap_or_default();
        let shown = if input.is_empty() { String::new() } else { format!(" <<< '{input}'") };
        let _ = writeln!(self.text, "$ {line}{shown}");
        let arguments = line.strip_prefix("kubectl").expect("a command of kubectl");
        let kubectl = self.cluster.plane.kubectl();
        let mut shell = tokio::process::Command::new("sh");
        shell.arg("-c").arg(format!("\"$0\"{arguments}")).arg(kubectl.as_std().get_program());
        shell.env("KUBECONFIG", self.cluster.plane.kubeconfig()).kill_on_drop(true);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = shell.spawn().expect("a shell");
        let mut stdin = running.stdin.take().expect("its standard input");
        stdin.write_all(input.as_bytes()).await.expect("it reads");
        drop(stdin);
        let output = running.wait_with_output().await.expect("kubectl ends");
        let printed = [output.stderr, output.stdout].concat();
        let printed = in_order(&String::from_utf8(printed).expect("text"));
        self.text.push_str(&printed);
        let code = output.status.code();
        if code != Some(0) {
            let _ = writeln!(self.text, "(exit code {})", code.unwrap_or(-1));
        }
        (code, printed)
    }

    /// Compares what stands on the terminal with `tests/golden/kubectl/<name>.txt`, and wipes it.
    pub fn golden(&mut self, name: &str) {
        let text = std::mem::take(&mut self.text);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/kubectl");
        let file = folder.join(format!("{name}.txt"));
        #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
        if std::env::var("UPDATE").is_ok() {
            std::fs::create_dir_all(&folder).expect("the folder can be made");
            std::fs::write(&file, &text).expect("the file can be written");
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(committed == text, "kubectl/{name}.txt is not what kubectl printed:\n{text}");
    }
}

/// Sorts each run of lines that are causes.
fn in_order(printed: &str) -> String {
    let mut lines: Vec<_> = printed.split_inclusive('\n').collect();
    lines
        .chunk_by_mut(|one, next| one.starts_with("* ") && next.starts_with("* "))
        .for_each(<[_]>::sort_unstable);
    lines.concat()
}

#[tokio::test]
async fn w1_w4_w5_t2_r68_kubectl_shows_every_cause_the_advice_and_the_way_out() {
    let cluster = Cluster::start(40).await;
    let webhooks = Webhooks::install(&cluster, Duration::ZERO).await;
    let replica = webhooks.replica(&STRICT).await;
    until_judged(&cluster, &json!({"namespace": "kube-system"})).await;
    let mut terminal = Terminal::new(&cluster);
    refused(&mut terminal).await;
    advised(&mut terminal).await;
    protected(&mut terminal).await;
    webhooks.retire(replica).await;
    unanswered(&mut terminal).await;
}

/// The schema refuses what it can by itself; the webhook what only the operator knows.
async fn refused(terminal: &mut Terminal<'_>) {
    let wrong = scale(
        "dev",
        &json!({"nodesPerMonitor": 5, "namespace": "Team", "sharding": {"enabled": true, "shardCount": 1}}),
    );
    let forbidden = scale("dev", &json!({"namespace": "kube-system", "monitorImage": "evil/x:v1"}));
    for object in [&wrong, &forbidden] {
        for line in ["kubectl apply -f -", "kubectl apply --dry-run=server -f -"] {
            assert_eq!(terminal.run(line, Some(object)).await.0, Some(1));
        }
    }
    terminal.golden("refused");
}

async fn advised(terminal: &mut Terminal<'_>) {
    let many = json!({"deletionProtection": true, "sharding": {"enabled": true, "shardCount": 5}});
    let many = scale("dev", &many);
    let apply = "kubectl apply -f -";
    assert_eq!(terminal.run("kubectl apply --dry-run=server -f -", Some(&many)).await.0, Some(0));
    assert_eq!(terminal.run("kubectl get ksmscales", None).await.0, Some(0), "nothing was kept");
    assert_eq!(
        terminal.run("kubectl apply --warnings-as-errors -f -", Some(&many)).await.0,
        Some(1)
    );
    // It was a warning, so it is there.
    assert_eq!(terminal.run("kubectl diff -f -", Some(&many)).await, (Some(0), String::new()));
    assert_eq!(terminal.run(apply, Some(&many)).await.0, Some(0));
    let none = scale("dev", &json!({"deletionProtection": true}));
    assert_eq!(terminal.run(apply, Some(&none)).await.0, Some(0));
    assert_eq!(terminal.run("kubectl diff -f -", Some(&none)).await, (Some(0), String::new()));
    terminal.golden("advised");
}

async fn protected(terminal: &mut Terminal<'_>) {
    terminal.cluster.until_settled("dev").await;
    // Those that are being deleted count until they are gone.
    let pods = terminal.cluster.pods("monitoring");
    eventually("three pods are left", SOON, || async {
        (pods.list(&ListParams::default()).await.ok()?.items.len() == 3).then_some(())
    })
    .await
    .expect("three pods");
    let (code, printed) = terminal.run("kubectl delete ksmscale dev", None).await;
    assert_eq!(code, Some(1));
    let (_, way_out) = printed.trim_end().split_once("first run ").expect("a way out");
    assert_eq!(terminal.run(way_out, None).await.0, Some(0));
    assert_eq!(terminal.run("kubectl delete ksmscale dev --timeout=1m", None).await.0, Some(0));
    terminal.golden("protected");
}

async fn unanswered(terminal: &mut Terminal<'_>) {
    let good = scale("dev", &json!({}));
    assert_eq!(terminal.run("kubectl apply -f -", Some(&good)).await.0, Some(1));
    // Ports, and how a connection fails that nobody takes, are this machine's.
    let (start, _) = terminal.text.split_once(": Post ").expect("a call that failed");
    terminal.text = format!("{start}: Post …\n");
    terminal.golden("unanswered");
}
