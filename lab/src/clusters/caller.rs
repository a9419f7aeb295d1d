//! A caller in a pod, and the attempts that it has told of so far.

use super::Pod;
use crate::{
    caller::{Attempt, Kind},
    process::Process,
    report::Report,
    told::Telling,
};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

/// How long a caller may take to end: it waits for nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom to call, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Called in turn.
    pub targets: Vec<SocketAddr>,
    /// What the application does with its connections.
    pub kind: Kind,
    /// Requests a second.
    pub rate: u32,
    /// Connections, where requests share them.
    pub connections: u32,
    /// How long an attempt may take.
    pub timeout: Duration,
}

/// A caller that is running.
#[derive(Debug)]
pub struct Caller {
    kind: Kind,
    label: String,
    process: Process,
    telling: Telling,
}

impl Caller {
    /// Starts the program `lab` in `pod`; `label` is for people.
    pub(super) fn start(lab: &Path, pod: &Pod, label: String, calls: &Calls) -> Result<Self> {
        let mut command = pod.command(lab);
        command.args(["call", "--kind", &calls.kind.to_string()]);
        command.args(["--rate", &calls.rate.to_string(), "--connections", &calls.connections.to_string()]);
        command.args(["--timeout-ms", &calls.timeout.as_millis().to_string()]);
        command.args(calls.targets.iter().map(SocketAddr::to_string)).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = pod.start(command)?;
        let telling = Telling::read(process.stdout().expect("stdout is piped"));
        Ok(Self { kind: calls.kind, label, process, telling })
    }

    /// What it does with its connections.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it is, for people.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Sums of what it has told so far; at most about 0.1 s old.
    pub fn sum(&self) -> Report {
        self.telling.sum()
    }

    /// The attempts that ended at `from` or later and before `to`, by [`crate::report::now`].
    pub fn attempts(&self, from: Duration, to: Duration) -> Vec<Attempt> {
        self.telling.attempts(from, to)
    }

    /// All attempts told of since the last time, in the order in which they ended.
    pub fn take(&self) -> Vec<Attempt> {
        self.telling.take()
    }

    /// Has it tell of what is under way, as unfinished so far.
    pub fn ask(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGUSR1)
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.process.ended()? {
            None => Ok(()),
            Some(status) => bail!("the caller \"{}\" ended by itself: {status}", self.label),
        }
    }

    /// Has it end; what was under way is told as unfinished.
    pub fn stop(&mut self) -> Result<()> {
        self.end_by(Signal::SIGTERM, PATIENCE)
    }

    /// Has it begin nothing new, and waits until what was under way has ended, for at most `within`.
    pub fn finish(&mut self, within: Duration) -> Result<()> {
        self.end_by(Signal::SIGUSR2, within)
    }

    fn end_by(&mut self, signal: Signal, within: Duration) -> Result<()> {
        self.process.signal(signal)?;
        let status = self.process.wait(within)?;
        let status = status.with_context(|| format!("the caller \"{}\" does not end", self.label))?;
        ensure!(status.success(), "the caller \"{}\" ended with {status}", self.label);
        self.telling.end()
    }
}
