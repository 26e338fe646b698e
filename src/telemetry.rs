//! Logs and metrics.

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt};

pub mod certificate_metrics;
pub mod condition_metrics;
pub mod coverage_metrics;
pub mod metrics;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line, with the reconcile's fields.
    Json,
    /// For people.
    Text,
}

/// Sends log lines to stderr. `filter` is in the syntax of `RUST_LOG`.
///
/// # Errors
/// If the filter cannot be parsed, or logging was set up before.
pub fn init(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Text => lines.with_ansi(false).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!(error))
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".into())
}
