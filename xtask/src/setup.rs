//! `setup`: installs what is missing on this machine, and says so. Every task calls [`ensure`] for what it needs itself.
//!
//! The toolchain and what is built from crates are pinned; packages are what the distribution has. A machine on which
//! nothing is missing is left in less than a tenth of a second.

use crate::{
    kube::node,
    packages::{self, Item},
    process::{find, output, run},
    toolchain::{CHANNEL, COMPONENTS, LLVM, cache, cargo, root, sysroot},
};
use anyhow::{Context, bail};
use std::{env, path::PathBuf, process::Command};

/// What a task needs besides the toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// bpf-linker, to build the kernel programs.
    KernelPrograms,
    /// Tools that make network namespaces and look at kernel objects.
    Lab,
    /// QEMU, and what a guest is made of.
    Guests,
    /// What the nodes of real clusters are made of, besides Kubernetes itself.
    Kubernetes,
    /// What the pods of the conformance suite run.
    Conformance,
    /// A C compiler for programs that are linked statically.
    StaticPrograms,
    /// cargo-deny, which judges licences and sources of crates.
    Deny,
}

/// A program that is built from a crate, in the cache folder, once.
struct Built {
    name: &'static str,
    version: &'static str,
    minutes: &'static str,
}

/// Links bitcode to an eBPF object. Its LLVM is rustc's: another one may not read the bitcode.
const BPF_LINKER: Built = Built { name: "bpf-linker", version: "0.13.0", minutes: "1 to 3 minutes" };
const CARGO_DENY: Built = Built { name: "cargo-deny", version: "0.20.2", minutes: "2 to 5 minutes" };

/// Installs everything that building, testing and the demo need.
pub(crate) fn main() -> anyhow::Result<()> {
    ensure(&[Need::KernelPrograms, Need::Lab, Need::Guests])?;
    println!("everything is there: Rust {CHANNEL}, {} {}, packages", BPF_LINKER.name, BPF_LINKER.version);
    Ok(())
}

/// Installs what is missing of the toolchain and of `needs`.
pub(crate) fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    toolchain()?;
    let build_linker = needs.contains(&Need::KernelPrograms) && !BPF_LINKER.runs()?;
    let mut items: Vec<Item> = needs.iter().flat_map(|need| tools(*need)).collect();
    if build_linker {
        items.extend(linker_items());
    }
    packages::ensure(items)?;
    if build_linker {
        let features = ["--no-default-features", "--features", &format!("llvm-{LLVM}")];
        BPF_LINKER.build(cargo().env("LLVM_PREFIX", llvm_prefix()), &features)?;
    }
    if needs.contains(&Need::Deny) && !CARGO_DENY.runs()? {
        CARGO_DENY.build(&mut cargo(), &[])?;
    }
    Ok(())
}

/// Installs the pinned toolchain's libraries for `target`, once [`ensure`] has seen to the toolchain.
pub(crate) fn ensure_target(target: &str) -> anyhow::Result<()> {
    if sysroot().is_some_and(|sysroot| sysroot.join("lib/rustlib").join(target).exists()) {
        return Ok(());
    }
    println!("setup: installing Rust's libraries for {target}");
    run(Command::new("rustup").args(["target", "add", "--toolchain", CHANNEL, target]))
}

/// Installs the packages of `needs`, for tasks that take no Rust toolchain.
pub(crate) fn ensure_packages(needs: &[Need]) -> anyhow::Result<()> {
    packages::ensure(needs.iter().flat_map(|need| tools(*need)).collect())
}

/// Where bpf-linker lies, once [`ensure`] has seen to it.
pub(crate) fn linker() -> anyhow::Result<PathBuf> {
    BPF_LINKER.path()
}

/// Where cargo-deny lies, once [`ensure`] has seen to it.
pub(crate) fn deny() -> anyhow::Result<PathBuf> {
    CARGO_DENY.path()
}

impl Built {
    fn folder(&self) -> anyhow::Result<PathBuf> {
        Ok(cache()?.join(format!("{}-{}", self.name, self.version)))
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        Ok(self.folder()?.join("bin").join(self.name))
    }

    /// Whether it is there, and finds its libraries.
    fn runs(&self) -> anyhow::Result<bool> {
        let version = output(Command::new(self.path()?).arg("--version"));
        Ok(version.is_ok_and(|text| text.trim().ends_with(self.version)))
    }

