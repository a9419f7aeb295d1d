//! Which endpoints come first: a service's traffic policy as tiers of shares.

use super::{
    limits::to_member,
    merge::{Candidate, Use},
    note,
    share::{self, Share, by_cluster, weight_of},
};
use crate::{
    model::{ClusterName, Order, Path, Place, Traffic},
    tables::Member,
};
use std::collections::BTreeSet;

/// Groups that are drawn from alike; the next tier is for when all of them are out.
pub(super) type Tier<'a> = Vec<Share<'a>>;

/// Arranges what is usable: first the ready ones by policy, then gateways of clusters that are reached without, then
/// clusters of weight 0, fallbacks, what may be out of date, and last what was found silent. Endpoints that are about to
/// go come in only if none is ready. No tier and no share is empty.
pub(super) fn arrange<'a>(
    endpoints: Vec<Candidate<'a>>,
    traffic: &Traffic,
    place: &'a Place,
    problems: &mut Vec<String>,
) -> Vec<Tier<'a>> {
    let of = |usable: Use| endpoints.iter().copied().filter(move |endpoint| endpoint.usable == usable);
    let (ready, spare) = flat_before_gateway(of(Use::Ready).collect());
    let has_ready = !ready.is_empty();
    let known_local =
        endpoints.iter().filter(|endpoint| is_known_local(endpoint, place)).map(|known| u64::from(known.weight)).sum();

    if !traffic.weights.is_empty() && traffic.order != Order::Spread {
        note(problems, "weights are left aside: they go with order spread only".to_owned());
    }
    let mut tiers = match &traffic.order {
        Order::Spread => share::weigh(by_cluster(ready, place), &traffic.weights, problems),
        Order::LocalFirst => local_first(ready, known_local, traffic.local_minimum, place),
        Order::ZoneFirst => {
            if place.zone.is_none() {
                note(problems, "this node's zone is not known: the own cluster comes first instead of it".to_owned());
            }
            zone_first(ready, place)
        }
        Order::Clusters(order) => in_order(ready, order, place),
    };
    // A cluster that is to have no traffic while others have endpoints comes after the others' gateways, its own last.
    let weightless = if tiers.len() > 1 && traffic.order == Order::Spread { tiers.pop() } else { None };
    let weightless = weightless.unwrap_or_default();
    let is_weightless = |endpoint: &Candidate<'_>| weightless.iter().any(|share| share.cluster == endpoint.cluster);
    let (spare_weightless, spare): (Vec<_>, Vec<_>) = spare.into_iter().partition(is_weightless);
    tiers.extend([by_cluster(spare, place), weightless, by_cluster(spare_weightless, place)]);
    if !has_ready {
        tiers.push(by_cluster(of(Use::Terminating), place));
    }
    tiers.push(by_cluster(of(Use::Fallback), place));
    tiers.push(by_cluster(of(Use::Stale), place));
    tiers.push(by_cluster(of(Use::Lost), place));
    tiers.retain(|tier| !tier.is_empty());
    tiers
}

/// Endpoints that are about to go and are in no tier: what they have they keep.
pub(super) fn draining(endpoints: &[Candidate<'_>]) -> Vec<Member> {
    let has_ready = endpoints.iter().any(|endpoint| endpoint.usable == Use::Ready);
    let is_unused = |usable: Use| usable == Use::No || usable == Use::Terminating && has_ready;
    let draining = endpoints.iter().filter(|endpoint| endpoint.leaving && is_unused(endpoint.usable));
    draining.map(|endpoint| to_member(endpoint, endpoint.weight)).collect()
}

/// What counts as the own cluster's capacity: its pods, ready or not, but not those that are being taken away.
fn is_known_local(endpoint: &Candidate<'_>, place: &Place) -> bool {
    let counts = match endpoint.usable {
        Use::Ready => true,
        Use::No => !endpoint.leaving,
        Use::Terminating | Use::Fallback | Use::Stale | Use::Lost => false,
    };
    counts && endpoint.cluster == &place.cluster
}

/// Sets gateways of clusters aside that are reached without, too. A cluster that has only gateways keeps them.
fn flat_before_gateway(ready: Vec<Candidate<'_>>) -> (Vec<Candidate<'_>>, Vec<Candidate<'_>>) {
    let flat: BTreeSet<&ClusterName> =
        ready.iter().filter(|endpoint| endpoint.path == Path::Pod).map(|endpoint| endpoint.cluster).collect();
    ready.into_iter().partition(|endpoint| endpoint.path == Path::Pod || !flat.contains(endpoint.cluster))
}

/// The own cluster's first; what they can't carry goes to the others, in proportion to their endpoints.
///
/// They carry everything as long as five of seven known ones are ready (1.4 times the ready share), or `minimum` of them.
fn local_first<'a>(ready: Vec<Candidate<'a>>, known: u64, minimum: Option<u32>, place: &'a Place) -> Vec<Tier<'a>> {
    let (local, remote): (Vec<_>, Vec<_>) = ready.into_iter().partition(|endpoint| endpoint.cluster == &place.cluster);
    let (local, remote) = (by_cluster(local, place), by_cluster(remote, place));
    let ready = weight_of(&local);
    let (part, whole) = match minimum {
        Some(minimum) => (ready, u128::from(minimum)),
        None => (ready * 14, u128::from(known) * 10),
    };
    if local.is_empty() || remote.is_empty() || part >= whole {
        return vec![local, remote];
    }
    let remote_total = weight_of(&remote);
    let mut first = local;
    first.iter_mut().for_each(|share| share.weight = part * remote_total);
    let spilled = |share: &Share<'a>| Share { weight: (whole - part) * share.weight, ..share.clone() };
    first.extend(remote.iter().map(spilled));
    vec![first, remote]
}

/// The own zone's, in whatever cluster; then the own cluster's; then the rest.
fn zone_first<'a>(ready: Vec<Candidate<'a>>, place: &'a Place) -> Vec<Tier<'a>> {
    let is_near = |endpoint: &Candidate<'_>| place.zone.is_some() && endpoint.zone == place.zone.as_deref();
    let (near, far): (Vec<_>, Vec<_>) = ready.into_iter().partition(is_near);
    let (own, rest): (Vec<_>, Vec<_>) = far.into_iter().partition(|endpoint| endpoint.cluster == &place.cluster);
    vec![by_cluster(near, place), by_cluster(own, place), by_cluster(rest, place)]
}

/// The clusters named one after the other, then the rest together.
fn in_order<'a>(ready: Vec<Candidate<'a>>, order: &[ClusterName], place: &'a Place) -> Vec<Tier<'a>> {
    let mut rest = ready;
    let mut tiers = Vec::new();
    for name in order {
        let (named, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|endpoint| endpoint.cluster == name);
        tiers.push(by_cluster(named, place));
        rest = others;
    }
    tiers.push(by_cluster(rest, place));
    tiers
}
