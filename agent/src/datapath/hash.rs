//! A hash map that is read many entries at a time.

use super::bpf;
use anyhow::Context;
use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

/// See the module.
pub(super) struct Hash<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    /// The same map once more, for what aya doesn't do.
    fd: OwnedFd,
}

impl<K: Pod, V: Pod> Hash<K, V> {
    pub(super) fn new(map: Map, name: &'static str) -> anyhow::Result<Self> {
        let wrong = || format!("map {name} does not have the layout of abi");
        let Map::HashMap(data) = &map else { anyhow::bail!("{}: it is no hash", wrong()) };
        let fd = data.fd().as_fd().try_clone_to_owned().with_context(|| format!("keep map {name} open"))?;
        Ok(Self { name, map: HashMap::try_from(map).with_context(wrong)?, fd })
    }

    pub(super) fn get(&self, key: &K) -> anyhow::Result<Option<V>> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", self.name)),
        }
    }

    /// All elements. Nobody else may be writing.
    pub(super) fn all(&self) -> anyhow::Result<BTreeMap<K, V>>
    where
        K: Ord,
    {
        // Put in order at once, which takes less memory than one after the other.
        let mut elements = Vec::new();
        self.each(|key, value| elements.push((key, value)))?;
        Ok(elements.into_iter().collect())
    }

    /// Hands over all elements, in no order. Nobody else may be writing.
    pub(super) fn each(&self, take: impl FnMut(K, V)) -> anyhow::Result<()> {
        bpf::each_of_hash(self.fd.as_fd(), take).with_context(|| format!("read map {}", self.name))
    }

    pub(super) fn insert(&mut self, key: &K, value: &V) -> anyhow::Result<()> {
        self.map.insert(key, value, 0).with_context(|| format!("write {}", self.name))
    }

    /// Takes a key out; one that is already gone counts as removed.
    ///
    /// aya reports it as ENOENT from the syscall, not as `MapError::KeyNotFound`.
    pub(super) fn remove(&mut self, key: &K) -> anyhow::Result<()> {
        match self.map.remove(key) {
            Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("remove from {}", self.name)),
        }
    }
}
