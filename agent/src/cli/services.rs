//! `tombolo services`: the frontends.

use super::{AskArgs, Output, print_json, say, table};
use crate::report::{self, Agent, Group, Question, Service, Services};
use std::collections::BTreeMap;

pub(super) fn run(args: &AskArgs) -> anyhow::Result<()> {
    let services: Services = args.ask_or_read(Question::Services, |maps, installed| {
        Ok(report::services(Agent::Gone, installed, &maps.learned()?, None, &BTreeMap::new()))
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
            installed(service),
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

/// How many backends there are, as in `3 (1 draining)`.
fn installed(service: &Service) -> String {
    let count = service.backends.len();
    match service.draining.as_ref().map_or(0, Vec::len) {
        0 => count.to_string(),
        draining => format!("{count} ({draining} draining)"),
    }
}

/// As in `west 67% (2, 1 out), north 33% (1) suspect; then east 100% (3) down`.
fn tiers(tiers: &[Vec<Group>]) -> String {
    let group = |group: &Group| {
        let out = if group.out > 0 { format!(", {} out", group.out) } else { String::new() };
        let state = if group.state == "up" { String::new() } else { format!(" {}", group.state) };
        format!("{} {:.0}% ({}{out}){state}", group.cluster, group.share * 100.0, group.backends.len())
    };
    let tier = |tier: &Vec<Group>| tier.iter().map(group).collect::<Vec<_>>().join(", ");
    tiers.iter().map(tier).collect::<Vec<_>>().join("; then ")
}
