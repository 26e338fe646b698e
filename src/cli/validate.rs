//! `validate`: the verdict of the API server, offline (O2).

use super::{allowed::AllowedArgs, files, print};
use crate::{
    validate::validate,
    warnings::{Surroundings, warnings},
};
use clap::{Args, ValueEnum};
use serde::Serialize;
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
}

/// One thing found.
#[derive(Serialize)]
struct Finding {
    severity: &'static str,
    file: String,
    line: u64,
    name: String,
    field: String,
    rule: &'static str,
    message: String,
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
        let findings = self.judge(&found.scales);
        print(&match self.output {
            Format::Text => findings.iter().map(text).collect(),
            Format::Json => serde_json::to_string_pretty(&findings)? + "\n",
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

    fn judge(&self, scales: &[files::Written]) -> Vec<Finding> {
        let names: Vec<_> = scales.iter().map(|scale| scale.name().to_owned()).collect();
        let allowed = self.allowed.allowed();
        let mut findings = Vec::new();
        for scale in scales {
            let others = || names.iter().filter(|name| **name != scale.name());
            let around = Surroundings {
                nodes: self.nodes,
                others: others().count(),
                other: others().next().map(String::as_str),
            };
            let mut add = |severity, rule, field: &str, message| {
                findings.push(Finding {
                    severity,
                    file: scale.file.clone(),
                    line: scale.document.line_of(field),
                    name: scale.name().to_owned(),
                    field: field.to_owned(),
                    rule,
                    message,
                });
            };
            match allowed.check(validate(&scale.document.json)) {
                Ok(valid) => warnings(&valid, around)
                    .into_iter()
                    .for_each(|w| add("warning", w.id, w.field, w.message)),
                Err(violations) => violations
                    .0
                    .into_iter()
                    .for_each(|v| add("error", v.reason.as_str(), &v.field, v.message)),
            }
        }
        findings
    }
}

fn text(finding: &Finding) -> String {
    let Finding { severity, file, line, name, field, message, .. } = finding;
    format!("{file}:{line}: {severity}: KSMScale {name}: {field}: {message}\n")
}
