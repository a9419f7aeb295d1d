//! Measures what Tombolo costs. `cargo xtask bench` builds and starts it.

mod connect;
mod failover;
mod goals;
mod loops;
mod marking;
mod programs;
mod quantiles;
mod samples;

use clap::Parser;
use std::process::ExitCode;

/// Measures what Tombolo costs.
#[derive(Parser)]
#[command(name = "bench")]
enum Bench {
    /// Kernel run time of each hook, by `bpf_stats`, against empty programs.
    Connect(connect::Args),
    /// What new connections see of clusters that go dark and come back, beside kube-proxy's rules.
    Failover(failover::Args),
    /// How soon a cluster that is marked down gets no new connections, for all services at once.
    Marking(marking::Args),
    /// What reliability is measured by, one goal after the other, each with its figure.
    Goals(goals::Args),
}

fn main() -> ExitCode {
    let done = match Bench::parse() {
        Bench::Connect(args) => connect::run(&args),
        Bench::Failover(args) => failover::run(&args),
        Bench::Marking(args) => marking::run(&args),
        Bench::Goals(args) => goals::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
