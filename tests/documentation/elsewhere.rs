//! What a page says and nothing here can do, with the reason.

use crate::document::{Shown, Step};

/// Commands, as they stand in a page, by the reason why they are not run.
const COMMANDS: &[(&str, &[&str])] = &[
    (
        "make and cargo, around this test: CI runs them",
        &["make demo", "make test", "make unit", "cargo build --release"],
    ),
    ("it measures for minutes; tests/pictures.rs holds the page to the data", &["make exposure"]),
    (
        "these would build, and start a cluster beside the one that is here; devcluster/tests/cli.rs runs them",
        &[
            "cargo run -q -p devcluster -- up --nodes 4",
            "export KUBECONFIG=$(cargo run -q -p devcluster -- kubeconfig)",
            "cargo run -q -p devcluster -- down",
        ],
    ),
    (
        "no container runtime: `make image-root` runs the binary as the image has it",
        &["docker build --tag registry.example.com/ksm-scale-operator:0.1.0 ."],
    ),
    (
        "it is what is installed here: tests/chart.rs compares what it renders",
        &[
            "helm install ksm-scale-operator deploy/helm/ksm-scale-operator --namespace monitoring --create-namespace \\\n  --set image.repository=registry.example.com/ksm-scale-operator",
        ],
    ),
    (
        "cert-manager's own tool; tests/apiserver/overlays.rs does what it does",
        &["cmctl renew -n monitoring ksm-scale-operator-webhook"],
    ),
    (
        "a part of a command, as a name for it",
        &[
            "kubectl apply",
            "kubectl apply --warnings-as-errors",
            "kubectl delete ksmscale",
            "kubectl diff",
        ],
    ),
];

/// Blocks of YAML that are for programs which are not here, by a line of theirs.
const YAML: &[(&str, &str)] = &[
    ("Argo CD is not here", "apiVersion: argoproj.io/v1alpha1"),
    ("Argo CD is not here, nor what runs Lua", "  name: argocd-cm"),
    ("Flux is not here", "apiVersion: kustomize.toolkit.fluxcd.io/v1"),
];

/// Why a step is not taken.
pub(crate) fn reason(shown: &Shown) -> Option<&'static str> {
    match &shown.step {
        Step::Command { text, .. } => {
            let found = COMMANDS.iter().find(|(_, commands)| commands.contains(&text.as_str()));
            found.map(|(reason, _)| *reason)
        }
        Step::Yaml(text) => {
            let found = YAML.iter().find(|(_, line)| text.lines().any(|l| l == *line));
            found.map(|(reason, _)| *reason)
        }
        Step::Other { .. } => None,
    }
}

/// What stands here and in no page.
pub(crate) fn unused(pages: &[Shown]) -> Vec<&'static str> {
    let commands = COMMANDS.iter().flat_map(|(_, commands)| commands.iter().copied());
    let is_command = |wanted: &str| {
        pages.iter().any(|s| matches!(&s.step, Step::Command { text, .. } if text == wanted))
    };
    let is_yaml = |wanted: &str| {
        pages
            .iter()
            .any(|s| matches!(&s.step, Step::Yaml(text) if text.lines().any(|l| l == wanted)))
    };
    let yaml = YAML.iter().map(|(_, line)| *line).filter(|line| !is_yaml(line));
    commands.filter(|command| !is_command(command)).chain(yaml).collect()
}
