//! An array map that is read and written many entries at a time.

use super::bpf;
use anyhow::Context;
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use std::{
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

/// Bytes of entries read by one system call: enough that the call itself costs next to nothing, and little beside what the
/// agent has in memory anyway, though most entries of a large array are free.
const CHUNK: usize = 64 * 1024;

/// See the module.
pub(super) struct Table<V: Pod> {
    name: &'static str,
    array: Array<MapData, V>,
    /// The same map once more, for what aya doesn't do.
    fd: OwnedFd,
}

impl<V: Pod> Table<V> {
    pub(super) fn new(map: Map, name: &'static str) -> anyhow::Result<Self> {
        let wrong = || format!("map {name} does not have the layout of abi");
        let Map::Array(data) = &map else { anyhow::bail!("{}: it is no array", wrong()) };
        let fd = data.fd().as_fd().try_clone_to_owned().with_context(|| format!("keep map {name} open"))?;
        Ok(Self { name, array: Array::try_from(map).with_context(wrong)?, fd })
    }

    /// Entries read by one system call.
    fn chunk() -> u32 {
        u32::try_from(CHUNK / size_of::<V>()).expect("it is few").max(1)
    }

    pub(super) fn len(&self) -> u32 {
        self.array.len()
    }

    pub(super) fn get(&self, index: u32) -> anyhow::Result<V> {
        self.array.get(&index, 0).with_context(|| format!("read {} {index}", self.name))
    }

    /// The entries of `range`, as far as the array has them, in order and with their indexes.
    pub(super) fn read(&self, range: Range<u32>) -> anyhow::Result<Vec<(u32, V)>> {
        let range = range.start..range.end.min(self.len());
        let mut entries = Vec::new();
        let mut first = range.start;
        while first < range.end {
            let count = Self::chunk().min(range.end - first);
            let values = bpf::read_array(self.fd.as_fd(), first, count);
            let values: Vec<V> = values.with_context(|| format!("read {} from {first} on", self.name))?;
            entries.extend((first..).zip(values));
            first += count;
        }
        Ok(entries)
    }

    /// All entries that are not free.
    pub(super) fn used<M: FromIterator<(u32, V)>>(&self, used: impl Fn(&V) -> bool) -> anyhow::Result<M> {
        let mut found = Vec::new();
        self.each(0..self.len(), |entries| found.extend(entries.into_iter().filter(|(_, value)| used(value))))?;
        Ok(found.into_iter().collect())
    }

    /// Hands over the entries of `range`, a part of them after the other, since most entries of a large array are free.
    pub(super) fn each(&self, range: Range<u32>, mut take: impl FnMut(Vec<(u32, V)>)) -> anyhow::Result<()> {
        let mut first = range.start;
        while first < range.end.min(self.len()) {
            let end = first.saturating_add(Self::chunk()).min(range.end);
            take(self.read(first..end)?);
            first = end;
        }
        Ok(())
    }

    pub(super) fn set(&mut self, index: u32, value: &V) -> anyhow::Result<()> {
        self.array.set(index, value, 0).with_context(|| format!("write {} {index}", self.name))
    }

    /// Writes entries from `first` on, in order. If it fails, some may be written.
    pub(super) fn write(&mut self, first: u32, values: &[V]) -> anyhow::Result<()> {
        match values {
            [] => Ok(()),
            [value] => self.set(first, value),
            _ => bpf::write_array(self.fd.as_fd(), first, values)
                .with_context(|| format!("write {} from {first} on", self.name)),
        }
    }
}
