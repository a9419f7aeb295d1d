//! Kills a process right after the n-th change that it makes to maps, links and pins: between that system call and
//! whatever it would have done next.
//!
//! The process is traced for that, so nothing has to be built into it. It stands still for a moment at each of its system
//! calls, which slows it down a little.

use anyhow::{Context, Result, bail};
use aya::maps::MapInfo;
use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    fs::{self, File},
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

/// One change of what the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The command of `bpf(2)`, in words.
    pub command: &'static str,
    /// The map, if it was one of a map.
    pub map: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Struck {
    /// It was killed right after this.
    Killed(Change),
    /// It had done with so many changes, and is running.
    Done(u32),
}

/// A command of `bpf(2)` that changes something, linux/bpf.h.
struct Command {
    number: u64,
    name: &'static str,
    /// Where its attributes name the map.
    map_at: Option<u64>,
}

const COMMANDS: [Command; 8] = [
    Command { number: 2, name: "update", map_at: Some(0) },
    Command { number: 3, name: "delete", map_at: Some(0) },
    Command { number: 6, name: "pin", map_at: None },
    Command { number: 26, name: "update batch", map_at: Some(36) },
    Command { number: 27, name: "delete batch", map_at: Some(36) },
    Command { number: 28, name: "create link", map_at: None },
    Command { number: 29, name: "update link", map_at: None },
    Command { number: 34, name: "detach link", map_at: None },
];

/// Has `begin` happen and kills the process `pid` by SIGKILL right after its `number`-th change since then, counted from
/// 1. If it makes none for as long as `quiet`, it is left alone.
///
/// `pid` is a child of this process, and is still to be waited for when this returns.
///
/// # Errors
///
/// It can't be traced, or ends by itself.
pub fn kill_after(pid: u32, number: u32, quiet: Duration, begin: impl FnOnce() -> Result<()> + Send) -> Result<Struck> {
    let pid = Pid::from_raw(i32::try_from(pid).context("process ids fit an i32")?);
    // A tracer is a thread, and lets go of what it traces when it ends.
    let trace = || {
        let mut tracer = Tracer { pid, inside: BTreeSet::new(), traced: BTreeSet::new() };
        tracer.seize()?;
        begin()?;
        tracer.follow(number, quiet)
    };
    thread::scope(|scope| scope.spawn(trace).join().expect("the tracer does not panic"))
}

struct Tracer {
    pid: Pid,
    traced: BTreeSet<Pid>,
    /// Threads that are in a system call which changes something.
    inside: BTreeSet<Pid>,
}

impl Tracer {
    /// Begins to trace all threads, and those that they will start.
    fn seize(&mut self) -> Result<()> {
        loop {
            let before = self.traced.len();
            for entry in fs::read_dir(format!("/proc/{}/task", self.pid)).context("list the threads")? {
                let name = entry.context("list the threads")?.file_name();
                let thread = name.to_string_lossy().parse().context("threads are named by numbers")?;
                let thread = Pid::from_raw(thread);
                if self.traced.contains(&thread) {
                    continue;
                }
                match ptrace::seize(thread, Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD) {
                    Ok(()) => ptrace::interrupt(thread).with_context(|| format!("interrupt thread {thread}"))?,
                    // It has ended, or was started by one that is traced already.
                    Err(Errno::ESRCH | Errno::EPERM) => {}
                    Err(error) => return Err(error).with_context(|| format!("trace thread {thread}")),
                }
                self.traced.insert(thread);
            }
            if self.traced.len() == before {
                return Ok(());
            }
        }
    }

    fn follow(&mut self, number: u32, quiet: Duration) -> Result<Struck> {
        let (mut changes, mut last) = (0, Instant::now());
        while last.elapsed() < quiet {
            // Children of other threads of ours are theirs to wait for.
            let status = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD));
            match status.context("wait for the traced process")? {
                WaitStatus::PtraceSyscall(thread) => {
                    if self.inside.remove(&thread) {
                        (changes, last) = (changes + 1, Instant::now());
                        if changes == number {
                            let change = change(thread)?.context("it was in a change")?;
                            kill(self.pid, Signal::SIGKILL).context("kill the traced process")?;
                            return Ok(Struck::Killed(change.read(thread)));
                        }
                    } else if change(thread)?.is_some() {
                        self.inside.insert(thread);
                    }
                    resume(thread, None)?;
                }
                WaitStatus::PtraceEvent(thread, ..) => resume(thread, None)?,
                WaitStatus::Stopped(thread, signal) => resume(thread, Some(signal))?,
                WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) if thread == self.pid => {
                    bail!("the traced process ended by itself");
                }
                _ => {}
            }
        }
        Ok(Struck::Done(changes))
    }
}

/// A system call that changes something.
struct Call {
    command: &'static Command,
    attributes: u64,
}

/// The system call that a stopped thread is in, if it changes something.
fn change(thread: Pid) -> Result<Option<Call>> {
    let call = match fs::read_to_string(format!("/proc/{thread}/syscall")) {
        Ok(call) => call,
        // Killed by somebody else meanwhile.
        Err(_) => return Ok(None),
    };
    let mut words = call.split_whitespace();
    if words.next() != Some(&libc::SYS_bpf.to_string()) {
        return Ok(None);
    }
    let mut argument = || -> Result<u64> {
        let word = words.next().and_then(|word| word.strip_prefix("0x"));
        let word = word.with_context(|| format!("understand the system call {call:?}"))?;
        u64::from_str_radix(word, 16).with_context(|| format!("understand the system call {call:?}"))
    };
    // The kernel reads an int.
    let (number, attributes) = (argument()? & 0xffff_ffff, argument()?);
    let command = COMMANDS.iter().find(|command| command.number == number);
    Ok(command.map(|command| Call { command, attributes }))
}

impl Call {
    /// What it was about, as far as it is still to be seen.
    fn read(&self, thread: Pid) -> Change {
        let map = self.command.map_at.and_then(|at| map(thread, self.attributes + at));
        Change { command: self.command.name, map }
    }
}

/// The name of the map whose descriptor a thread has at `address`.
fn map(thread: Pid, address: u64) -> Option<String> {
    let mut descriptor = [0; 4];
    File::open(format!("/proc/{thread}/mem")).ok()?.read_exact_at(&mut descriptor, address).ok()?;
    let info = fs::read_to_string(format!("/proc/{thread}/fdinfo/{}", u32::from_ne_bytes(descriptor))).ok()?;
    let id: u32 = info.lines().find_map(|line| line.strip_prefix("map_id:"))?.trim().parse().ok()?;
    MapInfo::from_id(id).ok()?.name_as_str().map(str::to_owned)
}

/// Lets a thread run up to the next system call, or out of the one that it is in.
fn resume(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(thread, signal) {
        // It was killed.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("let thread {thread} go on")),
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.map {
            Some(map) => write!(f, "{} {map}", self.command),
            None => f.write_str(self.command),
        }
    }
}
