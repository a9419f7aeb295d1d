//! A load generator in a client pod, and what it has reported so far.

use super::{exec::Exec, kubectl::Kubectl, workloads::CLIENT};
use crate::report::Report;
use anyhow::{Context, Result};
use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

/// A load generator that is running. It ends with this program.
pub(super) struct Client {
    /// The cluster it is in.
    pub(super) cluster: &'static str,
    exec: Exec,
    latest: Arc<Mutex<Report>>,
    reader: Option<JoinHandle<Result<()>>>,
}

impl Client {
    /// Starts one in the client pod, which asks `target` so often a second.
    pub(super) fn start(kubectl: &Kubectl, target: SocketAddr, udp: bool, rate: u32) -> Result<Self> {
        let (rate, target) = (rate.to_string(), target.to_string());
        let mut words = vec!["load", "--until-eof", "--rate", &rate, "--timeout-ms", "5000"];
        words.extend(udp.then_some("--udp"));
        words.push(&target);
        let label = format!("the client in {}", kubectl.name);
        let (exec, reports) = Exec::start(kubectl, CLIENT, label, &words)?;
        let latest = Arc::new(Mutex::new(Report::default()));
        let reader = thread::spawn({
            let latest = latest.clone();
            move || {
                for line in BufReader::new(reports).lines() {
                    let report = serde_json::from_str(&line.context("read a report")?);
                    *guard(&latest) = report.context("understand a report")?;
                }
                Ok(())
            }
        });
        Ok(Self { cluster: kubectl.name, exec, latest, reader: Some(reader) })
    }

    /// What it has seen so far; some tenths of a second old.
    pub(super) fn report(&self) -> Report {
        guard(&self.latest).clone()
    }

    /// Fails if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        self.exec.check()
    }

    /// Has it end after the requests that are under way, and returns what it has seen.
    pub(super) fn stop(mut self) -> Result<Report> {
        self.exec.stop()?;
        self.reader.take().expect("it is taken here only").join().expect("the reader does not panic")?;
        Ok(self.report())
    }
}

fn guard(latest: &Mutex<Report>) -> MutexGuard<'_, Report> {
    latest.lock().expect("a report is replaced without panic")
}
