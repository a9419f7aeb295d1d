//! `goals`: what reliability is measured by, as far as it takes minutes; what takes seconds is among the tests, and what
//! strikes three clusters among the faults (`cargo xtask test --faults`).
//!
//! Each goal has real agents, sockets and kernel objects for itself, and ends with figures beside what they are to be.

mod changes;
mod dark;
mod flapping;
mod gateway;
mod kills;
mod node;
mod source;
mod upgrade;

use anyhow::{Context, Result, ensure};
use lab::{cleanup, netns::need_root};
use serde::Serialize;
use std::{fs, path::PathBuf};

/// A goal.
struct Goal {
    name: &'static str,
    /// Its number in the list of acceptance tests.
    id: &'static str,
    /// What is done, in a sentence.
    does: &'static str,
    play: fn(&Args) -> Result<Vec<Figure>>,
}

const GOALS: [Goal; 7] = [
    Goal {
        name: "changes",
        id: "T10",
        does: "an endpoint ceases to be ready while other slices change all the time",
        play: changes::play,
    },
    Goal { name: "flapping", id: "T12", does: "a cluster's network flaps", play: flapping::play },
    Goal { name: "dark", id: "T13", does: "all peers go dark at once, or the node's uplink does", play: dark::play },
    Goal { name: "source", id: "T14", does: "the manifests are gone while every endpoint changes", play: source::play },
    Goal {
        name: "gateway",
        id: "T15",
        does: "a cluster is reached flat, by its gateway, and flat again",
        play: gateway::play,
    },
    Goal { name: "kills", id: "T22", does: "an agent is killed after each of its writes in turn", play: kills::play },
    Goal {
        name: "upgrade",
        id: "T23",
        does: "an agent of another version takes over, and back again",
        play: upgrade::play,
    },
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this goal; may be given several times
    #[arg(long = "goal", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(GOALS.iter().map(|goal| goal.name)))]
    goals: Vec<String>,
    /// Where the figures go as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often agents are killed (kills)
    #[arg(long, default_value_t = 200)]
    kills: u32,
    /// What the changes under which agents are killed are drawn by (kills)
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often an endpoint ceases to be ready (changes)
    #[arg(long, default_value_t = 200)]
    changes: u32,
    /// Changes of other slices a second (changes)
    #[arg(long, default_value_t = 325)]
    background: u32,
    /// Connects a second (flapping, gateway)
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// For how many minutes a cluster flaps (flapping)
    #[arg(long, default_value_t = 10)]
    minutes: u32,
    /// For how many seconds the manifests are gone (source)
    #[arg(long, default_value_t = 60)]
    gone_s: u64,
    /// The program of another version (upgrade); without it, it is this version that takes over from itself
    #[arg(long, value_name = "FILE")]
    other: Option<PathBuf>,
}

/// A figure, and what it is to be.
#[derive(Debug, Serialize)]
struct Figure {
    what: String,
    seen: f64,
    /// None where nothing is demanded of it.
    goal: Option<Bound>,
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// How one goal went: what `--json` writes of it.
#[derive(Serialize)]
struct Outcome {
    name: &'static str,
    id: &'static str,
    does: &'static str,
    met: bool,
    figures: Vec<Figure>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    need_root()?;
    cleanup::remove_dead()?;
    let wanted = |goal: &&Goal| args.goals.is_empty() || args.goals.iter().any(|name| name == goal.name);
    let mut outcomes = Vec::new();
    for goal in GOALS.iter().filter(wanted) {
        println!("{} ({}): {}", goal.name, goal.id, goal.does);
        let figures = (goal.play)(args).with_context(|| format!("goal {}", goal.name))?;
        cleanup::remove_own()?;
        for figure in &figures {
            figure.print();
        }
        let met = figures.iter().all(Figure::is_met);
        outcomes.push(Outcome { name: goal.name, id: goal.id, does: goal.does, met, figures });
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&outcomes).context("write the figures as JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    let missed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.met).map(|outcome| outcome.name).collect();
    ensure!(missed.is_empty(), "missed: {}", missed.join(", "));
    println!("{} of {} goals met", outcomes.len(), outcomes.len());
    Ok(())
}

impl Figure {
    fn new(what: impl Into<String>, seen: f64) -> Self {
        Self { what: what.into(), seen, goal: None }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
    fn count(what: impl Into<String>, seen: u64) -> Self {
        Self::new(what, seen as f64)
    }

    fn at_most(self, goal: f64) -> Self {
        Self { goal: Some(Bound::AtMost(goal)), ..self }
    }

    fn at_least(self, goal: f64) -> Self {
        Self { goal: Some(Bound::AtLeast(goal)), ..self }
    }

    fn none(self) -> Self {
        self.at_most(0.0)
    }

    fn is_met(&self) -> bool {
        match self.goal {
            None => true,
            Some(Bound::AtMost(most)) => self.seen <= most,
            Some(Bound::AtLeast(least)) => self.seen >= least,
        }
    }

    fn print(&self) {
        let seen = |number: f64| if number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") };
        let goal = match self.goal {
            None => String::new(),
            Some(Bound::AtMost(most)) => format!("at most {}", seen(most)),
            Some(Bound::AtLeast(least)) => format!("at least {}", seen(least)),
        };
        let verdict = if self.is_met() { "" } else { "  MISSED" };
        println!("  {:<60}{:>12}   {goal}{verdict}", self.what, seen(self.seen));
    }
}
