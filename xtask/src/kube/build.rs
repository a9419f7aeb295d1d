//! Builds Kubernetes and CoreDNS from the Go modules in `xtask/kube-local/`: kube-local, the one binary of all Kubernetes
//! programs and etcd, and coredns. They are kept in the cache folder; Go keeps the modules and what it compiled in folders
//! of its own, so the second build is short.

use super::image::hex;
use crate::{
    process::{find, output, run},
    toolchain::{cache, root},
};
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

/// A Go module of this repository that is built to one static program.
struct Module {
    /// The program's name.
    program: &'static str,
    /// Its folder in the repository.
    folder: &'static str,
    /// What a person who waits should know.
    cost: &'static str,
    /// The version that it is known by.
    version: fn() -> anyhow::Result<String>,
    link_flags: fn(&str) -> String,
}

const MODULES: [Module; 2] = [
    Module {
        program: "kube-local",
        folder: "xtask/kube-local",
        cost: "the first time some 10 minutes on two cores, 90 MB to fetch, 4 GB in Go's folders",
        version,
        link_flags,
    },
    Module {
        program: "coredns",
        folder: "xtask/kube-local/coredns",
        cost: "the first time 1 to 3 minutes",
        version: dns_version,
        link_flags: |_| "-s -w".to_owned(),
    },
];

/// What kube-local does depends on the name it is called by: these.
const PROGRAMS: [&str; 7] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];
/// What a module is built from.
const SOURCES: [&str; 3] = ["main.go", "go.mod", "go.sum"];
/// Where Go's own archive unpacks to, which is in few people's PATH.
const USUAL_GO: &str = "/usr/local/go/bin/go";

/// The folder of the programs, once [`ensure`] has seen to it.
pub(crate) fn folder() -> anyhow::Result<PathBuf> {
    Ok(cache()?.join("kube-local"))
}

/// Builds what isn't there, or was built from other sources.
pub(crate) fn ensure() -> anyhow::Result<()> {
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut missing = Vec::new();
    for module in &MODULES {
        if !module.is_built(&folder)? {
            // Before the first one is built: who has to install another Go is told so at once.
            missing.push((module, module.go()?));
        }
    }
    for (module, go) in missing {
        module.build(&folder, &go).with_context(|| format!("build {}", module.program))?;
    }
    for name in PROGRAMS {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(MODULES[0].program, &link).with_context(|| format!("link {}", link.display()))?;
        }
    }
    Ok(())
}

impl Module {
    fn source(&self) -> PathBuf {
        root().join(self.folder)
    }

    /// A file that says what the program was built from. Written last: a build that was stopped doesn't count.
    fn stamp(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.sources", self.program))
    }

    fn is_built(&self, folder: &Path) -> anyhow::Result<bool> {
        let digest = digest(&self.source())?;
        Ok(fs::read_to_string(self.stamp(folder)).is_ok_and(|built_from| built_from == digest))
    }

    /// A Go that can build it.
    fn go(&self) -> anyhow::Result<PathBuf> {
        let file = self.source().join("go.mod");
        go(
            &self.source(),
            &go_version(&fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?)?,
        )
    }

    fn build(&self, folder: &Path, go: &Path) -> anyhow::Result<()> {
        let version = (self.version)()?;
        println!("kube: building {} {version} ({})", self.program, self.cost);
        let new = folder.join(format!("{}.new", self.program));
        let mut build = Command::new("nice");
        build.arg(go).args(["build", "-p", "2", "-trimpath", "-buildvcs=false"]);
        build.args(["-ldflags", &(self.link_flags)(&version), "-o"]).arg(&new).arg(".");
        run(build.current_dir(self.source()).env("CGO_ENABLED", "0"))?;
        // Renamed into place: a running program keeps the file it was started from.
        fs::rename(&new, folder.join(self.program)).context("move it into place")?;
        let stamp = self.stamp(folder);
        fs::write(&stamp, digest(&self.source())?).with_context(|| format!("write {}", stamp.display()))
    }
}

