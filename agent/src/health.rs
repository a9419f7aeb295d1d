//! Which clusters and backends answer this node: decided from probes and from what the kernel saw.
//!
//! [`Health`] is pure: time, probes' outcomes and kernel events are handed to it, and it says what to probe next and what
//! holds. [`driver`] runs it. It owns the verdicts in `CLUSTERS` and `BACKENDS`, the SYN timeouts, and the ramp of clusters
//! that come back; tiers and weights are `resolve`'s.
//!
//! # What is judged
//!
//! A *path* is one way to one cluster: flat (the pods' own addresses) or its gateway. Each has a few canaries,
//! endpoints that the tables really use; a canary counts once it accepted a probe of this node: what pods had from it
//! says nothing, for a NetworkPolicy may admit them and not the node. Where a path serves UDP only, a TCP connect to the UDP
//! port is the probe: an RST says that the pod lives, and is enough for the canary to count. A cluster is down when all its paths
//! are. If only one of them is, that path alone is out: it has an entry in `CLUSTERS` of its own ([`gateways`]), so that is
//! one write too.
//!
//! * **Alive** is whoever sent anything: an answer, an RST, any segment that the kernel saw. One sign of life ends all doubt.
//! * **In doubt** is a path of which the kernel saw a connect unanswered, or a counted canary silent, with no sign of life
//!   since. All its canaries, and as many reserves, are then asked every 60 ms.
//! * **Dark** is a path in doubt whose canaries failed so often that chance can be ruled out (1 in 10⁸ at the loss that
//!   was measured on that path): at least four probes, two or more of each of two canaries.
//! * **Down** is a dark path *with a witness*: proof that we ourselves are connected. See below.
//! * **Up again** is a path that was answered in five rounds in a row over at least 2 s; doubled for each further time that it
//!   went down within a minute, 60 s at most. A cluster that was down is then ramped in over 10 s.
//!
//! # Fail static
//!
//! If everything goes dark at once, it is we who are cut off, and the last state is the best there is. So a dark path
//! goes down only if, since the doubt began,
//!
//! * another remote cluster was heard, of those that are not down already or went dark together with this one (within 2 s);
//! * or, if there is no such cluster, the own cluster's pods on *other nodes* were heard. With a single peer that is
//!   what tells a dead peer from a dead uplink. A failure between the two (the peer's link of the whole own cluster) looks like
//!   a dead peer, and is treated as one: no connection would get through either way.
//! * If there are no such pods either (a cluster of one node), nobody can be asked, and only the uplink's own state speaks.
//!
//! While the uplink is down (no carrier, or the default route is gone) nothing goes down at all. What is dark without
//! a witness is *held*: used as before, shown ([`ClusterView::held`]), and asked every 500 ms. As soon as a
//! witness is heard, evidence is gathered afresh, so that the peer that answers second after an outage isn't taken for dead.
//! The own cluster is never down, and while nothing else is heard none of its backends is declared dead by silence.
//!
//! # Peer state
//!
//! What the mirror says of a peer's API ([`PeerState`]) is independent of this: a peer whose API is not heard stays as it is
//! while its pods answer. It matters in one place: canaries that never answered this node count as well then, so a node
//! that starts during an outage takes the cluster out too; unless its pods heard the path since, which is then closed to the
//! node only.
//!
//! # Backends
//!
//! A backend that the kernel ejected is asked at once, three times 60 ms apart (more on a lossy path): it is dead if it
//! stayed silent while its path works and it once answered us, and nobody heard it. One that never answered us, as most were
//! never asked, is dead too if a canary on its port answers and some four connects of pods in a row (more on a lossy path) were not
//! answered while the path worked: it may be closed to us only, so that is not for good. A refusal
//! is not death: a server that shuts down closes its listener first, and still answers whom it has; the kernel's ejection does
//! for it. Dead ones are asked again with back-off until they answered
//! twice, whether anything else on their path serves or not. While a path is in doubt or down, no backend of it is declared dead.

