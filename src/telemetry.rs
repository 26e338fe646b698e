//! Logs, metrics and traces.

use clap::ValueEnum;
use otlp::Traces;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

pub mod certificate_metrics;
pub mod condition_metrics;
pub mod coverage_metrics;
pub mod metrics;
pub mod otlp;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line, with the reconcile's fields.
    Json,
    /// For people.
    Text,
}

/// Sends log lines to stderr, and spans to where traces go. `filter` is in the syntax of `RUST_LOG`,
/// and about log lines alone.
///
/// # Errors
/// If the filter cannot be parsed, or logging was set up before.
pub fn init(format: LogFormat, filter: &str, traces: Option<&Traces>) -> anyhow::Result<()> {
    // Spans of libraries would stand between a line and the reconcile that it belongs to.
    let spans = filter_fn(|meta| meta.is_event() || is_ours(meta.target()));
    let filter = EnvFilter::try_new(filter)?.and(spans);
    let lines = fmt::layer::<Registry>().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    Ok(subscriber.with(traces.map(Traces::layer)).try_init()?)
}

/// Whether a span or line is this crate's.
fn is_ours(target: &str) -> bool {
    target.starts_with(env!("CARGO_CRATE_NAME"))
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
