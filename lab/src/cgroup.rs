//! Control groups of version 2: a tree of them for each process that uses this library, and what runs in them.
//!
//! A socket belongs for good to the cgroup that its maker was in, so a program has to be in its cgroup before its first
//! socket: [`Cgroup::command`] sees to that.

use crate::cleanup;
use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock},
    thread,
    time::{Duration, Instant},
};

/// How long processes get to be gone after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cgroup below `tombolo-lab-<pid>`. Dropped, it goes with everything in and below it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

/// This process in a cgroup, until the value is dropped.
#[derive(Debug)]
pub struct Joined {
    back: PathBuf,
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
pub fn mount_point() -> Result<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        mounts.lines().find_map(cgroup2_of).map(PathBuf::from)
    };
    match FOUND.get_or_init(find) {
        Some(path) => Ok(path),
        None => bail!("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"),
    }
}

/// The mount point in a line of mountinfo, if it is a cgroup2 one.
fn cgroup2_of(line: &str) -> Option<&str> {
    let (mount, kind) = line.split_once(" - ")?;
    kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))?
}

impl Cgroup {
    /// Makes the cgroup `name`, a path below this process's own tree, with all that lie above it.
    pub fn new(name: &str) -> Result<Self> {
        Self::make(root()?.join(name))
    }

    /// Makes the cgroup `name`, a path below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name))
    }

    fn make(path: PathBuf) -> Result<Self> {
        let creating = cleanup::creating()?;
        fs::create_dir_all(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        held().insert(path.clone());
        drop(creating);
        Ok(Self { path })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id as the kernel's programs see it (`bpf_get_current_cgroup_id`): the folder's inode number.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path).with_context(|| format!("stat cgroup {}", self.path.display()))?.ino())
    }

    /// Moves a process here, threads and all. Sockets that it has stay where they were made.
    pub fn add(&self, pid: u32) -> Result<()> {
        enter(&self.path, pid)
    }

    /// Moves this process here until the value returned is dropped, with all its threads: tests that use it must not run
    /// side by side. Those of [`crate::threads`] may.
    pub fn join(&self) -> Result<Joined> {
        let back = own()?;
        self.add(std::process::id())?;
        Ok(Joined { back })
    }

    /// A command whose process is in this cgroup before the program starts: a shell moves itself here and becomes the
    /// program. It exits with 1 if it can't move.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$0" && exec "$@""#]).arg(self.path.join("cgroup.procs")).arg(program);
        command
    }

    /// The processes in this cgroup, not those below.
    pub fn processes(&self) -> Result<Vec<i32>> {
        processes(&self.path)
    }

    /// Ends what runs here and below, and removes it all. Dropping does the same, but can only print an error.
    pub fn remove(self) -> Result<()> {
        self.take_away()
    }

    fn take_away(&self) -> Result<()> {
        remove_tree(&self.path)?;
        held().remove(&self.path);
        remove_empty_above(&self.path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !cleanup::kept()
            && let Err(error) = self.take_away()
        {
            cleanup::complain(&error);
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.back, std::process::id()) {
            cleanup::complain(&error);
        }
    }
}

/// This process's own tree.
pub(crate) fn root() -> Result<PathBuf> {
    Ok(mount_point()?.join(cleanup::prefix()))
}

/// The cgroup that this process is in.
pub(crate) fn own() -> Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process has no cgroup2")?;
    Ok(mount_point()?.join(own))
}

pub(crate) fn enter(path: &Path, pid: u32) -> Result<()> {
    fs::write(path.join("cgroup.procs"), pid.to_string())
        .with_context(|| format!("move process {pid} to cgroup {}", path.display()))
}

/// The processes in the cgroup at `path`, none if there is no such cgroup. 0 stands for one that this PID namespace
/// can't see.
pub(crate) fn processes(path: &Path) -> Result<Vec<i32>> {
    match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(list) => Ok(list.lines().filter_map(|pid| pid.parse().ok()).collect()),
        // Removed: before it was opened, or since.
        Err(error) if gone(&error) => Ok(Vec::new()),
        // A cgroup of threads: their processes are listed above it.
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list processes of cgroup {}", path.display())),
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// Ends everything in and below the cgroup at `path`, save this process, which is moved to the root, and removes the
/// cgroups. None there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    // Before the children, which may be cgroups of these processes' threads.
    end_processes(path)?;
    let children = match fs::read_dir(path) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => Err(error),
    };
    for child in children.with_context(|| format!("list cgroup {}", path.display()))? {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&child.path())?;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        end_processes(path)?;
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) if gone(&error) => return Ok(()),
            result => return result.with_context(|| format!("remove cgroup {}", path.display())),
        }
    }
}

/// Ends the processes in the cgroup at `path`, save this one, which is moved to the root.
fn end_processes(path: &Path) -> Result<()> {
    for pid in processes(path)? {
        if Ok(pid) == i32::try_from(std::process::id()) {
            enter(mount_point()?, std::process::id())?;
        } else {
            end(pid)?;
        }
    }
    Ok(())
}

/// Paths of the cgroups that there are values of.
fn held() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    HELD.lock().expect("nobody panics while holding it")
}

/// Removes the cgroups that were made along with the one at `path`, up to this process's own tree, as far as they are empty.
fn remove_empty_above(path: &Path) -> Result<()> {
    let root = root()?;
    let held = held();
    for above in path.ancestors().skip(1).take_while(|above| above.starts_with(&root) && !held.contains(*above)) {
        if fs::remove_dir(above).is_err() {
            // Another cgroup is in it, and takes it away when it goes.
            break;
        }
    }
    Ok(())
}

/// Kills the process `pid`. It is fine if it is gone.
pub(crate) fn end(pid: i32) -> Result<()> {
    // 0 would mean this process's own group.
    if pid <= 0 {
        return Ok(());
    }
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("kill process {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_version_1() {
        let unified = "36 25 0:31 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        let memory = "37 25 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup2 rw,memory";
        assert_eq!(cgroup2_of(unified), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_of(memory), None);
    }
}