mod by_index;
mod canaries;
mod changed;
mod checks;
pub mod driver;
mod findings;
pub mod gateways;
mod hz;
mod judge;
mod path;
pub mod prober;
mod ramp;
mod rtt;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod uplink;
mod used;
mod view;

pub use self::{
    by_index::ByIndex,
    changed::{Changed, Judged},
    findings::Findings,
    hz::Hz,
    used::{Used, UsedBackend, UsedCluster, local_addresses},
    view::{CanaryView, ClusterView, PathView, View},
};

use self::{
    canaries::{Candidate, Candidates},
    checks::{Checks, Said},
    path::PathHealth,
};
use crate::model::{ClusterName, Path, PeerState};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi;

/// How often the kernel's signs of life of a path are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// A poll that comes so much later than asked for says that this process could not run: what is under way then is no
/// evidence. What failed before still is.
const LATE: Duration = Duration::from_millis(150);
/// The least time between two polls that nothing but time asks for.
const SHORTEST: Duration = Duration::from_millis(1);
/// When there is nothing to do.
const IDLE: Duration = Duration::from_secs(1);

/// What the kernel saw of clusters and backends.
pub trait Signs {
    /// How long ago any segment came from the cluster at this index in `CLUSTERS`; none if that is not known.
    fn cluster_alive(&self, cluster: u32) -> Option<Duration>;

    /// How long ago any segment came from the backend at this index in `BACKENDS`, if it still has this generation.
    fn backend_alive(&self, index: u32, generation: u32) -> Option<Duration>;
}

/// Something that the kernel reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connect to a backend failed.
    Failed {
        /// Index in `BACKENDS`.
        backend: u32,
        /// Its generation.
        generation: u32,
        /// How.
        failure: Failure,
    },
    /// A backend is left out for a while because of that. Nothing more follows from it: its failure was told too.
    Ejected {
        /// For all, because a second pod met a failure; else for the pod that met it.
        for_all: bool,
    },
    /// A connection to a backend that was left out was established.
    Recovered {
        /// Index in `BACKENDS`.
        backend: u32,
        /// Its generation.
        generation: u32,
    },
    /// Several backends of a cluster didn't answer, and the kernel avoids the cluster for a moment.
    Suspect {
        /// Index in `CLUSTERS`.
        cluster: u32,
    },
}

impl Event {
    /// What is to be taken in of a kernel's event; none of most.
    pub fn of(event: &abi::Event) -> Option<Self> {
        let abi::Event { backend, generation, cluster, kind, .. } = *event;
        let failed = |failure| Some(Self::Failed { backend, generation, failure });
        match kind {
            abi::event::REFUSED => failed(Failure::Refused),
            abi::event::UNANSWERED => failed(Failure::Unanswered),
            abi::event::EJECTED => Some(Self::Ejected { for_all: false }),
            abi::event::CONFIRMED => Some(Self::Ejected { for_all: true }),
            abi::event::RECOVERED => Some(Self::Recovered { backend, generation }),
            abi::event::SUSPECT => Some(Self::Suspect { cluster }),
            _ => None,
        }
    }
}

/// How a connect failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An RST came.
    Refused,
    /// Nothing came.
    Unanswered,
}

/// Why a path that is dark is used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Everything that could tell whether we are connected is dark too.
    AllDark,
    /// Our own uplink is down.
    Uplink,
}

/// A TCP connect to be tried. Its outcome goes to [`Health::probed`], whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Names the probe.
    pub id: u64,
    /// Where to.
    pub address: SocketAddr,
    /// How long to wait.
    pub timeout: Duration,
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was accepted, after this time.
    Open(Duration),
    /// An RST came, after this time.
    Refused(Duration),
    /// Nothing came in time, or the network said that there is no way.
    Silent,
    /// It could not be sent, for a reason of our own (no descriptors, not permitted): says nothing.
    NotSent,
}

