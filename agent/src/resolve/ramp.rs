//! Clusters that come back get their share little by little.

use super::{
    share::{Share, weight_of},
    tiers::Tier,
};
use crate::model::ClusterName;
use std::collections::BTreeMap;

/// Lowers the weights of the clusters named in `ramps` to so many per cent of what they are. The rest goes to the others of
/// the tier, by their weights; where a tier has no others, to the next tier, which joins it.
///
/// In whole numbers: weights are multiplied by 100, or by the per cent that is left of them. A cluster that is alone and last
/// has nobody to leave anything to, and keeps everything.
pub(super) fn apply<'a>(tiers: Vec<Tier<'a>>, ramps: &BTreeMap<ClusterName, u8>) -> Vec<Tier<'a>> {
    if ramps.is_empty() {
        return tiers;
    }
    let mut ramped = Vec::with_capacity(tiers.len());
    let mut rest = tiers.into_iter().peekable();
    while let Some(tier) = rest.next() {
        let per_cent =
            |share: &Share<'a>| ramps.get(share.cluster).map_or(100, |part| u128::from((*part).clamp(1, 100)));
        let lowered = |share: &Share<'a>| Share { weight: share.weight * per_cent(share), ..share.clone() };
        let is_alone = tier.iter().all(|share| per_cent(share) < 100);
        ramped.push(match rest.peek() {
            Some(next) if is_alone => {
                let next_total = weight_of(next);
                let missing: u128 = tier.iter().map(|share| share.weight * (100 - per_cent(share))).sum();
                let scaled = |share: Share<'a>| Share { weight: share.weight * next_total, ..share };
                let spilled = |share: &Share<'a>| Share { weight: missing * share.weight, ..share.clone() };
                tier.iter().map(lowered).map(scaled).chain(next.iter().map(spilled)).collect()
            }
            _ => tier.iter().map(lowered).collect(),
        });
    }
    ramped
}
