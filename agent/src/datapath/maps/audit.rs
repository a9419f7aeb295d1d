//! Compares the kernel's tables with what they should hold, as they are read: no second copy of them is ever in memory.

use super::KernelMaps;
use crate::tables::{Installed, Part, groups, object_name};
use std::collections::BTreeMap;
use tombolo_ebpf::abi::{FrontendKey, Service, Slot};

/// Slots compared at once.
const SLOTS: u32 = 4096;

impl KernelMaps {
    /// Whether a part of the tables holds what is `known`. Nobody may be writing.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub fn agree(&self, known: &Installed, part: Part) -> anyhow::Result<bool> {
        match part {
            Part::Frontends => self.frontends_agree(known),
            Part::Services => self.services_agree(known),
            Part::Slots => self.slots_agree(known),
            Part::Backends => {
                let mut agree = true;
                self.backends.each(0..self.backends.len(), |entries| {
                    agree &= entries
                        .iter()
                        .all(|(index, entry)| (entry.generation != 0).then_some(entry) == known.backend(*index));
                })?;
                Ok(agree)
            }
            Part::Addresses => {
                let (mut agree, mut count) = (true, 0);
                self.backend_of.each(|key, index| {
                    count += 1;
                    agree &= known.backend_of().get(&key) == Some(&index);
                })?;
                Ok(agree && count == known.backend_of().len())
            }
            Part::Members => {
                let (mut agree, mut count) = (true, 0);
                self.members.each(|member, _| {
                    count += 1;
                    agree &= known.members().contains(&member);
                })?;
                Ok(agree && count == known.members().len())
            }
            Part::Others => Ok(self.clusters()? == *known.clusters()
                && self.names_agree(known)?
                && self.pods.all()? == *known.pods()
                && self.config.get(0)? == *known.config()),
        }
    }

    fn frontends_agree(&self, known: &Installed) -> anyhow::Result<bool> {
        let mut ids: Vec<(FrontendKey, u32)> = Vec::with_capacity(known.frontends().len());
        self.frontends.each(|key, id| ids.push((key, id)))?;
        for (key, id) in &ids {
            if known.frontends().get(key) != Some(&self.current.get(*id)?) {
                return Ok(false);
            }
        }
        Ok(ids.len() == known.frontends().len())
    }

    /// Of the entries that frontends lead to; others may hold anything.
    fn services_agree(&self, known: &Installed) -> anyhow::Result<bool> {
        let named: BTreeMap<u32, &Service> = known.named().collect();
        let Some((last, _)) = named.last_key_value() else { return Ok(true) };
        let (mut agree, mut count) = (true, 0);
        self.services.each(0..last + 1, |entries| {
            for (index, entry) in entries {
                if let Some(service) = named.get(&index) {
                    count += 1;
                    agree &= entry == **service;
                }
            }
        })?;
        Ok(agree && count == named.len())
    }

    fn slots_agree(&self, known: &Installed) -> anyhow::Result<bool> {
        let groups = known.named().flat_map(|(_, service)| groups(service));
        let ranges: BTreeMap<u32, &[Slot]> = groups.map(|group| (group.first_slot, known.slots(group))).collect();
        let mut read: Vec<(u32, Slot)> = Vec::new();
        for (first, slots) in ranges {
            let end = first.saturating_add(u32::try_from(slots.len())?);
            let from = read.first().map_or(u32::MAX, |(at, _)| *at);
            let upto = read.last().map_or(0, |(at, _)| *at + 1);
            if first < from || end > upto {
                read = self.slots.read(first..end.max(first.saturating_add(SLOTS)))?;
            }
            let at = read.partition_point(|(at, _)| *at < first);
            let read = read[at..].iter().map(|(_, slot)| slot).take(slots.len());
            if !read.eq(slots) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn names_agree(&self, known: &Installed) -> anyhow::Result<bool> {
        let (mut agree, mut count) = (true, 0);
        self.names.each(|id, name| {
            count += 1;
            agree &= known.names().get(&id) == Some(&object_name(&name));
        })?;
        Ok(agree && count == known.names().len())
    }
}