/// A probe under way.
#[derive(Clone, Debug)]
struct InFlight {
    purpose: Purpose,
    backend: u32,
    generation: u32,
    /// Index in `CLUSTERS`.
    cluster: u32,
    started: Instant,
    /// Its silence says nothing.
    void: bool,
}

#[derive(Clone, Debug)]
enum Purpose {
    Canary(ClusterName, Path),
    Check,
}

/// One cluster, with the paths to it.
#[derive(Clone, Debug)]
struct ClusterHealth {
    paths: BTreeMap<Path, PathHealth>,
    peer: PeerState,
    /// Whether all paths were down until the ramp's end.
    was_down: bool,
    /// Whether it has answered since.
    returned: bool,
    /// Since when it has been ramped in.
    ramp: Option<Instant>,
}

impl ClusterHealth {
    fn is_down(&self) -> bool {
        !self.paths.is_empty() && self.paths.values().all(PathHealth::is_down)
    }

    /// When something was last heard from it.
    fn last_sign(&self) -> Option<Instant> {
        self.paths.values().filter_map(|path| path.last_sign).max()
    }
}

/// The health of everything that this node's tables use.
#[derive(Clone, Debug)]
pub struct Health {
    seed: u64,
    used: Arc<Used>,
    clusters: BTreeMap<ClusterName, ClusterHealth>,
    /// What the mirror said, also of clusters that are not used yet.
    peers: BTreeMap<ClusterName, PeerState>,
    checks: Checks,
    /// Backends that accepted a probe, by index and generation.
    open: BTreeSet<(u32, u32)>,
    in_flight: BTreeMap<u64, InFlight>,
    last_id: u64,
    /// Whether our own uplink is up.
    uplink: bool,
    /// When the next poll was asked for.
    asked: Option<Instant>,
}

