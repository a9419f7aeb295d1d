//! Whether what is installed for a frontend is what is desired: asked for every service on every plan, so it walks the
//! slots once and builds nothing.

use crate::{
    alias,
    model::{ClusterName, ObjectName, Path},
    tables::{DesiredGroup, DesiredService, Installed, Member, cluster_name, groups, service_name, tiers},
};
use std::collections::{BTreeSet, HashMap};
use tombolo_ebpf::abi::{FrontendKey, Group, Slot, path, service_flag};

/// The indexes of clusters by name.
pub(super) struct Clusters {
    indexes: HashMap<ClusterName, u32>,
}

impl Clusters {
    /// The clusters installed, and `own` at 0 whatever is installed there. Of several of one name the first counts.
    pub(super) fn of(installed: &Installed, own: &ClusterName) -> Self {
        let others = installed.clusters().iter().rev().filter(|(index, _)| **index != 0);
        let mut indexes: HashMap<ClusterName, u32> =
            others.map(|(&index, entry)| (cluster_name(entry), index)).collect();
        indexes.insert(own.clone(), 0);
        Self { indexes }
    }

    pub(super) fn find(&self, name: &ClusterName) -> Option<u32> {
        self.indexes.get(name).copied()
    }

    pub(super) fn insert(&mut self, name: ClusterName, index: u32) {
        self.indexes.insert(name, index);
    }

    pub(super) fn remove(&mut self, name: &ClusterName) {
        self.indexes.remove(name);
    }
}

/// The id of the service if `desired` is installed at `key`, whatever its name.
pub(super) fn agrees(
    installed: &Installed,
    clusters: &Clusters,
    key: &FrontendKey,
    desired: &DesiredService,
) -> Option<u32> {
    let service = installed.service(key).filter(|_| !installed.is_unsound(key))?;
    let same_head = service.flags == flags(desired)
        && service.affinity_seconds == desired.affinity_seconds.unwrap_or(0)
        && tiers(service).count() == desired.tiers.len();
    let same_tier = |(tier, desired): (&[Group], &Vec<DesiredGroup>)| {
        let before = std::iter::once(0).chain(tier.iter().map(|group| group.upto));
        let weights = tier.iter().zip(before).map(|(group, before)| group.upto.checked_sub(before));
        tier.len() == desired.len()
            && weights.eq(desired.iter().map(|group| Some(group.weight)))
            && tier.iter().zip(desired).all(|(group, desired)| {
                Some(group.cluster) == clusters.find(&desired.cluster)
                    && same_members(installed, clusters, key.proto, group, desired)
            })
    };
    (same_head && tiers(service).zip(&desired.tiers).all(same_tier)).then_some(service.id)
}

/// The service's flags as they are installed.
pub(super) fn flags(service: &DesiredService) -> u32 {
    let affinity = if service.affinity_seconds.is_some() { service_flag::AFFINITY } else { 0 };
    let exclusive = if service.exclusive { service_flag::EXCLUSIVE } else { 0 };
    let no_abort = if service.no_abort { service_flag::NO_ABORT } else { 0 };
    affinity | exclusive | no_abort
}

/// The value of [`abi::path`](path).
pub(super) fn path_of(path: Path) -> u8 {
    match path {
        Path::Pod => path::POD,
        Path::Gateway => path::GATEWAY,
    }
}

/// Whether two names are the same as far as the kernel's table has room.
pub(super) fn same_name(installed: &ObjectName, desired: &ObjectName) -> bool {
    installed == desired || service_name(installed) == service_name(desired)
}

fn same_members(installed: &Installed, clusters: &Clusters, proto: u8, group: &Group, desired: &DesiredGroup) -> bool {
    let slots = installed.slots(group);
    let members = &desired.members;
    if slots.len() != members.len() {
        return false;
    }
    if !members.is_sorted() {
        let mut sorted = desired.clone();
        sorted.members.sort_unstable();
        return same_members(installed, clusters, proto, group, &sorted);
    }
    let is_member = |(slot, member): (&Slot, &Member)| {
        let same_cluster = |index: u32| {
            if member.cluster == desired.cluster {
                index == group.cluster
            } else {
                Some(index) == clusters.find(&member.cluster)
            }
        };
        installed.backend(slot.backend).is_some_and(|backend| {
            backend.addr == member.addr
                && backend.port == member.port
                && backend.proto == proto
                && backend.path == path_of(member.path)
                && same_cluster(backend.cluster)
        })
    };
    slots.iter().zip(members).all(is_member) && same_shares(slots, members)
}

fn same_shares(slots: &[Slot], members: &[Member]) -> bool {
    if members.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
        return slots.iter().all(|slot| slot.alias == slot.backend);
    }
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    alias::table(&weights).iter().zip(slots).all(|(column, slot)| {
        let is_full = column.alias == column.own;
        slot.alias == slots[column.alias].backend && (is_full || slot.threshold == column.threshold)
    })
}

/// Whether `desired` has every address and port that is installed at `key`.
pub(super) fn keeps_all(installed: &Installed, key: &FrontendKey, desired: &DesiredService) -> bool {
    let new: BTreeSet<_> =
        desired.tiers.iter().flatten().flat_map(|group| &group.members).map(|new| (new.addr, new.port)).collect();
    let old = installed.entry(key).into_iter().flat_map(groups).flat_map(|group| installed.slots(group));
    old.filter_map(|slot| installed.backend(slot.backend)).all(|old| new.contains(&(old.addr, old.port)))
}
