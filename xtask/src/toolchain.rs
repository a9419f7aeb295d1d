//! The pinned toolchain, and where things lie.

use crate::process::output;
use anyhow::bail;
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// The one Rust toolchain for the agent and for the kernel programs. Its LLVM has to be that of [`LLVM`], because
/// bpf-linker reads the bitcode that rustc writes.
///
/// It is not pinned by a `rust-toolchain.toml`: where rustup doesn't install toolchains by itself, that file would keep
/// cargo from building this program, which installs it.
pub(crate) const CHANNEL: &str = "1.98.0";
/// What [`CHANNEL`] has to have besides rustc and cargo: the sources of `core` for the kernel programs, and what `check` runs.
pub(crate) const COMPONENTS: [&str; 3] = ["rust-src", "rustfmt", "clippy"];
/// Major version of LLVM that rustc [`CHANNEL`] contains.
pub(crate) const LLVM: u32 = 22;

/// The workspace's folder: cargo says where as it runs this program, which may have been built for another checkout that has
/// the same target folder.
pub(crate) fn root() -> &'static Path {
    static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
        let running = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).filter(|dir| dir.ends_with("xtask"));
        running.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
    });
    PACKAGE.parent().expect("xtask/ lies in the workspace")
}

/// Where things are kept that outlive `cargo clean` and serve every copy of the repository: `tombolo` in the user's
/// cache folder.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = match (cache, env::home_dir()) {
        (Some(dir), _) => dir,
        (None, Some(home)) => home.join(".cache"),
        (None, None) => bail!("neither XDG_CACHE_HOME nor HOME is set: there is no cache folder"),
    };
    Ok(cache.join("tombolo"))
}

/// Cargo of the pinned toolchain, in the workspace's folder.
pub(crate) fn cargo() -> Command {
    pinned("cargo")
}

/// The pinned toolchain's folder, if it is installed.
pub(crate) fn sysroot() -> Option<PathBuf> {
    output(pinned("rustc").args(["--print", "sysroot"])).ok().map(|path| PathBuf::from(path.trim()))
}

/// A program of the pinned toolchain, whatever toolchain runs this one.
fn pinned(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", CHANNEL, program]).current_dir(root());
    // Set by the cargo that runs this program; another cargo would pass it on as its own path, and build crates anew whose
    // build scripts look at their own package's.
    let of_cargo =
        |name: &str| name == "CARGO" || name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_cargo)) {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_asks_for_the_pinned_toolchain() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
        assert!(CHANNEL.starts_with(line.trim_matches('"')), "rust-version is {line}, the pinned toolchain {CHANNEL}");
    }
}
