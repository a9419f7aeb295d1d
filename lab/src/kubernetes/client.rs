//! A load generator in a client pod, and what it has reported so far.

use super::{
    kubectl::Kubectl,
    workloads::{CLIENT, NAMESPACE},
};
use crate::report::Report;
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long the last requests may take to end, and the word of it to get here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A load generator that is running. It ends with this program.
pub(super) struct Client {
    /// The cluster it is in.
    pub(super) cluster: &'static str,
    process: Child,
    latest: Arc<Mutex<Report>>,
    reader: Option<JoinHandle<Result<()>>>,
}

impl Client {
    /// Starts one in the client pod, which asks `target` so often a second.
    pub(super) fn start(kubectl: &Kubectl, target: SocketAddr, udp: bool, rate: u32) -> Result<Self> {
        let pod = format!("deployment/{CLIENT}");
        let (rate, target) = (rate.to_string(), target.to_string());
        let mut words = vec!["--namespace", NAMESPACE, "exec", "--stdin", &pod, "--", "/bin/lab", "load"];
        words.extend(["--until-eof", "--rate", &rate, "--timeout-ms", "5000"]);
        words.extend(udp.then_some("--udp"));
        words.push(&target);
        let mut command = kubectl.command(&words);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut process = spawned.context("start kubectl")?;
        let reports = BufReader::new(process.stdout.take().expect("it is piped"));
        let latest = Arc::new(Mutex::new(Report::default()));
        let reader = thread::spawn({
            let latest = latest.clone();
            move || {
                for line in reports.lines() {
                    let report = serde_json::from_str(&line.context("read a report")?);
                    *guard(&latest) = report.context("understand a report")?;
                }
                Ok(())
            }
        });
        Ok(Self { cluster: kubectl.name, process, latest, reader: Some(reader) })
    }

    /// What it has seen so far; some tenths of a second old.
    pub(super) fn report(&self) -> Report {
        guard(&self.latest).clone()
    }

    /// Fails if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        let Some(status) = self.process.try_wait().context("look after kubectl")? else { return Ok(()) };
        let complaint = self.complaint();
        bail!("the client in {} ended by itself: {status}: {complaint}", self.cluster)
    }

    /// Has it end after the requests that are under way, and returns what it has seen.
    pub(super) fn stop(mut self) -> Result<Report> {
        drop(self.process.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.process.try_wait().context("look after kubectl")? {
                Some(status) => break status,
                None => ensure!(Instant::now() < deadline, "the client in {} does not end", self.cluster),
            }
            thread::sleep(Duration::from_millis(20));
        };
        if !status.success() {
            let complaint = self.complaint();
            bail!("the client in {} ended with {status}: {complaint}", self.cluster);
        }
        self.reader.take().expect("it is taken here only").join().expect("the reader does not panic")?;
        Ok(self.report())
    }

    fn complaint(&mut self) -> String {
        let mut said = String::new();
        if let Some(mut stderr) = self.process.stderr.take()
            && let Err(error) = stderr.read_to_string(&mut said)
        {
            said = error.to_string();
        }
        said.trim().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Its standard input goes with it, and with that the load. It may have ended by itself.
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("kubectl of the client in {} not ended: {error}", self.cluster);
        }
    }
}

fn guard(latest: &Mutex<Report>) -> MutexGuard<'_, Report> {
    latest.lock().expect("a report is replaced without panic")
}
