//! The agent of a node: the program `tombolo agent`, in a pod of its own in the node's network.

use super::{Node, Programs, pod::uid};
use crate::{bpffs, cgroup::Cgroup, manifests::Folder, netns::Netns, process::Process};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Lines of the log that an error shows.
const LINES_SHOWN: usize = 15;

/// How long an agent may take to be gone after SIGKILL.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// An agent, running or not.
#[derive(Debug)]
pub struct Agent {
    // In the order in which they are dropped.
    process: Option<Process>,
    cgroup: Cgroup,
    program: PathBuf,
    arguments: Vec<String>,
    netns: PathBuf,
    node: String,
    pins: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// The agent for `node`, started.
    pub(super) fn new(programs: &Programs, cluster: &str, node: &Node, manifests: &Folder, run: &Path) -> Result<Self> {
        let program = programs.agent.as_ref().context("the clusters are to be without agents")?;
        let folder = run.join(&node.name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let pins = bpffs::folder()?;
        fs::create_dir_all(&pins).with_context(|| format!("create {}", pins.display()))?;
        let (pins, socket) = (pins.join(&node.name), folder.join("agent.sock"));
        let arguments = [
            ("--manifests", manifests.path().display().to_string()),
            ("--cluster", cluster.to_owned()),
            ("--node", node.name.clone()),
            ("--zone", node.zone()),
            ("--pins", pins.display().to_string()),
            ("--socket", socket.display().to_string()),
        ];
        let arguments = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let arguments = arguments.chain(programs.agent_flags.iter().cloned()).collect();
        let mut agent = Self {
            process: None,
            // Pods count from 1.
            cgroup: node.container(&uid(0), "agent")?,
            program: program.clone(),
            arguments,
            netns: node.netns.path(),
            node: node.name.clone(),
            pins,
            socket,
            log: folder.join("agent.log"),
        };
        agent.start()?;
        Ok(agent)
    }

    /// Starts it. What it logs is added to its log.
    pub fn start(&mut self) -> Result<()> {
        let log = self.log.clone();
        self.start_by(&[], &log)
    }

    /// Starts it by another program, which is given the agent's command line after its own; what it logs is added to
    /// the file `log`.
    pub fn start_by(&mut self, by: &[&str], log: &Path) -> Result<()> {
        let log = || -> Result<File> {
            let open = OpenOptions::new().create(true).append(true).open(log);
            open.with_context(|| format!("open {}", log.display()))
        };
        let mut command = match by {
            [] => self.cgroup.command(&self.program),
            [first, others @ ..] => {
                let mut command = self.cgroup.command(first);
                command.args(others).arg(&self.program);
                command
            }
        };
        command.arg("agent").args(&self.arguments).stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        let process = Process::start(&Netns::at(&self.netns)?, command)?;
        self.process = Some(process.called(format!("the agent of {}", self.node)));
        Ok(())
    }

    /// Whether it is running.
    pub fn is_running(&mut self) -> Result<bool> {
        match &mut self.process {
            None => Ok(false),
            Some(process) => Ok(process.ended()?.is_none()),
        }
    }

    /// Waits until it says that it is ready.
    pub fn wait_until_ready(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let process = self.process.as_mut().with_context(|| format!("{} has no agent running", self.node))?;
            if let Some(status) = process.ended()? {
                bail!("the agent of {} ended with {status}:\n{}", self.node, self.last_words());
            }
            let status = self.ask(["status".as_ref(), "--socket".as_ref(), self.socket.as_os_str()])?;
            if status.success() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the agent of {} is not ready after {} s:\n{}",
                self.node,
                within.as_secs(),
                self.last_words()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id.
    pub fn id(&self) -> Result<u32> {
        Ok(self.process.as_ref().with_context(|| format!("{} has no agent running", self.node))?.id())
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.as_mut().with_context(|| format!("{} has no agent running", self.node))?.signal(signal)
    }

    /// Kills it by SIGKILL. What it did in the kernel stays.
    pub fn kill(&mut self) -> Result<()> {
        self.process.as_mut().with_context(|| format!("{} has no agent running", self.node))?.kill()?;
        self.process = None;
        // What it was started by may have ended before it.
        let deadline = Instant::now() + GONE_WITHIN;
        while !self.cgroup.processes()?.is_empty() {
            ensure!(Instant::now() < deadline, "the agent of {} does not end on SIGKILL", self.node);
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Stops it and has it take everything out of the kernel.
    pub fn unload(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            let status = process.stop(Duration::from_secs(5))?;
            ensure!(status.is_some(), "the agent of {} does not end on SIGTERM", self.node);
        }
        let status = self.ask(["unload".as_ref(), "--pins".as_ref(), self.pins.as_os_str()])?;
        ensure!(status.success(), "tombolo unload --pins {}: {status}", self.pins.display());
        Ok(())
    }

    /// What `tombolo services -o json` prints; with the agent gone, from the pinned maps.
    pub fn services(&self) -> Result<Value> {
        self.list("services")
    }

    /// What `tombolo backends -o json` prints; with the agent gone, from the pinned maps.
    pub fn backends(&self) -> Result<Value> {
        self.list("backends")
    }

    fn list(&self, what: &str) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.args([what, "-o", "json", "--socket"]).arg(&self.socket).arg("--pins").arg(&self.pins);
        let output = command.output().with_context(|| format!("run {}", self.program.display()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tombolo {what} on {}: {}", self.node, complaint.trim());
        serde_json::from_slice(&output.stdout).with_context(|| format!("understand what tombolo {what} prints"))
    }

    /// The share of each cluster in the first tier of the frontend `address` (TCP), as the kernel has it; none without
    /// such a frontend.
    pub fn shares(&self, address: SocketAddr) -> Result<Option<BTreeMap<String, f64>>> {
        Ok(shares(&self.services()?, address))
    }

    /// What `tombolo status -o json` prints, ready or not; with the agent gone, from the pinned maps.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.args(["status", "-o", "json", "--socket"]).arg(&self.socket).arg("--pins").arg(&self.pins);
        let output = command.output().with_context(|| format!("run {}", self.program.display()))?;
        serde_json::from_slice(&output.stdout).context("understand what tombolo status prints")
    }

    /// The node it is on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where its pins are.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Where it logs.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Runs the agent's program for its exit status.
    fn ask<const N: usize>(&self, arguments: [&OsStr; N]) -> Result<ExitStatus> {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().with_context(|| format!("run {}", self.program.display()))
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

/// What `tombolo services -o json` says of the shares in the first tier of the frontend `address` (TCP).
pub(crate) fn shares(services: &Value, address: SocketAddr) -> Option<BTreeMap<String, f64>> {
    let address = address.to_string();
    let is_it = |service: &&Value| service["address"] == address.as_str() && service["protocol"] == "TCP";
    let service = services["services"].as_array()?.iter().find(is_it)?;
    let groups = service["tiers"].get(0)?.as_array()?;
    groups.iter().map(|group| Some((group["cluster"].as_str()?.to_owned(), group["share"].as_f64()?))).collect()
}
