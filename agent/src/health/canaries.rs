//! The few endpoints of a path that are asked whether it works.

use super::used::UsedBackend;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

/// How many endpoints of a path are asked again and again.
pub(super) const CANARIES: usize = 3;
/// How many more are asked while the path is in doubt. Their silence proves nothing, but one answer does: three pods that
/// hang must not stand for a whole cluster.
pub(super) const RESERVES: usize = 3;
/// How many endpoints of a path canaries are chosen from; more are looked at only when these change.
pub(super) const CANDIDATES: usize = 32;
/// After so many failures in a row another endpoint takes a canary's place.
const PATIENCE: u32 = 3;
/// The same for one that never answered.
const TRIES: u32 = 5;
/// The same for one that did, of a path that is down: it may come back without those that were asked.
const ENDURANCE: u32 = 20;
/// More failures than ever count as evidence.
const MOST_FAILED: usize = 40;

/// An endpoint that may become a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Another one for each node, so that not all nodes ask the same pods.
    pub(super) rank: u64,
    pub(super) backend: u32,
    pub(super) generation: u32,
    pub(super) address: SocketAddr,
    pub(super) local: bool,
    /// Whether an RST is as good an answer of it as a connection.
    pub(super) udp: bool,
}

impl Candidate {
    pub(super) fn of(backend: u32, used: &UsedBackend, seed: u64) -> Self {
        let UsedBackend { generation, address, local, udp, .. } = *used;
        Self { rank: rank(address.ip(), seed), backend, generation, address, local, udp }
    }

    fn key(&self) -> (u32, u32) {
        (self.backend, self.generation)
    }
}

/// The first [`CANDIDATES`] of all endpoints of a path, by rank: however many there are, no more are kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    /// One port of each address, by rank and address. Those of this node apart: they say nothing about the network, and serve
    /// only if there are no others.
    remote: BTreeMap<(u64, IpAddr), Candidate>,
    local: BTreeMap<(u64, IpAddr), Candidate>,
}

impl Candidates {
    pub(super) fn add(&mut self, candidate: Candidate) {
        let first = if candidate.local { &mut self.local } else { &mut self.remote };
        let key = (candidate.rank, candidate.address.ip());
        if first.len() >= CANDIDATES && first.last_key_value().is_some_and(|(last, _)| *last < key) {
            return;
        }
        let order = |candidate: &Candidate| (candidate.address, candidate.key());
        let known = first.entry(key).or_insert(candidate);
        if order(&candidate) < order(known) {
            *known = candidate;
        }
        if first.len() > CANDIDATES {
            first.pop_last();
        }
    }

    /// In the order in which they are to be chosen.
    pub(super) fn into_first(self) -> Vec<Candidate> {
        let first = if self.remote.is_empty() { self.local } else { self.remote };
        first.into_values().collect()
    }
}

/// Whether a path works, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Works {
    Yes,
    Perhaps,
    No,
}

/// One of the endpoints asked, and what it said.
#[derive(Clone, Debug)]
pub(super) struct Canary {
    pub(super) candidate: Candidate,
    /// Whether it ever accepted a probe of ours, or, if it is one of UDP, sent an RST. One that never did may be closed to
    /// this node, whatever its pods had from it, and its silence says nothing.
    pub(super) counts: bool,
    /// When the probes were started that failed since the path's last sign of life.
    pub(super) failed: Vec<Instant>,
    /// Failures since its own last answer.
    streak: u32,
}

/// The canaries of a path.
#[derive(Clone, Debug, Default)]
pub(super) struct Canaries {
    /// First those asked always, then the reserves.
    chosen: Vec<Canary>,
    candidates: Vec<Candidate>,
    /// Those that were exchanged, so that others have their turn.
    avoided: BTreeSet<(u32, u32)>,
}

impl Canaries {
    /// Chooses anew from `candidates`, by rank, and keeps those that are still among them. `answered` says whether anybody
    /// on this node has heard the backend of an index and generation, which then comes first; asked for [`CANDIDATES`] of them at most.
    pub(super) fn renew(&mut self, candidates: Vec<Candidate>, answered: impl Fn(u32, u32) -> bool) {
        self.avoided.retain(|key| candidates.iter().any(|candidate| candidate.key() == *key));
        self.chosen.retain(|canary| candidates.contains(&canary.candidate));
        self.candidates = candidates;
        self.fill(answered);
    }

