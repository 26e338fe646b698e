//! The documentation for users, followed to the letter on a real control plane (O8): every command is
//! run as it is printed, and every output that a page shows is compared.
//!
//! A journey is what one reader does on one cluster. What can't be done here stands in `elsewhere`,
//! with the reason.

#![allow(clippy::panic, reason = "helpers of tests fail as tests do")]

mod compare;
mod document;
mod elsewhere;
mod site;

use document::{Shown, Step};
use site::Site;
use std::collections::BTreeSet;

/// The pages that are followed.
const PAGES: [&str; 7] = [
    "README.md",
    "docs/admission.md",
    "docs/sharding.md",
    "docs/migration.md",
    "docs/guides/kubectl.md",
    "docs/guides/gitops.md",
    "docs/guides/cert-manager.md",
];

/// What one reader does: installs this overlay, or none, and reads these sections of these pages. No
/// section is all of them.
struct Journey {
    overlay: &'static str,
    parts: &'static [(&'static str, &'static [&'static str])],
}

const SELF_MANAGED: Journey = Journey {
    overlay: "self-managed",
    parts: &[
        ("README.md", &["Try it", "Install", "Other namespaces"]),
        (
            "README.md",
            &[
                "First object",
                "How changes happen without a gap",
                "Admission",
                "Several replicas",
                "Before the cluster sees it",
                "Flags",
                "Troubleshooting",
            ],
        ),
        ("docs/guides/kubectl.md", &[]),
        ("docs/guides/gitops.md", &[]),
        ("docs/sharding.md", &[]),
        (
            "docs/admission.md",
            &[
                "What a user sees",
                "Who may ask for what",
                "Self-managed: the default",
                "For development",
            ],
        ),
        ("README.md", &["Upgrade and remove"]),
    ],
};

const CERT_MANAGER: Journey = Journey {
    overlay: "cert-manager",
    parts: &[
        ("README.md", &["Install", "First object"]),
        ("docs/guides/cert-manager.md", &[]),
        ("docs/admission.md", &["cert-manager"]),
        ("README.md", &["Upgrade and remove"]),
    ],
};

const POLICIES: Journey = Journey {
    overlay: "policies",
    parts: &[
        ("README.md", &["Install", "First object"]),
        ("docs/admission.md", &["None: admission policies"]),
        ("README.md", &["Upgrade and remove"]),
    ],
};

const BY_HAND: Journey = Journey {
    overlay: "",
    parts: &[("README.md", &["Without an image", "First object"]), ("docs/migration.md", &[])],
};

const JOURNEYS: [&Journey; 4] = [&SELF_MANAGED, &CERT_MANAGER, &POLICIES, &BY_HAND];

/// The overlay that pages name where any would do.
const USUAL: &str = "deploy/overlays/self-managed";
const OVERLAYS: &str = "kubectl apply -k deploy/overlays/";

impl Journey {
    /// What is done, in order.
    fn steps(&self) -> Vec<Shown> {
        let mut steps = Vec::new();
        for (page, sections) in self.parts {
            let shown = document::read(page).into_iter();
            let wanted = |s: &Shown| sections.is_empty() || sections.contains(&s.section.as_str());
            steps.extend(shown.filter(wanted).filter_map(|shown| self.step(shown)));
        }
        steps
    }

    /// A step as this reader takes it: of several ways to install, one.
    fn step(&self, mut shown: Shown) -> Option<Shown> {
        if elsewhere::reason(&shown).is_some() {
            return None;
        }
        if let Step::Command { text, .. } = &mut shown.step {
            let own = format!("deploy/overlays/{}", self.overlay);
            if shown.section == "Upgrade and remove" {
                *text = text.replace(USUAL, &own);
            }
            // Of the pages that offer several.
            let choice = ["Install", "cert-manager", "None: admission policies"];
            let choice = choice.contains(&shown.section.as_str());
            if choice && text.starts_with(OVERLAYS) && !text.contains(&own) {
                return None;
            }
        }
        Some(shown)
    }

    /// Does it, and says where a page was wrong.
    async fn follow(&self, site: &mut Site) {
        let mut wrong = Vec::new();
        for shown in self.steps() {
            if let Err(cause) = site.follow(&shown).await {
                let Shown { page, line, step, .. } = &shown;
                wrong.push(format!("{page}:{line}: {step:?}\n{cause}"));
            }
        }
        assert!(wrong.is_empty(), "{} steps went wrong:\n\n{}", wrong.len(), wrong.join("\n\n"));
    }
}

