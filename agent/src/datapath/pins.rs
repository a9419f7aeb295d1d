//! The folder of bpffs in which maps and links outlive the agent.

use super::{
    EGRESS, HOOKS,
    bpf::{self, BPF_FS_MAGIC, file_system_magic},
    maps,
};
use anyhow::{Context, bail, ensure};
use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::LAYOUT;
use tracing::{debug, info, warn};

/// What a link is called until it takes the place of an earlier one.
const NEW: &str = "-new";
/// How long the kernel may take to take an agent apart that was killed, and with it its lock.
const LEAVING: Duration = Duration::from_secs(1);

/// A folder on bpffs, with one folder for each layout of the maps in it.
#[derive(Clone, Debug)]
pub struct Pins {
    base: PathBuf,
}

/// Held by the one writer that the maps of a layout have, until it is dropped or its process ends.
#[derive(Debug)]
pub struct Lock {
    dir: PathBuf,
    /// The folder, locked. One of the same name may have taken its place.
    file: File,
}

/// What is pinned for this version's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No map, or no link that a map would be for.
    Nothing,
    /// Every map.
    Maps,
    /// Links of programs whose maps can't be had any more: a pin is missing, or they are of another layout.
    Links,
}

impl Pins {
    /// Names the folder; nothing is made or read yet.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// Makes the folders that are missing, for root's eyes only.
    pub fn create(&self) -> anyhow::Result<()> {
        let existing = self.base.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let magic = file_system_magic(existing).with_context(|| format!("look at {}", existing.display()))?;
        ensure!(
            magic == BPF_FS_MAGIC,
            "{} is not on a BPF file system: mount one (`mount -t bpf bpf /sys/fs/bpf`; in Kubernetes a hostPath volume of \
             /sys/fs/bpf), or name a folder on one with --pins",
            self.base.display()
        );
        for dir in [self.dir().join("maps"), self.dir().join("links")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .with_context(|| format!("create {}", dir.display()))?;
        }
        Ok(())
    }

    /// The folder of this layout.
    pub fn dir(&self) -> PathBuf {
        self.base.join(format!("v{LAYOUT}"))
    }

    /// Where the map of this name is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir().join("maps").join(name)
    }

    /// Where the link of this hook is pinned.
    pub fn link(&self, hook: &str) -> PathBuf {
        self.dir().join("links").join(hook)
    }

    /// Where the link of this hook is pinned before it takes the place of an earlier one.
    pub(super) fn new_link(&self, hook: &str) -> PathBuf {
        self.link(&format!("{hook}{NEW}"))
    }

    /// Where links of this hook are pinned: in the folder of our layout, and in those of others.
    pub(super) fn earlier_links(&self, hook: &str) -> anyhow::Result<Vec<PathBuf>> {
        let others = self.others()?.into_iter().map(|layout| layout.join("links").join(hook));
        Ok([self.link(hook)].into_iter().chain(others).filter(|pin| pin.exists()).collect())
    }

    /// Becomes the one writer of this layout's maps.
    ///
    /// # Errors
    ///
    /// There is one, or the folder doesn't exist.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        Lock::of(self.dir())
    }

    /// Becomes the one writer of the maps of every layout that is there.
    ///
    /// # Errors
    ///
    /// There is one.
    pub fn lock_all(&self) -> anyhow::Result<Vec<Lock>> {
        self.layouts()?.into_iter().map(Lock::of).collect()
    }

    /// Keeps agents of other layouts from starting here, as long as something of theirs is pinned.
    ///
    /// # Errors
    ///
    /// One is running.
    pub(super) fn lock_others(&self) -> anyhow::Result<Vec<Lock>> {
        self.others()?.into_iter().map(Lock::of).collect()
    }

    /// Says what is pinned. What an agent left that was ended in the middle of its first start is removed: maps that no
    /// program is attached for.
    pub(super) fn sort_out(&self) -> anyhow::Result<Found> {
        let is_linked = |layout: &Path| HOOKS.iter().any(|hook| layout.join("links").join(hook).exists());
        let serves_another = self.others()?.iter().any(|layout| is_linked(layout));
        let maps: Vec<_> = maps::PINNED.iter().map(|name| self.map(name)).filter(|pin| pin.exists()).collect();
        // Maps without a link of ours may never have been filled: no matter, unless programs serve from others.
        if maps.len() == maps::PINNED.len() && (is_linked(&self.dir()) || !serves_another) {
            return Ok(Found::Maps);
        }
        for pin in &maps {
            unpin(pin)?;
        }
        Ok(if is_linked(&self.dir()) || serves_another { Found::Links } else { Found::Nothing })
    }

    /// Removes everything that any agent pinned here, whatever its layout, and nothing else. Links go first: traffic takes
    /// its ordinary path before the tables go. Returns what was removed.
    ///
    /// # Errors
    ///
    /// There is something that no agent put there: the rest was removed. Or something can't be removed.
    pub fn unload(&self) -> anyhow::Result<Vec<PathBuf>> {
        let layouts = self.layouts()?;
        let Removed { removed, mut foreign } = remove(&layouts, &BTreeSet::new())?;
        foreign.extend(list(&self.base)?.into_iter().filter(|dir| !layouts.contains(dir)));
        remove_if_empty(&self.base)?;
        if !foreign.is_empty() {
            bail!("removed {} pins; left alone what no agent of this version pins: {}", removed.len(), names(&foreign));
        }
        Ok(removed)
    }

    /// Removes what agents of other layouts pinned here: our programs are on all hooks now. `links` are the ids of ours,
    /// of which one that was taken over may be pinned there still.
    pub(super) fn remove_others(&self, links: &BTreeSet<u64>) -> anyhow::Result<()> {
        let others = self.others()?;
        let Removed { removed, foreign } = remove(&others, links)?;
        if !removed.is_empty() {
            info!(pins = removed.len(), layouts = names(&others), "pins of another layout removed");
        }
        if !foreign.is_empty() {
            warn!(pins = names(&foreign), "left alone what no agent of this version pins");
        }
        Ok(())
    }

    /// The folders of other layouts.
    fn others(&self) -> anyhow::Result<Vec<PathBuf>> {
        Ok(self.layouts()?.into_iter().filter(|layout| *layout != self.dir()).collect())
    }

    fn layouts(&self) -> anyhow::Result<Vec<PathBuf>> {
        Ok(list(&self.base)?.into_iter().filter(|dir| is_layout(dir)).collect())
    }
}

