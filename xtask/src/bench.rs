//! `bench`: measures, in release builds, and writes figures. Nothing passes or fails by a time but `goals`, which says of
//! each figure what it is to be.

use crate::{
    build_ebpf,
    process::{prefixed, root_prefix, run},
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::Context;
use std::path::{Path, PathBuf};

/// The number of a layout that no version has.
const OTHER_LAYOUT: &str = "4000000000";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure, and its options: `connect [--json FILE]`, `failover [--runs 50] [--json FILE]`, `marking`, `goals [--goal NAME]`,
    /// `connect --help`
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
    if args.asks_for_upgrade() {
        command.arg("--other").arg(other_layout(&target)?);
    }
    run(&mut command)
}

impl Args {
    /// Whether agents of two layouts are to take over from each other, and the caller names no program for the other one.
    fn asks_for_upgrade(&self) -> bool {
        let has = |wanted: &str| self.what.iter().any(|word| word == wanted);
        let asks = has("upgrade") || has("--goal=upgrade") || !self.what.iter().any(|word| word.starts_with("--goal"));
        let names = self.what.iter().any(|word| word.starts_with("--other"));
        has("goals") && asks && !names && !has("--help") && !has("-h")
    }
}

/// Builds this very agent once more, for maps of another layout than its own.
fn other_layout(target: &Path) -> anyhow::Result<PathBuf> {
    // In a folder of its own, so that neither build throws the other's work away.
    let folder = target.join("other-layout");
    let package = ["build", "--release", "--package", "tombolo", "--bin", "tombolo"];
    run(cargo().args(package).arg("--target-dir").arg(&folder).env("TOMBOLO_LAYOUT", OTHER_LAYOUT))?;
    Ok(folder.join("release/tombolo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_agent_is_built_for_upgrades_only_and_unless_one_is_named() {
        let asks = |words: &str| Args { what: words.split(' ').map(str::to_owned).collect() }.asks_for_upgrade();
        for words in
            ["goals", "goals --goal upgrade", "goals --goal=upgrade --json f", "goals --goal kills --goal upgrade"]
        {
            assert!(asks(words), "{words}");
        }
        for words in ["connect", "goals --goal kills", "goals --other f", "goals --help", "failover --goal upgrade"] {
            assert!(!asks(words), "{words}");
        }
    }
}
