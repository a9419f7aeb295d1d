//! What is known of a peer, and what may be its though nothing says so.

use super::{Cluster, ImportKey, World};
use crate::{
    mirror::{
        lease::Standing,
        source::{Link, LinkName, SlicePort, Understood},
    },
    model::ClusterName,
};
use std::{collections::BTreeMap, net::IpAddr};

/// A peer, as far as it was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The link to it.
    pub link: Link,
    /// Whether everything it has was listed once: until then, what is missing is not gone.
    pub is_listed: bool,
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

impl Peer {
    /// Whether what it exports is what was heard of it.
    pub(super) fn is_heard(&self) -> bool {
        self.is_listed && self.link.understood == Understood::Whole
    }

    /// Whether it may still have what wasn't heard of: not listed yet, or by a link that isn't understood, and not given up.
    pub fn is_unheard(&self) -> bool {
        let is_given_up = self.is_given_up && self.link.understood == Understood::Whole;
        !self.is_heard() && !is_given_up && self.standing != Standing::Removed
    }
}

impl World {
    /// Peers that may still have what wasn't heard of.
    pub fn unheard(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values().filter(|peer| peer.is_unheard())
    }

    /// Those of them that may be the cluster of this name.
    pub fn unheard_as<'a>(&'a self, cluster: &'a ClusterName) -> impl Iterator<Item = &'a Peer> {
        let is_claimed = || self.peers.values().any(|peer| peer.link.cluster == *cluster);
        self.unheard().filter(move |peer| {
            peer.link.cluster == *cluster || peer.link.understood == Understood::Nothing && !is_claimed()
        })
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