/// What became of pins.
struct Removed {
    removed: Vec<PathBuf>,
    /// What no agent put there; it was left alone.
    foreign: Vec<PathBuf>,
}

/// Removes what agents pinned in the folders of these layouts, links first. Programs are taken off their hooks, but those
/// behind links with an id in `stay`.
fn remove(layouts: &[PathBuf], stay: &BTreeSet<u64>) -> anyhow::Result<Removed> {
    let mut done = Removed { removed: Vec::new(), foreign: Vec::new() };
    for part in ["links", "maps"] {
        let is_ours = |name: &str| if part == "links" { is_link(name) } else { maps::PINNED.contains(&name) };
        for dir in layouts.iter().map(|layout| layout.join(part)) {
            for pin in list(&dir)? {
                if pin.file_name().and_then(|name| name.to_str()).is_some_and(is_ours) && !pin.is_dir() {
                    if part == "links" {
                        detach(&pin, stay);
                    }
                    unpin(&pin)?;
                    done.removed.push(pin);
                } else {
                    done.foreign.push(pin);
                }
            }
            remove_if_empty(&dir)?;
        }
    }
    for dir in layouts {
        let is_foreign = |path: &PathBuf| !path.ends_with("links") && !path.ends_with("maps");
        done.foreign.extend(list(dir)?.into_iter().filter(is_foreign));
        remove_if_empty(dir)?;
    }
    Ok(done)
}

impl Lock {
    fn of(dir: PathBuf) -> anyhow::Result<Self> {
        let file = File::open(&dir).with_context(|| format!("open {}", dir.display()))?;
        let deadline = Instant::now() + LEAVING;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { dir, file }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LEAVING / 20),
                Err(TryLockError::WouldBlock) => {
                    bail!(
                        "an agent is running that has its maps in {}: stop it first, or name another folder with --pins",
                        dir.display()
                    )
                }
                Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("lock {}", dir.display())),
            }
        }
    }

    /// Locks the folder that has the name now, if it is another one: bpffs may have been unmounted and mounted again.
    pub(super) fn renew(&mut self) -> anyhow::Result<()> {
        let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let now = fs::metadata(&self.dir).map(inode).with_context(|| format!("look at {}", self.dir.display()))?;
        if self.file.metadata().map(inode).ok() != Some(now) {
            *self = Self::of(self.dir.clone())?;
        }
        Ok(())
    }
}

fn is_link(name: &str) -> bool {
    let hook = name.strip_suffix(NEW).unwrap_or(name);
    hook == EGRESS || HOOKS.contains(&hook)
}

fn is_layout(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix('v');
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit())) && dir.is_dir()
}

/// What is in a folder, in the order of names; nothing if there is no folder.
fn list(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("list {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(context)?,
    };
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(context)?;
    paths.sort();
    Ok(paths)
}

