//! `image`: the container image of agent and mirror, made without a container engine: one static program, in an archive that
//! `ctr images import`, `podman load` and `docker load` read.

use crate::{
    build_ebpf,
    kube::image::{Image, write},
    process::run,
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::Context;
use std::{
    env,
    path::{Path, PathBuf},
};

/// What `deploy/` calls the image.
pub(crate) const NAME: &str = concat!("localhost/tombolo:", env!("CARGO_PKG_VERSION"));

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to write the archive
    #[arg(long, value_name = "FILE", default_value_os_t = archive())]
    output: PathBuf,
}

/// Makes the image and says where it is.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let programs = programs(&["tombolo"], true)?;
    write(&of_tombolo(&programs)?, &args.output)?;
    println!("{NAME}: {}", args.output.display());
    Ok(())
}

/// Where the archive lies if nothing else is said.
pub(crate) fn archive() -> PathBuf {
    root().join("target/tombolo-image.tar")
}

/// The image of agent and mirror.
pub(crate) fn of_tombolo(programs: &Path) -> anyhow::Result<Image> {
    let mut image = Image::new(NAME, &["/tombolo"]);
    image.program("/tombolo", &programs.join("tombolo"))?;
    // Where the agent's socket lies, and what the node's are mounted over.
    for folder in ["/etc", "/host/cgroup", "/proc", "/run/tombolo", "/sys", "/tmp"] {
        image.folder(folder)?;
    }
    image.file("/etc/passwd", 0o644, "root:x:0:0:root:/:/\nnobody:x:65532:65532:nobody:/:/\n")?;
    Ok(image)
}

/// Builds these programs of the packages of their names, linked statically, and returns their folder. As they are released, or
/// for debugging, which takes less time to build and more to run.
pub(crate) fn programs(names: &[&str], release: bool) -> anyhow::Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", env::consts::ARCH);
    setup::ensure(&[Need::KernelPrograms, Need::StaticPrograms])?;
    setup::ensure_target(&target)?;
    build_ebpf::build(false)?;
    let mut build = cargo();
    build.args(["build", "--target", &target, "--target-dir"]).arg(root().join("target"));
    build.args(release.then_some("--release"));
    for name in names {
        build.args(["--package", name, "--bin", name]);
    }
    // Nothing in an image could read them.
    build.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo").env("CARGO_PROFILE_DEV_STRIP", "debuginfo");
    run(&mut build).context("build static programs")?;
    Ok(root().join("target").join(target).join(if release { "release" } else { "debug" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_ask_for_the_image_that_is_made() {
        let file = root().join("deploy/kustomization.yaml");
        let text = std::fs::read_to_string(file).unwrap();
        let (name, tag) = NAME.rsplit_once(':').unwrap();
        assert!(text.contains(&format!("newName: {name}\n")) && text.contains(&format!("newTag: {tag}\n")), "{NAME}");
    }
}