/// The version of Kubernetes: `v1.34.4`.
pub(crate) fn version() -> anyhow::Result<String> {
    required(include_str!("../../kube-local/go.mod"), "k8s.io/kubernetes")
}

/// The version of CoreDNS: `v1.14.3`.
pub(crate) fn dns_version() -> anyhow::Result<String> {
    required(include_str!("../../kube-local/coredns/go.mod"), "github.com/coredns/coredns")
}

/// The version that `go.mod` requires of `module`.
fn required(go_mod: &str, module: &str) -> anyhow::Result<String> {
    let requirement = |line: &str| {
        let (name, version) = line.trim().trim_start_matches("require ").split_once(' ')?;
        (name == module).then(|| version.to_owned())
    };
    go_mod.lines().find_map(requirement).with_context(|| format!("go.mod requires no {module}"))
}

/// The version of Go that `go.mod` asks for.
fn go_version(go_mod: &str) -> anyhow::Result<String> {
    let version = go_mod.lines().find_map(|line| line.strip_prefix("go "));
    Ok(version.context("go.mod names no version of Go")?.trim().to_owned())
}

/// A Go that can build the module.
fn go(module: &Path, needed: &str) -> anyhow::Result<PathBuf> {
    let how = format!(
        "Kubernetes and CoreDNS are built with Go {needed} or later: unpack an archive of https://go.dev/dl to /usr/local \
         ({USUAL_GO} is found there), or install a distribution's golang-go that is new enough"
    );
    let usual = PathBuf::from(USUAL_GO);
    let go = find("go").or_else(|| usual.is_file().then_some(usual)).with_context(|| how.clone())?;
    // In the module's folder: from 1.21 on, Go fetches the toolchain that go.mod asks for, unless that is switched off.
    let version =
        output(Command::new(&go).args(["env", "GOVERSION"]).current_dir(module)).with_context(|| how.clone())?;
    if numbers(&version) < numbers(needed) {
        bail!("{} is {}; {how}", go.display(), version.trim());
    }
    Ok(go)
}

/// The numbers in `go1.26.8`, of which the first three count.
fn numbers(version: &str) -> Vec<u32> {
    let mut numbers = version.trim().trim_start_matches("go").split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    vec![number(), number(), number()]
}

/// What the programs are to answer when they are asked for their version, which the release's own build sets too.
fn link_flags(version: &str) -> String {
    let minor = version.split('.').nth(1).unwrap_or_default();
    let variables = [
        ("gitVersion", version),
        ("gitMajor", "1"),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
        ("gitCommit", version),
    ];
    let set = variables.map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"));
    format!("-s -w {}", set.join(" "))
}

/// What tells one state of the sources from another.
fn digest(module: &Path) -> anyhow::Result<String> {
    let mut digest = Sha256::new();
    for name in SOURCES {
        let file = module.join(name);
        digest.update(fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    digest.update(env::consts::ARCH);
    Ok(hex(&digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_go_mod() {
        let go_mod = "module x\n\ngo 1.24.0\n\nrequire (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.34.4\n)\n";
        assert_eq!(go_version(go_mod).unwrap(), "1.24.0");
        assert_eq!(required(go_mod, "k8s.io/kubernetes").unwrap(), "v1.34.4");
        assert!(required(go_mod, "k8s.io/kube").is_err());
        assert!(version().unwrap().starts_with("v1.") && dns_version().unwrap().starts_with("v1."));
    }

    #[test]
    fn versions_of_go_are_compared_by_their_numbers() {
        assert!(numbers("go1.26.8\n") > numbers("1.24.0"));
        assert!(numbers("go1.24") == numbers("1.24.0"));
        assert!(numbers("go1.9.7") < numbers("1.24.0"));
        assert!(numbers("go1.24rc1") < numbers("1.24.2"));
    }

    #[test]
    fn programs_say_which_release_they_are() {
        let flags = link_flags("v1.34.4");
        assert!(flags.contains("version.gitVersion=v1.34.4 ") && flags.contains("version.gitMinor=34 "), "{flags}");
    }
}
