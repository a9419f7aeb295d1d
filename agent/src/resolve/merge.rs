//! The endpoints of one service port: what all its slices say, brought together by address.

use super::mapped;
use crate::model::{
    ClusterName, Endpoint, Model, Path, PeerState, Place, Service, ServiceKind, ServicePort, ServiceRef, Slice,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
};

/// What an endpoint can be used for, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// Takes connections.
    Ready,
    /// Is about to go but still serves: better than nothing (KEP-1669).
    Terminating,
    /// From a slice that only the agent may use, whatever its conditions say.
    Fallback,
    /// From a cluster whose API has not been heard for long.
    Stale,
    /// From a cluster whose API is lost, and not ready by the last word, or over a path that is down: a try, where all
    /// else is missing.
    Lost,
    /// Not at all; but it is known.
    No,
}

/// An address and port that slices offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate<'a> {
    pub(super) addr: [u8; 16],
    pub(super) port: [u8; 2],
    pub(super) cluster: &'a ClusterName,
    pub(super) path: Path,
    /// How many pods it stands for, at least 1.
    pub(super) weight: u32,
    pub(super) zone: Option<&'a str>,
    pub(super) usable: Use,
    /// Whether it is on its way out, so that it no longer counts as capacity.
    pub(super) leaving: bool,
}

impl Candidate<'_> {
    /// Puts it last if the path to it is down: a try, where all else is missing.
    pub(super) fn heed(&mut self, paths_out: &BTreeSet<(ClusterName, Path)>) {
        let is_out = || paths_out.iter().any(|(cluster, path)| cluster == self.cluster && *path == self.path);
        if self.usable < Use::Lost && is_out() {
            self.usable = Use::Lost;
        }
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.addr[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    }
}

/// All that slices offer for `port`, of both families, in the order of addresses, each address and port once.
///
/// An endpoint is as usable as the best of its offers says and stays as long as any slice offers it; where and what it
/// is, is said by the offer nearest to it.
pub(super) fn endpoints<'a>(
    model: &'a Model,
    place: &'a Place,
    name: &ServiceRef,
    service: &'a Service,
    port: &ServicePort,
) -> Vec<Candidate<'a>> {
    let mut best: BTreeMap<([u8; 16], [u8; 2]), Offer<'a>> = BTreeMap::new();
    for slice in slices(model, place, name, service) {
        let same = |other: &&ServicePort| other.name == port.name && other.protocol == port.protocol;
        let Some(target) = slice.ports.iter().find(same) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let offer = Offer::of(slice, endpoint, target.port, &place.cluster);
            match best.entry((offer.candidate.addr, offer.candidate.port)) {
                Entry::Vacant(vacant) => {
                    vacant.insert(offer);
                }
                Entry::Occupied(mut known) => known.get_mut().join(offer),
            }
        }
    }
    best.into_values().map(|offer| offer.candidate).collect()
}

/// The slices that speak for `service`: its own, and the built-in ones of its local member.
///
/// With a local member, what the mirror wrote about the own cluster is left out: it says the same, only later.
fn slices<'a>(
    model: &'a Model,
    place: &'a Place,
    name: &ServiceRef,
    service: &'a Service,
) -> impl Iterator<Item = &'a Slice> {
    let member = service.local_member.as_ref().map(|member| {
        let object = crate::model::ObjectName { namespace: name.object.namespace.clone(), name: member.clone() };
        ServiceRef { kind: ServiceKind::Service, object }
    });
    let has_member = member.is_some();
    let is_mirrored_here = move |slice: &Slice| !slice.built_in && cluster_of(slice, &place.cluster) == &place.cluster;
    let own = model.slices_of(name).filter(move |slice| !(has_member && is_mirrored_here(slice)));
    let same = member.as_ref() == Some(name);
    let local: Vec<&Slice> = member.filter(|_| !same).iter().flat_map(|member| model.slices_of(member)).collect();
    own.chain(local.into_iter().filter(|slice| slice.built_in))
}

/// A slice that names no cluster speaks of the own one.
fn cluster_of<'a>(slice: &'a Slice, own: &'a ClusterName) -> &'a ClusterName {
    slice.source_cluster.as_ref().unwrap_or(own)
}

/// What one slice says of one endpoint.
struct Offer<'a> {
    candidate: Candidate<'a>,
    /// How near the slice is to the endpoint; the smallest decides.
    distance: Distance<'a>,
}

/// Fallbacks last, then built-in slices first, the own cluster, pods before gateways; the rest only so that it is decided.
type Distance<'a> = (bool, bool, bool, Path, Reverse<u32>, &'a ClusterName, Option<&'a str>);

impl<'a> Offer<'a> {
    fn of(slice: &'a Slice, endpoint: &'a Endpoint, port: u16, own: &'a ClusterName) -> Self {
        let cluster = cluster_of(slice, own);
        let weight = slice.weight.max(1);
        let zone = endpoint.zone.as_deref();
        Self {
            candidate: Candidate {
                addr: mapped(endpoint.address.to_canonical()),
                port: port.to_be_bytes(),
                cluster,
                path: slice.path,
                weight,
                zone,
                usable: usable(slice, endpoint),
                leaving: endpoint.terminating,
            },
            distance: (slice.fallback, !slice.built_in, cluster != own, slice.path, Reverse(weight), cluster, zone),
        }
    }

    fn join(&mut self, other: Self) {
        let usable = self.candidate.usable.min(other.candidate.usable);
        let leaving = self.candidate.leaving && other.candidate.leaving;
        if other.distance < self.distance {
            *self = other;
        }
        self.candidate.usable = usable;
        self.candidate.leaving = leaving;
    }
}

/// That a peer's API is lost says nothing of its pods: what is ready stays so, and whether they answer is for health to
/// find out. Only what the mirror found silent as well comes last.
fn usable(slice: &Slice, endpoint: &Endpoint) -> Use {
    let serves = endpoint.ready || endpoint.serving;
    match slice.peer {
        PeerState::Stale if slice.fallback || serves => Use::Stale,
        PeerState::Stale => Use::No,
        _ if slice.fallback => Use::Fallback,
        _ if endpoint.ready => Use::Ready,
        _ if endpoint.serving && endpoint.terminating => Use::Terminating,
        PeerState::Lost if !endpoint.terminating => Use::Lost,
        _ => Use::No,
    }
}