    fn build(&self, cargo: &mut Command, features: &[&str]) -> anyhow::Result<()> {
        println!("setup: building {} {} ({}, once)", self.name, self.version, self.minutes);
        cargo.args(["install", self.name, "--version", self.version, "--locked", "--force", "--quiet", "--root"]);
        run(cargo.arg(self.folder()?).args(features)).with_context(|| format!("build {}", self.name))?;
        output(Command::new(self.path()?).arg("--version")).context("built, but doesn't run")?;
        Ok(())
    }
}

fn tools(need: Need) -> Vec<Item> {
    match need {
        Need::KernelPrograms | Need::Deny => Vec::new(),
        Need::Lab => vec![
            Item::new("ip", "iproute2", "network namespaces"),
            Item::new("nft", "nftables", "gateways and broken paths"),
            Item::new("bpftool", "bpftool", "a look at the kernel's programs from outside"),
        ],
        Need::Guests => vec![
            Item::new("qemu-system-x86_64", "qemu-system-x86", "runs other kernels"),
            Item::new("busybox", "busybox-static", "user space of the guests"),
            Item::new("zstd", "zstd", "unpacks kernels"),
            Item::new("lz4", "lz4", "unpacks kernels"),
            Item::new("xz", "xz-utils", "unpacks kernel modules"),
        ],
        Need::StaticPrograms => vec![Item::new("musl-gcc", "musl-tools", "static programs for container images")],
        Need::Kubernetes => vec![
            Item::new("ip", "iproute2", "the network between the nodes"),
            Item::new("openssl", "openssl", "certificates"),
            Item::new("containerd", "containerd", "runs containers on the nodes"),
            Item::new("runc", "runc", "runs containers on the nodes"),
            Item::new(node::plugin(), "containernetworking-plugins", "the pods' network"),
            Item::new("iptables", "iptables", "kube-proxy's rules"),
            Item::new("nft", "nftables", "clusters that vanish"),
            Item::new("busybox", "busybox-static", "user space of pods"),
        ],
        Need::Conformance => vec![
            Item::new("socat", "socat", "listens in pods of the conformance suite"),
            Item::new("nc.openbsd", "netcat-openbsd", "calls in pods of the conformance suite"),
            Item::new("dash", "dash", "calls in pods of the conformance suite"),
            Item::new("git", "git", "fetches the conformance suite"),
        ],
    }
}

/// What building bpf-linker takes. The finished program needs LLVM's shared library only.
fn linker_items() -> Vec<Item> {
    let library = llvm_prefix().join("lib/libLLVM.so");
    vec![
        Item::new(library.display().to_string(), format!("llvm-{LLVM}-dev"), "bpf-linker's LLVM: the one in rustc"),
        Item::new("/usr/include/zstd.h", "libzstd-dev", "linked into bpf-linker"),
        Item::new("/usr/include/zlib.h", "zlib1g-dev", "linked into bpf-linker"),
    ]
}

fn llvm_prefix() -> PathBuf {
    env::var_os("LLVM_PREFIX").map_or_else(|| PathBuf::from(format!("/usr/lib/llvm-{LLVM}")), PathBuf::from)
}

/// Sees to it that the pinned toolchain is complete, and in force in this folder.
fn toolchain() -> anyhow::Result<()> {
    if find("rustup").is_none() {
        bail!("rustup is not in PATH; it installs the pinned Rust {CHANNEL}: see https://rustup.rs");
    }
    let signs = ["lib/rustlib/src/rust/library/core/Cargo.toml", "bin/rustfmt", "bin/cargo-clippy"];
    if !sysroot().is_some_and(|sysroot| signs.iter().all(|sign| sysroot.join(sign).exists())) {
        println!("setup: installing Rust {CHANNEL} with {}", COMPONENTS.join(", "));
        run(Command::new("rustup")
            .args(["toolchain", "install", CHANNEL, "--profile", "minimal", "--no-self-update", "--component"])
            .arg(COMPONENTS.join(",")))?;
    }
    let mut active = Command::new("rustup");
    active.args(["show", "active-toolchain"]).current_dir(root()).env_remove("RUSTUP_TOOLCHAIN");
    // It fails if the active toolchain is one that isn't installed.
    if !output(&mut active).is_ok_and(|name| name.starts_with(&format!("{CHANNEL}-"))) {
        println!("setup: making Rust {CHANNEL} the toolchain of this folder (rustup override set {CHANNEL})");
        output(Command::new("rustup").args(["override", "set", CHANNEL]).current_dir(root()))?;
    }
    Ok(())
}
