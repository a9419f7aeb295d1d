//! The program `lab` in a pod, run by kubectl: it ends when its standard input does.

use super::{kubectl::Kubectl, workloads::NAMESPACE};
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::Read,
    process::{Child, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long what is under way may take to end, and the word of it to get here.
const PATIENCE: Duration = Duration::from_secs(20);

/// One that is running. It ends with this program.
pub(super) struct Exec {
    /// What it is, for errors.
    label: String,
    process: Child,
}

impl Exec {
    /// Starts it with these arguments in the pod of a Deployment, and returns what it writes, too.
    pub(super) fn start(
        kubectl: &Kubectl,
        deployment: &str,
        label: String,
        words: &[&str],
    ) -> Result<(Self, ChildStdout)> {
        let pod = format!("deployment/{deployment}");
        let exec = ["--namespace", NAMESPACE, "exec", "--stdin", &pod, "--", "/bin/lab"];
        let mut command = kubectl.command(&[&exec, words].concat());
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut process = spawned.context("start kubectl")?;
        let written = process.stdout.take().expect("it is piped");
        Ok((Self { label, process }, written))
    }

    /// Fails if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        let Some(status) = self.process.try_wait().context("look after kubectl")? else { return Ok(()) };
        let complaint = self.complaint();
        bail!("{} ended by itself: {status}: {complaint}", self.label)
    }

    /// Has it end, and waits for that.
    pub(super) fn stop(&mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.process.try_wait().context("look after kubectl")? {
                Some(status) => break status,
                None => ensure!(Instant::now() < deadline, "{} does not end", self.label),
            }
            thread::sleep(Duration::from_millis(20));
        };
        if !status.success() {
            let complaint = self.complaint();
            bail!("{} ended with {status}: {complaint}", self.label);
        }
        Ok(())
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

impl Drop for Exec {
    fn drop(&mut self) {
        // Its standard input goes with it, and with that what runs in the pod. It may have ended by itself.
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("kubectl of {} not ended: {error}", self.label);
        }
    }
}
