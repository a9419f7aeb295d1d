//! Images that stand in for those of public registries, which no node here can ask: same names, and the programs that are
//! called in them, of this machine.

use super::image::{Image, tools};
use crate::process::{find, output};
use anyhow::Context;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What the pods of the MCS API's conformance suite run: a listener, and a caller's tools.
pub(crate) fn of_conformance(busybox: &Path) -> anyhow::Result<Vec<Image>> {
    let listener = stand_in("docker.io/alpine/socat:1.7.4.4", busybox, &[("socat", "socat")])?;
    // OpenBSD's netcat is what has -4 and -6. Busybox's shell would run busybox's own, whatever lies in PATH.
    let caller = [("nc", "nc.openbsd"), ("sh", "dash")];
    let caller = stand_in("docker.io/nicolaka/netshoot:v0.15", busybox, &caller)?;
    Ok(vec![listener, caller])
}

/// Busybox, and `programs`: what each is called in the image, and here.
fn stand_in(name: &str, busybox: &Path, programs: &[(&str, &str)]) -> anyhow::Result<Image> {
    let mut image = tools(busybox)?;
    name.clone_into(&mut image.name);
    image.entrypoint.clear();
    for (inside, outside) in programs {
        let program = find(outside).with_context(|| format!("{outside} is not in PATH"))?;
        image.file(&format!("/bin/{inside}"), 0o755, read(&program)?)?;
        for library in libraries(&program)? {
            image.file(&library.display().to_string(), 0o755, read(&library)?)?;
        }
    }
    Ok(image)
}

/// The shared libraries that a program asks for, and their loader, where it looks for them.
fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    Ok(paths(&output(Command::new("ldd").arg(program))?))
}

/// The files that ldd names: `libc.so.6 => /lib/libc.so.6 (0x…)`, or the loader's path alone.
fn paths(ldd: &str) -> BTreeSet<PathBuf> {
    let words = ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_where_ldd_says() {
        let ldd =
            "\tlinux-vdso.so.1 (0x0000)\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\t/lib64/ld-linux-x86-64.so.2 (0x2)\n";
        let expected = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(paths(ldd), expected.into());
        assert!(paths("\tstatically linked\n").is_empty());
    }
}
