//! One service as it is going to lie in the maps.

use super::compare::flags;
use crate::tables::{DesiredGroup, DesiredService};
use tombolo_ebpf::abi::{
    self, Backend, Cluster, FrontendKey, Group, MAX_GROUPS, MAX_TIER_GROUPS, MAX_TIERS, MemberKey, Slot,
};

/// A new version of a service with everything that has to be written before a frontend may lead to it.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Where the entry goes in `SERVICES`.
    pub(super) index: u32,
    pub(super) service: abi::Service,
    /// Entries that are not installed yet.
    pub(super) clusters: Vec<(u32, Cluster)>,
    pub(super) backends: Vec<(u32, Backend)>,
    pub(super) slots: Vec<(u32, Vec<Slot>)>,
    /// All its members, if it has any.
    pub(super) members: Vec<MemberKey>,
    /// Those that are not installed yet.
    pub(super) new_members: Vec<MemberKey>,
    pub(super) needs_name: bool,
    /// The addresses of its backends, which the prefixes for backends have to cover.
    pub(super) addresses: Vec<[u8; 16]>,
}

/// The entry of a service without its groups.
pub(super) fn head(key: FrontendKey, id: u32, version: u32, desired: &DesiredService) -> abi::Service {
    abi::Service {
        key,
        id,
        version,
        flags: flags(desired),
        affinity_seconds: desired.affinity_seconds.unwrap_or(0),
        tier_end: tier_ends(desired),
        pad: 0,
        groups: [Group::default(); MAX_GROUPS],
    }
}

fn tier_ends(desired: &DesiredService) -> [u8; MAX_TIERS] {
    let mut ends = [0; MAX_TIERS];
    let mut groups = 0;
    for (at, end) in ends.iter_mut().enumerate() {
        groups += desired.tiers.get(at).map_or(0, Vec::len);
        *end = u8::try_from(groups).expect("a service has at most MAX_GROUPS groups");
    }
    ends
}

/// Says why no table can hold `desired`, if so.
pub(super) fn check_shape(desired: &DesiredService) -> Result<(), String> {
    let tiers = &desired.tiers;
    let at_most = |what: &str, count: usize, most: usize| {
        if count > most { Err(format!("{count} {what}, at most {most} are possible")) } else { Ok(()) }
    };
    at_most("tiers", tiers.len(), MAX_TIERS)?;
    at_most("groups", tiers.iter().map(Vec::len).sum(), MAX_GROUPS)?;
    for tier in tiers {
        at_most("groups in one tier", tier.len(), MAX_TIER_GROUPS)?;
        if tier.is_empty() {
            return Err("a tier without a group".to_owned());
        }
        if tier.iter().try_fold(0u32, |sum, group| sum.checked_add(group.weight)).is_none() {
            return Err("the weights of a tier are too large".to_owned());
        }
    }
    let is_empty = |group: &DesiredGroup| group.members.is_empty();
    if tiers.iter().flatten().any(is_empty) {
        return Err("a group without an endpoint".to_owned());
    }
    let weightless = |group: &DesiredGroup| group.weight == 0 || group.members.iter().any(|member| member.weight == 0);
    if tiers.iter().flatten().any(weightless) {
        return Err("a weight of 0".to_owned());
    }
    Ok(())
}
