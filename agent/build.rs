//! Finds the kernel programs that the agent embeds, and hands their path to the code as `TOMBOLO_EBPF_OBJECT`.
//!
//! `cargo xtask build-ebpf` makes them; an environment variable of that name points at another object. Without any, the
//! agent still builds, with an empty object, and says at run time what it lacks.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "TOMBOLO_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = match env::var_os(VARIABLE) {
        Some(path) => named(Path::new(&path)),
        None => built().unwrap_or_else(empty),
    };
    println!("cargo::rustc-env={VARIABLE}={}", object.display());
}

/// The object that the variable names. One that isn't there is a mistake.
fn named(path: &Path) -> PathBuf {
    println!("cargo::rerun-if-changed={}", path.display());
    path.canonicalize().unwrap_or_else(|error| {
        // Cargo prints it and fails, without a panic's trace.
        println!("cargo::error={VARIABLE} is {}: {error}", path.display());
        path.to_path_buf()
    })
}

/// The object that `cargo xtask build-ebpf` left.
fn built() -> Option<PathBuf> {
    // As it is now: this program itself may have been built for another checkout that has the same target folder.
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let workspace = package.parent().expect("agent/ lies in the workspace");
    let folder = workspace.join("target/ebpf");
    // Watched is the folder, which has to exist: cargo takes a file that isn't there for a change in every build.
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("create {}: {error}", folder.display()));
    println!("cargo::rerun-if-changed={}", folder.display());
    let object = folder.join("tombolo.o");
    object.exists().then_some(object)
}

/// An object without anything in it.
fn empty() -> PathBuf {
    println!("cargo::warning=this agent has no kernel programs in it: run `cargo xtask build-ebpf` and build again");
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("empty.o");
    fs::write(&object, []).unwrap_or_else(|error| panic!("write {}: {error}", object.display()));
    object
}
