//! What plans and people ask of the installed tables.

use super::{Free, Installed, Target, groups, installed::remembers};
use crate::{
    model::ObjectName,
    prefixes::{Cover, cover},
};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_ebpf::abi::{self, BackendKey, FrontendKey, MemberKey, Ranges};

impl Installed {
    /// The frontends, with the index of the entry each leads to.
    pub fn frontends(&self) -> &BTreeMap<FrontendKey, u32> {
        &self.frontends
    }

    /// The entry that a frontend leads to, if it is the frontend's own.
    pub fn service(&self, key: &FrontendKey) -> Option<&abi::Service> {
        self.entry(key).filter(|service| service.key == *key)
    }

    /// The entry that a frontend leads to, whosever it is.
    pub(crate) fn entry(&self, key: &FrontendKey) -> Option<&abi::Service> {
        self.services.get(self.frontends.get(key)?).map(Box::as_ref)
    }

    /// The entries that frontends lead to, by index.
    pub fn named(&self) -> impl Iterator<Item = (u32, &abi::Service)> {
        let named = self.services.iter().filter(|(index, _)| !self.unnamed.contains(index));
        named.map(|(index, service)| (*index, service.as_ref()))
    }

    /// The slots of a group, none if they are not known.
    pub fn slots(&self, group: &abi::Group) -> &[abi::Slot] {
        self.slots.get(&group.first_slot).map_or(&[], Vec::as_slice)
    }

    /// An entry of `BACKENDS`.
    pub fn backend(&self, index: u32) -> Option<&abi::Backend> {
        self.backends.get(index)
    }

    /// All entries of `BACKENDS` in use.
    pub fn backends(&self) -> impl Iterator<Item = (u32, &abi::Backend)> {
        self.backends.iter()
    }

    /// How many these are at most.
    pub(crate) fn backends_len(&self) -> usize {
        self.backends.len()
    }

    /// The index of a backend.
    pub fn find_backend(&self, target: &Target) -> Option<u32> {
        self.backends.find(target)
    }

    /// `BACKEND_OF`.
    pub fn backend_of(&self) -> &BTreeMap<BackendKey, u32> {
        &self.backend_of
    }

    /// The backends that no slot of an entry named mentions, by index: about to be used, draining, or about to be cleared.
    pub fn unnamed_backends(&self) -> &BTreeSet<u32> {
        self.backends.unnamed()
    }

    /// The backends that are dead, by index.
    pub fn dead(&self) -> &BTreeSet<u32> {
        &self.dead
    }

    /// All entries of `CLUSTERS` in use.
    pub fn clusters(&self) -> &BTreeMap<u32, abi::Cluster> {
        &self.clusters
    }

    /// `NAMES`.
    pub fn names(&self) -> &BTreeMap<u32, ObjectName> {
        &self.names
    }

    /// `PODS`.
    pub fn pods(&self) -> &BTreeMap<u64, u32> {
        &self.pods
    }

    /// `CONFIG`.
    pub fn config(&self) -> &abi::Config {
        &self.config
    }

    /// `MEMBERS`.
    pub fn members(&self) -> &BTreeSet<MemberKey> {
        &self.members
    }

    /// The prefixes in force.
    pub fn ranges(&self) -> &Ranges {
        let [first, second] = &self.config.ranges;
        if self.config.active == 0 { first } else { second }
    }

    /// The members that a service's entry asks for: none if nothing is remembered about its choices.
    pub(crate) fn members_of(&self, service: &abi::Service) -> impl Iterator<Item = MemberKey> + use<> {
        let remembers = remembers(service);
        let backends: BTreeSet<u32> = groups(service)
            .iter()
            .filter(|_| remembers)
            .flat_map(|group| self.slots(group))
            .map(|slot| slot.backend)
            .collect();
        let id = service.id;
        backends.into_iter().map(move |backend| MemberKey { service: id, backend })
    }

    pub(crate) fn is_unsound(&self, key: &FrontendKey) -> bool {
        self.unsound.contains(key)
    }

    /// Frontends that lead to what can't be relied on, and have to be written anew whatever is desired.
    pub(crate) fn unsound(&self) -> &BTreeSet<FrontendKey> {
        &self.unsound
    }

    pub(crate) fn stale_members(&self) -> &BTreeSet<MemberKey> {
        &self.stale_members
    }

    /// Names of ids that no entry named has.
    pub(crate) fn stale_names(&self) -> &BTreeSet<u32> {
        &self.stale_names
    }

    /// How many times slots of entries named mention a backend.
    pub(crate) fn backend_users(&self, index: u32) -> u32 {
        self.backends.named(index)
    }

    /// Whether no slot mentions a backend that a program may still read, and it has no open connection.
    pub(crate) fn is_idle(&self, index: u32) -> bool {
        self.backends.held(index) == 0 && !self.busy.contains(&index)
    }

    /// The backends with this address, by index.
    pub(crate) fn holders(&self, key: &BackendKey) -> impl Iterator<Item = u32> + use<'_> {
        self.backends.holders(key)
    }

    /// Addresses that lead to no backend of theirs, or to none although there is one.
    pub(crate) fn astray(&self) -> &BTreeSet<BackendKey> {
        &self.astray
    }

    /// How many backends and groups of entries named have a cluster's index.
    pub(crate) fn cluster_users(&self, index: u32) -> u32 {
        self.cluster_users.get(&index).copied().unwrap_or(0)
    }

    /// Whether a grace period would make anything free.
    pub(crate) fn awaits_grace(&self) -> bool {
        !self.unnamed.is_empty() || !self.loose.is_empty()
    }

    pub(crate) fn config_in_use(&self) -> bool {
        self.config_in_use
    }

    pub(crate) fn config_suspect(&self) -> bool {
        self.config_suspect
    }

    pub(crate) fn last_stamp(&self) -> u32 {
        self.last_stamp
    }

    /// Versions and generations in use beyond the last one given out: some only once the numbers have started over.
    pub(crate) fn stamps_ahead(&self) -> BTreeSet<u32> {
        if self.highest_stamp <= self.last_stamp {
            return BTreeSet::new();
        }
        let versions = self.services.values().map(|service| service.version);
        let generations = self.backends.iter().map(|(_, backend)| backend.generation);
        versions.chain(generations).filter(|stamp| *stamp > self.last_stamp).collect()
    }

    pub(crate) fn free_services(&self) -> &Free {
        &self.free_services
    }

    pub(crate) fn free_slots(&self) -> &Free {
        &self.free_slots
    }

    pub(crate) fn free_backends(&self) -> &Free {
        &self.free_backends
    }

    pub(crate) fn free_ids(&self) -> &Free {
        &self.free_ids
    }

    /// The addresses of backends, nearly in order; some more than once.
    pub(crate) fn backend_addresses(&self) -> impl Iterator<Item = [u8; 16]> {
        self.backend_of.keys().chain(&self.astray).map(|key| key.addr)
    }

    /// Whether the prefixes in force leave something out or cover frontends that are not there.
    pub(super) fn ranges_are_suspect(&self) -> bool {
        let ranges = self.ranges();
        let frontends = cover(self.frontends.keys().map(|key| key.addr));
        let backends = Cover { v4: ranges.backends4, v6: ranges.backends6 };
        frontends != Cover { v4: ranges.frontends4, v6: ranges.frontends6 }
            || !self.backend_addresses().all(|addr| backends.contains(addr))
    }
}