impl Health {
    /// Nothing is used yet. `seed` should differ between nodes, so that they don't all ask the same endpoints.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            used: Arc::default(),
            clusters: BTreeMap::new(),
            peers: BTreeMap::new(),
            checks: Checks::default(),
            open: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            last_id: 0,
            uplink: true,
            asked: None,
        }
    }

    /// Takes in what the tables use now. What they have down or dead, and is not known here, is taken to be so.
    pub fn use_these(&mut self, used: impl Into<Arc<Used>>, signs: &impl Signs, now: Instant) {
        let used = used.into();
        let mut candidates: BTreeMap<(&ClusterName, Path), (u32, Candidates)> = BTreeMap::new();
        for (&index, backend) in used.backends.iter().filter(|(_, backend)| backend.serves) {
            let Some(cluster) = used.clusters.get(&backend.cluster) else {
                continue;
            };
            let of_path =
                candidates.entry((&cluster.name, backend.path)).or_insert((backend.cluster, Candidates::default()));
            of_path.1.add(Candidate::of(index, backend, self.seed));
        }
        self.clusters.retain(|name, cluster| {
            cluster
                .paths
                .retain(|path, health| candidates.get(&(name, *path)).is_some_and(|(index, _)| *index == health.index));
            !cluster.paths.is_empty()
        });
        for ((name, path), (index, candidates)) in candidates {
            let down = index != 0 && used.clusters.get(&index).is_some_and(|cluster| cluster.down);
            let peer = self.peers.get(name).copied().unwrap_or_default();
            let new = || ClusterHealth { paths: BTreeMap::new(), peer, was_down: false, returned: false, ramp: None };
            let cluster = self.clusters.entry(name.clone()).or_insert_with(new);
            let health = cluster.paths.entry(path).or_insert_with(|| PathHealth::new(index, down, now));
            let answered = |backend, generation| signs.backend_alive(backend, generation).is_some();
            health.canaries.renew(candidates.into_first(), answered);
        }
        for cluster in self.clusters.values_mut() {
            cluster.was_down |= cluster.is_down();
        }
        self.checks.renew(&used.backends, now);
        let is_used = |(index, generation): &(u32, u32)| {
            used.backends.get(index).is_some_and(|backend| backend.generation == *generation)
        };
        self.open.retain(is_used);
        self.used = used;
    }

    /// Takes in what the kernel reported.
    pub fn event(&mut self, event: Event, signs: &impl Signs, now: Instant) {
        match event {
            Event::Failed { backend, generation, failure } => {
                let known = self.used.backends.get(&backend).filter(|used| used.generation == generation).copied();
                let Some(used) = known else {
                    return;
                };
                match failure {
                    // The kernel leaves it out; there is nothing to find out.
                    Failure::Refused => return self.sign_of_backend(&used, now),
                    // A pod of this node is reached without a network.
                    Failure::Unanswered if used.local => {}
                    Failure::Unanswered => self.suspect(used.cluster, Some(used.path), signs, now),
                }
                if self.may_ask(&used) {
                    self.checks.suspect(backend, used, now);
                    let begun = path_of(&self.clusters, &self.used, &used).and_then(|path| path.begun(now));
                    if begun.is_some_and(|begun| self.is_to_blame(&used, begun)) {
                        self.checks.unanswered(backend);
                    }
                }
            }
            Event::Recovered { backend, generation } => {
                if let Some(used) =
                    self.used.backends.get(&backend).filter(|used| used.generation == generation).copied()
                {
                    self.sign_of_backend(&used, now);
                    self.checks.got_through(backend, generation, now);
                }
            }
            Event::Ejected { .. } => {}
            Event::Suspect { cluster } => self.suspect(cluster, None, signs, now),
        }
    }

    /// Takes in what the mirror says of a cluster's API.
    pub fn peer(&mut self, cluster: ClusterName, state: PeerState) {
        if let Some(known) = self.clusters.get_mut(&cluster) {
            known.peer = state;
        }
        self.peers.insert(cluster, state);
    }

    /// Takes in whether our own uplink is up.
    pub fn uplink(&mut self, up: bool, now: Instant) {
        if up && !self.uplink {
            // What was silent meanwhile was not asked.
            self.start_evidence_afresh(now);
        }
        self.uplink = up;
    }

    /// Takes in what came of a probe.
    pub fn probed(&mut self, id: u64, outcome: Outcome, now: Instant) {
        let Some(probe) = self.in_flight.remove(&id) else {
            return;
        };
        let InFlight { purpose, backend, generation, cluster, started, void } = probe;
        if let Outcome::Open(_) = outcome {
            self.open.insert((backend, generation));
        }
        match purpose {
            Purpose::Canary(name, path) => {
                let known = self.clusters.get_mut(&name).and_then(|cluster| cluster.paths.get_mut(&path));
                if let Some(health) = known.filter(|health| health.index == cluster) {
                    health.in_flight = health.in_flight.saturating_sub(1);
                    match outcome {
                        Outcome::Open(rtt) => health.answered(backend, generation, true, rtt, now),
                        Outcome::Refused(rtt) => health.answered(backend, generation, false, rtt, now),
                        Outcome::Silent if !void => health.failed(backend, generation, started, now),
                        Outcome::Silent | Outcome::NotSent => {}
                    }
                    if let Outcome::Open(_) = outcome {
                        self.checks.got_through(backend, generation, now);
                    }
                }
            }
            Purpose::Check => {
                self.checks.ended(cluster, backend, generation);
                let Some(used) = self.used.backends.get(&backend).copied() else {
                    return;
                };
                let said = match outcome {
                    Outcome::Open(_) => Said::Open,
                    Outcome::Refused(_) => Said::Refused,
                    Outcome::Silent
                        if !void && self.is_open_to_us(backend, &used) && self.is_to_blame(&used, started) =>
                    {
                        Said::Nothing
                    }
                    // Whoever is to blame, it still doesn't answer.
                    Outcome::Silent if self.checks.is_dead(backend) => Said::Nothing,
                    Outcome::Silent | Outcome::NotSent => return,
                };
                if said != Said::Nothing {
                    self.sign_of_backend(&used, now);
                }
                self.checks.said(backend, generation, said, now);
            }
        }
    }

    /// Judges, and returns the probes to be started now. To be called after anything was taken in, and when
    /// [`next`](Self::next) says so.
    pub fn poll(&mut self, signs: &impl Signs, now: Instant) -> Vec<Probe> {
        if self.asked.take().is_some_and(|asked| now.saturating_duration_since(asked) > LATE) {
            self.in_flight.values_mut().for_each(|probe| probe.void = true);
        }
        self.look_for_signs(signs, now);
        self.judge_paths(now);
        let witnesses = self.witnesses(now);
        let mut wanted: Vec<(Purpose, u32, u32)> = Vec::new();
        let mut hung = Vec::new();
        for (name, cluster) in &mut self.clusters {
            for (&path, health) in &mut cluster.paths {
                let is_witness = witnesses.contains(&(name.clone(), path));
                let is_asked_anew = is_witness && health.may_be_asked_again(now);
                if health.due > now && !is_asked_anew {
                    continue;
                }
                let works = health.works();
                let answered = |backend, generation| signs.backend_alive(backend, generation).is_some();
                hung.extend(health.canaries.exchange(works, answered));
                for at in health.round(is_witness, now) {
                    let candidate = health.canaries.all()[at].candidate;
                    health.in_flight += 1;
                    wanted.push((Purpose::Canary(name.clone(), path), candidate.backend, candidate.generation));
                }
            }
        }
        for candidate in hung {
            if let Some(used) = self.used.backends.get(&candidate.backend).copied() {
                self.checks.suspect(candidate.backend, used, now);
            }
        }
        self.follow_ramps(now);
        self.judge_backends(signs, now);
        let clusters = &self.clusters;
        let used = &self.used;
        let checks = self.checks.due(now, |backend| may_ask(clusters, used, backend));
        wanted.extend(checks.into_iter().map(|(backend, generation)| (Purpose::Check, backend, generation)));
        wanted
            .into_iter()
            .filter_map(|(purpose, backend, generation)| self.start(purpose, backend, generation, now))
            .collect()
    }

    /// When [`poll`](Self::poll) is to be called again at the latest. Remembers that, to know when it was late.
    pub fn next(&mut self, now: Instant) -> Instant {
        let paths = self.clusters.values().flat_map(|cluster| cluster.paths.values());
        let (clusters, used) = (&self.clusters, &self.used);
        let checks = self.checks.next(|backend| may_ask(clusters, used, backend));
        let ramps = clusters.values().filter_map(|cluster| cluster.ramp).map(|since| ramp::next(since, now));
        let soonest = paths.map(|path| path.due).chain(checks).chain(ramps).min();
        let next = soonest.map_or(now + IDLE, |soonest| soonest.clamp(now + SHORTEST, now + IDLE));
        self.asked = Some(next);
        next
    }

    fn start(&mut self, purpose: Purpose, backend: u32, generation: u32, now: Instant) -> Option<Probe> {
        let used = self.used.backends.get(&backend).filter(|used| used.generation == generation)?;
        let timeout = self.patience(used);
        self.last_id += 1;
        let probe = Probe { id: self.last_id, address: used.address, timeout };
        let cluster = used.cluster;
        self.in_flight
            .insert(self.last_id, InFlight { purpose, backend, generation, cluster, started: now, void: false });
        Some(probe)
    }

    fn patience(&self, used: &UsedBackend) -> Duration {
        path_of(&self.clusters, &self.used, used).map_or(rtt::MOST_TIMEOUT, PathHealth::patience)
    }

    fn may_ask(&self, used: &UsedBackend) -> bool {
        may_ask(&self.clusters, &self.used, used)
    }

    /// The path that a backend is reached by.
    fn path_mut(&mut self, used: &UsedBackend) -> Option<&mut PathHealth> {
        let name = &self.used.clusters.get(&used.cluster)?.name;
        self.clusters.get_mut(name)?.paths.get_mut(&used.path)
    }

    fn sign_of_backend(&mut self, used: &UsedBackend, now: Instant) {
        if !used.local
            && let Some(path) = self.path_mut(used)
        {
            path.sign(now);
        }
    }

    /// A connect through a path of the cluster at this index was not answered.
    fn suspect(&mut self, cluster: u32, path: Option<Path>, signs: &impl Signs, now: Instant) {
        let Some(name) = self.used.clusters.get(&cluster).map(|cluster| cluster.name.clone()) else {
            return;
        };
        let Some(known) = self.clusters.get_mut(&name) else {
            return;
        };
        let is_only = known.paths.values().filter(|health| health.index == cluster).count() == 1;
        for (_, health) in known.paths.iter_mut().filter(|(other, _)| path.is_none_or(|path| path == **other)) {
            if health.index == cluster {
                look(health, is_only, signs, now);
                health.suspect(now);
            }
        }
    }

    fn look_for_signs(&mut self, signs: &impl Signs, now: Instant) {
        let asking = self.checks.iter().filter(|(_, check)| check.is_asking());
        let asking: BTreeSet<(u32, Path)> =
            asking.map(|(_, check)| (check.backend.cluster, check.backend.path)).collect();
        for cluster in self.clusters.values_mut() {
            let indexes: Vec<u32> = cluster.paths.values().map(|health| health.index).collect();
            for (path, health) in &mut cluster.paths {
                let is_due = health.due <= now || health.doubt.is_some() || asking.contains(&(health.index, *path));
                if is_due && health.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK) {
                    let is_only = indexes.iter().filter(|index| **index == health.index).count() == 1;
                    look(health, is_only, signs, now);
                }
            }
        }
    }

    /// Nothing that failed until now is evidence of anything but our own trouble.
    fn start_evidence_afresh(&mut self, now: Instant) {
        self.in_flight.values_mut().for_each(|probe| probe.void = true);
        for path in self.clusters.values_mut().flat_map(|cluster| cluster.paths.values_mut()) {
            path.doubt_anew(now);
        }
    }
}

