//! What is known of a peer, and what may be its though nothing says so.

use super::{Cluster, ImportKey, ImportKind, World};
use crate::{
    mirror::{
        conventions,
        lease::Standing,
        slices::Content,
        source::{Endpoint, Link, LinkName, SlicePort, Understood},
    },
    model::{ClusterName, ObjectName, Path},
};
use std::{collections::BTreeMap, net::IpAddr};

/// A peer, as far as it was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The link to it.
    pub link: Link,
    /// Whether everything it has was listed once: until then, what is missing is not gone.
    pub is_listed: bool,
    /// Whether its Services were, whatever else was.
    pub shows_services: bool,
    /// Whether its slices were, whatever else was.
    pub shows_endpoints: bool,
    /// How it stands.
    pub standing: Standing,
    /// Whether it was never listed for so long that nobody waits for it any more.
    pub is_given_up: bool,
    /// How endpoints of its cluster were written before nothing of it answered, while that is all that is known of them.
    pub before: BTreeMap<Kept, Before>,
    /// Its objects.
    pub cluster: Cluster,
}

/// An endpoint of an import, by its address and its ports.
pub type Kept = (ImportKey, IpAddr, Vec<SlicePort>);

/// How an endpoint was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Whether it was for the agent only.
    pub is_fallback: bool,
}

/// What a peer's slices say of an endpoint that was written for it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    /// That it is gone.
    Gone,
    /// Nothing.
    Nothing,
    /// That it is there.
    There {
        /// Condition `ready`.
        ready: bool,
        /// Condition `serving`.
        serving: bool,
        /// Condition `terminating`.
        terminating: bool,
    },
}

impl Peer {
    /// Whether what it exports is what was heard of it.
    pub(super) fn is_heard(&self) -> bool {
        self.is_listed && self.link.understood == Understood::Whole
    }

    /// Whether it may still have what wasn't heard of: not listed yet, or by a link that isn't understood, and not given up.
    pub fn is_unheard(&self) -> bool {
        !self.is_heard() && !self.is_given_up && self.standing != Standing::Removed
    }

    /// Whether it may still have what would become an import of this kind and wasn't heard of. All but ServiceExports is said by
    /// its Services themselves.
    pub fn is_unheard_as(&self, kind: ImportKind) -> bool {
        let is_told = self.shows_services && self.shows_endpoints && self.link.understood == Understood::Whole;
        self.is_unheard() && !(is_told && kind != ImportKind::ServiceImport)
    }

    /// What its slices show of what would become an import: whether that is exported need not be known for this. None if they
    /// were not listed, or there is no telling whether they are those of that cluster.
    pub fn shown(&self, key: &ImportKey) -> Option<Shown<'_>> {
        if !self.shows_endpoints || self.link.understood != Understood::Whole {
            return None;
        }
        let services = conventions::services_of(key, &self.link);
        let slices = services.iter().filter_map(|service| self.cluster.slices.get(service)).flat_map(BTreeMap::values);
        let mut shown = Shown::default();
        for slice in slices {
            for endpoint in &slice.endpoints {
                shown.by_address.entry(endpoint.address).or_default().push((&slice.ports, endpoint));
                shown.is_any_ready |= endpoint.ready;
            }
        }
        Some(shown)
    }
}

/// Endpoints that a peer's slices show, with their slices' ports.
#[derive(Debug, Default)]
pub struct Shown<'a> {
    by_address: BTreeMap<IpAddr, Vec<(&'a [SlicePort], &'a Endpoint)>>,
    is_any_ready: bool,
}

impl Shown<'_> {
    /// What they say of an endpoint of the import.
    pub fn says(&self, content: &Content, address: IpAddr) -> Said {
        if content.path == Path::Gateway {
            // It leads to whichever pods are ready.
            return Said::There { ready: self.is_any_ready, serving: self.is_any_ready, terminating: false };
        }
        let has_all = |ports: &[SlicePort]| {
            let has = |port: &SlicePort| ports.iter().any(|its| (its.port, its.protocol) == (port.port, port.protocol));
            content.ports.iter().all(has)
        };
        let endpoints = self.by_address.get(&address).into_iter().flatten().filter(|(ports, _)| has_all(ports));
        let best = endpoints.map(|(_, endpoint)| endpoint).max_by_key(|endpoint| endpoint.usefulness());
        best.map_or(Said::Gone, |it| Said::There { ready: it.ready, serving: it.serving, terminating: it.terminating })
    }
}

impl World {
    /// Peers that may still have what would become imports of this kind and wasn't heard of.
    pub fn unheard(&self, kind: ImportKind) -> impl Iterator<Item = (&LinkName, &Peer)> {
        self.peers.iter().filter(move |(_, peer)| peer.is_unheard_as(kind))
    }

    /// Those of them that may be the cluster of this name.
    pub fn unheard_as<'a>(
        &'a self,
        cluster: &'a ClusterName,
        kind: ImportKind,
    ) -> impl Iterator<Item = (&'a LinkName, &'a Peer)> {
        let is_claimed = || self.peers.values().any(|peer| peer.link.cluster == *cluster);
        self.unheard(kind).filter(move |(_, peer)| {
            peer.link.cluster == *cluster || peer.link.understood == Understood::Nothing && !is_claimed()
        })
    }

    /// A kind of a peer's objects was listed: what was kept because there might have been one may be gone.
    pub(super) fn show(&mut self, name: &LinkName, shown: fn(&mut Peer) -> &mut bool) {
        if let Some(peer) = self.peers.get_mut(name)
            && !std::mem::replace(shown(peer), true)
            && peer.is_unheard()
        {
            self.touch_all();
        }
    }

    /// The slices of a peer's Service are others now: what is kept though nobody knows whether it is exported may be gone.
    pub(super) fn touch_kept(&mut self, name: &LinkName, service: &ObjectName) {
        let Some(peer) = self.peers.get(name).filter(|peer| peer.is_unheard()) else { return };
        let keys = conventions::imports_of(service, &peer.link);
        self.dirty.extend(keys.into_iter().filter(|key| self.own.placed.contains_key(key)));
    }

    /// Keeps how endpoints of a peer are written that isn't heard, before they are written as of no use.
    pub(super) fn remember(&mut self, name: &LinkName, standing: Standing) {
        let is_of_use = matches!(standing, Standing::Fresh | Standing::Lost { silent: false });
        let Some(peer) = self.peers.get_mut(name).filter(|peer| !is_of_use && !peer.is_heard()) else { return };
        for (key, slices) in &self.own.placed {
            for placed in slices.values().filter(|placed| placed.content.cluster == peer.link.cluster) {
                for endpoint in &placed.endpoints {
                    let is_fallback = placed.content.is_fallback;
                    let before = Before { ready: endpoint.ready, serving: endpoint.serving, is_fallback };
                    let kept = (key.clone(), endpoint.address, placed.content.ports.clone());
                    peer.before.entry(kept).or_insert(before);
                }
            }
        }
    }
}
