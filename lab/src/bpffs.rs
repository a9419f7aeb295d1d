//! The file system that pins live in.

use crate::cleanup;
use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where every distribution mounts it.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// A folder for this process's pins, with bpffs mounted. It is not made here; whatever is in it goes at the end.
///
/// A bpffs that had to be mounted stays, as systemd leaves it: an unmount would take other programs' pins along.
pub fn folder() -> Result<PathBuf> {
    let creating = cleanup::creating()?;
    let kind = statfs(MOUNT_POINT).with_context(|| format!("statfs {MOUNT_POINT}"))?.filesystem_type();
    if kind != BPF_FS_MAGIC {
        let none = None::<&str>;
        mount(Some("bpf"), MOUNT_POINT, Some("bpf"), MsFlags::empty(), none)
            .with_context(|| format!("mount bpffs at {MOUNT_POINT}"))?;
    }
    drop(creating);
    Ok(pins_of(&cleanup::prefix()))
}

/// Mounts a bpffs of its own at `at`, below [`folder`], unless there is one already. Under it lies another file system,
/// so that what is there without it is no bpffs.
pub fn mount_at(at: &Path) -> Result<()> {
    let creating = cleanup::creating()?;
    fs::create_dir_all(at).with_context(|| format!("create {}", at.display()))?;
    let mount_a = |kind: &str| {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} at {}", at.display()))
    };
    if !mounts()?.iter().any(|mounted| mounted == at) {
        mount_a("tmpfs")?;
    }
    if statfs(at).with_context(|| format!("statfs {}", at.display()))?.filesystem_type() != BPF_FS_MAGIC {
        mount_a("bpf")?;
    }
    drop(creating);
    Ok(())
}

/// Takes away the topmost of what [`mount_at`] mounted, whoever uses it: first the bpffs.
pub fn unmount(at: &Path) -> Result<()> {
    umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", at.display()))
}

/// Where something is mounted, a place as often as that was done.
fn mounts() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    Ok(mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
}

pub(crate) fn pins_of(prefix: &str) -> PathBuf {
    PathBuf::from(MOUNT_POINT).join(prefix)
}

/// Removes the pins of `prefix`, and with them what only they held.
pub(crate) fn remove(prefix: &str) -> Result<()> {
    let pins = pins_of(prefix);
    for own in mounts()?.iter().filter(|at| at.starts_with(&pins)) {
        unmount(own)?;
    }
    if fs::exists(&pins).unwrap_or(false) {
        fs::remove_dir_all(&pins).with_context(|| format!("remove pins {}", pins.display()))?;
    }
    Ok(())
}
