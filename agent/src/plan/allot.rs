//! Hands out the free entries of the kernel's arrays, a whole service at a time or not at all.

use super::{
    compare::{Clusters, path_of},
    layout::{Layout, check_shape, head},
};
use crate::{
    alias,
    model::ClusterName,
    tables::{Capacity, DesiredGroup, DesiredService, Free, Installed, Member, Target, cluster_entry, remembers},
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
};
use tombolo_ebpf::abi::{FrontendKey, Group, MAX_CLUSTERS, MemberKey, Slot};

/// The part of slots, backends and members that new frontends leave free, so that full tables still take changes.
const RESERVE: u32 = 16;

/// What is left to hand out. Only what was free when the plan began is: what the plan itself sets free is for the next.
pub(super) struct Allot<'a> {
    installed: &'a Installed,
    capacity: &'a Capacity,
    clusters: Clusters,
    free_clusters: Free,
    services: Free,
    slots: Free,
    backends: Free,
    ids: Free,
    /// Backends of this plan that are not installed yet.
    new_backends: HashMap<Target, u32>,
    /// Lengths of runs of slots → where it is worth looking for such a run: none begins before.
    slots_from: BTreeMap<u32, u32>,
    frontends: usize,
    members: usize,
    /// Whether it is a new frontend's turn, so that the reserve is not touched.
    spares: bool,
    last_stamp: u32,
    /// Versions and generations beyond `last_stamp`, if the numbers once started over.
    taken_stamps: BTreeSet<u32>,
}

impl<'a> Allot<'a> {
    pub(super) fn new(installed: &'a Installed, capacity: &'a Capacity, clusters: Clusters) -> Self {
        let mut free_clusters = Free::all();
        free_clusters.take(0, 1);
        installed.clusters().keys().for_each(|&index| free_clusters.take(index, 1));
        Self {
            installed,
            capacity,
            clusters,
            free_clusters,
            services: installed.free_services().clone(),
            slots: installed.free_slots().clone(),
            backends: installed.free_backends().clone(),
            ids: installed.free_ids().clone(),
            new_backends: HashMap::new(),
            slots_from: BTreeMap::new(),
            frontends: installed.frontends().len(),
            members: installed.members().len(),
            spares: false,
            last_stamp: installed.last_stamp(),
            taken_stamps: installed.stamps_ahead(),
        }
    }

    /// Finds room for a new version of the service at `key`. Nothing is taken if it does not fit.
    ///
    /// # Errors
    ///
    /// What there is no room for, in a person's words.
    pub(super) fn lay_out(&mut self, key: FrontendKey, desired: &DesiredService) -> Result<Layout, String> {
        check_shape(desired)?;
        let old_id = self.installed.service(&key).filter(|_| !self.installed.is_unsound(&key)).map(|old| old.id);
        let is_new = !self.installed.frontends().contains_key(&key);
        if is_new && !fits(self.frontends + 1, self.capacity.frontends) {
            return Err(full("frontends", 1, 0, self.capacity.frontends));
        }
        let most = self.capacity.services;
        let index = self.services.find(0, 1, most).ok_or_else(|| full("services", 1, 0, most))?;
        let id = match old_id {
            Some(id) => id,
            None => self.ids.find(0, 1, most).ok_or_else(|| full("service ids", 1, 0, most))?,
        };
        self.spares = is_new;
        let stamp_before = self.last_stamp;
        let version = self.next_stamp();
        let mut layout = Layout {
            index,
            service: head(key, id, version, desired),
            clusters: Vec::new(),
            backends: Vec::new(),
            slots: Vec::new(),
            members: Vec::new(),
            new_members: Vec::new(),
            needs_name: self.installed.names().get(&id) != Some(&desired.name),
            addresses: Vec::new(),
        };
        if let Err(reason) = self.fill(&mut layout, desired) {
            self.give_back(&layout);
            self.last_stamp = stamp_before;
            return Err(reason);
        }
        self.services.take(index, 1);
        self.ids.take(id, 1);
        self.frontends += usize::from(is_new);
        self.members += layout.new_members.len();
        Ok(layout)
    }

    fn fill(&mut self, layout: &mut Layout, desired: &DesiredService) -> Result<(), String> {
        // Groups of the same members share their slots: a tier often repeats what an earlier one holds.
        let mut laid_out: Vec<(&[Member], u32)> = Vec::new();
        let mut at = 0;
        for tier in &desired.tiers {
            let mut upto = 0;
            for group in tier {
                let cluster = self.cluster(layout, &group.cluster)?;
                let known = laid_out.iter().find(|(members, _)| *members == group.members);
                let first_slot = match known {
                    Some((_, first)) => *first,
                    None => self.put_group(layout, group)?,
                };
                laid_out.push((&group.members, first_slot));
                upto += group.weight;
                layout.service.groups[at] = Group { upto, cluster, first_slot, slots: length(group.members.len()) };
                at += 1;
            }
        }
        if remembers(&layout.service) {
            let slots = layout.slots.iter().flat_map(|(_, slots)| slots);
            let backends: BTreeSet<u32> = slots.map(|slot| slot.backend).collect();
            let id = layout.service.id;
            layout.members = backends.into_iter().map(|backend| MemberKey { service: id, backend }).collect();
            let is_new = |member: &&MemberKey| !self.installed.members().contains(member);
            layout.new_members = layout.members.iter().filter(is_new).copied().collect();
            let needed = layout.new_members.len();
            let most = self.limit(self.capacity.members);
            if !fits(self.members + needed, most) {
                return Err(full("members", length(needed), most.saturating_sub(length(self.members)), most));
            }
        }
        Ok(())
    }

