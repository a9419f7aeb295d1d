//! The cgroups of the nodes: one folder a node in every hierarchy of this machine. What a node takes for the root of a
//! hierarchy is its folder there, so a program attached at "the root" meets the node's own processes alone.

use super::layout::{NAME, Node};
use anyhow::{Context, bail};
use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const MOUNT: &str = "/sys/fs/cgroup";
/// The nodes' share of the processors, all together: that of eight busy processes. With the usual one, that of a single
/// process, three clusters hardly move on a machine that builds something beside them.
const SHARES: &str = "8192";

/// Makes the node's cgroups and returns their folders.
pub(crate) fn create(node: &Node) -> anyhow::Result<Vec<PathBuf>> {
    let roots = hierarchies()?;
    for root in &roots {
        for folder in [root.join(NAME), root.join(node.cgroup())] {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            // A new folder of cgroup v1's cpuset takes no process before it has processors and memory nodes.
            for name in ["cpuset.cpus", "cpuset.mems"] {
                let file = folder.join(name);
                if file.exists() && root.join("cpuset.cpus").exists() {
                    let of_root = fs::read(root.join(name)).with_context(|| format!("read the root's {name}"))?;
                    fs::write(&file, of_root).with_context(|| format!("write {}", file.display()))?;
                }
            }
        }
    }
    for shares in roots.iter().map(|root| root.join(NAME).join("cpu.shares")).filter(|shares| shares.exists()) {
        fs::write(&shares, SHARES).with_context(|| format!("write {}", shares.display()))?;
    }
    Ok(roots.iter().map(|root| root.join(node.cgroup())).collect())
}

/// Removes the node's cgroups, once its processes are gone; those that outlive their node are ended first.
pub(crate) fn remove(node: &Node) -> anyhow::Result<()> {
    for root in hierarchies()? {
        let folder = root.join(node.cgroup());
        if !folder.exists() {
            continue;
        }
        let kill = folder.join("cgroup.kill");
        if kill.exists() {
            fs::write(&kill, "1").with_context(|| format!("end what is left in {}", folder.display()))?;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = remove_tree(&folder) {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("remove the cgroup {}", folder.display()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Removes the folders that held the nodes' cgroups.
pub(crate) fn remove_parents() -> anyhow::Result<()> {
    for root in hierarchies()? {
        let folder = root.join(NAME);
        if folder.exists() {
            remove_tree(&folder).with_context(|| format!("remove the cgroup {}", folder.display()))?;
        }
    }
    Ok(())
}

/// The processes on a node, by its cgroup2.
pub(crate) fn processes(node: &Node) -> anyhow::Result<Vec<i32>> {
    let mut pids = Vec::new();
    if let Some(root) = hierarchies()?.into_iter().find(|root| is_cgroup2(root)) {
        collect(&root.join(node.cgroup()), &mut pids)?;
    }
    Ok(pids)
}

/// An error where nodes can't be made: what they see of cgroups is what this machine has, and only one way is known to work.
pub(crate) fn check() -> anyhow::Result<()> {
    if is_cgroup2(Path::new(MOUNT)) {
        bail!(
            "{MOUNT} is cgroup2 alone, and nodes are made only where cgroup v1's hierarchies are mounted below {MOUNT} with \
             cgroup2 at {MOUNT}/unified; --nodes 0 starts control planes, which do for all that only talks to API servers"
        );
    }
    if !hierarchies()?.iter().any(|root| is_cgroup2(root)) {
        bail!("no cgroup2 is mounted below {MOUNT}");
    }
    Ok(())
}

/// Where the hierarchies are mounted: cgroup v1's side by side, and cgroup2 at `unified` among them.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(MOUNT).with_context(|| format!("read {MOUNT}"))?;
    let mut roots: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // Links such as `cpu` to `cpu,cpuacct` are the same hierarchy again.
    roots.retain(|root| !root.is_symlink() && root.join("cgroup.procs").exists());
    roots.sort();
    Ok(roots)
}

/// Only cgroup2 has this file, in its root too.
fn is_cgroup2(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

fn collect(folder: &Path, pids: &mut Vec<i32>) -> anyhow::Result<()> {
    let Ok(procs) = fs::read_to_string(folder.join("cgroup.procs")) else { return Ok(()) };
    pids.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    for child in folders(folder)? {
        collect(&child, pids)?;
    }
    Ok(())
}

/// Removes a cgroup and those below it.
fn remove_tree(folder: &Path) -> io::Result<()> {
    for child in folders(folder)? {
        remove_tree(&child)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The folders in `folder`; none if it goes away meanwhile.
fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let folders = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        entry.file_type().ok()?.is_dir().then(|| entry.path())
    });
    Ok(folders.collect())
}
