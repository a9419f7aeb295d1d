//! `check`: what needs no privileges and no kernel: formatting, lints for both targets, licences and sources of crates.

use crate::{
    build_ebpf::{self, cargo_ebpf},
    process::run,
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::bail;
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Look up known vulnerabilities too: fetches the RustSec database
    #[arg(long)]
    advisories: bool,
}

/// Runs every check, so that one run names all there is to mend.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Need::KernelPrograms, Need::Deny])?;
    // Else the agent's build script would warn that they are missing.
    build_ebpf::build(false)?;
    let deny_checks: &[&str] =
        if args.advisories { &["advisories", "bans", "licenses", "sources"] } else { &["bans", "licenses", "sources"] };
    let mut deny = Command::new(setup::deny()?);
    deny.args(["--workspace", "--locked", "check"]).args(deny_checks).current_dir(root());
    let mut fmt = cargo();
    fmt.args(["fmt", "--all", "--check"]);
    let mut clippy = cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    let mut clippy_ebpf = cargo_ebpf("clippy")?;
    clippy_ebpf.args(["--", "-D", "warnings"]);

    let checks = [
        ("format", fmt),
        ("lints", clippy),
        ("lints of the kernel programs", clippy_ebpf),
        ("licences and sources of crates", deny),
    ];
    let mut failed = Vec::new();
    let total = checks.len();
    for (name, mut command) in checks {
        println!("== {name}");
        if let Err(error) = run(&mut command) {
            println!("{error:#}");
            failed.push(name);
        }
    }
    println!("\n{} passed, {} failed", total - failed.len(), failed.len());
    if !failed.is_empty() {
        bail!("checks failed: {}", failed.join(", "));
    }
    Ok(())
}
