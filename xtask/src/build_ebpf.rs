//! `build-ebpf`: builds the kernel programs to the object that the agent embeds.
//!
//! Stable Rust builds them, with the sources of `core` for a target that has no prebuilt one: both are unstable options,
//! hence RUSTC_BOOTSTRAP, which is safe with a pinned compiler.

use crate::{
    process::{run, write_if_changed},
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::Context;
use std::{fs, path::PathBuf, process::Command};

const TARGET: &str = "bpfel-unknown-none";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// With log messages from inside the kernel, for debugging: slower, and more for the verifier to go through
    #[arg(long)]
    log: bool,
}

/// Builds the object and says where it is.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Need::KernelPrograms])?;
    let object = build(args.log)?;
    println!("kernel programs: {}", object.display());
    Ok(())
}

/// Builds the object, which `agent/build.rs` finds, and returns its path. Needs [`Need::KernelPrograms`].
pub(crate) fn build(log: bool) -> anyhow::Result<PathBuf> {
    run(cargo_ebpf("build")?.args(if log { &["--features", "log"][..] } else { &[] }))?;
    copy("floor", "floor.o")?;
    copy("tombolo-ebpf", "tombolo.o")
}

/// Copies what cargo built to where others look for it.
fn copy(built: &str, object: &str) -> anyhow::Result<PathBuf> {
    let built = target_dir().join(TARGET).join("ebpf").join(built);
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let object = root().join("target/ebpf").join(object);
    write_if_changed(&object, &bytes)?;
    Ok(object)
}

/// Cargo's `subcommand` for the kernel programs.
pub(crate) fn cargo_ebpf(subcommand: &str) -> anyhow::Result<Command> {
    let linker =
        setup::linker()?.into_os_string().into_string().ok().context("the cache folder's name is not UTF-8")?;
    // Debug information becomes BTF, which the kernel and aya read types from.
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Cpanic=abort", &format!("-Clinker={linker}")].join("\x1f");
    let mut command = cargo();
    command
        .args([subcommand, "-Zbuild-std=core", "--target", TARGET, "--profile", "ebpf"])
        .args(["--package", "tombolo-ebpf", "--bins", "--features", "kernel", "--target-dir"])
        .arg(target_dir())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    Ok(command)
}

/// A folder of its own, so that neither build throws the other's work away.
fn target_dir() -> PathBuf {
    root().join("target/ebpf-build")
}
