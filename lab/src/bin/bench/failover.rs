//! `failover`: a cluster goes dark under load, again and again, and comes back; what new connections and open flows
//! see of it, through Tombolo and, at the same time, through kube-proxy's rules.
//!
//! The clusters are the lab's, with an agent on each node. They die in turns, so that one has its time to be
//! trusted again while the other is out. Nothing here passes or fails.

mod figures;
mod ground;

pub(crate) use ground::programs;

use crate::{quantiles::Quantiles, write_json};
use anyhow::{Context, Result};
use figures::{Run, over};
use ground::{Ground, VICTIMS};
use lab::netns::need_root;
use serde::Serialize;
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

/// How long outages are: idle flows are to survive the first, and those that wait are to find out in the second.
const OUTAGES_MS: [u64; 2] = [8_000, 20_000];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Outages
    #[arg(long, default_value_t = 50)]
    runs: usize,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Connects a second, each way
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Milliseconds that a cluster is gone, in turns
    #[arg(long, value_delimiter = ',', default_values_t = OUTAGES_MS)]
    outage_ms: Vec<u64>,
    /// Milliseconds that a client waits, for the connect and the answer together
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// Seconds that a cluster may take to have its share again
    #[arg(long, default_value_t = 60)]
    back_within_s: u64,
    /// Milliseconds of a round trip to the clusters that die, by the kernel's netem [default: what it takes here]
    #[arg(long)]
    rtt_ms: Option<u64>,
    /// What a guest's one processor can do: an agent beside the callers only, nothing by kube-proxy's rules, and the full
    /// rate for 3 s after a loss only
    #[arg(long)]
    lean: bool,
}

/// All of it: what `--json` writes.
#[derive(Serialize)]
struct Results {
    kernel: String,
    rate: u32,
    rtt_ms: Option<u64>,
    lean: bool,
    outage_ms: Vec<u64>,
    timeout_ms: u64,
    runs: Vec<Run>,
    /// Over the runs, by metric.
    tombolo: BTreeMap<&'static str, Quantiles>,
    kube_proxy: BTreeMap<&'static str, Quantiles>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    need_root()?;
    let mut ground = Ground::build(args)?;
    let mut runs = Vec::new();
    for number in 0..args.runs {
        let (victim, outage) = turn(number, &args.outage_ms);
        let run = ground.lose(victim, outage, args).with_context(|| format!("run {} ({victim})", number + 1))?;
        println!("{:>3} {}", number + 1, run.line());
        runs.push(run);
    }
    ground.end()?;

    let results = Results {
        kernel: kernel()?,
        rate: args.rate,
        rtt_ms: args.rtt_ms,
        lean: args.lean,
        outage_ms: args.outage_ms.clone(),
        timeout_ms: args.timeout_ms,
        tombolo: over(&runs, |run| Some(&run.tombolo), true),
        kube_proxy: over(&runs, |run| run.kube_proxy.as_ref(), false),
        runs,
    };
    results.print();
    args.json.as_deref().map_or(Ok(()), |file| write_json(file, &results))
}

/// What `uname -r` says.
pub(crate) fn kernel() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    Ok(kernel.trim().to_owned())
}

/// Who dies in run `number`, which counts from 0, and for how long: each cluster for each length in turn.
fn turn(number: usize, outages_ms: &[u64]) -> (&'static str, Duration) {
    let outage = outages_ms[number / VICTIMS.len() % outages_ms.len()];
    (VICTIMS[number % VICTIMS.len()], Duration::from_millis(outage))
}

impl Results {
    fn print(&self) {
        println!("\n{:<28}{:>30}{:>30}", "", "Tombolo: p50, p99, max", "kube-proxy: p50, p99, max");
        for (metric, ours) in &self.tombolo {
            let theirs = self.kube_proxy.get(metric).map(Quantiles::to_string).unwrap_or_default();
            println!("{metric:<28}{:>30}{theirs:>30}", ours.to_string());
        }
        let rtt = self.rtt_ms.map(|rtt| format!(", round trips of {rtt} ms")).unwrap_or_default();
        println!(
            "kernel {}, {} runs, {} connects a second each way, outages of {:?} ms{rtt}",
            self.kernel,
            self.runs.len(),
            self.rate,
            self.outage_ms
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cluster_dies_for_each_length_in_turn() {
        let turns: Vec<_> = (0..5).map(|number| turn(number, &[8_000, 20_000])).collect();
        let seconds = Duration::from_secs;
        assert_eq!(
            turns,
            [
                ("east", seconds(8)),
                ("north", seconds(8)),
                ("east", seconds(20)),
                ("north", seconds(20)),
                ("east", seconds(8))
            ]
        );
    }
}
