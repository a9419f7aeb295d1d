//! `test`: unit tests, property tests, documentation's examples, and the kernel tests on the running kernel.
//!
//! Test programs are built by one cargo run and started here, because only some of them need root; [`programs`] serves
//! `kernels` too, which starts the same programs in guests.

use crate::{
    build_ebpf, demo, kube, kubernetes,
    process::{is_root, prefixed, root_prefix, text},
    report::Report,
    setup::{self, Need},
    toolchain::{cargo, root},
};
use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Name of the test targets that need root, because they load programs into the kernel.
const KERNEL_TESTS: &str = "kernel";
/// The package whose tests make network namespaces: they need root, too, and skip what they can't do without.
const LAB: &str = "lab";
/// Name of the test targets that need the programs of Kubernetes, and the variable that says where these are.
const CLUSTER_TESTS: &str = "cluster";
const PROGRAMS: &str = "TOMBOLO_KUBE_LOCAL";
/// Starts a program with a loopback device of its own and nothing else: what tests say of pods that aren't there must not
/// depend on who answers out there.
const ALONE: [&str; 6] = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c"];
const ON_LOOPBACK: &str = "ip link set lo up && exec \"$0\" \"$@\"";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose name contains one of these; with --faults, only the faults of these names
    filters: Vec<String>,
    /// Instead of the tests, have one fault after the other strike three clusters under load
    #[arg(long)]
    faults: bool,
    /// With --faults: write the results to this file, as JSON
    #[arg(long, value_name = "FILE", requires = "faults")]
    json: Option<PathBuf>,
    /// Instead of the other tests, run those against real API servers, and scenes on three real clusters, which are built and
    /// started if need be; names choose among both
    #[arg(long, conflicts_with = "faults")]
    kubernetes: bool,
}

/// A program that cargo built from the workspace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its target's name: `tombolo`, `kernel`.
    pub(crate) name: String,
    /// Its package's folder, where cargo starts tests.
    pub(crate) folder: PathBuf,
    /// Its main source file.
    source: PathBuf,
    /// The file to run.
    pub(crate) file: PathBuf,
    /// Whether it is a test program.
    test: bool,
}

impl Program {
    /// Whether it holds the tests that need root and a kernel.
    pub(crate) fn is_kernel_test(&self) -> bool {
        self.test && self.name == KERNEL_TESTS
    }

    /// Whether it holds tests that do more with root than without.
    fn is_better_with_root(&self) -> bool {
        self.is_kernel_test() || self.test && self.folder == root().join(LAB)
    }

    /// Whether it is a program of ours rather than one that tests.
    pub(crate) fn is_ours(&self) -> bool {
        !self.test
    }

    /// What people know it by: its main source file, `agent/src/lib.rs`.
    pub(crate) fn shown_name(&self) -> String {
        self.source.strip_prefix(root()).unwrap_or(&self.source).display().to_string()
    }
}

/// Runs everything and prints the summary; an error if something failed or couldn't run.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    if args.faults {
        return demo::faults(&args.filters, args.json.as_deref());
    }
    if args.kubernetes {
        return on_kubernetes(&args.filters);
    }
    setup::ensure(&[Need::KernelPrograms, Need::Lab])?;
    let (root_prefix, alone) = (root_prefix()?, alone()?);
    build_ebpf::build(false)?;
    let programs = programs()?;
    let mut report = Report::default();
    for program in programs.iter().filter(|program| program.test) {
        let name = program.shown_name();
        let prefix = match &root_prefix {
            Some(prefix) if program.is_better_with_root() => prefix,
            _ if program.name == CLUSTER_TESTS => &alone,
            None if program.is_kernel_test() => {
                report.skip(format!("{name}: all of it: needs root"));
                continue;
            }
            _ => &[][..],
        };
        run(&mut report, &name, command(prefix, program, &args.filters)?)?;
    }
    let mut examples = cargo();
    examples.args(["test", "--workspace", "--doc", "--"]).args(&args.filters);
    run(&mut report, "examples in the documentation", examples)?;
    report.print();
    if report.failed > 0 {
        bail!("{}", report.failures());
    }
    if root_prefix.is_none() {
        bail!(
            "the kernel tests did not run: they load programs into the kernel, which takes root (or a sudo that works)"
        );
    }
    Ok(())
}

