//! `bench`: measures, in release builds, and writes figures. Nothing here passes or fails by a time.

use crate::{
    build_ebpf,
    process::{prefixed, root_prefix, run},
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::Context;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure, and its options: `connect [--json FILE]`, `failover [--runs 50] [--json FILE]`, `connect --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    what: Vec<String>,
}

/// Builds everything in release and starts the bench.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Need::KernelPrograms, Need::Lab])?;
    let root_prefix = root_prefix()?.context("the bench loads programs into the kernel: run it as root")?;
    build_ebpf::build(false)?;
    // Named, because the environment may send what cargo builds elsewhere.
    let target = root().join("target");
    let packages = ["build", "--release", "--package", "lab", "--package", "tombolo", "--bins"];
    run(cargo().args(packages).arg("--target-dir").arg(&target))?;
    let mut command = prefixed(&root_prefix, target.join("release/bench"));
    command.args(&args.what);
    // The empty programs, which only this one compares with.
    if args.what.first().is_some_and(|what| what == "connect") {
        command.arg("--floor").arg(target.join("ebpf/floor.o"));
    }
    run(&mut command)
}
