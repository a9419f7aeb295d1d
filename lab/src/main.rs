//! The program `lab`: what runs in pods, and the demo.

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use lab::{caller, cleanup, demo, dial, faults, kubernetes, load, netns, server, soak};
use std::{future::Future, io::stdout, process::ExitCode};

/// Three clusters on one machine, in network namespaces
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers over HTTP and UDP with the cluster and pod it runs in
    Server(server::Options),
    /// Asks a server again and again, and counts who answers
    Load(load::Options),
    /// Calls a service as an application of some kind does, and tells of each attempt
    Call(caller::Options),
    /// Dials what it is told to on standard input, and says what its sockets saw
    Dial,
    /// Plays scenes on three clusters, and says whether each showed what it should; needs root
    Demo(demo::Options),
    /// Installs agent and mirror on real clusters and plays scenes there
    Kubernetes(kubernetes::Options),
    /// Has faults strike three clusters under load, and says what was lost; needs root
    Faults(faults::Options),
    /// Has packets between clusters get lost, and CPUs never be idle, for long, and says what agents took that for; needs root
    Soak(soak::Options),
    /// Removes clusters that `demo --keep` left, and what killed runs left behind; needs root
    Clean,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Server(options) => on_one_thread(server::serve(&options)),
        Command::Load(options) => on_one_thread(load::run(options, stdout().lock())),
        Command::Call(options) => on_one_thread(caller::run(options, stdout())),
        Command::Dial => dial::serve(),
        Command::Demo(options) => demo::run(&options).and_then(|passed| {
            ensure!(passed, "not every scene showed what it should");
            Ok(())
        }),
        Command::Kubernetes(options) => kubernetes::run(&options).and_then(|passed| {
            ensure!(passed, "not every scene showed what it should");
            Ok(())
        }),
        Command::Faults(options) => faults::run(&options).and_then(|survived| {
            ensure!(survived, "not every fault was survived");
            Ok(())
        }),
        Command::Soak(options) => soak::run(&options).and_then(|passed| {
            ensure!(passed, "not all stayed well");
            Ok(())
        }),
        Command::Clean => clean(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cleanup::hold_if_ending();
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn clean() -> Result<()> {
    netns::need_root()?;
    for owner in [cleanup::remove_dead()?, cleanup::remove_kept()?].concat() {
        println!("removed what process {owner} left");
    }
    Ok(())
}

fn on_one_thread(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(work)
}
