//! The operator's binary: parse, run, exit code.

use clap::Parser;
use ksm_scale_operator::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Only one provider is compiled in, but rustls asks for a choice; it can be made only once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
