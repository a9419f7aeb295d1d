//! Leaves nothing behind: when values are dropped, on Ctrl-C and SIGTERM, and after a run that was killed.
//!
//! Whatever this library makes has a name that starts with `tombolo-lab-` and the id of the process that made it, in one of four
//! places: `/run/netns`, the cgroup2 mount, bpffs, and `/run`. So what belongs to a process can be found and removed without
//! any record, by itself on a signal, or by a later run once the process is dead. If its id has been given to another
//! process meanwhile, the left-overs stay until that one is gone too.

use crate::{bpffs, cgroup, netns};
use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        OnceLock, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

const NAME: &str = "tombolo-lab-";
const RUN: &str = "/run";
/// A file in a run's folder that says it is to stay although its process is gone.
const KEPT: &str = "kept";

/// Held for reading while something is made, and for writing from a signal to the end of the process, so that nothing
/// is made behind the broom.
static CREATING: RwLock<()> = RwLock::new(());
static KEEP: AtomicBool = AtomicBool::new(false);
static ENDING: AtomicBool = AtomicBool::new(false);

/// What the names of everything that this process makes begin with: `tombolo-lab-<pid>`.
pub fn prefix() -> String {
    prefix_of(std::process::id())
}

/// A folder for this process's sockets, logs and manifests: `/run/tombolo-lab-<pid>`.
pub fn folder() -> Result<PathBuf> {
    let creating = creating()?;
    let path = Path::new(RUN).join(prefix());
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    drop(creating);
    Ok(path)
}

/// From now on nothing is removed, neither on drop nor at the end nor by later runs; only [`remove_kept`] does.
pub fn keep() -> Result<()> {
    let path = folder()?.join(KEPT);
    fs::write(&path, "").with_context(|| format!("write {}", path.display()))?;
    KEEP.store(true, Ordering::SeqCst);
    Ok(())
}

/// Names of this process that are still on the machine.
pub fn left_by_own() -> Result<Vec<String>> {
    let own = std::process::id();
    let mut left = Vec::new();
    for place in places()? {
        let names = names_in(place).into_iter().filter(|name| owner_of(name) == Some(own));
        left.extend(names.map(|name| place.join(name).display().to_string()));
    }
    Ok(left)
}

pub(crate) fn kept() -> bool {
    KEEP.load(Ordering::SeqCst)
}

/// Removes all that this process has made, processes that it started included.
pub fn remove_own() -> Result<()> {
    remove(std::process::id())
}

/// Removes what dead processes left behind; the ids of those processes.
pub fn remove_dead() -> Result<Vec<u32>> {
    remove_where(|owner| !alive(owner) && !is_kept(owner))
}

/// Removes what earlier runs were told to keep; the ids of those processes.
pub fn remove_kept() -> Result<Vec<u32>> {
    remove_where(|owner| !alive(owner) && is_kept(owner))
}

/// To be held while something with a name is made. The first call removes what dead processes left, and starts to
/// listen for signals.
pub(crate) fn creating() -> Result<RwLockReadGuard<'static, ()>> {
    static BEGUN: OnceLock<Result<(), String>> = OnceLock::new();
    let begun = BEGUN.get_or_init(|| {
        netns::need_root().and_then(|()| remove_dead()).and_then(|_| listen()).map_err(|error| format!("{error:#}"))
    });
    if let Err(error) = begun {
        anyhow::bail!("{error}");
    }
    Ok(CREATING.read().expect("nobody panics while making something"))
}

/// Has a signal that ends the process remove everything first. The process then ends by that signal.
fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("listen for signals")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            ENDING.store(true, Ordering::SeqCst);
            let nothing_is_made_any_more = CREATING.write();
            if !kept()
                && let Err(error) = remove_own()
            {
                eprintln!("lab: {error:#}");
            }
            if let Err(error) = emulate_default_handler(signal) {
                eprintln!("lab: end by signal {signal}: {error}");
            }
            drop(nothing_is_made_any_more);
        }
    };
    thread::Builder::new().name("lab-signals".to_owned()).spawn(wait).context("start the thread for signals")?;
    Ok(())
}

/// Doesn't return once a signal has told this process to end: what looks like a failure then is only the removal.
/// To be called before anything of that kind is printed.
pub fn hold_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Prints what went wrong where no error can be returned.
pub(crate) fn complain(error: &anyhow::Error) {
    hold_if_ending();
    eprintln!("lab: {error:#}");
}

fn prefix_of(owner: u32) -> String {
    format!("{NAME}{owner}")
}

fn alive(owner: u32) -> bool {
    Path::new("/proc").join(owner.to_string()).exists()
}

fn is_kept(owner: u32) -> bool {
    Path::new(RUN).join(prefix_of(owner)).join(KEPT).exists()
}

/// The process that made what is called `name`, if it has one of our names.
fn owner_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(NAME)?;
    let digits = rest.split_once('-').map_or(rest, |(digits, _)| digits);
    digits.parse().ok()
}

/// Where names of ours can be.
fn places() -> Result<[&'static Path; 4]> {
    Ok([Path::new(netns::NAMED), cgroup::mount_point()?, Path::new(bpffs::MOUNT_POINT), Path::new(RUN)])
}

fn remove_where(wanted: impl Fn(u32) -> bool) -> Result<Vec<u32>> {
    let cgroups = cgroup::mount_point()?;
    let mut owners = BTreeSet::new();
    for name in places()?.into_iter().flat_map(names_in) {
        owners.extend(owner_of(&name));
    }
    let owners: Vec<u32> = owners.into_iter().filter(|&owner| wanted(owner) && !hidden(cgroups, owner)).collect();
    for &owner in &owners {
        remove(owner).with_context(|| format!("remove what process {owner} left behind"))?;
    }
    Ok(owners)
}

/// Whether processes of another PID namespace are in the owner's cgroups, so that the owner may be alive there.
fn hidden(cgroups: &Path, owner: u32) -> bool {
    fn foreign(path: &Path) -> bool {
        let own = cgroup::processes(path).unwrap_or_default().contains(&0);
        own || names_in(path).iter().map(|name| path.join(name)).any(|below| below.is_dir() && foreign(&below))
    }
    foreign(&cgroups.join(prefix_of(owner)))
}

/// Names in a folder; none if it can't be read, for then nothing of ours is in it either.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn remove(owner: u32) -> Result<()> {
    let named = names_in(Path::new(netns::NAMED));
    let named: Vec<PathBuf> = named
        .iter()
        .filter(|name| owner_of(name) == Some(owner))
        .map(|name| Path::new(netns::NAMED).join(name))
        .collect();
    for pid in netns::processes_in(&named)? {
        if u32::try_from(pid) != Ok(std::process::id()) {
            cgroup::end(pid)?;
        }
    }
    cgroup::remove_tree(&cgroup::mount_point()?.join(prefix_of(owner)))?;
    bpffs::remove(&prefix_of(owner))?;
    for path in &named {
        netns::remove_named(path)?;
    }
    let folder = Path::new(RUN).join(prefix_of(owner));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_have_an_owner() {
        assert_eq!(owner_of("tombolo-lab-42"), Some(42));
        assert_eq!(owner_of("tombolo-lab-42-west-1"), Some(42));
        for other in ["tombolo", "tombolo-lab-", "tombolo-lab-x", "tombolo-lab-4x-2", "my-tombolo-lab-42", "cni-42"] {
            assert_eq!(owner_of(other), None, "{other}");
        }
    }
}
