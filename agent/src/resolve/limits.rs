//! Makes tiers fit the kernel's tables: so many tiers and groups, and weights of 32 bits.

use super::{DesiredGroup, merge::Candidate, note, share::Share, tiers::Tier};
use crate::tables::Member;
use tombolo_ebpf::abi::{MAX_GROUPS, MAX_TIER_GROUPS, MAX_TIERS};

/// Tiers as the tables have them; what does not fit is joined, and a problem says so.
pub(super) fn fit(mut tiers: Vec<Tier<'_>>, problems: &mut Vec<String>) -> Vec<Vec<DesiredGroup>> {
    if tiers.len() > MAX_TIERS {
        let count = tiers.len();
        note(problems, format!("{count} tiers, at most {MAX_TIERS} are possible: the last ones are joined"));
        let rest = tiers.split_off(MAX_TIERS - 1);
        tiers.push(join_tiers(rest));
    }
    let mut left = MAX_GROUPS;
    let count = tiers.len();
    let mut groups = Vec::with_capacity(count);
    for (at, tier) in tiers.into_iter().enumerate() {
        // Every tier that follows keeps room for one group.
        let most = MAX_TIER_GROUPS.min(left - (count - at - 1));
        let tier = fit_tier(tier, most, problems);
        left -= tier.len();
        groups.push(tier);
    }
    groups
}

/// One tier of all clusters in these, each endpoint once.
fn join_tiers(tiers: Vec<Tier<'_>>) -> Tier<'_> {
    let mut joined: Tier<'_> = Vec::new();
    for share in tiers.into_iter().flatten() {
        match joined.iter_mut().find(|known| known.cluster == share.cluster) {
            None => joined.push(share),
            Some(known) => {
                known.members.extend(share.members);
                known.members.sort_unstable_by_key(|member| (member.addr, member.port));
                known.members.dedup();
            }
        }
    }
    for share in &mut joined {
        share.weight = share.members.iter().map(|member| u128::from(member.weight)).sum();
    }
    joined
}

/// The groups of one tier, at most `most`; further clusters share the last.
fn fit_tier(mut tier: Tier<'_>, most: usize, problems: &mut Vec<String>) -> Vec<DesiredGroup> {
    let rest = if tier.len() > most { tier.split_off(most - 1) } else { Vec::new() };
    let mut weights: Vec<u128> = tier.iter().map(|share| share.weight).collect();
    let mut groups: Vec<DesiredGroup> = tier.iter().map(own_group).collect();
    if let Some(first) = rest.first() {
        let names: Vec<&str> = rest.iter().map(|share| share.cluster.0.as_str()).collect();
        let clusters = groups.len() + rest.len();
        note(
            problems,
            format!(
                "{clusters} clusters in one tier, at most {most} are possible: {} share one group",
                names.join(", ")
            ),
        );
        weights.push(rest.iter().map(|share| share.weight).sum());
        groups.push(DesiredGroup { cluster: first.cluster.clone(), weight: 1, members: shared_members(&rest) });
    }
    for (group, weight) in groups.iter_mut().zip(to_u32(&weights)) {
        group.weight = weight;
    }
    groups
}

fn own_group(share: &Share<'_>) -> DesiredGroup {
    let mut members: Vec<Member> = share.members.iter().map(|member| to_member(member, member.weight)).collect();
    members.sort_unstable();
    DesiredGroup { cluster: share.cluster.clone(), weight: 1, members }
}

/// The members of several clusters in one group: each cluster's share is passed on to its members.
fn shared_members(shares: &[Share<'_>]) -> Vec<Member> {
    let by_endpoints = |share: &Share<'_>| share.weight == sum_of(share);
    let plain = shares.iter().all(by_endpoints);
    let weight = |share: &Share<'_>, member: &Candidate<'_>| {
        let weight = u128::from(member.weight);
        // 2³² parts of a unit, so that a cluster's weight can be divided among many endpoints.
        if plain { weight } else { (share.weight.saturating_mul(weight) << 32) / sum_of(share) }
    };
    let all: Vec<(&Candidate<'_>, u128)> = shares
        .iter()
        .flat_map(|share| share.members.iter().map(move |member| (member, weight(share, member))))
        .collect();
    let weights: Vec<u128> = all.iter().map(|(_, weight)| *weight).collect();
    let mut members: Vec<Member> =
        all.iter().zip(to_u32(&weights)).map(|((member, _), weight)| to_member(member, weight)).collect();
    members.sort_unstable();
    members
}

fn sum_of(share: &Share<'_>) -> u128 {
    share.members.iter().map(|member| u128::from(member.weight)).sum()
}

pub(super) fn to_member(candidate: &Candidate<'_>, weight: u32) -> Member {
    let Candidate { addr, port, path, cluster, .. } = *candidate;
    Member { addr, port, path, cluster: cluster.clone(), weight }
}

/// The same weights if their sum has 32 bits, else all made smaller alike; none becomes 0.
fn to_u32(weights: &[u128]) -> Vec<u32> {
    let sum: u128 = weights.iter().sum();
    let most = u128::from(u32::MAX);
    let room = most.saturating_sub(u128::try_from(weights.len()).expect("a length fits 128 bits"));
    let scaled = |&weight: &u128| if sum <= most { weight } else { scale(weight, room, sum).max(1) };
    weights.iter().map(scaled).map(|weight| u32::try_from(weight).unwrap_or(u32::MAX)).collect()
}

/// `weight * room / sum`, rounded down.
fn scale(weight: u128, room: u128, sum: u128) -> u128 {
    match weight.checked_mul(room) {
        Some(product) => product / sum,
        // Too large by far: the lowest bits don't matter then.
        None => weight / (sum / room).max(1),
    }
}
