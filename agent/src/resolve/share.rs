//! The shares of clusters within a tier: by endpoints, or by weights that people gave.

use super::{merge::Candidate, note, tiers::Tier};
use crate::model::{ClusterName, Place};
use std::collections::BTreeMap;

/// One cluster's part of a tier.
#[derive(Clone, Debug)]
pub(super) struct Share<'a> {
    pub(super) cluster: &'a ClusterName,
    /// Relative to the tier's others; not 0.
    pub(super) weight: u128,
    /// In the order of addresses; not empty.
    pub(super) members: Vec<Candidate<'a>>,
}

/// One share a cluster, of the weight of its endpoints; the own cluster first, then by name.
pub(super) fn by_cluster<'a>(endpoints: impl IntoIterator<Item = Candidate<'a>>, place: &'a Place) -> Tier<'a> {
    let mut members: BTreeMap<(bool, &ClusterName), Vec<Candidate<'a>>> = BTreeMap::new();
    for endpoint in endpoints {
        members.entry((endpoint.cluster != &place.cluster, endpoint.cluster)).or_default().push(endpoint);
    }
    let share = |((_, cluster), members): ((bool, &'a ClusterName), Vec<Candidate<'a>>)| {
        let weight = members.iter().map(|endpoint| u128::from(endpoint.weight)).sum();
        Share { cluster, weight, members }
    };
    members.into_iter().map(share).collect()
}

/// The weight of a whole tier.
pub(super) fn weight_of(tier: &[Share<'_>]) -> u128 {
    tier.iter().map(|share| share.weight).sum()
}

/// Weighs a tier's clusters by per cent. Clusters that get nothing are a second tier.
///
/// A cluster that is named gets its per cent; the others share what is left by their endpoints. If all that have endpoints
/// are named, the numbers are relative weights. One that is named and has no endpoints leaves its per cent to
/// all others in proportion. In whole numbers: with `n` endpoints of the unnamed, a named cluster weighs its per cent
/// times `n`, an unnamed one its endpoints times the per cent left.
pub(super) fn weigh<'a>(
    tier: Tier<'a>,
    per_cent: &BTreeMap<ClusterName, u32>,
    problems: &mut Vec<String>,
) -> Vec<Tier<'a>> {
    if per_cent.is_empty() {
        return vec![tier];
    }
    let given = |share: &Share<'_>| per_cent.get(share.cluster).copied().map(u128::from);
    let unnamed: Vec<&Share<'_>> = tier.iter().filter(|share| given(share).is_none()).collect();
    let unnamed_total: u128 = unnamed.iter().map(|share| share.weight).sum();
    let sum: u128 = per_cent.values().map(|&weight| u128::from(weight)).sum();
    if !unnamed.is_empty() && sum > 100 {
        let names: Vec<&str> = unnamed.iter().map(|share| share.cluster.0.as_str()).collect();
        let names = names.join(", ");
        note(problems, format!("weights add up to {sum} % and leave nothing for {names}: spread by endpoints instead"));
        return vec![tier];
    }
    let weigh = |share: Share<'a>| {
        let weight = match given(&share) {
            Some(weight) if unnamed_total == 0 => weight,
            Some(weight) => weight * unnamed_total,
            None => (100 - sum) * share.weight,
        };
        (share, weight)
    };
    let (used, unused): (Vec<_>, Vec<_>) = tier.clone().into_iter().map(weigh).partition(|(_, weight)| *weight > 0);
    let used = used.into_iter().map(|(share, weight)| Share { weight, ..share }).collect();
    vec![used, unused.into_iter().map(|(share, _)| share).collect()]
}
