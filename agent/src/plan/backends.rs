//! What becomes of backends that a plan takes out of slots or puts into them, and of the addresses that lead to them.

use super::layout::Layout;
use crate::tables::{Installed, Step, distinct_ranges, key_of, mentioned};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_ebpf::abi::{self, Backend, BackendKey, verdict};

/// The backends that this plan changes.
pub(super) struct Fates<'a> {
    installed: &'a Installed,
    /// The first of those that the plan writes with each address.
    new: BTreeMap<BackendKey, u32>,
    /// Are cleared, by index: no slot has named them for at least a grace period, nor does this plan.
    pub(super) cleared: Vec<u32>,
    /// Are in no slot, or will be in none, and stay in place.
    left: Vec<u32>,
    /// Were in no slot and will be in one.
    taken: Vec<u32>,
}

impl<'a> Fates<'a> {
    /// Those in `stays` are not cleared; none is without `clears`.
    pub(super) fn of(
        installed: &'a Installed,
        layouts: &[Layout],
        gone: &[&abi::Service],
        stays: &BTreeSet<u32>,
        clears: bool,
    ) -> Self {
        let mut change: BTreeMap<u32, i64> = installed.unnamed_backends().iter().map(|&index| (index, 0)).collect();
        for service in gone {
            for index in distinct_ranges(service).flat_map(|group| mentioned(installed.slots(group))) {
                *change.entry(index).or_default() -= 1;
            }
        }
        for index in layouts.iter().flat_map(|layout| &layout.slots).flat_map(|(_, slots)| mentioned(slots)) {
            *change.entry(index).or_default() += 1;
        }
        let new = layouts.iter().flat_map(|layout| &layout.backends).rev();
        let new = new.map(|(index, backend)| (key_of(backend), *index)).collect();
        let mut fates = Self { installed, new, cleared: Vec::new(), left: Vec::new(), taken: Vec::new() };
        for (index, change) in change.into_iter().filter(|(index, _)| installed.backend(*index).is_some()) {
            let users = i64::from(installed.backend_users(index));
            if users + change > 0 {
                fates.taken.extend((users == 0).then_some(index));
            } else if clears && users == 0 && installed.is_idle(index) && !stays.contains(&index) {
                fates.cleared.push(index);
            } else {
                fates.left.push(index);
            }
        }
        fates
    }

    /// Makes addresses lead to their backends that don't yet: those of new backends, and of others that went astray.
    pub(super) fn lead(&self) -> impl Iterator<Item = Step> {
        let (astray, backend_of) = (self.installed.astray(), self.installed.backend_of());
        let new = self.new.keys().filter(|key| !astray.contains(key) && !backend_of.contains_key(key));
        let keys = new.chain(astray).filter_map(|key| Some((*key, self.heir(key)?)));
        keys.map(|(key, index)| Step::PutBackendOf(key, index))
    }

    /// Lets backends take connections that were draining.
    pub(super) fn welcome(&self) -> impl Iterator<Item = Step> {
        let drains = |backend: &Backend| backend.verdict == verdict::DRAINING;
        let taken = self.taken.iter().filter(move |index| self.installed.backend(**index).is_some_and(drains));
        taken.filter_map(|&index| self.installed.judge_backend(index, verdict::OK))
    }

    /// Parts addresses from backends that are cleared: they lead to another one that has the same address, or to none.
    pub(super) fn part(&self) -> impl Iterator<Item = Step> {
        let (astray, backend_of) = (self.installed.astray(), self.installed.backend_of());
        let leads_to = |key: &BackendKey, index: u32| !astray.contains(key) && backend_of.get(key) == Some(&index);
        let cleared = self.cleared.iter().filter_map(|&index| Some((key_of(self.installed.backend(index)?), index)));
        let cleared = cleared.filter(move |(key, index)| leads_to(key, *index)).map(|(key, _)| key);
        let lost = astray.iter().filter(|key| backend_of.contains_key(key) && self.heir(key).is_none()).copied();
        cleared.chain(lost).map(|key| match self.heir(&key) {
            Some(index) => Step::PutBackendOf(key, index),
            None => Step::DropBackendOf(key),
        })
    }

    /// A backend with this address that stays or comes.
    fn heir(&self, key: &BackendKey) -> Option<u32> {
        let stays = self.installed.holders(key).find(|index| self.cleared.binary_search(index).is_err());
        stays.or_else(|| self.new.get(key).copied())
    }

    /// Lets backends drain that no slot names any more and that take connections by what is written.
    pub(super) fn drain(&self) -> impl Iterator<Item = Step> {
        let takes =
            |index: &&u32| self.installed.backend(**index).is_some_and(|backend| backend.verdict == verdict::OK);
        self.left.iter().filter(takes).filter_map(|&index| self.installed.judge_backend(index, verdict::DRAINING))
    }
}
