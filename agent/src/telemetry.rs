//! Logs: constant messages, facts as fields, to standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging: for people on a terminal, as JSON lines elsewhere. `TOMBOLO_LOG` filters, as in `tombolo=debug`.
pub fn init() -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_env_var("TOMBOLO_LOG").with_default_directive(tracing::Level::INFO.into());
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter.from_env()?)
        // It would complain of a log that can't be written to the same place, and end the agent by that.
        .log_internal_errors(false);
    let started = if std::io::stderr().is_terminal() {
        builder.with_ansi(true).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
