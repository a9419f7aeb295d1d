//! What the kernel's maps hold, with the indexes that make planning cheap.

use super::{Backends, Free, Maps, Step, backends::key_of, groups};
use crate::{model::ObjectName, prefixes::Cover};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_ebpf::abi::{self, BackendKey, FrontendKey, MemberKey, Ranges, service_flag, verdict};

/// The maps' contents as user space knows them: read back once with [`from_maps`](Self::from_maps), then kept up with
/// [`apply`](Self::apply), one call after each write that succeeded.
///
/// An entry of `SERVICES` is *named* while a frontend leads to it, and *held* until the grace period after it was
/// named for the last time, because programs may still be reading it. What is neither is free to be written.
#[derive(Clone, Debug)]
pub struct Installed {
    pub(super) frontends: BTreeMap<FrontendKey, u32>,
    /// The entries held.
    pub(super) services: BTreeMap<u32, Box<abi::Service>>,
    /// The ranges of these entries' groups, and those that no entry names yet.
    pub(super) slots: BTreeMap<u32, Vec<abi::Slot>>,
    pub(super) backends: Backends,
    pub(super) backend_of: BTreeMap<BackendKey, u32>,
    pub(super) members: BTreeSet<MemberKey>,
    pub(super) clusters: BTreeMap<u32, abi::Cluster>,
    pub(super) names: BTreeMap<u32, ObjectName>,
    pub(super) pods: BTreeMap<u64, u32>,
    pub(super) config: abi::Config,
    /// Entries held that no frontend names: written but not reached yet, or left behind since the last grace period.
    pub(super) unnamed: BTreeSet<u32>,
    /// Ranges in `slots` that no entry held names.
    pub(super) loose: BTreeSet<u32>,
    /// Addresses that lead to no backend of theirs, or to none although there is one.
    pub(super) astray: BTreeSet<BackendKey>,
    /// Backends whose address was made to lead elsewhere since the last grace period: programs may still know them by it.
    pub(super) parted: BTreeSet<u32>,
    /// Backends that are not to be cleared although no slot names them: they have open connections.
    pub(super) busy: BTreeSet<u32>,
    /// Backends that are dead.
    pub(super) dead: BTreeSet<u32>,
    /// Members of no service that is named, or no longer of theirs.
    pub(super) stale_members: BTreeSet<MemberKey>,
    /// Names of ids that no entry named has.
    pub(super) stale_names: BTreeSet<u32>,
    /// Service ids → the entry named that has it.
    pub(super) ids: BTreeMap<u32, u32>,
    /// Cluster indexes → how many backends and groups of entries named have it.
    pub(super) cluster_users: BTreeMap<u32, u32>,
    pub(super) free_services: Free,
    pub(super) free_slots: Free,
    pub(super) free_backends: Free,
    /// Ids that no entry named, no member and no name has.
    pub(super) free_ids: Free,
    /// The version that was given out last.
    pub(super) last_stamp: u32,
    /// The greatest number that a version or a generation ever had.
    pub(super) highest_stamp: u32,
    /// Whether programs may still be reading the prefixes that are not active.
    pub(super) config_in_use: bool,
    /// Whether the prefixes found at the start left something out or covered frontends that are not there, and are still
    /// in force.
    pub(super) config_suspect: bool,
    /// Frontends whose entry could not be made out when it was read back: they are written anew.
    pub(super) unsound: BTreeSet<FrontendKey>,
    /// Whether one of these left something behind that another entry may share.
    pub(super) entangled: bool,
}

impl Default for Installed {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            services: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: Backends::default(),
            backend_of: BTreeMap::new(),
            astray: BTreeSet::new(),
            parted: BTreeSet::new(),
            busy: BTreeSet::new(),
            dead: BTreeSet::new(),
            members: BTreeSet::new(),
            clusters: BTreeMap::new(),
            names: BTreeMap::new(),
            pods: BTreeMap::new(),
            config: Maps::default().config,
            unnamed: BTreeSet::new(),
            loose: BTreeSet::new(),
            stale_members: BTreeSet::new(),
            stale_names: BTreeSet::new(),
            ids: BTreeMap::new(),
            cluster_users: BTreeMap::new(),
            free_services: Free::all(),
            free_slots: Free::all(),
            free_backends: Free::all(),
            free_ids: Free::all(),
            last_stamp: 0,
            highest_stamp: 0,
            config_in_use: false,
            config_suspect: false,
            unsound: BTreeSet::new(),
            entangled: false,
        }
    }
}

