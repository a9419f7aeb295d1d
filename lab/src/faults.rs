//! The faults that have to be survived: each strikes under load, and is told with what was lost and how long it took
//! until all was well again.
//!
//! The list is that of the acceptance goals as far as one machine and manifests go. Nothing is lost if no request
//! failed in spite of one retry; where a fault leaves callers no way at all, it says whom, and [`bounds`] how much that may be.

mod agent;
mod bounds;
mod ground;
mod kernel;
mod manifests;
mod network;
mod standstill;

use crate::{attempts::Figures, cgroup, netns::need_root, report::now};
use anyhow::{Context, Result, ensure};
use bounds::{Toll, excess};
use ground::Ground;
use serde::Serialize;
use standstill::Standstill;
use std::{collections::BTreeMap, env, fs, path::PathBuf, time::Duration};

/// Failures of one kind of caller that are shown.
const FAILURES_SHOWN: usize = 2;

/// Something that goes wrong.
struct Fault {
    name: &'static str,
    /// What happens, in a sentence.
    strikes: &'static str,
    /// Has it happen and ends it, and returns once all is well as far as it can tell.
    strike: fn(&mut Ground) -> Result<Healed>,
}

/// How it went.
#[derive(Debug, Default)]
struct Healed {
    shown: Option<Duration>,
    healed: Duration,
    note: String,
    /// What it can't but lose; nothing without one.
    toll: Option<Toll>,
}

/// What the faults are told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only this fault; may be given several times
    #[arg(long = "fault", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(all().map(|fault| fault.name)))]
    pub faults: Vec<String>,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The program `tombolo`
    #[arg(long, value_name = "FILE", default_value_os_t = beside_this_program("tombolo"))]
    pub agent: PathBuf,
    /// The object with the empty programs, which stand for somebody else's
    #[arg(long, value_name = "FILE", default_value_os_t = beside_this_program("../ebpf/floor.o"))]
    pub floor: PathBuf,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Summary {
    kernel: String,
    passed: bool,
    faults: Vec<Outcome>,
}

/// How one fault went.
#[derive(Serialize)]
struct Outcome {
    name: &'static str,
    strikes: &'static str,
    passed: bool,
    requests: u64,
    /// Requests whose first attempt failed.
    failed: u64,
    /// Requests whose retry failed too: what was lost.
    failed_with_retry: u64,
    /// The same of the callers by way of the gateway.
    lost_by_gateway: u64,
    longest_connect_ms: Option<f64>,
    /// Until the agent said that it isn't well, where it had to.
    shown_ms: Option<u128>,
    /// Until all was well again, counted from when the fault was over.
    healed_ms: Option<u128>,
    note: String,
    /// The longest time for which this process could not run: callers fare no better.
    stood_still_ms: u128,
    /// What was lost although it need not have been, in sentences.
    excess: Vec<String>,
    error: Option<String>,
    /// By kind of caller.
    kinds: BTreeMap<String, Figures>,
}

fn all() -> impl Iterator<Item = &'static Fault> {
    [agent::FAULTS, manifests::FAULTS, kernel::FAULTS, network::FAULTS].into_iter().flatten()
}

/// Has the faults strike, one after the other; whether all were survived.
pub fn run(options: &Options) -> Result<bool> {
    need_root()?;
    cgroup::mount_point()?;
    ensure!(options.agent.is_file(), "there is no agent at {}", options.agent.display());
    let lab = env::current_exe().context("find this program")?;
    let mut ground = Ground::build(lab, options.agent.clone(), options.floor.clone())?;
    println!(
        "{:<22}{:>9}{:>8}{:>6}{:>10}{:>10}   what was done",
        "fault", "requests", "failed", "lost", "shown ms", "healed ms"
    );
    let mut faults = Vec::new();
    let wanted = |fault: &&Fault| options.faults.is_empty() || options.faults.iter().any(|name| name == fault.name);
    for fault in all().filter(wanted) {
        let outcome = strike(&mut ground, fault)?;
        outcome.print();
        faults.push(outcome);
    }
    ground.end()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let survived = faults.iter().filter(|fault| fault.passed).count();
    println!("kernel {}: {survived} of {} faults survived", kernel.trim(), faults.len());
    let summary = Summary { kernel: kernel.trim().to_owned(), passed: survived == faults.len(), faults };
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&summary).context("write the results as JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(summary.passed)
}

