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
    /// The first of those that have each address: the only one, unless services differ about its path or its cluster. Looked
    /// up only, never iterated.
    holders: HashMap<BackendKey, u32>,
    /// The others, in order.
    others: BTreeMap<BackendKey, Vec<u32>>,
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
        let others = if self.others.is_empty() { None } else { self.others.get(key) };
        self.holders.get(key).copied().into_iter().chain(others.into_iter().flatten().copied())
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

    /// How many entries there are, with the free ones between them.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
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
            hash_map::Entry::Vacant(vacant) => _ = vacant.insert(index),
            hash_map::Entry::Occupied(mut first) if *first.get() != index => {
                let later = index.max(*first.get());
                first.insert(index.min(*first.get()));
                let others = self.others.entry(key_of(&backend)).or_default();
                if let Err(at) = others.binary_search(&later) {
                    others.insert(at, later);
                }
            }
            hash_map::Entry::Occupied(_) => {}
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
        let others = self.others.get_mut(&key);
        if self.holders.get(&key) == Some(&index) {
            match others.as_ref().and_then(|others| others.first().copied()) {
                Some(next) => _ = self.holders.insert(key, next),
                None => _ = self.holders.remove(&key),
            }
        }
        if let Some(others) = others {
            // Of the others, or the one that is the first now.
            let first = self.holders.get(&key);
            others.retain(|other| *other != index && Some(other) != first);
            if others.is_empty() {
                self.others.remove(&key);
            }
        }
    }
}

/// The backends that slots mention: each slot's own and its alias, which is often the same.
pub(crate) fn mentioned(slots: &[abi::Slot]) -> impl Iterator<Item = u32> {
    slots.iter().flat_map(|slot| [slot.backend, slot.alias])
}

fn position(index: u32) -> usize {
    usize::try_from(index).expect("the agent runs on machines of 32 bits at least")
}