    /// Exchanges those that don't answer although the path works, or never did, or not since the path went down long ago.
    /// Returns those that hang, which are as good as dead: they did answer once, and the path works.
    pub(super) fn exchange(&mut self, path: Works, answered: impl Fn(u32, u32) -> bool) -> Vec<Candidate> {
        let is_tired = |canary: &Canary| match (canary.counts, path) {
            (false, _) => canary.streak >= TRIES,
            (true, Works::Yes) => canary.streak >= PATIENCE,
            (true, Works::Perhaps) => false,
            (true, Works::No) => canary.streak >= ENDURANCE,
        };
        let tired: Vec<Canary> = self.chosen.extract_if(.., |canary| is_tired(canary)).collect();
        if tired.is_empty() {
            return Vec::new();
        }
        self.avoided.extend(tired.iter().map(|canary| canary.candidate.key()));
        self.fill(answered);
        let hangs = |canary: &Canary| path == Works::Yes && canary.counts && !canary.candidate.udp;
        tired.into_iter().filter(hangs).map(|canary| canary.candidate).collect()
    }

    /// Adds what is missing: not avoided before avoided, known to answer before unknown, other networks before the same.
    fn fill(&mut self, answered: impl Fn(u32, u32) -> bool) {
        if self.chosen.len() >= (CANARIES + RESERVES).min(self.candidates.len()) {
            return;
        }
        if self.candidates.iter().all(|candidate| self.avoided.contains(&candidate.key())) {
            self.avoided.clear();
        }
        let rated = |candidate: &Candidate| {
            let answered = answered(candidate.backend, candidate.generation);
            ((self.avoided.contains(&candidate.key()), !answered), *candidate)
        };
        let mut free: Vec<_> = self.candidates.iter().filter(|candidate| !self.has(candidate)).map(rated).collect();
        free.sort_by_key(|(rating, _)| *rating);
        while self.chosen.len() < CANARIES + RESERVES && !free.is_empty() {
            let networks: Vec<_> = self.chosen.iter().map(|canary| network(&canary.candidate)).collect();
            let best = free[0].0;
            let is_elsewhere = |(rating, candidate): &((bool, bool), Candidate)| {
                *rating == best && !networks.contains(&network(candidate))
            };
            let at = free.iter().position(is_elsewhere).unwrap_or(0);
            let (_, candidate) = free.remove(at);
            self.chosen.push(Canary { candidate, counts: false, failed: Vec::new(), streak: 0 });
        }
    }

    fn has(&self, candidate: &Candidate) -> bool {
        self.chosen.iter().any(|canary| canary.candidate == *candidate)
    }

    /// Those asked always.
    pub(super) fn regular(&self) -> &[Canary] {
        &self.chosen[..self.chosen.len().min(CANARIES)]
    }

    /// With the reserves.
    pub(super) fn all(&self) -> &[Canary] {
        &self.chosen
    }

    /// It answered, or refused (`opened` false); returns how many of its probes had failed before.
    pub(super) fn answered(&mut self, backend: u32, generation: u32, opened: bool) -> u32 {
        let Some(canary) = self.find(backend, generation) else {
            return 0;
        };
        canary.counts |= opened || canary.candidate.udp;
        std::mem::take(&mut canary.streak)
    }

    /// A probe started at `started` was not answered.
    pub(super) fn failed(&mut self, backend: u32, generation: u32, started: Instant, is_evidence: bool) {
        if let Some(canary) = self.find(backend, generation) {
            canary.streak = canary.streak.saturating_add(1);
            if is_evidence && canary.failed.len() < MOST_FAILED {
                canary.failed.push(started);
            }
        }
    }

    /// Forgets what failed up to `sign`, for the path worked then.
    pub(super) fn forget_until(&mut self, sign: Instant) {
        self.chosen.iter_mut().for_each(|canary| canary.failed.retain(|started| *started > sign));
    }

    /// Forgets all that failed: it may have been for another reason.
    pub(super) fn forget(&mut self) {
        self.chosen.iter_mut().for_each(|canary| canary.failed.clear());
    }

    fn find(&mut self, backend: u32, generation: u32) -> Option<&mut Canary> {
        self.chosen.iter_mut().find(|canary| canary.candidate.key() == (backend, generation))
    }
}

