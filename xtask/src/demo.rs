//! `demo`: builds the agent and the lab, and plays the scenes on three clusters of network namespaces.

use crate::{
    build_ebpf,
    kubernetes::{self, Play},
    process::{prefixed, root_prefix, run, text},
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::Context;
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

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
    /// Play the scenes on real Kubernetes clusters (`cargo xtask kube up`), with real pods; they are started if they don't
    /// run, and stay
    #[arg(long)]
    kubernetes: bool,
}

/// Builds everything and becomes the demo.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    if args.kubernetes {
        let play =
            Play { demo: true, scenes: &args.scenes, json: args.json.as_deref(), keep: args.keep, ..Play::default() };
        return become_it(kubernetes::lab(&play)?);
    }
    let mut demo = lab("demo", false)?;
    demo.args(args.scenes.iter().flat_map(|scene| ["--scene", scene]));
    demo.args(args.json.iter().flat_map(|file| ["--json".as_ref(), file.as_os_str()]));
    demo.args(args.keep.then_some("--keep"));
    become_it(demo)
}

/// Builds everything and becomes the lab that has faults strike its clusters: those called `faults`, or all.
pub(crate) fn faults(faults: &[String], json: Option<&Path>) -> anyhow::Result<()> {
    let mut lab = lab("faults", false)?;
    lab.args(faults.iter().flat_map(|fault| ["--fault", fault]));
    lab.args(json.iter().flat_map(|file| ["--json".as_ref(), file.as_os_str()]));
    become_it(lab)
}

/// What the lab, built anew, does as `what`, with the agent that was built along with it: as they are released, or for
/// debugging, which takes less time to build and more to run.
pub(crate) fn lab(what: &str, release: bool) -> anyhow::Result<Command> {
    setup::ensure(&[Need::KernelPrograms, Need::Lab])?;
    let needs = "the lab makes network namespaces and loads programs into the kernel: run it as root";
    let root_prefix = root_prefix()?.context(needs)?;
    build_ebpf::build(false)?;
    let built = root().join("target");
    let packages = ["build", "--package", "tombolo", "--bin", "tombolo", "--package", "lab", "--bin", "lab"];
    run(cargo().args(packages).args(release.then_some("--release")).arg("--target-dir").arg(&built))?;
    let programs = built.join(if release { "release" } else { "debug" });
    let mut lab = prefixed(&root_prefix, programs.join("lab"));
    lab.arg(what).arg("--agent").arg(programs.join("tombolo"));
    Ok(lab)
}

/// Replaces this program: signals reach the new one directly, and its exit status is this program's.
pub(crate) fn become_it(mut command: Command) -> anyhow::Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("run {}", text(&command)))
}
