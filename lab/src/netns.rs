//! Network namespaces: making them, running code and programs in them, removing them.
//!
//! A namespace is entered by a thread, never by the whole process: the calling thread stays where it is.

use crate::cleanup;
use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
};

/// Where `ip netns` looks for namespaces.
pub(crate) const NAMED: &str = "/run/netns";

/// A network namespace with its loopback up.
///
/// It lives as long as this value and whatever runs or is open in it.
#[derive(Debug)]
pub struct Netns {
    file: File,
    /// Its name without the owner's prefix, for messages.
    label: String,
    /// What holds it besides `file`.
    mounted: Option<PathBuf>,
}

impl Netns {
    /// Makes a namespace that people can find: `ip netns exec tombolo-lab-<pid>-<name>`, `nsenter --net=<path>`.
    pub fn named(name: &str) -> Result<Self> {
        let creating = cleanup::creating()?;
        let path = Path::new(NAMED).join(format!("{}-{name}", cleanup::prefix()));
        share_folder()?;
        let file = fresh().with_context(|| format!("make network namespace {name}"))?;
        File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let bound = mount(Some(source.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        if bound.is_err() {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        bound.with_context(|| format!("mount network namespace {name} at {}", path.display()))?;
        drop(creating);
        Self { file, label: name.to_owned(), mounted: Some(path) }.prepared()
    }

    /// Makes a namespace without a name, which the kernel frees with the last user: what tests want.
    pub fn anonymous() -> Result<Self> {
        let file = fresh().context("make a network namespace")?;
        Self { file, label: "anonymous".to_owned(), mounted: None }.prepared()
    }

    /// The namespace of the calling thread. Nothing of it is removed with this value.
    pub fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("open the current network namespace")?;
        Ok(Self { file, label: "current".to_owned(), mounted: None })
    }

    /// The namespace mounted at `path`. Nothing of it is removed with this value.
    pub fn at(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open network namespace {}", path.display()))?;
        Ok(Self { file, label: path.display().to_string(), mounted: None })
    }

    fn prepared(self) -> Result<Self> {
        // Both have to be 0 for the kernel to leave duplicate detection out, and a new IPv6 address is usable at once.
        for key in ["net.ipv6.conf.all.accept_dad", "net.ipv6.conf.default.accept_dad"] {
            if self.run(|| sysctl_path(key).exists())? {
                self.sysctl(key, 0)?;
            }
        }
        self.up("lo")?;
        Ok(self)
    }

    /// Its name without the owner's prefix.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A path that `nsenter --net=` takes: of a named namespace for as long as it exists, else for as long as this
    /// process has it open.
    pub fn path(&self) -> PathBuf {
        let open = || PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()));
        self.mounted.clone().unwrap_or_else(open)
    }

    /// The open namespace.
    pub(crate) fn fd(&self) -> &File {
        &self.file
    }

    /// Its inode number, which tells namespaces apart.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata().with_context(|| format!("stat network namespace {}", self.label))?.ino())
    }

    /// Does `work` on a thread inside the namespace. Sockets made there belong to it wherever they are used later.
    ///
    /// A panic of `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let inside = || -> Result<T> {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter network namespace {}", self.label))?;
            Ok(work())
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Starts a program inside the namespace. [`crate::process::Process`] sees to its end.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_owned();
        self.run(|| command.spawn())?.with_context(|| format!("start {} in {}", program.display(), self.label))
    }

    /// Sets a sysctl of the namespace, by its dotted name. Interface names with dots can't be spelled that way.
    pub fn sysctl(&self, key: &str, value: impl ToString) -> Result<()> {
        let value = value.to_string();
        self.run(|| fs::write(sysctl_path(key), &value))?
            .with_context(|| format!("set {key} = {value} in {}", self.label))
    }

    /// Makes it a router of both families that doesn't mind asymmetric paths. To be called before links are added:
    /// those take their settings from the defaults.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net.ipv4.conf.all.rp_filter", 0)?;
        self.sysctl("net.ipv4.conf.default.rp_filter", 0)?;
        self.sysctl("net.ipv4.ip_forward", 1)?;
        if self.run(|| sysctl_path("net.ipv6.conf.all.forwarding").exists())? {
            self.sysctl("net.ipv6.conf.all.forwarding", 1)?;
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Some(path) = &self.mounted
            && !cleanup::kept()
            && let Err(error) = remove_named(path)
        {
            cleanup::complain(&error);
        }
    }
}

/// A new namespace, made by a thread that ends with it.
fn fresh() -> Result<File> {
    let make = || -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare the network namespace")?;
        File::open("/proc/thread-self/ns/net").context("open the new network namespace")
    };
    thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

/// Makes `/run/netns` what `ip netns add` would make of it: a shared mount of its own. Otherwise the first `ip netns
/// add` of somebody else would bind the folder over itself, and our mounts below could not be removed any more.
fn share_folder() -> Result<()> {
    let none = None::<&str>;
    fs::create_dir_all(NAMED).with_context(|| format!("create {NAMED}"))?;
    let share = || mount(none, NAMED, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    if share().is_err() {
        mount(Some(NAMED), NAMED, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .with_context(|| format!("mount {NAMED} over itself (as ip netns does)"))?;
        share().with_context(|| format!("make {NAMED} a shared mount"))?;
    }
    Ok(())
}

/// Removes the name at `path`; the namespace goes with its last user.
pub(crate) fn remove_named(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not a mount: the maker ended between creating the file and mounting.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("unmount {}", path.display())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The processes whose main thread is in one of the namespaces mounted at `paths`.
pub(crate) fn processes_in(paths: &[PathBuf]) -> Result<Vec<i32>> {
    let inodes: BTreeSet<(u64, u64)> =
        paths.iter().filter_map(|path| fs::metadata(path).ok()).map(|stat| (stat.dev(), stat.ino())).collect();
    let inside = |pid: &i32| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|stat| inodes.contains(&(stat.dev(), stat.ino())))
    };
    let entries = fs::read_dir("/proc").context("list /proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(inside).collect())
}

/// Fails with a sentence for people if this process isn't root.
pub fn need_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces, cgroups and eBPF need root: try again with sudo");
    Ok(())
}
