//! A kernel as plain arrays: it does what it is told, forgets nothing by itself, and has programs that are slow.

use std::collections::{BTreeMap, BTreeSet};
use tombolo::{
    model::ObjectName,
    tables::{Maps, Step, groups},
};
use tombolo_ebpf::abi::{self, BackendKey, FrontendKey, MemberKey};

/// An address and port, as the tables have them.
pub(crate) type End = ([u8; 16], [u8; 2]);

/// Where a connect can be sent to; none if it is left alone.
pub(crate) type Reached = Option<BTreeSet<End>>;

/// The maps, entry by entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    maps: Maps,
    services: BTreeMap<u32, abi::Service>,
    slots: BTreeMap<u32, abi::Slot>,
    /// Programs that looked a frontend up and have not ended.
    running: Vec<Program>,
    /// Programs that looked an address up and have not ended: which backend they found.
    watching: BTreeMap<(BackendKey, u32), abi::Backend>,
    /// Backends with open connections, which say by themselves when they are closed.
    open: BTreeMap<u32, abi::Backend>,
}

/// A program that holds the index of a service's entry, and which prefixes were active when it began.
#[derive(Clone, Debug)]
struct Program {
    index: u32,
    service: abi::Service,
    reaches: Reached,
    active: u32,
    ranges: abi::Ranges,
}

impl Kernel {
    /// Writes what a step says.
    pub(crate) fn apply(&mut self, step: &Step) {
        let maps = &mut self.maps;
        match step.clone() {
            Step::PutCluster(index, cluster) => _ = maps.clusters.insert(index, *cluster),
            Step::PutBackend(index, backend) => _ = maps.backends.insert(index, backend),
            Step::PutBackendOf(key, index) => _ = maps.backend_of.insert(key, index),
            Step::PutSlots(first, slots) => self.slots.extend((first..).zip(slots)),
            Step::PutService(index, service) => _ = self.services.insert(index, *service),
            Step::PutName(id, name) => _ = maps.names.insert(id, name),
            Step::PutMember(member) => _ = maps.members.insert(member),
            Step::PutPod(cgroup, reason) => _ = maps.pods.insert(cgroup, reason),
            Step::PutConfig(config) => maps.config = *config,
            Step::PutFrontend(key, index) => _ = maps.frontends.insert(key, index),
            Step::DropFrontend(key) => _ = maps.frontends.remove(&key),
            Step::DropMember(member) => _ = maps.members.remove(&member),
            Step::DropBackendOf(key) => _ = maps.backend_of.remove(&key),
            Step::DropPod(cgroup) => _ = maps.pods.remove(&cgroup),
            Step::DropName(id) => _ = maps.names.remove(&id),
            Step::DropBackend(index) => _ = maps.backends.remove(&index),
            Step::DropCluster(index) => _ = maps.clusters.remove(&index),
            Step::Grace => self.outlive(),
        }
    }

    /// What an agent that starts reads: every entry of `SERVICES`, of the other arrays what is in use.
    pub(crate) fn read(&self) -> Maps {
        let range = |group: &abi::Group| {
            let range = group.first_slot..group.first_slot + group.slots;
            (group.first_slot, range.filter_map(|index| self.slots.get(&index).copied()).collect())
        };
        let named = self.maps.frontends.values().filter_map(|index| self.services.get(index));
        let slots = named.flat_map(groups).map(range).collect();
        Maps { services: self.services.clone(), slots, ..self.maps.clone() }
    }

    /// The agent is gone long enough for every program to have ended.
    pub(crate) fn outlive(&mut self) {
        self.running.clear();
        self.watching.clear();
    }

    /// Connections are opened to some of the backends that frontends lead to, which `pick` chooses by index, and all others
    /// are closed.
    pub(crate) fn connect(&mut self, pick: impl Fn(u32) -> bool) {
        let services = self.maps.frontends.values().filter_map(|index| self.services.get(index));
        let reached: BTreeSet<u32> = services.flat_map(|service| self.indexes(service)).collect();
        let mut open = std::mem::take(&mut self.open);
        open.retain(|index, _| pick(*index));
        let new = reached.into_iter().filter(|index| pick(*index));
        open.extend(new.filter_map(|index| Some((index, *self.maps.backends.get(&index)?))));
        self.open = open;
    }

    /// The backends with open connections.
    pub(crate) fn busy(&self) -> BTreeSet<u32> {
        self.open.keys().copied().collect()
    }

    /// Whether every connection's backend is found by its address, or another one that has the same, and the prefixes say
    /// that it may be one.
    pub(crate) fn check_connections(&self) -> Result<(), String> {
        let ranges = &self.maps.config.ranges[self.maps.config.active as usize];
        for (index, opened) in &self.open {
            if !self.maps.backends.get(index).is_some_and(|now| is_same(now, opened)) {
                return Err(format!("backend {index} went while it had connections"));
            }
            if !covers(&ranges.backends4, &ranges.backends6, opened.addr) {
                return Err(format!("backend {index} is not covered while it has connections"));
            }
            self.check_address(&key_of(opened))?;
        }
        Ok(())
    }

    fn check_address(&self, key: &BackendKey) -> Result<(), String> {
        let found = self.maps.backend_of.get(key).and_then(|index| self.maps.backends.get(index));
        match found {
            Some(backend) if key_of(backend) == *key => Ok(()),
            found => Err(format!("{key:?} leads to {found:?}")),
        }
    }

