//! `tombolo status`: how the agent is.

use super::{AskArgs, Output, lines, print_json, say};
use crate::{
    datapath::{EGRESS, HOOKS, KernelMaps, attached_by_pins, cgroup, pins::Pins},
    health::Findings,
    report::{self, Agent, ClusterRow, Question, Status, Suspect, Tally, seconds},
    tables::Installed,
};
use std::process::ExitCode;

pub(super) fn run(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let status: Status = args.ask_or_read(Question::Status, |maps, installed| from_pins(args, maps, installed))?;
    if args.output == Output::Json {
        print_json(&status)?;
    } else {
        print(&status)?;
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What an agent that is gone has left behind.
fn from_pins(args: &AskArgs, maps: &KernelMaps, installed: &Installed) -> anyhow::Result<Status> {
    let pins = Pins::new(&args.pins);
    let attached = attached_by_pins(&pins)?;
    let hook = |hook: &&str| report::Hook { name: (*hook).to_owned(), adopted: None, verified_instructions: None };
    let mut problems = vec![format!(
        "no agent answers at {}; what it installed stays in force and is shown here",
        args.socket.display()
    )];
    let missing: Vec<&str> = HOOKS.into_iter().filter(|hook| !attached.contains_key(hook)).collect();
    if !missing.is_empty() {
        problems
            .push(format!("connections take their ordinary path, for nothing is attached to {}", missing.join(", ")));
    }
    let cgroup = match attached.values().next() {
        Some(&id) => {
            let found = cgroup::find(id)?;
            if found.is_none() {
                problems.push(format!(
                    "the hooks are attached to a cgroup that is gone, or not to be seen from here (id {id})"
                ));
            }
            found
        }
        None => None,
    };
    let states = maps.learned()?;
    Ok(Status {
        agent: Agent::Gone,
        ready: false,
        problems,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        place: None,
        cgroup: cgroup.map(|cgroup| cgroup.display().to_string()),
        pins: pins.dir().display().to_string(),
        hooks: HOOKS.iter().chain([&EGRESS]).filter(|hook| attached.contains_key(*hook)).map(hook).collect(),
        watches: Vec::new(),
        frontends: Tally { desired: None, installed: report::count(installed.frontends().keys()) },
        backends: report::count_backends(installed),
        exempt_pods: installed.pods().len(),
        clusters: report::clusters(installed, &states, &[]),
        ejected: report::count_ejected(installed, &states),
        counters: report::counters(maps.counts()?),
        drift: None,
        findings: None,
    })
}

/// As in `east up, suspect for 0.8 s (one pod)`.
fn cluster(name: &str, row: &ClusterRow) -> String {
    let whom = |suspect: &Suspect| if suspect.for_all { "all" } else { "one pod" };
    let suspect = row.suspect.as_ref();
    let suspect = suspect.map(|it| format!(", suspect for {} ({})", seconds(it.for_ms), whom(it)));
    let health = row.health.as_ref().filter(|health| health.state != row.verdict);
    let health = health
        .map(|it| if it.share < 100 { format!(", {} ({} %)", it.state, it.share) } else { format!(", {}", it.state) });
    format!("{name} {}{}{}", row.verdict, health.unwrap_or_default(), suspect.unwrap_or_default())
}

/// As in `clusters down 1, backends ejected 3`: what never happened is left out.
fn found(findings: Findings) -> String {
    let counts = [
        (findings.clusters_down, "clusters down"),
        (findings.paths_down, "paths down"),
        (findings.backends_dead, "backends dead"),
        (findings.clusters_suspect, "clusters suspect"),
        (findings.unanswered, "connects unanswered"),
        (findings.refused, "refused"),
        (findings.ejected, "backends ejected"),
        (findings.ejected_for_all, "for all"),
        (findings.recovered, "recovered"),
    ];
    let found = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{what} {count}"));
    found.collect::<Vec<_>>().join(", ")
}

/// As in `Services: 12, synced for 80 s, heard 3 s ago`.
fn watch_row(watch: &report::Watch) -> String {
    let synced = match watch.synced_for_s {
        Some(seconds) => format!("{}, synced for {seconds} s", watch.objects),
        None if watch.absent => "the API server has none".to_owned(),
        None => "not synced".to_owned(),
    };
    let heard = watch.heard_before_s.map(|seconds| format!(", heard {seconds} s ago"));
    let failing = watch.problem.as_ref().map(|_| ", failing");
    format!("{}: {synced}{}{}", watch.name, heard.unwrap_or_default(), failing.unwrap_or_default())
}

fn print(status: &Status) -> anyhow::Result<()> {
    let state = match (status.agent, status.ready) {
        (Agent::Running, true) => "ready",
        (Agent::Running, false) => "not ready",
        (Agent::Gone, _) => "gone",
    };
    let mut rows = lines();
    rows.add_row(["agent", &format!("{state}, version {}", status.version)]);
    if let Some(place) = &status.place {
        let zone = place.zone.as_deref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
        rows.add_row(["place", &format!("cluster {}, node {}{zone}", place.cluster, place.node)]);
    }
    if let Some(cgroup) = &status.cgroup {
        rows.add_row(["cgroup", cgroup]);
    }
    rows.add_row(["pins", &status.pins]);
    if !status.hooks.is_empty() {
        let hook = |hook: &report::Hook| {
            if hook.adopted == Some(true) { format!("{} (adopted)", hook.name) } else { hook.name.clone() }
        };
        rows.add_row(["hooks", &status.hooks.iter().map(hook).collect::<Vec<_>>().join(", ")]);
    }
    for watch in &status.watches {
        rows.add_row(["watch", &watch_row(watch)]);
    }
    let frontends = match status.frontends.desired {
        Some(desired) => format!("{} installed, {desired} desired", status.frontends.installed),
        None => format!("{} installed", status.frontends.installed),
    };
    rows.add_row(["frontends", &frontends]);
    let ejected = if status.ejected > 0 { format!(", {} ejected", status.ejected) } else { String::new() };
    rows.add_row(["backends", &format!("{} installed{ejected}", status.backends)]);
    if status.exempt_pods > 0 {
        rows.add_row(["pods", &format!("{} left alone", status.exempt_pods)]);
    }
    let clusters: Vec<_> = status.clusters.iter().map(|(name, row)| cluster(name, row)).collect();
    rows.add_row(["clusters", &clusters.join("; ")]);
    let counters: Vec<_> = status.counters.iter().map(|(name, n)| format!("{name} {n}")).collect();
    rows.add_row(["counters", &counters.join(", ")]);
    if let Some(drift) = status.drift.filter(|drift| *drift > 0) {
        rows.add_row(["drift", &format!("tables altered by somebody else, and mended: {drift} times")]);
    }
    if let Some(findings) = status.findings.map(found).filter(|found| !found.is_empty()) {
        rows.add_row(["since start", &findings]);
    }
    say(rows)?;
    for problem in &status.problems {
        say(format!("! {problem}"))?;
    }
    Ok(())
}