/// Takes in what the kernel heard over a path. `is_only` says that no other path has its index, so that what is known of
/// the cluster is known of the path.
fn look(health: &mut PathHealth, is_only: bool, signs: &impl Signs, now: Instant) {
    health.looked = Some(now);
    if !health.leaves_the_node() {
        return;
    }
    // The own cluster's pods on this node would speak for it too.
    let of_cluster = if is_only && health.index != 0 { signs.cluster_alive(health.index) } else { None };
    let of_canary =
        |canary: &canaries::Canary| signs.backend_alive(canary.candidate.backend, canary.candidate.generation);
    let youngest = match of_cluster {
        Some(age) => Some(age),
        None => health.canaries.regular().iter().filter_map(of_canary).min(),
    };
    if let Some(at) = youngest.and_then(|age| now.checked_sub(age)) {
        health.sign(at);
    }
}

fn is_own(cluster: &ClusterHealth) -> bool {
    cluster.paths.values().any(|health| health.index == 0)
}

fn path_of<'a>(
    clusters: &'a BTreeMap<ClusterName, ClusterHealth>,
    used: &Used,
    backend: &UsedBackend,
) -> Option<&'a PathHealth> {
    let name = &used.clusters.get(&backend.cluster)?.name;
    clusters.get(name)?.paths.get(&backend.path)
}

/// Whether a backend's path is fit for asking after single backends: not while it is down, or dark for itself.
fn may_ask(clusters: &BTreeMap<ClusterName, ClusterHealth>, used: &Used, backend: &UsedBackend) -> bool {
    path_of(clusters, used, backend).is_some_and(|path| !path.is_down() && path.held.is_none())
}