fn strike(ground: &mut Ground, fault: &'static Fault) -> Result<Outcome> {
    ground.restore()?;
    let well = ground.well().context("before the fault");
    ground.take();
    let struck = now()?;
    let standstill = Standstill::watch();
    let healed = well.and_then(|()| (fault.strike)(ground));
    // What it left, and what follows from that, belongs to it too.
    let restored = ground.restore();
    ground.pass(Duration::from_millis(300))?;
    let (attempts, by_gateway) = ground.take();
    let figures = Figures::of(attempts.values().flatten(), struck);
    let by_kind: BTreeMap<_, _> =
        attempts.iter().map(|(kind, attempts)| (kind.to_string(), Figures::of(attempts, struck))).collect();
    let lost_by_gateway = Figures::of(&by_gateway, struck).failed_with_retry;
    let (healed, error) = match healed.and_then(|healed| restored.map(|()| healed)) {
        Ok(healed) => (healed, None),
        Err(error) => (Healed::default(), Some(format!("{error:#}"))),
    };
    let excess = excess(healed.toll.as_ref(), struck, &attempts, &by_gateway);
    Ok(Outcome {
        name: fault.name,
        strikes: fault.strikes,
        passed: error.is_none() && excess.is_empty() && figures.requests > 0,
        requests: figures.requests,
        failed: figures.failed,
        failed_with_retry: figures.failed_with_retry,
        lost_by_gateway,
        longest_connect_ms: figures.longest_connect_ms,
        shown_ms: healed.shown.map(|time| time.as_millis()),
        healed_ms: error.is_none().then_some(healed.healed.as_millis()),
        note: healed.note,
        stood_still_ms: standstill.end().as_millis(),
        excess,
        error,
        kinds: by_kind,
    })
}

impl Healed {
    fn after(healed: Duration) -> Self {
        Self { healed, ..Self::default() }
    }

    fn shown(mut self, shown: Duration) -> Self {
        self.shown = Some(shown);
        self
    }

    fn with(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn losing(mut self, toll: Toll) -> Self {
        self.toll = Some(toll);
        self
    }
}

impl Outcome {
    /// As in `connected-udp 7, by gateway 130`.
    fn lost_in_words(&self) -> String {
        let kinds = self.kinds.iter().map(|(kind, figures)| (kind.as_str(), figures.failed_with_retry));
        let lost = kinds.chain([("by gateway", self.lost_by_gateway)]).filter(|(_, lost)| *lost > 0);
        lost.map(|(kind, lost)| format!("{kind} {lost}")).collect::<Vec<_>>().join(", ")
    }

    fn print(&self) {
        let ms = |time: Option<u128>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
        println!(
            "{:<22}{:>9}{:>8}{:>6}{:>10}{:>10}   {}{}",
            self.name,
            self.requests,
            self.failed,
            self.failed_with_retry + self.lost_by_gateway,
            ms(self.shown_ms),
            ms(self.healed_ms),
            if self.passed { "" } else { "FAILED: " },
            self.strikes
        );
        if let Some(error) = &self.error {
            println!("{:25}{error}", "");
        }
        if self.passed && self.failed_with_retry + self.lost_by_gateway > 0 {
            println!("{:25}lost for want of a way: {}", "", self.lost_in_words());
        }
        for excess in &self.excess {
            println!("{:25}{excess}", "");
        }
        if !self.passed {
            println!("{:25}this process stood still for {} ms", "", self.stood_still_ms);
        }
        if !self.passed {
            for (kind, figures) in self.kinds.iter().filter(|(_, figures)| figures.failed_with_retry > 0) {
                println!("{:25}{kind}: {} lost, {} failed", "", figures.failed_with_retry, figures.failed);
                for failure in figures.failures.iter().take(FAILURES_SHOWN) {
                    println!("{:27}{:.0} ms: {}", "", failure.began_ms, failure.error);
                }
            }
        }
    }
}

fn beside_this_program(name: &str) -> PathBuf {
    env::current_exe().map_or_else(|_| PathBuf::from(name), |lab| lab.with_file_name(name))
}