impl Installed {
    /// Takes over what was read from the kernel.
    ///
    /// A grace period has to lie between the last write of the agent before and the first step that follows: everything
    /// that no frontend leads to is taken to be free. Contents that no agent would have written are no error: the next
    /// plan replaces what it can't make out.
    pub fn from_maps(maps: Maps) -> Self {
        let mut installed = Self { clusters: maps.clusters, pods: maps.pods, config: maps.config, ..Self::default() };
        let versions = maps.services.values().map(|service| service.version);
        let generations = maps.backends.values().map(|backend| backend.generation);
        let last_stamp = versions.chain(generations).max().unwrap_or(0);
        for (index, backend) in maps.backends {
            installed.put_backend(index, backend);
        }
        for (key, index) in maps.backend_of {
            installed.put_backend_of(key, index);
        }
        installed.parted.clear();
        for (first, slots) in maps.slots {
            installed.put_slots(first, slots);
        }
        for (id, name) in maps.names {
            installed.names.insert(id, name);
            installed.settle_id(id);
        }
        for member in maps.members {
            installed.put_member(member);
        }
        for (key, index) in maps.frontends {
            installed.free_services.take(index, 1);
            let mut is_alone = true;
            if !installed.services.contains_key(&index)
                && let Some(service) = maps.services.get(&index)
            {
                is_alone = installed.ranges_are_free(service);
                installed.put_service(index, *service);
            }
            if !is_alone || !installed.is_sound(&key, index) {
                installed.unsound.insert(key);
            }
            installed.frontends.insert(key, index);
            installed.name(index);
        }
        installed.settle();
        (installed.last_stamp, installed.highest_stamp) = (last_stamp, last_stamp);
        installed.config_suspect = installed.ranges_are_suspect();
        installed
    }

    /// The contents, as they would be read back now.
    pub fn to_maps(&self) -> Maps {
        let named = |index: &u32| Some((*index, **self.services.get(index)?));
        let services: BTreeMap<u32, abi::Service> = self.frontends.values().filter_map(named).collect();
        let range = |group: &abi::Group| Some((group.first_slot, self.slots.get(&group.first_slot)?.clone()));
        let slots = services.values().flat_map(groups).filter_map(range).collect();
        Maps {
            frontends: self.frontends.clone(),
            slots,
            services,
            backends: self.backends.to_map(),
            backend_of: self.backend_of.clone(),
            members: self.members.clone(),
            clusters: self.clusters.clone(),
            names: self.names.clone(),
            pods: self.pods.clone(),
            config: self.config,
        }
    }

    /// Says which backends have open connections: no plan clears them or gives their indexes to others. All others are
    /// idle.
    pub fn set_busy(&mut self, busy: BTreeSet<u32>) {
        self.busy = busy;
    }

    /// Does what `step` does to the kernel's maps. Takes any step; [`check`](Self::check) says whether it is a safe one.
    pub fn apply(&mut self, step: &Step) {
        match *step {
            Step::PutCluster(index, ref cluster) => {
                self.clusters.insert(index, **cluster);
            }
            Step::PutBackend(index, backend) => self.put_backend(index, backend),
            Step::PutBackendOf(key, index) => self.put_backend_of(key, index),
            Step::PutSlots(first, ref slots) => self.put_slots(first, slots.clone()),
            Step::PutService(index, ref service) => self.put_service(index, **service),
            Step::PutName(id, ref name) => {
                self.names.insert(id, name.clone());
                self.settle_id(id);
            }
            Step::PutMember(member) => self.put_member(member),
            Step::PutPod(cgroup, reason) => {
                self.pods.insert(cgroup, reason);
            }
            Step::PutConfig(ref config) => self.put_config(**config),
            Step::PutFrontend(key, index) => self.put_frontend(key, index),
            Step::DropFrontend(key) => {
                if let Some(index) = self.frontends.remove(&key) {
                    self.unname(key, index);
                }
            }
            Step::DropMember(member) => {
                self.members.remove(&member);
                self.stale_members.remove(&member);
                self.settle_id(member.service);
            }
            Step::DropPod(cgroup) => {
                self.pods.remove(&cgroup);
            }
            Step::DropName(id) => {
                self.names.remove(&id);
                self.settle_id(id);
            }
            Step::DropBackendOf(key) => {
                self.parted.extend(self.backend_of.remove(&key));
                self.settle_address(key);
            }
            Step::DropBackend(index) => self.drop_backend(index),
            Step::DropCluster(index) => {
                self.clusters.remove(&index);
            }
            Step::Grace => self.settle(),
        }
    }

    fn put_backend(&mut self, index: u32, backend: abi::Backend) {
        let old = self.backends.put(index, backend);
        self.highest_stamp = self.highest_stamp.max(backend.generation);
        self.free_backends.take(index, 1);
        self.use_cluster(backend.cluster);
        if backend.verdict == verdict::DEAD {
            self.dead.insert(index);
        } else {
            self.dead.remove(&index);
        }
        self.settle_address(key_of(&backend));
        if let Some(old) = old {
            self.leave_cluster(old.cluster);
            self.settle_address(key_of(&old));
        }
    }