#[tokio::test]
async fn o8_o4_what_the_pages_say_is_so_with_self_managed_certificates() {
    let mut site = Site::start().await;
    SELF_MANAGED.follow(&mut site).await;
    nothing_is_left(&site).await;
}

#[tokio::test]
async fn o8_o4_t1_what_the_pages_say_is_so_with_cert_manager() {
    let mut site = Site::start().await;
    site.start_cert_manager().await;
    CERT_MANAGER.follow(&mut site).await;
    nothing_is_left(&site).await;
}

#[tokio::test]
async fn o8_o4_what_the_pages_say_is_so_with_admission_policies() {
    let mut site = Site::start().await;
    POLICIES.follow(&mut site).await;
    nothing_is_left(&site).await;
}

#[tokio::test]
async fn o8_what_the_pages_say_is_so_without_an_image_and_in_a_migration() {
    let mut site = Site::start().await;
    BY_HAND.follow(&mut site).await;
}

/// After the commands that remove everything: nothing of it is there, and nothing is being deleted
/// that waits for somebody.
async fn nothing_is_left(site: &Site) {
    let cluster_wide = "crd,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,\
        validatingwebhookconfigurations,validatingadmissionpolicies,\
        validatingadmissionpolicybindings,mutatingadmissionpolicies,\
        mutatingadmissionpolicybindings,namespaces";
    let namespaced = "pods,poddisruptionbudgets,serviceaccounts,roles,rolebindings,leases,secrets";
    let look = format!(
        "(kubectl get {cluster_wide} -o name; kubectl get {namespaced} -A -o name) \
         | grep -E 'ksm|kube-state-metrics|^namespace/monitoring'"
    );
    let last = tokio::sync::Mutex::new(String::new());
    let gone = devcluster::eventually("everything is gone", site::SOON, || async {
        *last.lock().await = site.shell(&look).await.1;
        last.lock().await.is_empty().then_some(())
    });
    assert!(gone.await.is_ok(), "still there:\n{}", last.into_inner());
}

/// A new command fails this until a journey takes it, or `elsewhere` says why none can.
#[test]
fn o8_every_step_of_every_page_is_taken_or_is_said_to_be_impossible_here() {
    let taken: BTreeSet<_> = JOURNEYS
        .iter()
        .flat_map(|journey| journey.steps())
        .map(|shown| (shown.page, shown.line, format!("{:?}", shown.step)))
        .collect();
    for page in PAGES {
        for shown in document::read(page) {
            if let (Step::Other { .. }, None) = (&shown.step, elsewhere::reason(&shown)) {
                panic!("{page}:{}: nobody checks this block: {:?}", shown.line, shown.step);
            }
            let key = (shown.page, shown.line, format!("{:?}", shown.step));
            // With another overlay it has other words.
            let usual = matches!(&shown.step, Step::Command { text, .. } if text.contains(USUAL));
            assert!(
                taken.contains(&key) || usual || elsewhere::reason(&shown).is_some(),
                "{page}:{}: no journey takes this step, of section {:?}: {:?}",
                shown.line,
                shown.section,
                shown.step
            );
        }
    }
}

#[test]
fn o8_what_is_said_to_be_impossible_here_still_stands_in_a_page() {
    let all: Vec<_> = PAGES.into_iter().flat_map(document::read).collect();
    let unused = elsewhere::unused(&all);
    assert!(unused.is_empty(), "no page has {unused:?}");
}

/// Argo CD's script and Flux's expressions go by conditions, and say nothing about one that is not there.
#[test]
fn o8_the_conditions_that_gitops_tools_look_at_are_there() {
    let conditions: BTreeSet<_> =
        ksm_scale_operator::status::CONDITIONS.iter().map(|described| described.type_).collect();
    let names = regex::Regex::new(r#"(?:seen\.|is\("|type == ')([A-Z]\w+)"#).expect("a pattern");
    let mut looked_at = BTreeSet::new();
    for shown in document::read("docs/guides/gitops.md") {
        if let Step::Yaml(text) = &shown.step {
            looked_at.extend(names.captures_iter(text).map(|found| found[1].to_owned()));
        }
    }
    let unknown: Vec<_> = looked_at.iter().filter(|n| !conditions.contains(n.as_str())).collect();
    assert!(looked_at.len() > 2 && unknown.is_empty(), "{unknown:?} of {looked_at:?}");
}
