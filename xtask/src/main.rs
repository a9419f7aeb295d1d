//! Everything that is done with this repository: one file a task, `cargo xtask help` lists them.
//!
//! This program builds on any stable cargo from 1.90 and runs everything else with the pinned toolchain
//! ([`toolchain`]), which [`setup`] installs.

mod bench;
mod build_ebpf;
mod check;
mod conformance;
mod demo;
mod guest;
mod image;
mod kernels;
mod kube;
mod kubernetes;
mod packages;
mod process;
mod report;
mod setup;
mod soak;
mod test;
mod toolchain;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Everything that is done with this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: toolchain, bpf-linker, Debian packages. Every other task does it by itself.
    Setup,
    /// Build the kernel programs, which the agent embeds: target/ebpf/tombolo.o.
    BuildEbpf(build_ebpf::Args),
    /// Build three clusters on this machine and show what Tombolo does with them; with --kubernetes real ones. Needs root.
    Demo(demo::Args),
    /// Run unit, property and kernel tests, and say what was skipped and why; with --faults, have faults strike three
    /// clusters under load; with --kubernetes, run what takes API servers and real clusters. Needs root.
    Test(test::Args),
    /// Run the kernel tests on other kernels, in QEMU guests. Needs neither root nor KVM.
    Kernels(kernels::Args),
    /// Run a command in a QEMU guest, as root there, and end with its status.
    Guest(kernels::GuestArgs),
    /// Three real Kubernetes clusters on this machine, with nodes and pods. Needs root, and Go the first time.
    Kube(kube::Args),
    /// Run the MCS API's own conformance suite against two of those clusters. Needs root, and Go the first time.
    Conformance(conformance::Args),
    /// Make the container image of agent and mirror: an archive, without a container engine.
    Image(image::Args),
    /// Measure: `bench connect` is the kernel run time of each hook, `bench failover` what connections see of a cluster
    /// that dies, `bench loss` what they see of lost SYNs, `bench marking` how soon a verdict is heeded, `bench goals` what has
    /// to hold for minutes, `bench mirror` how soon what peers export is here. Needs root, or with `--guest KERNEL` QEMU.
    Bench(bench::Args),
    /// Lose packets between three clusters for an hour, and keep the CPUs busy for ten minutes, under load: nothing may be
    /// taken for dead. Needs root.
    Soak(soak::Args),
    /// Check format, lints on both targets, licences and sources of crates.
    Check(check::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup => setup::main(),
        Task::BuildEbpf(args) => build_ebpf::main(&args),
        Task::Demo(args) => demo::main(&args),
        Task::Test(args) => test::main(&args),
        Task::Kernels(args) => kernels::main(&args),
        Task::Guest(args) => match kernels::guest(&args) {
            Ok(status) => return ExitCode::from(status),
            Err(error) => Err(error),
        },
        Task::Kube(args) => kube::main(&args),
        Task::Conformance(args) => conformance::main(&args),
        Task::Image(args) => image::main(&args),
        Task::Bench(args) => bench::main(&args),
        Task::Soak(args) => soak::main(&args),
        Task::Check(args) => check::main(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
