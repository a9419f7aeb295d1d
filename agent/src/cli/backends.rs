//! `tombolo backends`: where connections go.

use super::{AskArgs, Output, print_json, say, table};
use crate::report::{self, Agent, Backends, Ejected, Question};

pub(super) fn run(args: &AskArgs) -> anyhow::Result<()> {
    let backends: Backends = args.ask_or_read(Question::Backends, |maps, installed| {
        Ok(report::backends(Agent::Gone, installed, &maps.learned()?))
    })?;
    if args.output == Output::Json {
        return print_json(&backends);
    }
    if backends.agent == Agent::Gone {
        say("no agent answers; this is what the kernel holds")?;
    }
    let mut rows = table(&[
        "CLUSTER",
        "ADDRESS",
        "PROTOCOL",
        "PATH",
        "VERDICT",
        "EJECTED",
        "CHOSEN",
        "ESTABLISHED",
        "OPEN",
        "FAILED",
        "SERVICES",
    ]);
    for backend in &backends.backends {
        rows.add_row([
            backend.cluster.clone(),
            backend.address.to_string(),
            backend.protocol.clone(),
            backend.path.clone(),
            backend.verdict.clone(),
            backend.learned.ejected.as_ref().map_or_else(|| "-".to_owned(), Ejected::text),
            backend.chosen.to_string(),
            backend.learned.established.to_string(),
            backend.learned.open.to_string(),
            backend.learned.failed.to_string(),
            backend.services.join(", "),
        ]);
    }
    say(rows)
}
