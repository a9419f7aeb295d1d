//! A program that runs in a namespace and ends with its owner.

use crate::{cleanup, netns::Netns};
use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

/// A running program. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    label: String,
}

impl Process {
    /// Starts `command` in `netns`; take the command from [`crate::cgroup::Cgroup::command`] to have it in a cgroup too.
    ///
    /// It gets a process group of its own: Ctrl-C reaches the owner alone, who then ends things in order.
    pub fn start(netns: &Netns, mut command: Command) -> Result<Self> {
        let creating = cleanup::creating()?;
        let label = command.get_args().last().unwrap_or(command.get_program()).display().to_string();
        let child = netns.spawn(command.process_group(0))?;
        drop(creating);
        Ok(Self { child, label })
    }

    /// Calls it `label` in messages, instead of by its last argument.
    pub fn called(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Its process id. The shell of `Cgroup::command` becomes the program, so it is the program's.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if piped and not yet taken.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output, if piped and not yet taken.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard error, if piped and not yet taken.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.label))
    }

    /// Sends it a signal. Does nothing if it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Not reaped yet, so the number is still its own.
        if self.ended()?.is_none() {
            let pid = i32::try_from(self.child.id()).expect("process ids fit an i32");
            kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {}", self.label))?;
        }
        Ok(())
    }

    /// Waits until it ends, at most for `within`; `None` if it is still running then.
    pub fn wait(&mut self, within: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to end by SIGTERM, and kills it if it is still there after `within`. `None`: it had to be killed.
    pub fn stop(&mut self, within: Duration) -> Result<Option<ExitStatus>> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait(within)?;
        if status.is_none() {
            self.kill()?;
        }
        Ok(status)
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.label))?;
        self.child.wait().with_context(|| format!("wait for {}", self.label))?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !cleanup::kept()
            && let Err(error) = self.kill()
        {
            cleanup::complain(&error);
        }
    }
}
