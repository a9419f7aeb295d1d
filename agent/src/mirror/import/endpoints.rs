//! The endpoints of an import: the union of its members', each address once.

use super::{Imported, Member, Problem, peer_state, ports};
use crate::{
    mirror::{
        lease::Standing,
        slices::{Content, Marks, Wanted},
        source::{Endpoint, ExportedPort, Family, Link, LinkName, Port, SlicePort, Understood},
        validate::{Refusal, check},
        world::{ImportKey, Peer, Said, Shown, World},
    },
    model::{ClusterName, Path, PeerState},
};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

/// How good an offer is where two members offer the same address; the smallest wins.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_fallback: bool,
    peer: PeerState,
    path: Path,
    /// The member's place by precedence.
    place: usize,
}

struct Offer {
    rank: Rank,
    content: Content,
    marks: Marks,
    endpoint: Endpoint,
}

/// Where an endpoint comes from.
#[derive(Clone, Copy)]
struct From {
    place: usize,
    path: Path,
    is_fallback: bool,
    weight: u32,
}

/// Endpoints by address and ports, and whether they are fallbacks: the same ones over two links are one.
type Offers = BTreeMap<(IpAddr, Vec<SlicePort>, bool), Offer>;

/// A link whose peer isn't heard, and what that shows of an import.
type Unheard<'a> = (&'a LinkName, &'a Peer, Option<Shown<'a>>);

/// Brings the endpoints of all members together in `imported`.
pub(super) fn gather(
    world: &World,
    members: &[Member<'_>],
    ports: &[Port],
    prefers_zone: bool,
    imported: &mut Imported,
) {
    let mut union = Union { world, ports, offers: Offers::new(), imported };
    for (place, member) in members.iter().enumerate() {
        let Some((name, link, standing)) = member.peer else {
            union.pods(member, place);
            continue;
        };
        let of_export = member.spec.map_or(0, |spec| spec.left_out);
        union.refuse(member, Refusal::InvalidValue, member.service.left_out.saturating_add(of_export));
        if standing == Standing::Removed {
            continue;
        }
        if member.export.path == Path::Pod {
            union.pods(member, place);
        }
        let is_fallback = member.export.path == Path::Pod;
        // A flat link that has a gateway to fall back on says where that is.
        if is_fallback && link.gateway_ranges.is_empty() {
            continue;
        }
        let leads_there = union.gateway(member, name, link, place, is_fallback);
        if !leads_there && !is_fallback {
            union.imported.problems.insert(Problem::NoGateway(name.clone(), member.object.clone()));
        }
    }
    let offers = union.offers;
    imported.endpoints = contents(offers, prefers_zone);
}

fn contents(offers: Offers, prefers_zone: bool) -> Wanted {
    let mut wanted = Wanted::new();
    for ((address, _, _), mut offer) in offers {
        if prefers_zone && offer.rank.path == Path::Pod && !offer.content.is_fallback {
            offer.endpoint.hints = offer.endpoint.zone.iter().cloned().collect();
        }
        let (marks, endpoints) = wanted.entry(offer.content).or_insert_with(|| (offer.marks, BTreeMap::new()));
        // A slice says one thing of all its endpoints: the worse, for a cluster that two links lead to.
        marks.peer = marks.peer.max(offer.marks.peer);
        marks.weight = marks.weight.max(offer.marks.weight);
        endpoints.insert(address, offer.endpoint);
    }
    wanted
}

struct Union<'a> {
    world: &'a World,
    ports: &'a [Port],
    offers: Offers,
    imported: &'a mut Imported,
}