/// Takes a program off its hook, unless its link has to `stay`. Otherwise that would happen a moment after it is
/// unpinned.
fn detach(pin: &Path, stay: &BTreeSet<u64>) {
    let take_off = |pin: &Path| -> anyhow::Result<()> {
        let link = bpf::open_pin(pin)?;
        if stay.is_empty() || !stay.contains(&bpf::link_field(link.as_fd(), "link_id")?) {
            bpf::detach(link.as_fd())?;
        }
        Ok(())
    };
    if let Err(error) = take_off(pin) {
        debug!(error = format!("{error:#}"), pin = %pin.display(), "link not detached before it is unpinned");
    }
}

fn names(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

/// Removes a pin. It is fine if it is gone.
pub(super) fn unpin(pin: &Path) -> anyhow::Result<()> {
    match fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("unpin {}", pin.display())),
        _ => Ok(()),
    }
}

fn remove_if_empty(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(e).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files in it.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn unloading_removes_the_pins_of_all_layouts_and_the_folders() {
        let folder = folder(&[
            "p/v1/links/connect4",
            "p/v1/links/connect6-new",
            "p/v1/links/egress",
            "p/v1/maps/SLOTS",
            "p/v12/maps/CONFIG",
        ]);
        let removed = Pins::new(folder.path().join("p")).unload().unwrap();
        assert_eq!(removed.len(), 5);
        assert!(removed[0].ends_with("v1/links/connect4"), "links go first: {removed:?}");
        assert!(!folder.path().join("p").exists());
        assert_eq!(Pins::new(folder.path().join("p")).unload().unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn unloading_leaves_alone_what_no_agent_pins_and_names_it() {
        let foreign = ["v1/maps/theirs", "v1/links/ingress", "v1/note", "vx/maps/SLOTS", "other"];
        let ours = ["v1/maps/SLOTS", "v1/links/connect4"];
        let folder = folder(&[&foreign[..], &ours].concat());
        let error = Pins::new(folder.path()).unload().unwrap_err().to_string();
        assert!(error.starts_with("removed 2 pins; "), "{error}");
        for file in &foreign[..3] {
            assert!(error.contains(&folder.path().join(file).display().to_string()), "{file} in {error}");
        }
        for file in foreign {
            assert!(folder.path().join(file).exists(), "{file}");
        }
        for file in ours {
            assert!(!folder.path().join(file).exists(), "{file}");
        }
    }

    #[test]
    fn maps_that_no_link_is_pinned_for_are_left_overs_of_a_first_start() {
        let folder = folder(&["v1/maps/SLOTS", "v1/links/note"]);
        let pins = Pins::new(folder.path());
        assert_eq!(pins.sort_out().unwrap(), Found::Nothing);
        assert!(!pins.map("SLOTS").exists());
    }

    #[test]
    fn with_one_map_missing_the_others_are_of_no_use_to_the_next_agent() {
        let maps: Vec<String> = maps::PINNED.iter().map(|name| format!("v{LAYOUT}/maps/{name}")).collect();
        let mut files: Vec<&str> = maps.iter().map(String::as_str).collect();
        let link = format!("v{LAYOUT}/links/connect4");
        files.push(&link);
        let folder = folder(&files);
        let pins = Pins::new(folder.path());
        assert_eq!(pins.sort_out().unwrap(), Found::Maps);
        fs::remove_file(pins.map("SLOTS")).unwrap();
        assert_eq!(pins.sort_out().unwrap(), Found::Links);
        assert!(!pins.map("BACKENDS").exists() && pins.link("connect4").exists());
    }

    #[test]
    fn maps_have_one_writer_at_a_time() {
        let folder = folder(&[&format!("v{LAYOUT}/maps/SLOTS")]);
        let pins = Pins::new(folder.path());
        let lock = pins.lock().unwrap();
        let error = pins.lock().unwrap_err().to_string();
        assert!(error.contains("an agent is running"), "{error}");
        assert!(pins.lock_all().is_err());
        drop(lock);
        assert_eq!(pins.lock_all().unwrap().len(), 1);
    }

    #[test]
    fn a_folder_that_was_made_anew_is_locked_anew() {
        let folder = folder(&[&format!("v{LAYOUT}/maps/SLOTS")]);
        let pins = Pins::new(folder.path());
        let mut lock = pins.lock().unwrap();
        fs::rename(pins.dir(), folder.path().join("old")).unwrap();
        fs::create_dir(pins.dir()).unwrap();
        assert!(pins.lock().is_ok(), "nobody has locked this one yet");
        lock.renew().unwrap();
        assert!(pins.lock().is_err());
    }
}
