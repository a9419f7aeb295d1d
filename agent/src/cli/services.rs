//! `tombolo services`: the frontends.

use super::{AskArgs, Output, print_json, say, table};
use crate::report::{self, Agent, Group, Question, Services};
use std::collections::BTreeMap;

pub(super) fn run(args: &AskArgs) -> anyhow::Result<()> {
    let services: Services = args.ask_or_read(Question::Services, |_, installed| {
        Ok(report::services(Agent::Gone, installed, None, &BTreeMap::new()))
    })?;
    if args.output == Output::Json {
        return print_json(&services);
    }
    if services.agent == Agent::Gone {
        say("no agent answers; this is what the kernel holds")?;
    }
    let mut rows = table(&["SERVICE", "ADDRESS", "PROTOCOL", "DESIRED", "INSTALLED", "TIERS (INSTALLED)"]);
    for service in &services.services {
        rows.add_row([
            service.name.clone(),
            service.address.to_string(),
            service.protocol.clone(),
            service.desired_backends.map_or_else(|| "?".to_owned(), |n| n.to_string()),
            service.backends.len().to_string(),
            tiers(&service.tiers),
        ]);
    }
    say(rows)?;
    for service in &services.services {
        for problem in &service.problems {
            say(format!("! {} {}: {problem}", service.name, service.address))?;
        }
    }
    Ok(())
}

/// As in `west 67% (2), north 33% (1); then east 100% (3)`.
fn tiers(tiers: &[Vec<Group>]) -> String {
    let group = |group: &Group| format!("{} {:.0}% ({})", group.cluster, group.share * 100.0, group.backends.len());
    let tier = |tier: &Vec<Group>| tier.iter().map(group).collect::<Vec<_>>().join(", ");
    tiers.iter().map(tier).collect::<Vec<_>>().join("; then ")
}
