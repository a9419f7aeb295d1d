//! `bench`: measures, in release builds, and writes figures. Nothing passes or fails by a time but `goals`, which says of
//! each figure what it is to be.
//!
//! With `--guest` a bench runs in a QEMU guest in virtual time: on another kernel, with netem, and with figures that don't
//! depend on what else this machine does.

use crate::{
    build_ebpf,
    guest::{End, Guest, RESULTS, Shift, TEST_FOLDER},
    kernels::{TRIES, check_machine, environment, kernel, stripped},
    process::{prefixed, root_prefix, run},
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::{Context, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

/// The benches that know what to leave out where there is one emulated processor.
const LEAN: [&str; 1] = ["failover"];
/// The fastest processor that there is in virtual time, 1 ns an instruction.
const SHIFT: Shift = 0;
/// What a guest needs: the tables of an agent, and callers and pods.
const MEMORY_MIB: u32 = 2048;
/// The number of a layout that no version has.
const OTHER_LAYOUT: &str = "4000000000";
/// When a guest is given up. Virtual time doesn't stand still while the clusters are idle, but costs next to nothing then.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure (`connect`, `failover`, `loss`, `marking`, `goals`, `mirror`), and its options, of which `connect --help` and the like tell; with `--guest KERNEL` among them, in a
    /// QEMU guest with that kernel (as for `cargo xtask guest`): `failover --guest 6.12 --rtt-ms 100 --runs 50 --json FILE`,
    /// `loss --guest 6.12`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    what: Vec<String>,
}

/// What `what` asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// The guest's kernel, if there is to be a guest.
    kernel: Option<String>,
    /// Where the figures go.
    json: Option<PathBuf>,
    /// What is left for the bench.
    words: Vec<String>,
}

/// Builds everything in release and starts the bench.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let wanted = Wanted::of(&args.what)?;
    if wanted.kernel.is_some() {
        return in_guest(&wanted);
    }
    if wanted.words.first().is_some_and(|what| what == "mirror") {
        return mirror(&args.what[1..]);
    }
    setup::ensure(&[Need::KernelPrograms, Need::Lab])?;
    let root_prefix = root_prefix()?.context("the bench loads programs into the kernel: run it as root")?;
    let target = build()?;
    let mut command = prefixed(&root_prefix, target.join("release/bench"));
    command.args(&args.what);
    // The empty programs, which only this one compares with.
    if args.what.first().is_some_and(|what| what == "connect") {
        command.arg("--floor").arg(target.join("ebpf/floor.o"));
    }
    if asks_for_upgrade(&args.what) {
        command.arg("--other").arg(other_layout(&target)?);
    }
    run(&mut command)
}

/// Measures the mirror against API servers of its own, which needs neither root nor nodes.
fn mirror(words: &[String]) -> anyhow::Result<()> {
    setup::ensure(&[Need::KernelPrograms])?;
    let target = build()?;
    let bench = ["bench", "--package", "tests", "--bench", "mirror", "--target-dir"];
    let mut command = cargo();
    command.args(bench).arg(&target).arg("--").args(words);
    run(command.env("TOMBOLO", target.join("release/tombolo")))
}

/// Builds the kernel programs, and in release what the benches start; cargo's target folder.
fn build() -> anyhow::Result<PathBuf> {
    build_ebpf::build(false)?;
    // Named, because the environment may send what cargo builds elsewhere.
    let target = root().join("target");
    let packages = ["build", "--release", "--package", "lab", "--package", "tombolo", "--bins"];
    run(cargo().args(packages).arg("--target-dir").arg(&target))?;
    Ok(target)
}

/// Whether agents of two layouts are to take over from each other, and the caller names no program for the other one.
fn asks_for_upgrade(what: &[String]) -> bool {
    let has = |wanted: &str| what.iter().any(|word| word == wanted);
    let asks = has("upgrade") || has("--goal=upgrade") || !what.iter().any(|word| word.starts_with("--goal"));
    let names = what.iter().any(|word| word.starts_with("--other"));
    has("goals") && asks && !names && !has("--help") && !has("-h")
}

/// Builds this very agent once more, for maps of another layout than its own.
fn other_layout(target: &Path) -> anyhow::Result<PathBuf> {
    // In a folder of its own, so that neither build throws the other's work away.
    let folder = target.join("other-layout");
    let package = ["build", "--release", "--package", "tombolo", "--bin", "tombolo"];
    run(cargo().args(package).arg("--target-dir").arg(&folder).env("TOMBOLO_LAYOUT", OTHER_LAYOUT))?;
    Ok(folder.join("release/tombolo"))
}

