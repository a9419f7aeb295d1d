//! The file system that pins live in.

use crate::cleanup;
use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{fs, path::PathBuf};

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

pub(crate) fn pins_of(prefix: &str) -> PathBuf {
    PathBuf::from(MOUNT_POINT).join(prefix)
}

/// Removes the pins of `prefix`, and with them what only they held.
pub(crate) fn remove(prefix: &str) -> Result<()> {
    let pins = pins_of(prefix);
    if fs::exists(&pins).unwrap_or(false) {
        fs::remove_dir_all(&pins).with_context(|| format!("remove pins {}", pins.display()))?;
    }
    Ok(())
}
