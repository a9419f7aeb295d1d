//! A folder of manifests as a source: `*.yaml`, `*.yml` and `*.json`, as `kubectl get -o yaml` prints them.
//!
//! Files are read again when they changed. What can't be read is named with file, line and reason, and its last good state
//! stays: a bad document keeps its object, a file that is no YAML keeps all of its objects, an unreadable
//! folder keeps everything. An object is gone when it is missing from a file that could be read, or with its file. A file
//! without any content, as a shell leaves it until `kubectl` has written into it, is one that can't be read.
//!
//! An object that is in two files is taken from the one whose name comes later.

mod file;
mod settle;
#[cfg(test)]
mod tests;
mod watch;

use super::{Origin, Problem, documents, joined::Joined, key::Key, objects::Options};
use crate::model::Change;
use anyhow::Context;
use file::{Contents, Entry, Object};
use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    ffi::{OsStr, OsString},
    fs,
    hash::Hasher,
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A file that was written this short a time ago may be written once more without another time stamp: the kernel's
/// clock for files ticks every 1 to 10 ms, a network file system's may be coarser.
const STAMP_DOUBT: Duration = Duration::from_millis(100);

/// Reads the folder, and knows what it has delivered of it.
#[derive(Debug)]
pub struct ManifestSource {
    dir: PathBuf,
    options: Options,
    files: BTreeMap<OsString, File>,
    /// Before [`Joined`], that is as the objects stand in the files.
    delivered: BTreeMap<Key, Arc<Object>>,
    joined: Joined,
}

/// What a look at the folder gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// What changed since the last look.
    pub changes: Vec<Change>,
    /// All that is wrong now.
    pub problems: Vec<Problem>,
    /// Whether all files are known as they are, or as they were when they were good last.
    pub complete: bool,
}

/// A file as it was read last.
#[derive(Debug, Default)]
struct File {
    /// None: read it again.
    stamp: Option<Stamp>,
    /// Of its bytes, so that what was only touched isn't parsed again.
    hash: Option<u64>,
    contents: Contents,
}

/// Changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: SystemTime,
}

impl ManifestSource {
    /// A source of the manifests in `dir`. Reads nothing yet.
    pub fn new(dir: impl Into<PathBuf>, options: Options) -> Self {
        let (files, delivered) = (BTreeMap::new(), BTreeMap::new());
        Self { dir: dir.into(), options, files, delivered, joined: Joined::default() }
    }

    /// Looks at the folder and returns what is new.
    ///
    /// # Errors
    ///
    /// The folder can't be listed. Then nothing is taken for gone.
    pub fn load(&mut self) -> anyhow::Result<Loaded> {
        self.load_except(&BTreeSet::new())
    }

    /// Like [`load`](Self::load), but leaves those files as they are that somebody is writing.
    fn load_except(&mut self, busy: &BTreeSet<OsString>) -> anyhow::Result<Loaded> {
        let names = list(&self.dir)?;
        self.files.retain(|name, _| names.contains(name));
        for name in names {
            if !busy.contains(&name) {
                self.read(name);
            }
        }
        let (objects, problems) = self.merge();
        let changes = self.joined.pass(difference(&self.delivered, &objects));
        self.delivered = objects;
        let complete = self.files.values().all(|file| file.contents.complete);
        Ok(Loaded { changes, problems, complete })
    }

    /// Reads a file again if it changed.
    fn read(&mut self, name: OsString) {
        let path = self.dir.join(&name);
        let file = self.files.entry(name.clone()).or_default();
        match refresh(&path, file, &self.options) {
            Ok(()) => {}
            // Deleted since the folder was listed, or a link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(self.files.remove(&name)),
            Err(error) => {
                file.stamp = None;
                file.hash = None;
                file.contents.fail(&format!("read: {error}"));
            }
        }
    }

    /// The objects of all files; of those that are in several, the last.
    fn merge(&self) -> (BTreeMap<Key, Arc<Object>>, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut entries: BTreeMap<&Key, (&OsStr, &Entry)> = BTreeMap::new();
        for (name, file) in &self.files {
            let path = self.dir.join(name);
            for (line, reason) in &file.contents.problems {
                problems.push(Problem { origin: Origin::File(path.clone(), *line), reason: reason.clone() });
            }
            for (key, entry) in &file.contents.objects {
                if let Some((earlier, shadowed)) = entries.insert(key, (name, entry)) {
                    let origin = Origin::File(self.dir.join(earlier), Some(shadowed.line));
                    let reason = format!("{key} is also in {}:{}, which holds", name.display(), entry.line);
                    problems.push(Problem { origin, reason });
                }
            }
        }
        problems.sort();
        let objects = entries.into_iter().map(|(key, (_, entry))| (key.clone(), Arc::clone(&entry.object)));
        (objects.collect(), problems)
    }
}

/// Names of the manifests in `dir`. Hidden ones are left out, and with them the folders behind the links of a ConfigMap
/// volume.
fn list(dir: &Path) -> anyhow::Result<BTreeSet<OsString>> {
    let context = || format!("list manifests in {}", dir.display());
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        let name = entry.with_context(context)?.file_name();
        let known = Path::new(&name).extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if known && !name.as_bytes().starts_with(b".") {
            names.insert(name);
        }
    }
    Ok(names)
}

fn refresh(path: &Path, file: &mut File, options: &Options) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        // A folder, or a pipe that would be waited for for ever.
        return Err(io::ErrorKind::NotFound.into());
    }
    // Taken before the file is read, so that what is written meanwhile shows the next time.
    let stamp =
        Stamp { device: metadata.dev(), inode: metadata.ino(), len: metadata.len(), modified: metadata.modified()? };
    if file.stamp == Some(stamp) {
        return Ok(());
    }
    let certain = stamp.modified.elapsed().is_ok_and(|age| age > STAMP_DOUBT);
    if stamp.len > documents::MAX_BYTES as u64 {
        return Err(io::Error::other(format!("longer than {} bytes", documents::MAX_BYTES)));
    }
    let bytes = fs::read(path)?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    let hash = Some(hasher.finish());
    if file.hash != hash {
        file.contents.replace(Contents::read(&bytes, options));
        file.hash = hash;
    }
    file.stamp = certain.then_some(stamp);
    Ok(())
}

/// What leads from `old` to `new`.
fn difference(old: &BTreeMap<Key, Arc<Object>>, new: &BTreeMap<Key, Arc<Object>>) -> Vec<Change> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|key| key.change(None));
    let written = new.iter().filter(|(key, object)| old.get(key) != Some(object));
    gone.chain(written.map(|(key, object)| key.change(Some(object)))).collect()
}