/// Builds everything, and runs the bench in a guest. Needs no root.
fn in_guest(wanted: &Wanted) -> anyhow::Result<()> {
    check_machine()?;
    setup::ensure(&[Need::KernelPrograms, Need::Lab, Need::Guests])?;
    let target = build()?;
    let programs = ["bench", "lab", "tombolo"].map(|name| (target.join("release").join(name), name));
    let files = programs.map(|(file, name)| Ok((stripped(&file)?, format!("{TEST_FOLDER}/{name}"))));
    let guest = Guest {
        kernel: kernel(wanted.kernel.as_deref().context("a guest has a kernel")?)?,
        files: files.into_iter().collect::<anyhow::Result<_>>()?,
        folder: "/root".to_owned(),
        virtual_time: Some(SHIFT),
        cpus: 1,
        memory_mib: MEMORY_MIB,
        limit: LIMIT,
    };
    let words = [environment(), wanted.command()].concat();
    for _ in 0..TRIES {
        match guest.start(&words, Stdio::inherit())?.wait_for_results()? {
            (End::Status(0), results) => return wanted.json.as_deref().map_or(Ok(()), |file| keep(file, &results)),
            (End::Stillborn, _) => eprintln!("bench: the guest did not come up, started again"),
            (End::Status(status), _) => bail!("the bench in the guest ended with status {status}"),
            (End::Limit, _) => bail!("the guest was not done after {} s", LIMIT.as_secs()),
            (End::Broken, _) => bail!("the guest ended without a status"),
        }
    }
    bail!("the guest did not come up")
}

/// Writes the guest's figures to `file`, if they are whole.
fn keep(file: &Path, results: &str) -> anyhow::Result<()> {
    serde_json::from_str::<serde_json::Value>(results).context("understand the figures that came from the guest")?;
    fs::write(file, results).with_context(|| format!("write {}", file.display()))
}

impl Wanted {
    /// Takes what is for the guest's owner out of `what`, if there is to be a guest.
    fn of(what: &[String]) -> anyhow::Result<Self> {
        let mut wanted = Self::default();
        let mut words = what.iter();
        while let Some(word) = words.next() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            if !matches!(name, "--guest" | "--json") {
                wanted.words.push(word.clone());
                continue;
            }
            let value = value.or_else(|| words.next().cloned());
            let value = value.filter(|value| !value.is_empty()).with_context(|| format!("{name} needs a value"))?;
            if name == "--guest" {
                wanted.kernel = Some(value);
            } else {
                wanted.json = Some(value.into());
            }
        }
        Ok(wanted)
    }

    /// The command in the guest.
    fn command(&self) -> Vec<String> {
        let mut command = vec![format!("{TEST_FOLDER}/bench")];
        command.extend(self.words.iter().cloned());
        if self.words.first().is_some_and(|what| LEAN.contains(&what.as_str())) {
            command.push("--lean".to_owned());
        }
        if self.json.is_some() {
            command.extend(["--json", RESULTS].map(str::to_owned));
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_and_the_file_of_the_figures_are_not_the_benchs_business() {
        let wanted = of("failover --guest 6.12 --runs 3 --json figures.json --rtt-ms=100").unwrap();
        assert_eq!((wanted.kernel.as_deref(), wanted.json.as_deref()), (Some("6.12"), Some(Path::new("figures.json"))));
        assert_eq!(wanted.command().join(" "), "/test/bench failover --runs 3 --rtt-ms=100 --lean --json /dev/ttyS1");
        let wanted = of("loss --guest=6.1").unwrap();
        assert_eq!(
            (wanted.kernel.as_deref(), wanted.command().join(" ")),
            (Some("6.1"), "/test/bench loss".to_owned())
        );
        assert_eq!(of("connect --json x").unwrap().kernel, None);
    }

    #[test]
    fn a_guest_without_a_kernel_is_an_error() {
        assert!(of("failover --guest").is_err());
        assert!(of("failover --guest=").is_err());
    }

    #[test]
    fn another_agent_is_built_for_upgrades_only_and_unless_one_is_named() {
        for line in
            ["goals", "goals --goal upgrade", "goals --goal=upgrade --json f", "goals --goal kills --goal upgrade"]
        {
            assert!(asks_for_upgrade(&words(line)), "{line}");
        }
        for line in ["connect", "goals --goal kills", "goals --other f", "goals --help", "failover --goal upgrade"] {
            assert!(!asks_for_upgrade(&words(line)), "{line}");
        }
    }

    fn of(line: &str) -> anyhow::Result<Wanted> {
        Wanted::of(&words(line))
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }
}
