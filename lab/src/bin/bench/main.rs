//! Measures what Tombolo costs. `cargo xtask bench` builds and starts it.

mod connect;
mod loops;
mod programs;
mod samples;

use clap::Parser;
use std::process::ExitCode;

/// Measures what Tombolo costs.
#[derive(Parser)]
#[command(name = "bench")]
enum Bench {
    /// Kernel run time of each hook, by `bpf_stats`, against empty programs.
    Connect(connect::Args),
}

fn main() -> ExitCode {
    let Bench::Connect(args) = Bench::parse();
    match connect::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
