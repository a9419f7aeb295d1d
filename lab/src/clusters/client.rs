//! A load generator in a client pod, and what it has reported so far.

use super::Cluster;
use crate::{process::Process, report::Report};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long the last requests may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom to ask, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Asked in turn.
    pub targets: Vec<SocketAddr>,
    /// By datagrams instead of HTTP.
    pub udp: bool,
    /// Requests a second.
    pub rate: u32,
    /// Ends after so many; otherwise it runs until it is stopped.
    pub requests: Option<u64>,
}

/// A load generator that is running.
#[derive(Debug)]
pub struct Client {
    cluster: &'static str,
    udp: bool,
    process: Process,
    latest: Arc<Mutex<Report>>,
    reader: Option<JoinHandle<Result<()>>>,
}

impl Client {
    pub(super) fn start(lab: &Path, cluster: &Cluster, load: &Load) -> Result<Self> {
        let pod = cluster.client();
        let mut command = pod.command(lab);
        command.args(["load", "--rate", &load.rate.to_string()]).stdout(Stdio::piped());
        if load.udp {
            command.arg("--udp");
        }
        if let Some(requests) = load.requests {
            command.args(["--requests", &requests.to_string()]);
        }
        command.args(load.targets.iter().map(SocketAddr::to_string));
        let mut process = pod.start(command)?;
        let reports = BufReader::new(process.stdout().expect("stdout is piped"));
        let latest = Arc::new(Mutex::new(Report::default()));
        let reader = thread::spawn({
            let latest = latest.clone();
            move || {
                for line in reports.lines() {
                    let report =
                        serde_json::from_str(&line.context("read a report")?).context("understand a report")?;
                    *guard(&latest) = report;
                }
                Ok(())
            }
        });
        Ok(Self { cluster: cluster.name(), udp: load.udp, process, latest, reader: Some(reader) })
    }

    /// The cluster it is in.
    pub fn cluster(&self) -> &'static str {
        self.cluster
    }

    /// What it is, for people.
    pub fn label(&self) -> String {
        format!("client in {}{}", self.cluster, if self.udp { ", UDP" } else { "" })
    }

    /// What it has seen so far; at most about 0.1 s old.
    pub fn report(&self) -> Report {
        guard(&self.latest).clone()
    }

    /// Whether it has ended, which is an error unless it was told to end after a number of requests.
    pub fn ended(&mut self) -> Result<bool> {
        match self.process.ended()? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => bail!("the client in {} ended by itself: {status}", self.cluster),
        }
    }

    /// Has it end after the requests that are under way; [`Self::stop`] waits for that.
    pub fn tell_to_stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }

    /// Has it end after the requests that are under way, and returns what it has seen.
    pub fn stop(mut self) -> Result<Report> {
        self.tell_to_stop()?;
        let status = self.process.wait(PATIENCE)?;
        let status = status.with_context(|| format!("the client in {} does not end", self.cluster))?;
        ensure!(status.success(), "the client in {} ended with {status}", self.cluster);
        let reader = self.reader.take().expect("it is taken here only");
        reader.join().expect("the reader does not panic")?;
        Ok(self.report())
    }
}

fn guard(latest: &Mutex<Report>) -> MutexGuard<'_, Report> {
    latest.lock().expect("a report is replaced without panic")
}