    fn drop_backend(&mut self, index: u32) {
        if let Some(old) = self.backends.drop(index) {
            self.leave_cluster(old.cluster);
            self.free_backends.give(index, 1);
            self.busy.remove(&index);
            self.dead.remove(&index);
            self.settle_address(key_of(&old));
        }
    }

    fn put_backend_of(&mut self, key: BackendKey, index: u32) {
        let old = self.backend_of.insert(key, index);
        self.parted.extend(old.filter(|&old| old != index));
        self.settle_address(key);
    }

    fn settle_address(&mut self, key: BackendKey) {
        let is_right = match self.backend_of.get(&key) {
            Some(&index) => self.backends.get(index).is_some_and(|backend| key_of(backend) == key),
            None => self.backends.holders(&key).next().is_none(),
        };
        if is_right {
            self.astray.remove(&key);
        } else {
            self.astray.insert(key);
        }
    }

    /// Slots that no entry names stay free until one does, so a plan that was broken off leaves nothing behind.
    fn put_slots(&mut self, first: u32, slots: Vec<abi::Slot>) {
        let end = first.saturating_add(length(&slots));
        let begins_before =
            |(&at, old): (&u32, &Vec<abi::Slot>)| (at.saturating_add(length(old)) > first).then_some(at);
        let overwritten: Vec<u32> = self.slots.range(..first).next_back().and_then(begins_before).into_iter().collect();
        let inside: Vec<u32> = self.slots.range(first..end).map(|(&at, _)| at).collect();
        for at in overwritten.into_iter().chain(inside) {
            if self.loose.remove(&at) {
                self.slots.remove(&at);
            }
        }
        self.slots.insert(first, slots);
        self.loose.insert(first);
    }

    fn put_service(&mut self, index: u32, service: abi::Service) {
        if self.services.contains_key(&index) {
            self.release(index);
        }
        self.last_stamp = service.version;
        self.highest_stamp = self.highest_stamp.max(service.version);
        self.services.insert(index, Box::new(service));
        self.unnamed.insert(index);
        self.free_services.take(index, 1);
        for group in distinct_ranges(&service) {
            self.free_slots.take(group.first_slot, group.slots);
            self.loose.remove(&group.first_slot);
            if let Some(slots) = self.slots.get(&group.first_slot) {
                self.backends.hold(slots);
            }
        }
    }

    /// Forgets an entry that no program can be reading any more.
    fn release(&mut self, index: u32) {
        self.unnamed.remove(&index);
        self.free_services.give(index, 1);
        let Some(service) = self.services.remove(&index) else {
            return;
        };
        for group in distinct_ranges(&service) {
            self.free_slots.give(group.first_slot, group.slots);
            if let Some(slots) = self.slots.remove(&group.first_slot) {
                self.backends.release(&slots);
            }
        }
    }

    fn put_member(&mut self, member: MemberKey) {
        if self.members.insert(member) {
            self.stale_members.insert(member);
            self.settle_id(member.service);
        }
    }

    fn put_config(&mut self, config: abi::Config) {
        if config.active != self.config.active {
            self.config_in_use = true;
            self.config_suspect = false;
        }
        self.config = config;
    }

    fn put_frontend(&mut self, key: FrontendKey, index: u32) {
        let old = self.frontends.insert(key, index);
        if old == Some(index) {
            return;
        }
        if let Some(old) = old {
            self.unname(key, old);
        }
        self.name(index);
    }

    /// A frontend leads to this entry now.
    fn name(&mut self, index: u32) {
        let Some(service) = self.services.get(&index).map(|service| **service) else {
            return;
        };
        self.unnamed.remove(&index);
        self.ids.entry(service.id).or_insert(index);
        self.settle_id(service.id);
        for group in groups(&service) {
            self.use_cluster(group.cluster);
        }
        for group in distinct_ranges(&service) {
            if let Some(slots) = self.slots.get(&group.first_slot) {
                self.backends.name(slots);
            }
        }
        for member in self.members_of(&service) {
            self.stale_members.remove(&member);
        }
    }