impl Union<'_> {
    /// A member's pods.
    fn pods(&mut self, member: &Member<'_>, place: usize) {
        let quota = member.peer.map_or(usize::MAX, |(_, link, _)| link.quota.endpoints);
        // By address, so that a quota always lets the same ones in.
        let mut offered: BTreeMap<(IpAddr, Vec<SlicePort>), &Endpoint> = BTreeMap::new();
        for slice in member.cluster.slices.get(member.object).into_iter().flat_map(BTreeMap::values) {
            self.refuse(member, Refusal::Malformed, slice.malformed);
            self.refuse(member, Refusal::InvalidValue, slice.left_out);
            let resolved = ports::resolve(self.ports, member, &slice.ports);
            if resolved.is_empty() {
                continue;
            }
            for endpoint in &slice.endpoints {
                if let Some((name, link, _)) = member.peer
                    && let Err(refusal) = check(self.world, name, link, Path::Pod, endpoint.address)
                {
                    self.refuse(member, refusal, 1);
                    continue;
                }
                let best = offered.entry((endpoint.address, resolved.clone())).or_insert(endpoint);
                // A controller that moves an endpoint to another slice shows it in both for a moment.
                if endpoint.usefulness() > best.usefulness() {
                    *best = endpoint;
                }
            }
        }
        let over = u32::try_from(offered.len().saturating_sub(quota)).unwrap_or(u32::MAX);
        self.refuse(member, Refusal::OverEndpointQuota, over);
        let from = From { place, path: Path::Pod, is_fallback: false, weight: 1 };
        for ((_, resolved), endpoint) in offered.into_iter().take(quota) {
            let mut endpoint = Endpoint { hints: Vec::new(), ..endpoint.clone() };
            if !member.is_own() {
                endpoint.node = None;
            }
            self.offer(member, from, resolved, endpoint);
        }
    }

    /// A member's gateway. Whether it leads to any of the ports.
    fn gateway(&mut self, member: &Member<'_>, name: &LinkName, link: &Link, place: usize, is_fallback: bool) -> bool {
        let slices = member.cluster.slices.get(member.object).into_iter().flat_map(BTreeMap::values);
        let ready = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready);
        let pods: BTreeSet<IpAddr> = ready.map(|endpoint| endpoint.address).collect();
        let mut leads_there = false;
        for gateway in member.cluster.ways_to(member.object) {
            let mut resolved: Vec<SlicePort> = Vec::new();
            for port in self.ports {
                let target = ExportedPort { service: member.object.clone(), port: port.port, protocol: port.protocol };
                resolved.extend(gateway.leads_to(&target).map(|number| ports::target_of(port, number)));
            }
            resolved.sort();
            let offered = self.world.addresses_of(gateway);
            if resolved.is_empty() || offered.is_empty() {
                continue;
            }
            leads_there = true;
            let mut addresses = Vec::new();
            for address in offered {
                match check(self.world, name, link, Path::Gateway, address) {
                    Ok(()) => addresses.push(address),
                    Err(refusal) => self.refuse(member, refusal, 1),
                }
            }
            let weight = pods.len().min(link.quota.endpoints).div_ceil(addresses.len().max(1)).max(1);
            let weight = u32::try_from(weight).unwrap_or(u32::MAX);
            let from = From { place, path: Path::Gateway, is_fallback, weight };
            for address in addresses {
                let endpoint = Endpoint {
                    address,
                    ready: !pods.is_empty(),
                    serving: !pods.is_empty(),
                    terminating: false,
                    zone: None,
                    node: None,
                    hostname: None,
                    hints: Vec::new(),
                };
                self.offer(member, from, resolved.clone(), endpoint);
            }
        }
        leads_there
    }

    fn offer(&mut self, member: &Member<'_>, from: From, ports: Vec<SlicePort>, mut endpoint: Endpoint) {
        let peer = peer_state(member);
        if peer == PeerState::Stale && !endpoint.serving {
            return;
        }
        // What only the agent may use must not be found by anybody who reads conditions otherwise.
        let for_agent_only = from.is_fallback || peer == PeerState::Stale;
        let is_silent = matches!(member.peer, Some((_, _, Standing::Lost { silent: true })));
        if for_agent_only || is_silent {
            (endpoint.ready, endpoint.serving) = (false, false);
        }
        let content = Content {
            cluster: member.name.clone(),
            path: from.path,
            family: Family::of(endpoint.address),
            ports: ports.clone(),
            is_fallback: for_agent_only,
        };
        let offer = Offer {
            rank: Rank { is_fallback: for_agent_only, peer, path: from.path, place: from.place },
            content,
            marks: Marks { peer, weight: from.weight },
            endpoint,
        };
        // A gateway that is the way to one member may be the fallback of another.
        match self.offers.entry((offer.endpoint.address, ports, from.is_fallback)) {
            Entry::Vacant(vacant) => {
                vacant.insert(offer);
            }
            Entry::Occupied(mut known) if offer.rank < known.get().rank => {
                known.insert(offer);
            }
            Entry::Occupied(_) => {}
        }
    }

    fn refuse(&mut self, member: &Member<'_>, refusal: Refusal, count: u32) {
        if let Some((link, _, _)) = member.peer {
            self.imported.refuse(link, refusal, count);
        }
    }
}

