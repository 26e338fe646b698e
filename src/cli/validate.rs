//! `validate`: the verdict of the webhook, offline (O2).

use super::{allowed::AllowedArgs, files, print, sarif};
use crate::{
    admission::{Decision, Endpoint, Knowledge, parse},
    allowed::Allowed,
    api::KSMScale,
    rules::rule_of,
    source::Place,
};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use kube::Resource;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode};

/// An object is not valid, or there is a warning and warnings count.
const INVALID: u8 = 1;
/// It could not be found out.
const UNREADABLE: u8 = 2;

#[derive(Debug, Args)]
pub(super) struct Validate {
    /// A file, a folder, or - for standard input. Several may be given. Objects of other kinds are
    /// skipped and counted.
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    filename: Vec<PathBuf>,
    /// Nodes in the cluster, for advice on the number of pods and shards.
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,
    /// Fail on a warning too.
    #[arg(long)]
    warnings_as_errors: bool,
    #[command(flatten)]
    allowed: AllowedArgs,
    /// How to write what was found.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One line each: file, line, object, field, cause and remedy.
    Text,
    /// A list of objects with the same fields.
    Json,
    /// SARIF 2.1.0, for code review on GitHub and elsewhere.
    Sarif,
}

/// One thing found.
#[derive(Serialize)]
pub(super) struct Finding {
    /// `error` or `warning`.
    pub(super) severity: &'static str,
    pub(super) file: String,
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) field: String,
    /// Names the rule. One of the schema goes by its reason.
    pub(super) rule: String,
    pub(super) message: String,
}

impl Validate {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let found = match files::read(&self.filename) {
            Ok(found) => found,
            Err(error) => {
                eprintln!("error: {error:#}");
                return Ok(ExitCode::from(UNREADABLE));
            }
        };
        let findings = self.judge(&found.scales)?;
        print(&match self.output {
            Format::Text => findings.iter().map(text).collect(),
            Format::Json => serde_json::to_string_pretty(&findings)? + "\n",
            Format::Sarif => serde_json::to_string_pretty(&sarif::log(&findings))? + "\n",
        })?;
        let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
        let (errors, warnings) = (count("error"), count("warning"));
        eprintln!(
            "{} KSMScales checked: {errors} errors, {warnings} warnings; {} other objects skipped",
            found.scales.len(),
            found.skipped
        );
        let bad = errors > 0 || self.warnings_as_errors && warnings > 0;
        Ok(if bad { ExitCode::from(INVALID) } else { ExitCode::SUCCESS })
    }

    fn judge(&self, scales: &[files::Written]) -> anyhow::Result<Vec<Finding>> {
        let names: Vec<_> = scales.iter().map(|scale| scale.name().to_owned()).collect();
        let allowed = self.allowed.allowed();
        let mut findings = Vec::new();
        for scale in scales {
            let others = || names.iter().filter(|name| **name != scale.name());
            let knowledge = Knowledge {
                nodes: self.nodes,
                others: others().count(),
                other: others().next().cloned(),
                pods: 0,
            };
            let told = told(&scale.document.json, &knowledge, &allowed)
                .with_context(|| format!("{}: KSMScale {}", scale.file, scale.name()))?;
            let finding = |severity, rule: &str, field: &str, message: &str| Finding {
                severity,
                file: scale.file.clone(),
                place: scale.document.place_of(field),
                name: scale.name().to_owned(),
                field: field.to_owned(),
                rule: rule.to_owned(),
                message: message.to_owned(),
            };
            findings.extend(told.causes.iter().map(|Cause { field, message, reason }| {
                let rule = rule_of(field, message).map_or(&**reason, |rule| rule.id);
                finding("error", rule, field, message)
            }));
            findings.extend(told.warnings.iter().map(|(rule, text)| {
                let (field, message) = text.split_once(": ").unwrap_or_default();
                finding("warning", rule, field, message)
            }));
        }
        Ok(findings)
    }
}

/// What the webhook tells who creates an object.
struct Told {
    causes: Vec<Cause>,
    /// Rule and text of each.
    warnings: Vec<(&'static str, String)>,
}

/// One `metav1.StatusCause`.
#[derive(Deserialize)]
struct Cause {
    field: String,
    message: String,
    reason: String,
}

/// Asks the webhook's decision itself: there is one verdict, and it stands in one place. The
/// requester is taken to be one who may create the pods.
fn told(object: &Value, knowledge: &Knowledge, allowed: &Allowed) -> anyhow::Result<Told> {
    let (group, version) = (KSMScale::group(&()), KSMScale::version(&()));
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "offline",
            "kind": {"group": group, "version": version, "kind": KSMScale::kind(&())},
            "resource": {"group": group, "version": version, "resource": KSMScale::plural(&())},
            "name": object["metadata"]["name"].as_str(),
            "operation": "CREATE",
            "userInfo": {"username": "offline"},
            "object": object,
        },
    });
    let review = review.to_string();
    let answer = match parse(Endpoint::Validate, review.as_bytes()) {
        Err(answer) => answer,
        Ok(review) => match review.decide(knowledge, allowed) {
            Decision::Final(answer) => answer,
            Decision::NeedsAccess(access) => access.granted(),
        },
    };
    let body: Value = serde_json::from_slice(&answer.body)?;
    if answer.status != 200 {
        anyhow::bail!("{}", body["message"].as_str().unwrap_or("there is no verdict"));
    }
    let response = &body["response"];
    let causes = response["status"]["details"]["causes"].clone();
    let texts = response["warnings"].as_array().into_iter().flatten();
    let texts = texts.filter_map(|text| text.as_str().map(str::to_owned));
    Ok(Told {
        causes: if causes.is_null() { Vec::new() } else { serde_json::from_value(causes)? },
        warnings: answer.record.warnings.iter().copied().zip(texts).collect(),
    })
}

fn text(finding: &Finding) -> String {
    let Finding { severity, file, place, name, field, message, .. } = finding;
    format!("{file}:{}: {severity}: KSMScale {name}: {field}: {message}\n", place.line)
}
