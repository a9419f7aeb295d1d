//! `conformance`: the MCS API's own conformance suite, against two of the clusters of `kube up`, with a mirror in each.
//!
//! The suite is fetched and built once. Its pods run stand-ins of the images that it names, for the nodes here ask no registry.

use crate::{
    build_ebpf,
    kube::{self, CLUSTERS, Cluster},
    process::{find, is_root, run, text},
    setup::{self, Need},
    toolchain::{cache, cargo, root},
};
use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

const REPOSITORY: &str = "https://github.com/kubernetes-sigs/mcs-api";
/// The suite as of May 2026: release v0.5.0, and a minute instead of 20 s for pods to start.
const COMMIT: &str = "ded161af6ea9596cd9e878c61ed4f4e8d5cf8401";
const SPECS: u32 = 27;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A checkout of the MCS API's repository, instead of one that git fetches
    #[arg(long, value_name = "FOLDER")]
    source: Option<PathBuf>,
    /// The program `tombolo`, instead of one that is built in release
    #[arg(long, value_name = "FILE")]
    tombolo: Option<PathBuf>,
    /// For the suite: `--ginkgo.focus=…`, `--ginkgo.label-filter=Required`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// Runs it, as root. The clusters have to be up, and stay so.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    ensure!(is_root()?, "the clusters' state is root's: run it as root");
    setup::ensure(&[Need::KernelPrograms, Need::Kubernetes, Need::Conformance])?;
    let suite = suite(args.source.as_deref()).context("build the suite")?;
    let target = root().join("target");
    let tombolo = match &args.tombolo {
        Some(program) => program.clone(),
        None => {
            build_ebpf::build(false)?;
            run(cargo().args(["build", "--release", "--package", "tombolo", "--target-dir"]).arg(&target))?;
            target.join("release/tombolo")
        }
    };
    let (exporter, importer) = (CLUSTERS[0], CLUSTERS[1]);
    kube::load_stand_ins().context("bring the suite's images to the nodes (cargo xtask kube up starts them)")?;
    for cluster in [exporter, importer] {
        run(Command::new(&tombolo).arg("crds").arg("--kubeconfig").arg(cluster.kubeconfig("admin")))?;
        kube::namespace(&cluster, "tombolo-system")?;
    }
    let folder = target.join("conformance");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mirrors =
        [Mirror::start(&tombolo, &folder, exporter, importer)?, Mirror::start(&tombolo, &folder, importer, exporter)?];
    let log = folder.join("suite.log");
    let done = run_suite(&suite, &folder, &log, [exporter, importer], &args.flags);
    for mirror in mirrors {
        mirror.stop()?;
    }
    done?;
    let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    let summary = Summary::of(&text).with_context(|| format!("{} has no summary", log.display()))?;
    println!("{}\nreport: {}", summary.line, folder.join("report.html").display());
    ensure!(summary.failed == 0, "{} specs failed", summary.failed);
    if args.flags.is_empty() {
        ensure!(summary.passed == SPECS, "{} of {SPECS} specs passed", summary.passed);
    }
    Ok(())
}