    fn put_group(&mut self, layout: &mut Layout, group: &DesiredGroup) -> Result<u32, String> {
        let mut members: Cow<'_, [Member]> = Cow::Borrowed(&group.members);
        if !members.is_sorted() {
            members.to_mut().sort_unstable();
        }
        let mut backends = Vec::with_capacity(members.len());
        for member in members.iter() {
            backends.push(self.backend(layout, member)?);
        }
        let first = self.run_of_slots(length(members.len()))?;
        let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
        let slot = |column: alias::Column| Slot {
            threshold: column.threshold,
            backend: backends[column.own],
            alias: backends[column.alias],
            pad: 0,
        };
        layout.addresses.extend(members.iter().map(|member| member.addr));
        layout.slots.push((first, alias::table(&weights).into_iter().map(slot).collect()));
        Ok(first)
    }

    fn cluster(&mut self, layout: &mut Layout, name: &ClusterName) -> Result<u32, String> {
        if let Some(index) = self.clusters.find(name) {
            return Ok(index);
        }
        let entry = cluster_entry(name).ok_or_else(|| format!("cluster name {name:?} has no room"))?;
        let index = self.free_clusters.find(1, 1, MAX_CLUSTERS);
        let index = index.ok_or_else(|| full("clusters", 1, 0, MAX_CLUSTERS))?;
        self.free_clusters.take(index, 1);
        self.clusters.insert(name.clone(), index);
        layout.clusters.push((index, entry));
        Ok(index)
    }

    /// The index of a backend that is installed already.
    pub(super) fn find_backend(&self, proto: u8, member: &Member) -> Option<u32> {
        let cluster = self.clusters.find(&member.cluster)?;
        self.installed.find_backend(&target(proto, member, cluster))
    }

    fn backend(&mut self, layout: &mut Layout, member: &Member) -> Result<u32, String> {
        let cluster = self.cluster(layout, &member.cluster)?;
        let target = target(layout.service.key.proto, member, cluster);
        if let Some(index) = self.installed.find_backend(&target).or_else(|| self.new_backends.get(&target).copied()) {
            return Ok(index);
        }
        let most = self.limit(self.capacity.backends);
        let index = self.backends.find(0, 1, most).ok_or_else(|| full("backends", 1, 0, most))?;
        self.backends.take(index, 1);
        self.new_backends.insert(target, index);
        // A service's version is new and stays in the tables, so as a generation it is one that was never seen either.
        layout.backends.push((index, target.entry(layout.service.version)));
        Ok(index)
    }

    fn run_of_slots(&mut self, len: u32) -> Result<u32, String> {
        let from = self.slots_from.range(..=len).map(|(_, &from)| from).max().unwrap_or(0);
        let most = self.limit(self.capacity.slots);
        let Some(first) = self.slots.find(from, len, most) else {
            self.slots_from.insert(len, most);
            return Err(full("slots in a row", len, self.slots.count(most), most));
        };
        self.slots_from.insert(len, first);
        self.slots.take(first, len);
        Ok(first)
    }

    fn limit(&self, capacity: u32) -> u32 {
        if self.spares { capacity - capacity / RESERVE } else { capacity }
    }

    fn give_back(&mut self, layout: &Layout) {
        for (index, entry) in &layout.clusters {
            self.free_clusters.give(*index, 1);
            self.clusters.remove(&crate::tables::cluster_name(entry));
        }
        for (index, backend) in &layout.backends {
            self.backends.give(*index, 1);
            self.new_backends.remove(&Target::of(backend));
        }
        for (first, slots) in &layout.slots {
            self.slots.give(*first, length(slots.len()));
        }
        self.slots_from.clear();
    }

    /// A number that no service's version and no backend's generation has, or had not so long ago: the numbers count up
    /// and start over after 2³² changes. 0 is left out, it means free.
    fn next_stamp(&mut self) -> u32 {
        loop {
            self.last_stamp = self.last_stamp.wrapping_add(1);
            if self.last_stamp != 0 && !self.taken_stamps.contains(&self.last_stamp) {
                return self.last_stamp;
            }
        }
    }
}

fn target(proto: u8, member: &Member, cluster: u32) -> Target {
    Target { addr: member.addr, port: member.port, proto, path: path_of(member.path), cluster }
}

fn fits(used: usize, capacity: u32) -> bool {
    u32::try_from(used).is_ok_and(|used| used <= capacity)
}

fn full(what: &str, needed: u32, left: u32, capacity: u32) -> String {
    format!("no room for {needed} more {what}: {left} of {capacity} are left")
}

fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
