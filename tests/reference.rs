//! The reference pages are made of the code (O7, O8). `UPDATE=1 cargo test --test reference`
//! (`make update`) writes them.

#[path = "prometheus/exported.rs"]
mod exported;

use clap::{Arg, ArgAction, Command, CommandFactory};
use ksm_scale_operator::{cli::Cli, crd, status::CONDITIONS};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
};

fn page(name: &str, text: &str) {
    let path = format!("docs/reference/{name}.md");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(&path);
    #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
    if std::env::var("UPDATE").is_ok() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("the folder can be made");
        std::fs::write(&file, text).expect("the file can be written");
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == text, "{path} is not as generated: run `make update`");
}

/// What may stand in a cell of a table.
fn cell(text: &str) -> String {
    text.trim().replace('|', "\\|").replace('\n', " ")
}

#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// The metrics in a text of OpenMetrics, by the name that queries use.
fn metrics(text: &str) -> BTreeMap<String, Metric> {
    let mut found = BTreeMap::<String, Metric>::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            found.entry(name.into()).or_default().help = help.trim_end_matches('.').into();
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        {
            found.entry(name.into()).or_default().kind = kind.into();
        } else if let Some((name, labels)) = line
            .rsplit_once(' ')
            .and_then(|(sample, _)| sample.trim_end_matches('}').split_once('{'))
        {
            let name = name.trim_end_matches("_total").trim_end_matches("_bucket");
            for (label, value) in labels.split("\",").filter_map(|label| label.split_once('=')) {
                let values = found.entry(name.into()).or_default().labels.entry(label.into());
                values.or_default().insert(value.trim_matches('"').into());
            }
        }
    }
    let total = |(name, metric): (String, Metric)| {
        let end = if metric.kind == "counter" { "_total" } else { "" };
        (format!("{name}{end}"), metric)
    };
    found.into_iter().map(total).collect()
}

#[test]
fn o7_o8_the_page_of_metrics_holds_every_metric_with_its_labels() {
    let mut text = String::from(
        "# Metrics\n\nOn `/metrics` of `--metrics-bind-address`, in the format of OpenMetrics. No label holds the name of\nan object: the number of series does not grow with the cluster. A histogram\nhas the series `_bucket`, `_sum` and `_count`. The metrics `sharding_…` are there where replicas share\nthe work. Generated from the code.\n\n| metric | type | labels | says |\n| --- | --- | --- | --- |\n",
    );
    let metrics = metrics(&exported::exported());
    assert!(metrics.len() > 40, "{} metrics", metrics.len());
    for (name, Metric { kind, help, labels }) in metrics {
        assert!(!help.is_empty() && !kind.is_empty(), "{name} says nothing");
        let labels = labels.into_keys().filter(|label| label != "le");
        let labels: Vec<_> = labels.map(|label| format!("`{label}`")).collect();
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join(", "), cell(&help));
    }
    page("metrics", &text);
}

#[test]
fn r70_o8_the_page_of_conditions_holds_every_reason() {
    let mut text = String::from(
        "# Conditions\n\nOf a KSMScale, in `.status.conditions`. The message of each names the object, the cause and the fix;\nthis page is the index. Generated from the code.\n",
    );
    for condition in CONDITIONS {
        let _ = write!(
            text,
            "\n## {}\n\n`True`: {}.\n\n| status | reason | what to do |\n| --- | --- | --- |\n",
            condition.type_, condition.meaning
        );
        for (status, reason, remedy) in condition.reasons {
            let status = if *status { "True" } else { "False" };
            let _ = writeln!(text, "| {status} | `{reason}` | {remedy} |");
        }
    }
    page("conditions", &text);
}

fn flag(arg: &Arg) -> String {
    let name = arg.get_long().map_or_else(
        || format!("<{}>", arg.get_id().as_str().to_uppercase()),
        |long| format!("--{long}"),
    );
    let short = arg.get_short().map_or(String::new(), |short| format!("-{short}, "));
    let value = match arg.get_action() {
        ArgAction::Set | ArgAction::Append if arg.get_long().is_some() => {
            let names = arg.get_value_names().unwrap_or_default();
            names.first().map_or(String::new(), |name| format!("={name}"))
        }
        _ => String::new(),
    };
    cell(&format!("`{short}{name}{value}`"))
}

