//! The kernel's tables read as a person or a test reads them: back in names, and look-ups as programs do them.

use super::{Desired, DesiredGroup, DesiredService, Installed, Member, cluster_name, groups, tiers};
use crate::{
    model::{ClusterName, ObjectName, Path},
    prefixes::Cover,
};
use std::collections::BTreeSet;
use tombolo_ebpf::abi::{self, FrontendKey, Service, Slot, path, service_flag};

impl Installed {
    /// Says what is installed in the words of what is desired.
    ///
    /// A group's members have weight 1 if they are equal; otherwise a member's weight is its share of the group in units
    /// of 2⁻³², because the tables keep no more than that of the weights they were made from. Which services a draining
    /// backend is of isn't kept at all.
    pub fn view(&self) -> Desired {
        let frontends = self.frontends().keys();
        Desired {
            services: frontends.filter_map(|key| Some((*key, self.view_service(self.service(key)?)))).collect(),
            pods: self.pods().clone(),
            pod_level: self.config().pod_level,
        }
    }

    fn view_service(&self, service: &Service) -> DesiredService {
        let nameless = || ObjectName { namespace: String::new(), name: String::new() };
        let has = |flag: u32| service.flags & flag != 0;
        DesiredService {
            name: self.names().get(&service.id).cloned().unwrap_or_else(nameless),
            affinity_seconds: has(service_flag::AFFINITY).then_some(service.affinity_seconds),
            exclusive: has(service_flag::EXCLUSIVE),
            no_abort: has(service_flag::NO_ABORT),
            draining: Vec::new(),
            tiers: tiers(service).map(|tier| self.view_tier(tier)).collect(),
        }
    }

    fn view_tier(&self, tier: &[abi::Group]) -> Vec<DesiredGroup> {
        let before = std::iter::once(0).chain(tier.iter().map(|group| group.upto));
        let view = |(group, before): (&abi::Group, u32)| DesiredGroup {
            cluster: self.cluster_of(group.cluster),
            weight: group.upto.saturating_sub(before),
            members: self.view_members(self.slots(group)),
        };
        tier.iter().zip(before).map(view).collect()
    }

    fn view_members(&self, slots: &[Slot]) -> Vec<Member> {
        let mut members: Vec<Member> = slots
            .iter()
            .filter_map(|slot| {
                let backend = self.backend(slot.backend)?;
                let weight = share(slots, slot.backend);
                let path = if backend.path == path::GATEWAY { Path::Gateway } else { Path::Pod };
                let cluster = self.cluster_of(backend.cluster);
                Some(Member { addr: backend.addr, port: backend.port, path, cluster, weight })
            })
            .collect();
        members.sort_unstable();
        members
    }

    fn cluster_of(&self, index: u32) -> ClusterName {
        self.clusters().get(&index).map_or_else(|| ClusterName(String::new()), cluster_name)
    }

    /// The backends that a connect to `key` can be sent to as long as nothing is out, as addresses and ports; none if
    /// the connect is left alone. Goes the way that programs go.
    pub fn lookup(&self, key: &FrontendKey) -> Option<BTreeSet<([u8; 16], [u8; 2])>> {
        let ranges = self.ranges();
        if !(Cover { v4: ranges.frontends4, v6: ranges.frontends6 }).contains(key.addr) {
            return None;
        }
        let slots = groups(self.service(key)?).iter().flat_map(|group| self.slots(group));
        let reached = slots.flat_map(|slot| [slot.backend, slot.alias]).filter_map(|index| self.backend(index));
        Some(reached.map(|backend| (backend.addr, backend.port)).collect())
    }
}

/// What a backend has of these slots, in units of 2⁻³² of all of them; 1 if every slot is its own backend's.
fn share(slots: &[Slot], backend: u32) -> u32 {
    if slots.iter().all(|slot| slot.alias == slot.backend) {
        return 1;
    }
    const FULL: u64 = 1 << 32;
    let mut sum = 0;
    for slot in slots {
        let own = if slot.alias == slot.backend { FULL } else { u64::from(slot.threshold) };
        sum += if slot.backend == backend { own } else { 0 };
        sum += if slot.alias == backend { FULL - own } else { 0 };
    }
    let count = u64::try_from(slots.len()).expect("a length fits 64 bits");
    u32::try_from(sum / count).unwrap_or(u32::MAX).max(1)
}
