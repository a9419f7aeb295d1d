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
    /// What to measure, and its options: `connect [--json FILE]`, `connect --help`
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
    run(cargo().args(["build", "--release", "--package", "lab", "--bin", "bench", "--target-dir"]).arg(&target))?;
    let mut command = prefixed(&root_prefix, target.join("release/bench"));
    run(command.args(&args.what).arg("--floor").arg(target.join("ebpf/floor.o")))
}