    /// No frontend leads to this entry any more.
    fn unname(&mut self, key: FrontendKey, index: u32) {
        let was_unsound = self.unsound.remove(&key);
        self.entangled |= was_unsound;
        let Some(service) = self.services.get(&index).map(|service| **service) else {
            self.free_services.give(index, 1);
            return;
        };
        if !was_unsound || !self.frontends.values().any(|&other| other == index) {
            self.unnamed.insert(index);
        }
        for group in groups(&service) {
            self.leave_cluster(group.cluster);
        }
        for group in distinct_ranges(&service) {
            if let Some(slots) = self.slots.get(&group.first_slot) {
                self.backends.unname(slots);
            }
        }
        let members: Vec<MemberKey> = self.members_of(&service).filter(|key| self.members.contains(key)).collect();
        self.stale_members.extend(members);
        if self.ids.get(&service.id) == Some(&index) {
            self.ids.remove(&service.id);
            self.settle_id(service.id);
        }
    }

    /// A grace period is over: whatever is neither named nor about to be is free.
    fn settle(&mut self) {
        self.config_in_use = false;
        self.parted.clear();
        for index in std::mem::take(&mut self.unnamed) {
            self.release(index);
        }
        for first in std::mem::take(&mut self.loose) {
            self.slots.remove(&first);
        }
        if std::mem::take(&mut self.entangled) {
            let (last_stamp, busy) = (self.last_stamp, std::mem::take(&mut self.busy));
            *self = Self { last_stamp, busy, ..Self::from_maps(self.to_maps()) };
        }
    }

    fn settle_id(&mut self, id: u32) {
        if self.names.contains_key(&id) && !self.ids.contains_key(&id) {
            self.stale_names.insert(id);
        } else {
            self.stale_names.remove(&id);
        }
        let mut members = self.members.range(MemberKey { service: id, backend: 0 }..);
        let has_members = members.next().is_some_and(|member| member.service == id);
        if has_members || self.ids.contains_key(&id) || self.names.contains_key(&id) {
            self.free_ids.take(id, 1);
        } else {
            self.free_ids.give(id, 1);
        }
    }

    fn use_cluster(&mut self, cluster: u32) {
        *self.cluster_users.entry(cluster).or_default() += 1;
    }

    fn leave_cluster(&mut self, cluster: u32) {
        if let Some(users) = self.cluster_users.get_mut(&cluster) {
            *users = users.saturating_sub(1);
        }
    }

    /// Whether a frontend leads to an entry in which everything is as a plan would have written it.
    fn is_sound(&self, key: &FrontendKey, index: u32) -> bool {
        let Some(service) = self.services.get(&index) else {
            return false;
        };
        service.key == *key
            && !self.ids.contains_key(&service.id)
            && groups_are_sound(service)
            && groups(service).iter().all(|group| self.clusters.contains_key(&group.cluster))
            && groups(service).iter().all(|group| self.slots_are_sound(key.proto, group))
            && self.members_of(service).all(|member| self.members.contains(&member))
    }

    fn ranges_are_free(&self, service: &abi::Service) -> bool {
        distinct_ranges(service).all(|group| {
            let end = group.first_slot.saturating_add(group.slots);
            self.free_slots.find(group.first_slot, group.slots, end) == Some(group.first_slot)
        })
    }

    fn slots_are_sound(&self, proto: u8, group: &abi::Group) -> bool {
        let fits = |index| self.backends.get(index).is_some_and(|backend| backend.proto == proto);
        self.slots.get(&group.first_slot).is_some_and(|slots| {
            length(slots) == group.slots && slots.iter().all(|slot| fits(slot.backend) && fits(slot.alias))
        })
    }
}

/// Whether choices of this service are remembered, so that it needs members.
pub(crate) fn remembers(service: &abi::Service) -> bool {
    service.key.proto == abi::UDP || service.flags & service_flag::AFFINITY != 0
}

pub(crate) fn to_ranges(frontends: Cover, backends: Cover) -> Ranges {
    Ranges { frontends4: frontends.v4, frontends6: frontends.v6, backends4: backends.v4, backends6: backends.v6 }
}

/// Groups of one service may share a range.
pub(crate) fn distinct_ranges(service: &abi::Service) -> impl Iterator<Item = &abi::Group> {
    let groups = groups(service);
    let is_first = |(at, group): &(usize, &abi::Group)| !groups[..*at].iter().any(|g| g.first_slot == group.first_slot);
    groups.iter().enumerate().filter(is_first).map(|(_, group)| group)
}

fn groups_are_sound(service: &abi::Service) -> bool {
    let mut start = 0;
    service.tier_end.iter().map(|&end| usize::from(end)).all(|end| {
        let tier = service.groups.get(start..end);
        start = end;
        let weights = |pair: &[abi::Group]| pair[0].upto < pair[1].upto;
        tier.is_some_and(|tier| tier.windows(2).all(weights) && tier.first().is_none_or(|group| group.upto > 0))
    })
}

fn length(slots: &[abi::Slot]) -> u32 {
    u32::try_from(slots.len()).unwrap_or(u32::MAX)
}