/// What is likely to be one node: a /24 or a /64.
fn network(candidate: &Candidate) -> [u8; 8] {
    let mut network = [0; 8];
    match candidate.address.ip() {
        IpAddr::V4(v4) => network[..3].copy_from_slice(&v4.octets()[..3]),
        IpAddr::V6(v6) => network.copy_from_slice(&v6.octets()[..8]),
    }
    network
}

/// A number that looks random and is the same each time (FNV-1a, then a shuffle of the bits).
fn rank(address: IpAddr, seed: u64) -> u64 {
    let bytes = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, fnv);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Path;

    fn candidates(addresses: &[&str]) -> Vec<Candidate> {
        let of = |(index, address): (u32, &&str)| {
            let address = format!("{address}:80").parse().unwrap();
            let used = UsedBackend {
                generation: 1,
                address,
                cluster: 1,
                path: Path::Pod,
                udp: false,
                local: false,
                dead: false,
                serves: true,
            };
            Candidate::of(index, &used, 7)
        };
        (0..).zip(addresses).map(of).collect()
    }

    fn chosen(canaries: &Canaries) -> Vec<String> {
        canaries.all().iter().map(|canary| canary.candidate.address.ip().to_string()).collect()
    }

    #[test]
    fn canaries_are_on_different_networks_if_there_are_enough() {
        let mut canaries = Canaries::default();
        let mut addresses: Vec<String> = (1..=20).map(|last| format!("10.1.1.{last}")).collect();
        addresses.extend(["10.1.2.1".to_owned(), "10.1.3.1".to_owned()]);
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        canaries.renew(candidates(&addresses), |_, _| false);
        assert_eq!(canaries.all().len(), CANARIES + RESERVES);
        let networks: BTreeSet<_> = canaries.regular().iter().map(|canary| network(&canary.candidate)).collect();
        assert_eq!(networks.len(), CANARIES, "{:?}", chosen(&canaries));
    }

    #[test]
    fn one_that_this_nodes_pods_heard_comes_first_and_counts_once_it_answers_us() {
        let mut canaries = Canaries::default();
        let addresses = ["10.1.1.1", "10.1.1.2", "10.1.1.3", "10.1.1.4", "10.1.1.5", "10.1.1.6", "10.1.1.7"];
        canaries.renew(candidates(&addresses), |backend, _| backend == 4);
        assert_eq!(canaries.all()[0].candidate.backend, 4);
        let counting: Vec<bool> = canaries.all().iter().map(|canary| canary.counts).collect();
        assert_eq!(counting, [false; CANARIES + RESERVES], "it may be closed to us all the same");
        canaries.answered(4, 1, true);
        assert!(canaries.all()[0].counts);
    }

    #[test]
    fn canaries_stay_as_long_as_they_are_used() {
        let mut canaries = Canaries::default();
        canaries.renew(candidates(&["10.1.1.1", "10.1.2.1"]), |_, _| false);
        canaries.answered(0, 1, true);
        canaries.answered(1, 1, false);
        let more = ["10.1.1.1", "10.1.2.1", "10.1.3.1", "10.1.4.1"];
        canaries.renew(candidates(&more), |_, _| true);
        let counting: Vec<(u32, bool)> =
            canaries.all()[..2].iter().map(|canary| (canary.candidate.backend, canary.counts)).collect();
        assert_eq!(BTreeSet::from_iter(counting), BTreeSet::from([(0, true), (1, false)]), "refused is not answered");
        canaries.renew(candidates(&more)[2..].to_vec(), |_, _| true);
        assert_eq!(BTreeSet::from_iter(chosen(&canaries)), BTreeSet::from(["10.1.3.1".into(), "10.1.4.1".into()]));
    }

    #[test]
    fn one_that_hangs_is_exchanged_and_named_once_the_path_is_known_to_work() {
        let mut canaries = Canaries::default();
        let addresses: Vec<String> = (1..=9).map(|net| format!("10.1.{net}.1")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        canaries.renew(candidates(&addresses), |_, _| true);
        let hung = canaries.all()[0].candidate;
        canaries.answered(hung.backend, hung.generation, true);
        let now = Instant::now();
        (0..PATIENCE).for_each(|_| canaries.failed(hung.backend, hung.generation, now, true));
        assert_eq!(canaries.exchange(Works::Perhaps, |_, _| true), []);
        assert_eq!(canaries.exchange(Works::Yes, |_, _| true), [hung]);
        assert_eq!(canaries.all().len(), CANARIES + RESERVES);
        assert!(!canaries.has(&hung));
    }
}
