//! Cgroups of single threads, so that tests that each need a cgroup of their own run side by side in one process.
//!
//! The kernel lets the threads of a process be in different cgroups if these are *threaded* and have the process's own
//! cgroup above them. So the process is moved into this library's tree while there is any such cgroup, and back when
//! the last one is gone. Programs attached to a threaded cgroup run for the sockets that its threads make.

use crate::{
    cgroup::{self, Cgroup},
    cleanup,
};
use anyhow::{Context, Result};
use nix::errno::Errno;
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

/// How long a thread that has ended may still be counted in its cgroup.
const PATIENCE: Duration = Duration::from_secs(5);

/// The cgroup, below this process's tree, that the process is in while there are cgroups of threads.
const DOMAIN: &str = "threads";

/// A cgroup for threads of this process. Dropped, it goes; its threads have to have ended by then, and its children to be
/// gone.
#[derive(Debug)]
pub struct ThreadCgroup {
    path: PathBuf,
    _domain: Held,
}

impl ThreadCgroup {
    /// Makes the cgroup `name`, one path component that is unique in this process.
    pub fn new(name: &str) -> Result<Self> {
        let (held, domain) = Held::take()?;
        Self::make(domain.join(name), held)
    }

    /// Makes the cgroup `name`, one path component, below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name), Held::take()?.0)
    }

    fn make(path: PathBuf, held: Held) -> Result<Self> {
        let creating = cleanup::creating()?;
        fs::create_dir(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        let made = Self { path, _domain: held };
        fs::write(made.path.join("cgroup.type"), "threaded")
            .with_context(|| format!("make cgroup {} a threaded one", made.path.display()))?;
        drop(creating);
        Ok(made)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id as the kernel's programs see it: the folder's inode number.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path).with_context(|| format!("stat cgroup {}", self.path.display()))?.ino())
    }

    /// Moves the calling thread here. Threads that it starts from now on are here too.
    pub fn enter(&self) -> Result<()> {
        let thread = nix::unistd::gettid();
        fs::write(self.path.join("cgroup.threads"), thread.to_string())
            .with_context(|| format!("move thread {thread} to cgroup {}", self.path.display()))
    }
}

impl Drop for ThreadCgroup {
    fn drop(&mut self) {
        if !cleanup::kept()
            && let Err(error) = remove(&self.path)
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Removes an empty cgroup. A thread that was joined is in it for a moment still.
fn remove(path: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result.with_context(|| format!("remove cgroup {}", path.display())),
        }
    }
}

/// A share in the domain: while there is one, this process is in it.
#[derive(Debug)]
struct Held;

/// The process's stay in the domain.
struct Domain {
    shares: usize,
    cgroup: Cgroup,
    /// Where the process came from.
    back: PathBuf,
}

static CURRENT: Mutex<Option<Domain>> = Mutex::new(None);

impl Held {
    /// A share, and the domain's folder.
    fn take() -> Result<(Self, PathBuf)> {
        let mut current = current();
        let domain = match current.take() {
            Some(domain) => domain,
            None => Domain::enter()?,
        };
        let path = domain.cgroup.path().to_owned();
        *current = Some(Domain { shares: domain.shares + 1, ..domain });
        Ok((Self, path))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut current = current();
        let Some(domain) = current.as_mut() else { return };
        domain.shares -= 1;
        if domain.shares == 0
            && let Some(domain) = current.take()
            && let Err(error) = domain.leave()
        {
            eprintln!("lab: {error:#}");
        }
    }
}

impl Domain {
    fn enter() -> Result<Self> {
        let cgroup = Cgroup::new(DOMAIN)?;
        let back = cgroup::own()?;
        cgroup.add(std::process::id())?;
        Ok(Self { shares: 0, cgroup, back })
    }

    /// Moves back this process, and then what it started meanwhile and so began here. Only then is nothing born here any
    /// more that removing the cgroup would end.
    fn leave(self) -> Result<()> {
        self.hand_back(std::process::id())?;
        loop {
            let started = self.cgroup.processes()?;
            if started.is_empty() {
                return self.cgroup.remove();
            }
            for pid in started {
                self.hand_back(u32::try_from(pid).context("the kernel lists a negative process id")?)?;
            }
        }
    }

    fn hand_back(&self, pid: u32) -> Result<()> {
        match cgroup::enter(&self.back, pid) {
            // It has ended since it was listed.
            Err(error) if number(&error) == Some(Errno::ESRCH as i32) => Ok(()),
            moved => moved,
        }
    }
}

fn number(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<io::Error>()?.raw_os_error()
}

fn current() -> MutexGuard<'static, Option<Domain>> {
    CURRENT.lock().expect("nobody panics while holding it")
}
