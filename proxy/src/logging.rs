//! Logs: structured, to standard error, one id for each session and message.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// Starts logging. `RUST_LOG` wins over the configuration.
pub fn start(log: &Log) {
    let configured = || EnvFilter::new(&log.filter);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| configured());
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