fn flags(text: &mut String, path: &str, command: &Command) {
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "\n## {path}\n\n{}\n", about.trim());
    let args: Vec<_> = command.get_arguments().filter(|arg| !arg.is_hide_set()).collect();
    if !args.is_empty() {
        text.push_str("\n| flag | environment | default | meaning |\n| --- | --- | --- | --- |\n");
    }
    for arg in args {
        let code = |text: String| if text.is_empty() { text } else { format!("`{text}`") };
        let env = arg.get_env().map(|name| name.to_string_lossy().into_owned());
        let default: Vec<_> =
            arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            flag(arg),
            code(env.unwrap_or_default()),
            code(default.join(",")),
            cell(&help.unwrap_or_default())
        );
    }
    for sub in command.get_subcommands() {
        flags(text, &format!("{path} {}", sub.get_name()), sub);
    }
}

#[test]
fn o1_o8_the_page_of_flags_holds_every_command() {
    let mut text = String::from(
        "# Command line\n\nEvery flag of `run` can also be an environment variable; the flag wins. Generated from the code.\n",
    );
    let command = Cli::command();
    flags(&mut text, command.get_name(), &command);
    page("flags", &text);
}

/// The bounds of a field, as JSON schema has them.
fn bounds(schema: &Value) -> String {
    // The CRD's floats are whole numbers, and written so.
    let number = |key: &str, word: &str| {
        let value = schema.get(key)?.to_string();
        Some(format!("{word} {}", value.trim_end_matches(".0")))
    };
    let pattern = schema["pattern"].as_str().map(|pattern| format!("matches `{}`", cell(pattern)));
    let values = schema["enum"].as_array().map(|values| {
        let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
        format!("one of {}", values.join(", "))
    });
    let all = [
        number("minimum", "at least"),
        number("maximum", "at most"),
        number("minLength", "length at least"),
        number("maxLength", "length at most"),
        number("maxItems", "items at most"),
        pattern,
        values,
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn fields(text: &mut String, path: &str, schema: &Value) {
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let default = match field.get("default") {
            Some(value) => format!("`{value}`"),
            None if required.iter().any(|required| *required == name) => "required".into(),
            None => String::new(),
        };
        let kind = field["type"].as_str().unwrap_or("integer or string");
        let _ = writeln!(
            text,
            "| `{path}` | {kind} | {default} | {} | {} |",
            bounds(field),
            cell(field["description"].as_str().unwrap_or_default())
        );
        fields(text, &path, field);
        fields(text, &format!("{path}[]"), &field["items"]);
    }
}

fn cel(text: &mut String, path: &str, schema: &Value) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let said = rule["message"].as_str().or(rule["messageExpression"].as_str());
        let _ = writeln!(text, "| `{path}` | {} |", cell(said.unwrap_or_default()));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        cel(text, &format!("{path}.{name}"), field);
    }
}

#[test]
fn r11_o8_the_page_of_ksmscale_holds_every_field() {
    let crd = serde_json::to_value(crd::crd()).expect("JSON");
    let version = &crd["spec"]["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"]["properties"];
    let mut text = format!(
        "# KSMScale\n\n`{}/{}`, of the whole cluster. Generated from the CRD; `kubectl explain ksmscale.spec` says the same.\n",
        crd["spec"]["group"].as_str().expect("a group"),
        version["name"].as_str().expect("a version"),
    );
    for part in ["spec", "status"] {
        let _ = write!(
            text,
            "\n## {part}\n\n| field | type | default | bounds | meaning |\n| --- | --- | --- | --- | --- |\n"
        );
        fields(&mut text, part, &schema[part]);
    }
    text.push_str("\n## Rules over several fields\n\n| of | says |\n| --- | --- |\n");
    cel(&mut text, "spec", &schema["spec"]);
    page("ksmscale", &text);
}
