//! Long times under what wears a system without breaking it: CPUs that are never idle, and packets between clusters
//! that get lost now and then. Everybody is alive all the while, so whoever is taken for dead is a false positive.
//!
//! Agents count what they find out themselves ([`Findings`](tombolo::health::Findings)), so nothing is missed between two
//! looks. What is said besides is what a leak would show: memory, descriptors, entries of the kernel's maps.

mod calls;
mod entries;
mod strain;
mod summary;
mod watch;

use crate::{
    addresses::Network,
    cgroup, cleanup,
    clusters::{Clusters, NAMES, Programs},
    netns::need_root,
};
use anyhow::{Context, Result, ensure};
use calls::Load;
use entries::Entries;
use std::{
    env, fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};
use strain::Strain;
use summary::{PhaseSummary, Summary};
use watch::Watch;

/// Pods of `frontend` in west, east and north: at least three in each peer, or no cluster could come under suspicion.
const PODS: usize = 3;
/// Pods behind east's gateway.
const BEHIND_GATEWAY: usize = 2;
/// How long agents get until they are ready, on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long everything has to settle, and what is left of connections to end: longer than a lost FIN is repeated.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
/// How often callers are listened to, and the next agent is asked.
const LOOK: Duration = Duration::from_millis(500);
/// How often a line is printed; in a short soak more often.
const LINE: Duration = Duration::from_secs(60);
/// Least number of lines.
const LINES: u32 = 4;

/// What a soak is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Minutes during which one packet in a hundred between clusters gets lost; fractions are fine, 0 leaves it out
    #[arg(long, value_name = "NUMBER", default_value = "60", value_parser = minutes)]
    pub minutes: Duration,
    /// Minutes during which the CPUs are never idle; fractions are fine, 0 leaves it out
    #[arg(long, value_name = "NUMBER", default_value = "10", value_parser = minutes)]
    pub saturated_minutes: Duration,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The program `tombolo`
    #[arg(long, value_name = "FILE", default_value_os_t = beside_this_program())]
    pub agent: PathBuf,
}

/// A time in minutes, fractions included.
fn minutes(text: &str) -> Result<Duration> {
    let minutes: f64 = text.parse().with_context(|| format!("{text} is no number"))?;
    Duration::try_from_secs_f64(minutes * 60.0).with_context(|| format!("{text} minutes are no time"))
}

/// Soaks; whether all stayed well. The file is written in any case, so that no older one is taken for its own.
pub fn run(options: &Options) -> Result<bool> {
    need_root()?;
    cgroup::mount_point()?;
    ensure!(options.agent.is_file(), "there is no agent at {}", options.agent.display());
    let mut summary = Summary::new()?;
    let done = soak(options, &mut summary);
    summary.error = done.as_ref().err().map(|error| format!("{error:#}"));
    summary.conclude();
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&summary).context("write the results as JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    done.map(|()| summary.passed)
}

fn soak(options: &Options, summary: &mut Summary) -> Result<()> {
    let phases = [(Strain::Saturated, options.saturated_minutes), (Strain::Loss, options.minutes)];
    let phases = phases.into_iter().filter(|(_, time)| !time.is_zero());
    let mut clusters = build(options)?;
    for (strain, time) in phases {
        let mut phase = PhaseSummary::new(strain, time);
        let done = play(&mut clusters, strain, time, &mut phase);
        phase.conclude();
        phase.print();
        summary.phases.push(phase);
        done.with_context(|| format!("the {strain} phase"))?;
    }
    take_down(clusters)
}

fn build(options: &Options) -> Result<Clusters> {
    let begun = Instant::now();
    let lab = env::current_exe().context("find this program")?;
    let mut clusters = Clusters::build(Programs { lab, agent: Some(options.agent.clone()), agent_flags: Vec::new() })?;
    let mut pods: Vec<_> = NAMES.into_iter().map(|name| (name, "frontend", Network::Flat, PODS)).collect();
    pods.push(("east", "analytics", Network::Private, BEHIND_GATEWAY));
    clusters.start_pods(&pods)?;
    clusters.publish()?;
    for agent in clusters.agents() {
        agent.wait_until_ready(READY_WITHIN)?;
    }
    println!("three clusters with {} agents, ready after {} s", clusters.agents().count(), begun.elapsed().as_secs());
    Ok(clusters)
}

/// One stretch of time under one strain.
fn play(clusters: &mut Clusters, strain: Strain, time: Duration, phase: &mut PhaseSummary) -> Result<()> {
    let before = Entries::of(clusters)?;
    let mut load = Load::start(clusters)?;
    load.wait_for_answers(SETTLED_WITHIN)?;
    let mut watch = Watch::start(clusters)?;
    let watched = suffer(clusters, strain, time, (&mut load, &mut watch), phase);
    let ended = watch.end(clusters);
    let stopped = load.stop();
    phase.requests = load.take_sums();
    phase.take(watch);
    watched.and(ended).and(stopped)?;
    phase.entries_before = before;
    // Backends that were taken for dead are back some time later: that is not what is waited for.
    let is_well = phase.false_positives.is_empty();
    phase.entries_after = if is_well { settled(clusters, &phase.entries_before)? } else { Entries::of(clusters)? };
    Ok(())
}

fn suffer(
    clusters: &mut Clusters,
    strain: Strain,
    time: Duration,
    (load, watch): (&mut Load, &mut Watch),
    phase: &mut PhaseSummary,
) -> Result<()> {
    let strained = strain.begin(clusters)?;
    let begun = Instant::now();
    let line = LINE.min(time / LINES);
    let mut next_line = line;
    while begun.elapsed() < time {
        thread::sleep(LOOK.min(time.saturating_sub(begun.elapsed())));
        load.listen()?;
        watch.ask_next(clusters)?;
        if begun.elapsed() >= next_line {
            next_line += line;
            watch.weigh(clusters)?;
            println!("{strain}, {:>4} s: {}; {}", begun.elapsed().as_secs(), load.in_words(), watch.in_words());
        }
    }
    phase.strain = Some(strained.end(clusters)?);
    Ok(())
}

/// What is in the kernel's maps once the last connections are gone; no more than before, if all is well.
fn settled(clusters: &mut Clusters, before: &Entries) -> Result<Entries> {
    let begun = Instant::now();
    loop {
        let now = Entries::of(clusters)?;
        if now.left_since(before).is_empty() || begun.elapsed() >= SETTLED_WITHIN {
            return Ok(now);
        }
        thread::sleep(LOOK);
    }
}

/// Has the agents unload, and removes everything.
fn take_down(mut clusters: Clusters) -> Result<()> {
    for agent in clusters.agents() {
        agent.unload()?;
        ensure!(!agent.pins().exists(), "the agent of {} left pins", agent.node());
    }
    drop(clusters);
    cleanup::remove_own()?;
    let left = cleanup::left_by_own()?;
    ensure!(left.is_empty(), "left on this machine: {}", left.join(", "));
    Ok(())
}

fn beside_this_program() -> PathBuf {
    env::current_exe().map_or_else(|_| PathBuf::from("tombolo"), |lab| lab.with_file_name("tombolo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_may_have_fractions_and_no_sign() {
        assert_eq!(minutes("0.5").unwrap(), Duration::from_secs(30));
        assert_eq!(minutes("0").unwrap(), Duration::ZERO);
        for wrong in ["-1", "inf", "NaN", "ten"] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }
}