    /// Whether every address leads to a backend that has it, once a plan is carried out.
    pub(crate) fn check_addresses(&self) -> Result<(), String> {
        let all: BTreeSet<BackendKey> = self.maps.backends.values().map(key_of).collect();
        let found: BTreeSet<BackendKey> = self.maps.backend_of.keys().copied().collect();
        if all != found {
            return Err(format!("backends have {all:?}, found are {found:?}"));
        }
        all.iter().try_for_each(|key| self.check_address(key))
    }

    /// One program begins for each frontend, and stays at the point where it knows the service's index.
    pub(crate) fn begin_programs(&mut self) {
        for &index in self.maps.frontends.values() {
            let Some(service) = self.services.get(&index) else {
                continue;
            };
            let active = self.maps.config.active;
            if self.running.iter().any(|program| program.index == index && program.active == active) {
                continue;
            }
            self.running.push(Program {
                index,
                service: *service,
                reaches: self.reaches(service),
                active,
                ranges: self.maps.config.ranges[active as usize],
            });
        }
        for (&key, &index) in &self.maps.backend_of {
            if let Some(backend) = self.maps.backends.get(&index).filter(|backend| key_of(backend) == key) {
                self.watching.entry((key, index)).or_insert(*backend);
            }
        }
    }

    /// Every program that is still running has to find what was there when it began.
    pub(crate) fn check_programs(&self) -> Result<(), String> {
        for program in &self.running {
            if self.services.get(&program.index) != Some(&program.service) {
                return Err(format!("entry {} of SERVICES was rewritten under a program", program.index));
            }
            if self.reaches(&program.service) != program.reaches {
                return Err(format!("slots or backends of {:?} were rewritten under a program", program.service.key));
            }
            if self.maps.config.ranges[program.active as usize] != program.ranges {
                return Err("prefixes were rewritten under a program".to_owned());
            }
        }
        for ((key, index), found) in &self.watching {
            if !self.maps.backends.get(index).is_some_and(|now| is_same(now, found)) {
                return Err(format!("backend {index}, found by {key:?}, went under a program"));
            }
        }
        Ok(())
    }

    /// Where a connect to `key` can end.
    pub(crate) fn lookup(&self, key: &FrontendKey) -> Reached {
        let config = &self.maps.config;
        let ranges = &config.ranges[config.active as usize];
        if !covers(&ranges.frontends4, &ranges.frontends6, key.addr) {
            return None;
        }
        let service = self.services.get(self.maps.frontends.get(key)?).filter(|service| service.key == *key)?;
        self.reaches(service)
    }

    /// Whether what programs remember can be checked, and answers can be told from a stranger's.
    pub(crate) fn check_remembered(&self, key: &FrontendKey) -> Result<(), String> {
        let Some(service) = self.maps.frontends.get(key).and_then(|index| self.services.get(index)) else {
            return Ok(());
        };
        let is_udp = key.proto == abi::UDP;
        let ranges = &self.maps.config.ranges[self.maps.config.active as usize];
        for index in self.indexes(service) {
            let member = MemberKey { service: service.id, backend: index };
            if (is_udp || service.flags & abi::service_flag::AFFINITY != 0) && !self.maps.members.contains(&member) {
                return Err(format!("{member:?} is missing"));
            }
            let Some(backend) = self.maps.backends.get(&index) else {
                return Err(format!("backend {index} is missing"));
            };
            if !covers(&ranges.backends4, &ranges.backends6, backend.addr) {
                return Err(format!("backend {index} is not covered"));
            }
            self.check_address(&key_of(backend))?;
            if backend.verdict == abi::verdict::DRAINING {
                return Err(format!("backend {index} is in a slot and drains"));
            }
        }
        Ok(())
    }

    pub(crate) fn frontends(&self) -> impl Iterator<Item = &FrontendKey> {
        self.maps.frontends.keys()
    }

    pub(crate) fn name(&self, key: &FrontendKey) -> Option<&ObjectName> {
        let service = self.services.get(self.maps.frontends.get(key)?)?;
        self.maps.names.get(&service.id)
    }

    /// None if a slot or a backend is not there: a program would send the connect to nowhere.
    fn reaches(&self, service: &abi::Service) -> Reached {
        let target = |index: &u32| {
            let backend = self.maps.backends.get(index).filter(|backend| backend.generation != 0)?;
            Some((backend.addr, backend.port))
        };
        self.indexes(service).iter().map(target).collect()
    }

    fn indexes(&self, service: &abi::Service) -> BTreeSet<u32> {
        let groups = &service.groups[..usize::from(service.tier_end[abi::MAX_TIERS - 1])];
        let slots = groups.iter().flat_map(|group| group.first_slot..group.first_slot + group.slots);
        // A slot that was never written is zero: backend 0.
        let read = |slot| self.slots.get(&slot).map_or([0, 0], |slot| [slot.backend, slot.alias]);
        slots.flat_map(read).collect()
    }
}

fn key_of(backend: &abi::Backend) -> BackendKey {
    BackendKey { addr: backend.addr, port: backend.port, proto: backend.proto, pad: 0 }
}

/// Whether it is the same backend, whatever its verdict.
fn is_same(one: &abi::Backend, other: &abi::Backend) -> bool {
    abi::Backend { verdict: 0, ..*one } == abi::Backend { verdict: 0, ..*other }
}

fn covers(v4: &[abi::Prefix4], v6: &[abi::Prefix6], addr: [u8; 16]) -> bool {
    let half = |from: usize| u64::from_ne_bytes(addr[from..from + 8].try_into().unwrap());
    if addr[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
        let low = u32::from_ne_bytes(addr[12..].try_into().unwrap());
        v4.iter().any(|prefix| prefix.contains(low))
    } else {
        v6.iter().any(|prefix| prefix.contains([half(0), half(8)]))
    }
}
