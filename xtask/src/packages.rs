//! What the distribution has to bring: recognised by its files, installed with apt.

use crate::{
    process::{find, output, prefixed, root_prefix, run},
    toolchain::LLVM,
};
use anyhow::bail;
use std::{path::Path, process::Command};

/// Something that a package brings.
pub(crate) struct Item {
    /// What tells that it is there: a program's name, or a file's full path. So no package manager has to be asked
    /// while nothing is missing, and other distributions do as well.
    pub(crate) sign: String,
    /// Debian's and Ubuntu's name of the package.
    pub(crate) package: String,
    /// What it is for, in a few words.
    pub(crate) purpose: &'static str,
}

impl Item {
    /// An item of the package `package`.
    pub(crate) fn new(sign: impl Into<String>, package: impl Into<String>, purpose: &'static str) -> Self {
        Self { sign: sign.into(), package: package.into(), purpose }
    }

    fn is_there(&self) -> bool {
        if self.sign.starts_with('/') { Path::new(&self.sign).exists() } else { find(&self.sign).is_some() }
    }
}

/// Installs those of `items` that are missing, or says what to install.
pub(crate) fn ensure(items: Vec<Item>) -> anyhow::Result<()> {
    let missing: Vec<Item> = items.into_iter().filter(|item| !item.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|item| item.package.as_str()).collect();
    let list: String =
        missing.iter().map(|item| format!("\n  {}: {} ({})", item.package, item.purpose, item.sign)).collect();
    if find("apt-get").is_none() {
        bail!("this machine lacks, by Debian's names and with the file or program that was looked for:{list}");
    }
    let Some(prefix) = root_prefix()? else {
        bail!(
            "packages are missing, and there is no sudo that works:{list}\n\
             run as root: apt-get install --no-install-recommends {}",
            names.join(" ")
        );
    };
    println!("setup: installing packages:{list}");
    let known = names.iter().all(|name| is_known(name));
    if !known {
        update(&prefix)?;
        if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
            bail!("{}", no_such_package(unknown));
        }
    }
    let done = run(&mut install(&prefix, &names));
    if done.is_err() && known {
        // The lists may be older than the archive, which no longer holds what they name.
        update(&prefix)?;
        return run(&mut install(&prefix, &names));
    }
    done
}

/// Fetches the current lists of packages.
pub(crate) fn update(prefix: &[&str]) -> anyhow::Result<()> {
    run(&mut apt(prefix, &["update", "-qq"]))
}

fn install(prefix: &[&str], names: &[&str]) -> Command {
    let quiet = ["install", "-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"];
    apt(prefix, &[&quiet, names].concat())
}

fn apt(prefix: &[&str], args: &[&str]) -> Command {
    let mut command = prefixed(prefix, "env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]).args(args);
    command
}

/// Whether apt could install `package` by the lists it has.
fn is_known(package: &str) -> bool {
    output(Command::new("apt-cache").args(["show", "--no-all-versions", package])).is_ok_and(|text| !text.is_empty())
}

fn no_such_package(package: &str) -> String {
    let hint = if package.starts_with("llvm-") {
        format!(
            ". Debian 12 has it in its security archive (deb http://deb.debian.org/debian-security bookworm-security \
             main); where no source has it, add LLVM's own (https://apt.llvm.org), or set LLVM_PREFIX to the folder \
             of an LLVM {LLVM} with its shared library"
        )
    } else {
        String::new()
    };
    format!("no package source of this machine has {package}{hint}")
}
