//! Programs that outlive the run which started them: known by a file with their process id, ended by it, never by name.

use crate::process::text;
use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A program that was started, or may have been.
pub(crate) struct Daemon {
    folder: PathBuf,
    name: String,
}

impl Daemon {
    /// The program called `name` of those that `folder` is about.
    pub(crate) fn new(folder: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self { folder: folder.into(), name: name.into() }
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, if it runs.
    pub(crate) fn pid(&self) -> anyhow::Result<Option<i32>> {
        let file = self.pid_file();
        let written = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("read {}", file.display()))?,
        };
        let (pid, started) = written
            .trim()
            .split_once(' ')
            .and_then(|(pid, started)| Some((pid.parse().ok()?, started.parse().ok()?)))
            .with_context(|| format!("{} doesn't name a process: {written:?}", file.display()))?;
        // An id that was given to another process since then has another start.
        Ok((start_of(pid) == Some(started)).then_some(pid))
    }

    /// Starts it, detached from this program, its output in its log.
    pub(crate) fn start(&self, mut command: Command) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("create {}", self.folder.display()))?;
        let log = File::create(self.log()).with_context(|| format!("create {}", self.log().display()))?;
        let errors = log.try_clone().context("share the log")?;
        // A process group of its own: Ctrl-C is for this program alone.
        command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().with_context(|| format!("start {}", text(&command)))?;
        let pid = i32::try_from(child.id()).expect("process ids fit an i32");
        // Not waited for yet, so the number is its own even if it has ended already.
        let started = stat(pid).with_context(|| format!("{} left no trace", self.name))?.start;
        fs::write(self.pid_file(), format!("{pid} {started}\n"))
            .with_context(|| format!("write {}", self.pid_file().display()))
    }

    /// Kills it and waits until it is gone. Does nothing if it doesn't run.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        let Some(pid) = self.pid()? else { return Ok(()) };
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {} ({pid})", self.name))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.pid()? == Some(pid) {
            if Instant::now() > deadline {
                bail!("{} ({pid}) is still there 20 s after it was killed", self.name);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// An error with the end of its log if it doesn't run.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.pid()?.is_none() {
            bail!("{} ended; the end of {}:\n{}", self.name, self.log().display(), tail(&self.log()));
        }
        Ok(())
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join(format!("{}.pid", self.name))
    }

    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }
}

/// The last lines of a file, for an error.
pub(crate) fn tail(file: &Path) -> String {
    let text = fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// Resident memory of a process in KiB, 0 if it is gone.
pub(crate) fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The first child of a process's main thread, if it has one.
pub(crate) fn child_of(pid: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.split_whitespace().next()?.parse().ok()
}

/// When a process started, in clock ticks since the machine did; `None` if it is gone or waits to be reaped.
fn start_of(pid: i32) -> Option<u64> {
    stat(pid).filter(|stat| !matches!(stat.state, 'Z' | 'X')).map(|stat| stat.start)
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    start: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 and 22 of proc_pid_stat(5). The second one, the program's name, may hold spaces and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat { state: fields.first()?.chars().next()?, start: fields.get(19)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_name_doesn_t_confuse_its_start() {
        let line = "42 (a ) S (b) Z 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2000\n";
        assert_eq!(parse_stat(line), Some(Stat { state: 'Z', start: 98765 }));
        assert_eq!(parse_stat("42 (short) S 1"), None);
    }

    #[test]
    fn what_was_started_is_found_by_another_run_and_ended() {
        let folder = Folder::new("end");
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        Daemon::new(&folder.0, "sleep").start(sleep).unwrap();
        let found = Daemon::new(&folder.0, "sleep");
        assert!(found.pid().unwrap().is_some());
        found.end().unwrap();
        assert_eq!(found.pid().unwrap(), None);
        found.end().unwrap();
    }

    #[test]
    fn an_id_that_another_process_has_by_now_is_not_taken_for_the_program() {
        let folder = Folder::new("reused");
        let own = std::process::id();
        fs::write(folder.0.join("sleep.pid"), format!("{own} 1\n")).unwrap();
        assert_eq!(Daemon::new(&folder.0, "sleep").pid().unwrap(), None);
    }

    #[test]
    fn what_ended_by_itself_shows_its_last_words() {
        let folder = Folder::new("ended");
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such luck >&2; exit 1"]);
        let daemon = Daemon::new(&folder.0, "broken");
        daemon.start(command).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while daemon.pid().unwrap().is_some() {
            assert!(Instant::now() < deadline, "it didn't end");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(daemon.check().unwrap_err().to_string().contains("no such luck"));
    }

    /// A folder of a test's own.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tombolo-daemon-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}
