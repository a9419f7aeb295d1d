//! Packs endpoints into slices of at most a hundred, of one source cluster each, with as few writes as can be.
//!
//! As the built-in controller does it: an endpoint stays in the slice that it is in; new ones go where something is
//! written anyhow, else where all of them fit, else into a new slice.

#[cfg(test)]
mod tests;

use super::{
    conventions,
    source::{Endpoint, Family, SlicePort},
    world::ImportKey,
};
use crate::model::{ClusterName, Path, PeerState};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Most endpoints of one slice: the built-in controller's default.
pub const MAX_ENDPOINTS: usize = 100;
/// The longest part of a slice's name that is its Service's and its cluster's; what follows tells slices apart.
const MAX_STEM: usize = 200;

/// What the endpoints of one slice have in common, and never changes in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    /// The cluster they are in.
    pub cluster: ClusterName,
    /// Pods or gateways.
    pub path: Path,
    /// Their family.
    pub family: Family,
    /// Their ports, in order.
    pub ports: Vec<SlicePort>,
    /// Whether only the agent may use them.
    pub is_fallback: bool,
}

/// What the endpoints of one slice have in common, and is rewritten in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// What is said of their cluster.
    pub peer: PeerState,
    /// How many pods one of them stands for.
    pub weight: u32,
}

/// Endpoints that should be there, by what they have in common.
pub type Wanted = BTreeMap<Content, (Marks, BTreeMap<IpAddr, Endpoint>)>;

/// A slice of ours, wanted or as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What it holds.
    pub content: Content,
    /// What it says of all of it.
    pub marks: Marks,
    /// The Service that it names as its own, or as the one it is the last resort of; none for a headless ServiceImport.
    pub owner: Option<String>,
    /// Its endpoints, in their order.
    pub endpoints: Vec<Endpoint>,
    /// Whether that is all there is in it; if not, somebody else wrote to it.
    pub is_whole: bool,
}

/// What brings the slices of one import to what they should be. Slices are put before others are deleted, so that an
/// endpoint that moves is in two for a moment, not in none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// To be written as they are here.
    pub put: BTreeMap<String, Placed>,
    /// To be deleted.
    pub delete: BTreeSet<String>,
}

/// Packs `wanted` for the import `key`, given the slices of it that are there already.
pub fn pack(key: &ImportKey, owner: Option<&str>, wanted: &Wanted, there: &BTreeMap<String, Placed>) -> Packed {
    let mut packed = Packed::default();
    let mut there_by_content: BTreeMap<&Content, Vec<(&String, &Placed)>> = BTreeMap::new();
    for (name, placed) in there {
        if wanted.contains_key(&placed.content) {
            there_by_content.entry(&placed.content).or_default().push((name, placed));
        } else {
            packed.delete.insert(name.clone());
        }
    }
    let mut taken: BTreeSet<String> = there.keys().cloned().collect();
    for (content, (marks, endpoints)) in wanted {
        let there = there_by_content.remove(content).unwrap_or_default();
        let empty = |endpoints| Placed {
            content: content.clone(),
            marks: *marks,
            owner: owner.map(str::to_owned).or_else(|| content.is_fallback.then(|| key.object.name.clone())),
            endpoints,
            is_whole: true,
        };
        let mut left: BTreeMap<IpAddr, &Endpoint> = endpoints.iter().map(|(address, it)| (*address, it)).collect();
        let mut kept = Vec::new();
        for (name, placed) in there {
            let stay = placed.endpoints.iter().filter_map(|endpoint| left.remove(&endpoint.address)).cloned();
            let new = empty(stay.collect());
            let is_changed = new != *placed;
            kept.push((name.clone(), new, is_changed));
        }
        fill(&mut kept, left, |number| {
            let name = free_name(key, owner, content, number, &mut taken);
            (name, empty(Vec::new()))
        });
        for (name, placed, is_changed) in kept {
            if placed.endpoints.is_empty() {
                packed.delete.insert(name);
            } else if is_changed {
                packed.put.insert(name, placed);
            }
        }
    }
    // A name that was only just made is nobody's.
    packed.delete.retain(|name| there.contains_key(name));
    packed
}

/// Finds a place for each of `left`.
fn fill(
    kept: &mut Vec<(String, Placed, bool)>,
    left: BTreeMap<IpAddr, &Endpoint>,
    mut make: impl FnMut(usize) -> (String, Placed),
) {
    let mut left = left.into_values().cloned();
    // An emptied slice that is to be deleted costs a write as well; filling it costs the same one.
    for (_, placed, _) in kept.iter_mut().filter(|(_, _, is_changed)| *is_changed) {
        let room = MAX_ENDPOINTS.saturating_sub(placed.endpoints.len());
        placed.endpoints.extend(left.by_ref().take(room));
    }
    let mut left: Vec<Endpoint> = left.collect();
    let roomy = kept
        .iter_mut()
        .filter(|(_, placed, _)| placed.endpoints.len() + left.len() <= MAX_ENDPOINTS)
        .max_by_key(|(_, placed, _)| placed.endpoints.len());
    if let Some((_, placed, is_changed)) = roomy
        && !left.is_empty()
    {
        placed.endpoints.append(&mut left);
        *is_changed = true;
    }
    for chunk in left.chunks(MAX_ENDPOINTS) {
        let (name, mut placed) = make(kept.len());
        placed.endpoints = chunk.to_vec();
        kept.push((name, placed, true));
    }
}

/// A name that no slice of the import has; the same one for the same slices.
fn free_name(
    key: &ImportKey,
    owner: Option<&str>,
    content: &Content,
    number: usize,
    taken: &mut BTreeSet<String>,
) -> String {
    let stem = format!("{}-{}", owner.unwrap_or(&key.object.name), content.cluster);
    // Both are ASCII. A name must not end in what can't be followed by a dash.
    let stem = stem.get(..MAX_STEM).unwrap_or(&stem).trim_end_matches(['-', '.']);
    for number in number.. {
        let digest = Sha256::digest(format!("{key:?} {content:?} {number}"));
        let name = format!("{stem}-{}", conventions::base32(&digest).get(..8).expect("the text is ASCII and longer"));
        if taken.insert(name.clone()) {
            return name;
        }
    }
    unreachable!("there are more numbers than slices")
}