/// Runs the tests against API servers, and the scenes on real clusters.
fn on_kubernetes(filters: &[String]) -> anyhow::Result<()> {
    kube::prepare()?;
    setup::ensure(&[Need::KernelPrograms, Need::Lab])?;
    build_ebpf::build(false)?;
    let mut report = Report::default();
    for program in programs()?.iter().filter(|program| program.test && program.name == CLUSTER_TESTS) {
        run(&mut report, &program.shown_name(), command(&alone()?, program, filters)?)?;
    }
    kubernetes::check(&mut report, filters)?;
    report.print();
    if report.failed > 0 {
        bail!("{}", report.failures());
    }
    Ok(())
}

/// Builds the workspace's programs and tests.
pub(crate) fn programs() -> anyhow::Result<Vec<Program>> {
    let mut build = cargo();
    // One run for all, so that nothing is built twice for different sets of features.
    build.args(["build", "--workspace", "--lib", "--bins", "--tests", "--message-format", "json-render-diagnostics"]);
    let done = build.stderr(Stdio::inherit()).output().with_context(|| format!("run {}", text(&build)))?;
    if !done.status.success() {
        bail!("build the workspace: {}", done.status);
    }
    let messages = String::from_utf8(done.stdout).context("cargo's messages")?;
    messages.lines().filter_map(|line| program(line).transpose()).collect()
}

/// The program that one of cargo's messages announces, if it does.
fn program(message: &str) -> anyhow::Result<Option<Program>> {
    let message: Value = serde_json::from_str(message).with_context(|| format!("cargo's message {message}"))?;
    let Some(file) = message["executable"].as_str() else { return Ok(None) };
    let manifest = message["manifest_path"].as_str().context("cargo named a program without its package")?;
    Ok(Some(Program {
        name: message["target"]["name"].as_str().context("cargo named a program without its target")?.to_owned(),
        folder: Path::new(manifest).parent().context("a manifest lies in a folder")?.to_owned(),
        source: message["target"]["src_path"].as_str().context("cargo named a program without its source")?.into(),
        file: file.into(),
        test: message["profile"]["test"].as_bool().unwrap_or(false),
    }))
}

/// The words that start what talks to API servers of its own and to nobody else.
fn alone() -> anyhow::Result<Vec<&'static str>> {
    let words = ALONE.into_iter().chain([ON_LOOPBACK]);
    // Root needs no user namespace, which some machines don't let anybody have.
    Ok(if is_root()? { words.filter(|word| !word.contains("user")).collect() } else { words.collect() })
}

fn command(prefix: &[&str], program: &Program, filters: &[String]) -> anyhow::Result<Command> {
    let mut command = prefixed(prefix, &program.file);
    // Tests that need them say that they skip where they aren't built: that takes longer than all else.
    command.env(PROGRAMS, kube::programs()?);
    // What passing tests print is shown too: measured figures, and what was skipped.
    command.arg("--show-output").args(filters).current_dir(&program.folder);
    Ok(command)
}

fn run(report: &mut Report, name: &str, mut command: Command) -> anyhow::Result<()> {
    let child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {}", text(&command)))?;
    report.follow(name, child, &mut io::stdout()).with_context(|| format!("read the output of {name}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_ours_by_the_message_that_announces_them() {
        let message = |kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{{"kind":["{kind}"],"name":"kernel","src_path":"/w/tests/kernel.rs"}},"profile":{{"test":{test}}},"executable":"/w/target/debug/deps/kernel-1"}}"#
            )
        };
        let test = program(&message("test", true)).unwrap().unwrap();
        assert!(!test.is_ours() && test.is_kernel_test());
        assert_eq!(test.folder, Path::new("/w/tests"));
        let ours = program(&message("bin", false)).unwrap().unwrap();
        assert!(ours.is_ours() && !ours.is_kernel_test());
    }

    #[test]
    fn root_is_for_tests_of_the_kernel_and_of_the_lab() {
        let program = |folder: &str, name: &str, test| {
            let folder = root().join(folder);
            Program { name: name.into(), source: folder.join("main.rs"), file: folder.join(name), folder, test }
        };
        for (folder, name) in [("tests", "kernel"), ("lab", "health"), ("lab", "lab")] {
            assert!(program(folder, name, true).is_better_with_root(), "{folder} {name}");
        }
        assert!(!program("lab", "lab", false).is_better_with_root(), "not a test");
        for (folder, name) in [("tests", "tables"), ("agent", "tombolo"), ("xtask", "xtask")] {
            assert!(!program(folder, name, true).is_better_with_root(), "{folder} {name}");
        }
    }

    #[test]
    fn messages_about_anything_else_are_passed_over() {
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#).unwrap(), None);
        assert_eq!(program(r#"{"reason":"compiler-artifact","executable":null}"#).unwrap(), None);
    }
}
