//! A pod: a namespace behind its node, a cgroup, and the server that runs there.

use super::Node;
use crate::{
    addresses::Dual,
    cgroup::Cgroup,
    cleanup,
    manifests::{Condition, POD_PORT},
    netns::Netns,
    process::Process,
};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

/// A pod, with its server if it has one.
#[derive(Debug)]
pub struct Pod {
    // In the order in which they are dropped.
    server: Option<Process>,
    ready: Option<BufReader<std::process::ChildStdout>>,
    cgroup: Cgroup,
    netns: Netns,
    name: String,
    app: String,
    cluster: &'static str,
    node: String,
    zone: String,
    addresses: Dual,
    /// What the next manifests say of it.
    pub condition: Condition,
}

impl Pod {
    /// Pod number `number` of its cluster, on a node, which it sees as `gateway`, and in a cgroup there.
    pub(super) fn new(
        cluster: &'static str,
        app: &str,
        number: u32,
        (node, cgroup): (&Node, Cgroup),
        addresses: Dual,
        gateway: Dual,
    ) -> Result<Self> {
        let name = format!("{app}-{cluster}-{number}");
        let netns = Netns::named(&name)?;
        let there = format!("pod{number}");
        netns.veth("eth0", &node.netns, &there)?;
        let everywhere = ["0.0.0.0/0".parse()?, "::/0".parse()?];
        for ((host, gateway), everywhere) in addresses.hosts().into_iter().zip(gateway.hosts()).zip(everywhere) {
            netns.address("eth0", host)?;
            node.netns.address(&there, gateway)?;
            node.netns.route_over(host, &there)?;
            netns.route_over(gateway, "eth0")?;
            netns.route_via(everywhere, gateway.addr())?;
        }
        Ok(Self {
            server: None,
            ready: None,
            cgroup,
            netns,
            name,
            app: app.to_owned(),
            cluster,
            node: node.name.clone(),
            zone: node.zone(),
            addresses,
            condition: Condition::Ready,
        })
    }

    /// Starts its server; [`Self::wait_until_ready`] has to follow.
    pub(super) fn serve(&mut self, lab: &Path) -> Result<()> {
        let mut command = self.command(lab);
        command
            .args(["server", "--cluster", self.cluster, "--pod", &self.name, "--listen", &format!("[::]:{POD_PORT}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log()?);
        let mut server = self.start(command)?;
        self.ready = server.stdout().map(BufReader::new);
        self.server = Some(server);
        Ok(())
    }

    /// Waits until a server that was just started listens.
    pub(super) fn wait_until_ready(&mut self) -> Result<()> {
        if let Some(mut stdout) = self.ready.take() {
            let mut line = String::new();
            stdout.read_line(&mut line).with_context(|| format!("wait for {}", self.name))?;
            ensure!(line == "ready\n", "the server of {} ended at once", self.name);
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is a pod of.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// The cluster it is in.
    pub fn cluster(&self) -> &'static str {
        self.cluster
    }

    /// The node it is on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The zone it is in.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Its addresses.
    pub fn addresses(&self) -> Dual {
        self.addresses
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its container's cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A command that runs in its cgroup, for [`Self::start`].
    pub fn command(&self, program: &Path) -> Command {
        self.cgroup.command(program)
    }

    /// Starts a command in its namespace.
    pub fn start(&self, command: Command) -> Result<Process> {
        Ok(Process::start(&self.netns, command)?.called(&self.name))
    }

    /// Sends its server SIGTERM and waits until it has drained; `None` if it had to be killed after `within`.
    pub fn stop(&mut self, within: Duration) -> Result<Option<ExitStatus>> {
        self.server.as_mut().with_context(|| format!("{} has no server", self.name))?.stop(within)
    }

    /// Sends its server a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.server.as_mut().with_context(|| format!("{} has no server", self.name))?.signal(signal)
    }

    /// Whether it had a server that has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        match &mut self.server {
            None => Ok(false),
            Some(server) => Ok(server.ended()?.is_some()),
        }
    }

    /// What a person types to be in this pod, as root.
    pub fn enter(&self) -> String {
        let (cgroup, netns) = (self.cgroup.path().display(), self.netns.path());
        format!("sh -c 'echo $$ >{cgroup}/cgroup.procs && exec nsenter --net={} bash'", netns.display())
    }
}

/// What servers complain of. Not this process's standard error: kept pods would hold it open.
fn log() -> Result<File> {
    let path = cleanup::folder()?.join("pods.log");
    let open = OpenOptions::new().create(true).append(true).open(&path);
    open.with_context(|| format!("open {}", path.display()))
}

/// Another one for each pod, in the form of a UID.
pub(super) fn uid(number: u32) -> String {
    format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id())
}