/// Whether slices of ours hold what may be a peer's that wasn't heard yet.
pub(super) fn has_unheard(world: &World, key: &ImportKey) -> bool {
    let mut slices = world.own.placed.get(key).into_iter().flat_map(BTreeMap::values);
    slices.any(|placed| world.unheard_as(&placed.content.cluster, key.kind).next().is_some())
}

/// Keeps what slices of ours hold of clusters whose peers were not listed since the mirror began, or whose links aren't
/// understood.
///
/// A peer that shows its slices and not what it exports takes away nothing but pods that are gone. What none of those links
/// lets in any more goes.
pub(super) fn keep_unheard(world: &World, key: &ImportKey, imported: &mut Imported) {
    let known: BTreeSet<(IpAddr, Vec<SlicePort>)> = imported
        .endpoints
        .iter()
        .flat_map(|(content, (_, endpoints))| endpoints.keys().map(|address| (*address, content.ports.clone())))
        .collect();
    let mut unheard: BTreeMap<&ClusterName, Vec<Unheard<'_>>> = BTreeMap::new();
    for placed in world.own.placed.get(key).into_iter().flat_map(BTreeMap::values) {
        let peers = unheard.entry(&placed.content.cluster).or_insert_with(|| {
            let peers = world.unheard_as(&placed.content.cluster, key.kind);
            peers.map(|(name, peer)| (name, peer, peer.shown(key))).collect()
        });
        // How the worst link to that cluster stands.
        let Some(state) = peers.iter().map(|(_, peer, _)| peer.standing.peer_state()).max() else { continue };
        let is_silent = peers.iter().all(|(_, peer, _)| peer.standing == Standing::Lost { silent: true });
        let marks = Marks { peer: state, ..placed.marks };
        for endpoint in &placed.endpoints {
            if known.contains(&(endpoint.address, placed.content.ports.clone())) {
                continue;
            }
            let says = |shown: &Shown<'_>| shown.says(&placed.content, endpoint.address);
            let said = peers.iter().map(|(_, _, shown)| shown.as_ref().map_or(Said::Nothing, says)).max();
            if said == Some(Said::Gone) {
                continue;
            }
            let refusal = |name, peer| may_keep(world, name, peer, placed.content.path, endpoint.address).err();
            let refused = peers.iter().map(|(name, peer, _)| Some((*name, refusal(name, peer)?)));
            if let Some(refused) = refused.collect::<Option<Vec<_>>>() {
                refused.into_iter().for_each(|(name, refusal)| imported.refuse(name, refusal, 1));
                continue;
            }
            let kept = (key.clone(), endpoint.address, placed.content.ports.clone());
            let before = peers.iter().find_map(|(_, peer, _)| peer.before.get(&kept));
            let is_fallback = before.map_or(placed.content.is_fallback, |before| before.is_fallback);
            let content = Content { is_fallback: is_fallback || state == PeerState::Stale, ..placed.content.clone() };
            let is_usable = !content.is_fallback && !is_silent;
            let (_, kept) = imported.endpoints.entry(content).or_insert_with(|| (marks, BTreeMap::new()));
            let (ready, serving, terminating) = match said {
                Some(Said::There { ready, serving, terminating }) => (ready, serving, terminating),
                _ => (
                    endpoint.ready || before.is_some_and(|before| before.ready),
                    endpoint.serving || before.is_some_and(|before| before.serving),
                    endpoint.terminating,
                ),
            };
            kept.entry(endpoint.address).or_insert_with(|| Endpoint {
                ready: is_usable && ready,
                serving: is_usable && serving,
                terminating,
                ..endpoint.clone()
            });
        }
    }
}

/// Whether an endpoint that was written before may still come in over a peer's link.
///
/// The ranges of a link that isn't understood may be narrower than those of others.
fn may_keep(world: &World, name: &LinkName, peer: &Peer, path: Path, address: IpAddr) -> Result<(), Refusal> {
    match check(world, name, &peer.link, path, address) {
        Err(Refusal::OtherPeer) if peer.link.understood != Understood::Whole => Ok(()),
        checked => checked,
    }
}
