//! `demo`: builds the agent and the lab, and plays the scenes on three clusters of network namespaces.

use crate::{
    build_ebpf,
    process::{prefixed, root_prefix, run, text},
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::Context;
use std::{os::unix::process::CommandExt, path::PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Play this scene only; may be given several times. Another name than a scene's lists them
    #[arg(long = "scene", value_name = "NAME")]
    scenes: Vec<String>,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the clusters up at the end, and say how to enter them and how to remove them
    #[arg(long)]
    keep: bool,
}

/// Builds everything and becomes the demo: signals reach it directly, and its exit status is this program's.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Need::KernelPrograms, Need::Lab])?;
    let needs = "the demo makes network namespaces and loads programs into the kernel: run it as root";
    let root_prefix = root_prefix()?.context(needs)?;
    build_ebpf::build(false)?;
    let built = root().join("target");
    let packages = ["build", "--package", "tombolo", "--bin", "tombolo", "--package", "lab", "--bin", "lab"];
    run(cargo().args(packages).arg("--target-dir").arg(&built))?;

    let mut demo = prefixed(&root_prefix, built.join("debug/lab"));
    demo.arg("demo").arg("--agent").arg(built.join("debug/tombolo"));
    demo.args(args.scenes.iter().flat_map(|scene| ["--scene", scene]));
    demo.args(args.json.iter().flat_map(|file| ["--json".as_ref(), file.as_os_str()]));
    demo.args(args.keep.then_some("--keep"));
    let error = demo.exec();
    Err(error).with_context(|| format!("run {}", text(&demo)))
}
