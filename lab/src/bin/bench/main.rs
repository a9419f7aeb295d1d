//! Measures what Tombolo costs, and what it does when things break. `cargo xtask bench` builds and starts it.

mod connect;
mod failover;
mod goals;
mod loops;
mod loss;
mod marking;
mod programs;
mod quantiles;
mod samples;

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;
use std::{fs, path::Path, process::ExitCode};

/// Measures what Tombolo costs, and what it does when things break.
#[derive(Parser)]
#[command(name = "bench")]
enum Bench {
    /// Kernel run time of each hook, by `bpf_stats`, against empty programs.
    Connect(connect::Args),
    /// What connections see of clusters that go dark and come back, beside kube-proxy's rules.
    Failover(failover::Args),
    /// How soon a cluster that is marked down gets no new connections, for all services at once.
    Marking(marking::Args),
    /// What reliability is measured by, one goal after the other, each with its figure.
    Goals(goals::Args),
    /// What connects see of lost SYNs, with the agent and without.
    Loss(loss::Args),
}

fn main() -> ExitCode {
    let done = match Bench::parse() {
        Bench::Connect(args) => connect::run(&args),
        Bench::Failover(args) => failover::run(&args),
        Bench::Marking(args) => marking::run(&args),
        Bench::Goals(args) => goals::run(&args),
        Bench::Loss(args) => loss::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes `figures` to `file`.
fn write_json(file: &Path, figures: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(figures).context("write the figures as JSON")?;
    fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}