/// The suite's program, built unless it is there.
fn suite(source: Option<&Path>) -> anyhow::Result<PathBuf> {
    // What is built of somebody's own source is nobody else's.
    let folder = match source {
        Some(_) => root().join("target/conformance"),
        None => cache()?.join(format!("mcs-api-{}", &COMMIT[..10])),
    };
    let program = folder.join("conformance.test");
    if source.is_none() && program.exists() {
        return Ok(program);
    }
    let go = find("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| go.is_file()));
    let go = go.context("the suite is built with Go 1.23 or later: see https://go.dev/dl")?;
    let checkout = match source {
        Some(source) => source.to_owned(),
        None => {
            let checkout = folder.join("checkout");
            fs::create_dir_all(&checkout).with_context(|| format!("create {}", checkout.display()))?;
            for words in
                [&["init", "-q"][..], &["fetch", "-q", "--depth=1", REPOSITORY, COMMIT], &["checkout", "-q", COMMIT]]
            {
                run(Command::new("git").args(words).current_dir(&checkout))?;
            }
            checkout
        }
    };
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    println!("conformance: building the suite (the first time some 4 minutes on two cores)");
    let mut build = Command::new("nice");
    build.arg(go).args(["test", "-c", "-p", "2", "-buildvcs=false", "-o"]).arg(&program).arg(".");
    run(build.current_dir(checkout.join("conformance")))?;
    Ok(program)
}

fn run_suite(suite: &Path, folder: &Path, log: &Path, clusters: [Cluster; 2], flags: &[String]) -> anyhow::Result<()> {
    let kubeconfigs = clusters.map(|cluster| cluster.kubeconfig("admin").display().to_string()).join(":");
    let mut command = Command::new(suite);
    command.arg("-contexts").arg(clusters.map(|cluster| cluster.name).join(","));
    command.args(["-organization", "Tombolo", "-project", "tombolo", "-version", env!("CARGO_PKG_VERSION")]);
    command.args(["--ginkgo.no-color", "--ginkgo.v"]).args(flags);
    let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
    command.stdout(output.try_clone().context("share the log")?).stderr(output);
    println!("conformance: running the suite, some 5 minutes; what it says is in {}", log.display());
    // Its status is that of the specs, which the summary tells in more words.
    let status = command.current_dir(folder).env("KUBECONFIG", kubeconfigs).stdin(Stdio::null()).status();
    status.with_context(|| format!("run {}", text(&command)))?;
    Ok(())
}

/// A mirror that runs.
struct Mirror {
    cluster: &'static str,
    log: PathBuf,
    child: Child,
}

impl Mirror {
    /// Starts the mirror of `own`, which imports from `peer`.
    fn start(tombolo: &Path, folder: &Path, own: Cluster, peer: Cluster) -> anyhow::Result<Self> {
        let log = folder.join(format!("mirror-{}.log", own.name));
        let mut command = Command::new(tombolo);
        command.args(["mirror", "--cluster", own.name]).arg("--kubeconfig").arg(own.kubeconfig("admin"));
        command.arg("--link").arg(format!("{}={}", peer.name, peer.kubeconfig("admin").display()));
        command.arg("--pod-ranges").arg(format!("{}={}", peer.name, peer.pods()));
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command.stdout(output.try_clone().context("share the log")?).stderr(output).stdin(Stdio::null());
        let child = command.spawn().with_context(|| format!("start {}", text(&command)))?;
        Ok(Self { cluster: own.name, log, child })
    }

    /// Ends it; an error if it had ended before.
    fn stop(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait().context("look after the mirror")? {
            bail!("the mirror of {} ended by itself, {status}: see {}", self.cluster, self.log.display());
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a process id")?);
        kill(pid, Signal::SIGTERM).context("end the mirror")?;
        for _ in 0..100 {
            if self.child.try_wait().context("wait for the mirror")?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        self.child.kill().context("kill the mirror")?;
        self.child.wait().context("wait for the mirror")?;
        bail!("the mirror of {} didn't end when it was told to", self.cluster)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let ended = self.child.kill().and_then(|()| self.child.wait());
            if let Err(error) = ended {
                eprintln!("the mirror of {} was not ended: {error}", self.cluster);
            }
        }
    }
}

/// What the suite says at its end.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    line: String,
    passed: u32,
    failed: u32,
}

impl Summary {
    /// From a line such as `FAIL! -- 26 Passed | 1 Failed | 0 Pending | 0 Skipped`.
    fn of(log: &str) -> Option<Self> {
        let line = log.lines().rev().find(|line| line.contains(" Passed | "))?.trim();
        let count = |word: &str| {
            let before = line.split(word).next()?;
            before.trim_end().rsplit(' ').next()?.parse().ok()
        };
        Some(Self { line: line.to_owned(), passed: count("Passed")?, failed: count("Failed")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_the_last_line_that_counts() {
        let log =
            "Ran 27 of 27 Specs in 300 seconds\nFAIL! -- 26 Passed | 1 Failed | 0 Pending | 0 Skipped\n--- FAIL\n";
        let line = "FAIL! -- 26 Passed | 1 Failed | 0 Pending | 0 Skipped".to_owned();
        assert_eq!(Summary::of(log), Some(Summary { line, passed: 26, failed: 1 }));
        assert_eq!(Summary::of("nothing"), None);
    }
}
