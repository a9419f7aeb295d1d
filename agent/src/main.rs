//! `tombolo`: parse, run, turn the error into an exit code.

use clap::Parser;
use std::process::ExitCode;
use tombolo::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
