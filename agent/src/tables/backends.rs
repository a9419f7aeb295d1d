//! The backends in the kernel: dense, since a plan compares every slot's backend, and found by what they are.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use tombolo_ebpf::abi::{self, Backend, BackendKey};

/// What makes a backend the one it is; its index, generation and verdict can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// IPv4 as an IPv4-mapped IPv6 address, in network byte order.
    pub addr: [u8; 16],
    /// In network byte order.
    pub port: [u8; 2],
    /// IANA protocol number.
    pub proto: u8,
    /// A value of [`abi::path`].
    pub path: u8,
    /// Index in [`abi::map::CLUSTERS`].
    pub cluster: u32,
}

impl Target {
    /// What `backend` is.
    pub fn of(backend: &Backend) -> Self {
        let Backend { addr, port, proto, path, cluster, .. } = *backend;
        Self { addr, port, proto, path, cluster }
    }

    /// The entry of a backend that takes connections.
    pub(crate) fn entry(&self, generation: u32) -> Backend {
        let Self { addr, port, proto, path, cluster } = *self;
        Backend { addr, port, proto, path, cluster, generation, verdict: abi::verdict::OK, pad: [0; 3] }
    }
}

/// What leads to `backend` in [`abi::map::BACKEND_OF`].
pub(crate) fn key_of(backend: &Backend) -> BackendKey {
    BackendKey { addr: backend.addr, port: backend.port, proto: backend.proto, pad: 0 }
}

/// The entries of `BACKENDS`, with what names them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backends {
    entries: Vec<Option<Entry>>,
    /// Who has each address; looked up only, never iterated.
    holders: HashMap<BackendKey, Holders>,
    /// Entries that no slot of a service that a frontend names mentions.
    unnamed: BTreeSet<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    backend: Backend,
    /// How many times slots of services that a frontend names mention it, as backend or alias.
    named: u32,
    /// The same for all services, those included that wait for a grace period.
    held: u32,
}

/// The backends with one address, as indexes in order: one, unless services differ about its path or its cluster.
#[derive(Clone, Debug)]
struct Holders {
    first: u32,
    others: Vec<u32>,
}

impl Backends {
    pub(crate) fn get(&self, index: u32) -> Option<&Backend> {
        self.entry(index).map(|entry| &entry.backend)
    }

    /// The smallest index of such a backend.
    pub(crate) fn find(&self, target: &Target) -> Option<u32> {
        let key = BackendKey { addr: target.addr, port: target.port, proto: target.proto, pad: 0 };
        self.holders(&key).find(|index| self.get(*index).is_some_and(|backend| Target::of(backend) == *target))
    }

    /// The backends with this address, by index.
    pub(crate) fn holders(&self, key: &BackendKey) -> impl Iterator<Item = u32> + use<'_> {
        let holders = self.holders.get(key);
        let (first, others) =
            (holders.map(|holders| holders.first), holders.map_or(&[][..], |holders| &holders.others));
        first.into_iter().chain(others.iter().copied())
    }

    pub(crate) fn named(&self, index: u32) -> u32 {
        self.entry(index).map_or(0, |entry| entry.named)
    }

    pub(crate) fn held(&self, index: u32) -> u32 {
        self.entry(index).map_or(0, |entry| entry.held)
    }

    pub(crate) fn unnamed(&self) -> &BTreeSet<u32> {
        &self.unnamed
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Backend)> {
        (0..).zip(&self.entries).filter_map(|(index, entry)| Some((index, &entry.as_ref()?.backend)))
    }

    /// Writes an entry; returns the one that was there.
    pub(crate) fn put(&mut self, index: u32, backend: Backend) -> Option<Backend> {
        let at = position(index);
        if self.entries.len() <= at {
            self.entries.resize(at + 1, None);
        }
        let old = self.entries[at];
        let (named, held) = old.map_or((0, 0), |old| (old.named, old.held));
        self.entries[at] = Some(Entry { backend, named, held });
        if named == 0 {
            self.unnamed.insert(index);
        }
        if let Some(old) = old {
            self.forget(index, &old.backend);
        }
        match self.holders.entry(key_of(&backend)) {
            hash_map::Entry::Vacant(vacant) => _ = vacant.insert(Holders { first: index, others: Vec::new() }),
            hash_map::Entry::Occupied(mut holders) => holders.get_mut().add(index),
        }
        old.map(|old| old.backend)
    }

    /// Clears an entry; returns what was there.
    pub(crate) fn drop(&mut self, index: u32) -> Option<Backend> {
        let old = self.entries.get_mut(position(index))?.take()?;
        self.forget(index, &old.backend);
        self.unnamed.remove(&index);
        Some(old.backend)
    }

    /// Notes that slots of a service mention these.
    pub(crate) fn hold(&mut self, slots: &[abi::Slot]) {
        self.each(slots, |entry| entry.held += 1);
    }

    /// Takes back what [`hold`](Self::hold) noted.
    pub(crate) fn release(&mut self, slots: &[abi::Slot]) {
        self.each(slots, |entry| entry.held = entry.held.saturating_sub(1));
    }

    /// Notes that slots of a service that a frontend names mention these.
    pub(crate) fn name(&mut self, slots: &[abi::Slot]) {
        self.each(slots, |entry| entry.named += 1);
        for index in mentioned(slots) {
            self.unnamed.remove(&index);
        }
    }

    /// Takes back what [`name`](Self::name) noted.
    pub(crate) fn unname(&mut self, slots: &[abi::Slot]) {
        self.each(slots, |entry| entry.named = entry.named.saturating_sub(1));
        for index in mentioned(slots) {
            if self.entry(index).is_some_and(|entry| entry.named == 0) {
                self.unnamed.insert(index);
            }
        }
    }

    pub(crate) fn to_map(&self) -> BTreeMap<u32, Backend> {
        self.iter().map(|(index, backend)| (index, *backend)).collect()
    }

    fn entry(&self, index: u32) -> Option<&Entry> {
        self.entries.get(position(index))?.as_ref()
    }

    fn each(&mut self, slots: &[abi::Slot], change: impl Fn(&mut Entry)) {
        for index in mentioned(slots) {
            if let Some(Some(entry)) = self.entries.get_mut(position(index)) {
                change(entry);
            }
        }
    }

    /// Takes `index` out of the holders of its address.
    fn forget(&mut self, index: u32, backend: &Backend) {
        let key = key_of(backend);
        let is_last = self.holders.get_mut(&key).is_some_and(|holders| !holders.remove(index));
        if is_last {
            self.holders.remove(&key);
        }
    }
}

impl Holders {
    fn add(&mut self, index: u32) {
        let later = index.max(self.first);
        self.first = index.min(self.first);
        if later != self.first
            && let Err(at) = self.others.binary_search(&later)
        {
            self.others.insert(at, later);
        }
    }

    /// Whether one is left.
    fn remove(&mut self, index: u32) -> bool {
        if let Ok(at) = self.others.binary_search(&index) {
            self.others.remove(at);
        } else if index == self.first {
            if self.others.is_empty() {
                return false;
            }
            self.first = self.others.remove(0);
        }
        true
    }
}

/// The backends that slots mention: each slot's own and its alias, which is often the same.
pub(crate) fn mentioned(slots: &[abi::Slot]) -> impl Iterator<Item = u32> {
    slots.iter().flat_map(|slot| [slot.backend, slot.alias])
}

fn position(index: u32) -> usize {
    usize::try_from(index).expect("the agent runs on machines of 32 bits at least")
}
