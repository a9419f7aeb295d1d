//! Logs: constant messages, facts as fields, to standard error.

use std::{env, io::IsTerminal};
use tracing_subscriber::EnvFilter;

const VARIABLE: &str = "TOMBOLO_LOG";
/// Crates whose complaints we tell ourselves, once and in other words; they repeat them with every try.
const TOLD_OTHERWISE: [&str; 2] = ["kube_client", "kube_runtime"];

/// Starts logging: for people on a terminal, as JSON lines elsewhere. `TOMBOLO_LOG` filters, as in `tombolo=debug`.
pub fn init() -> anyhow::Result<()> {
    let builder = EnvFilter::builder().with_env_var(VARIABLE).with_default_directive(tracing::Level::INFO.into());
    let mut filter = builder.from_env()?;
    let asked = env::var(VARIABLE).unwrap_or_default();
    for name in TOLD_OTHERWISE.into_iter().filter(|name| !asked.contains(name)) {
        filter = filter.add_directive(format!("{name}=off").parse()?);
    }
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        // It would complain of a log that can't be written to the same place, and end the agent by that.
        .log_internal_errors(false);
    let started = if std::io::stderr().is_terminal() {
        builder.with_ansi(true).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
