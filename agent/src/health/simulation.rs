//! Clusters that answer, lose packets and go away, in simulated time: what the tests of [`Health`](super::Health) run in.

use super::{Changed, Event, Failure, Health, Outcome, Probe, Signs, Used, UsedBackend, UsedCluster};
use crate::model::{ClusterName, Path};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

pub(super) const MILLI: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// How an endpoint behaves as long as its path works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pod {
    Answers,
    Refuses,
    Hangs,
    /// Answers pods and not this node, as a NetworkPolicy may have it.
    Closed,
}

/// One path to one cluster.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) rtt: Duration,
    /// Of each packet.
    pub(super) loss: f64,
    pub(super) up: bool,
}

/// What the kernel would know.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    now: Option<Instant>,
    clusters: BTreeMap<u32, Instant>,
    backends: BTreeMap<u32, Instant>,
}

impl Signs for Seen {
    fn cluster_alive(&self, cluster: u32) -> Option<Duration> {
        Some(self.now?.saturating_duration_since(*self.clusters.get(&cluster)?))
    }

    fn backend_alive(&self, index: u32, _generation: u32) -> Option<Duration> {
        Some(self.now?.saturating_duration_since(*self.backends.get(&index)?))
    }
}

#[derive(Clone, Debug)]
enum Happens {
    Probed(u64, Outcome),
    /// A pod's connect is answered.
    Established(u32),
    /// A pod's connect is refused.
    Refused(u32),
    /// A pod's first SYN, begun then, was not answered.
    Unanswered(u32, Instant),
    /// A pod connects to some backend of the cluster at this index.
    Connect(u32),
}

/// The world: everything that [`Health`] is told, and what it made of it.
pub(super) struct World {
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) health: Health,
    pub(super) used: Used,
    by_cluster: BTreeMap<u32, Vec<u32>>,
    by_address: BTreeMap<SocketAddr, u32>,
    pub(super) networks: BTreeMap<(u32, Path), Network>,
    pub(super) pods: BTreeMap<u32, Pod>,
    /// Whether anything gets off this node.
    pub(super) connected: bool,
    /// Connects a second to each cluster.
    traffic: BTreeMap<u32, u32>,
    pub(super) seen: Seen,
    queue: BTreeMap<(Instant, u64), Happens>,
    sequence: u64,
    random: u64,
    /// Backends that left a SYN unanswered since the cluster was heard.
    unanswered: BTreeMap<u32, BTreeSet<u32>>,
    suspect_until: BTreeMap<u32, Instant>,
    /// Each change of what holds, with the time since the start.
    pub(super) history: Vec<(Duration, Changed)>,
    pub(super) probes: u64,
    /// When the last connect began that failed.
    pub(super) last_failure: Option<Instant>,
    poll_at: Instant,
}

impl World {
    /// `clusters` remote ones besides the own one (index 0), each with `backends` pods a millisecond away, on two nodes.
    /// They are used from the first time on that time passes.
    pub(super) fn new(seed: u64, clusters: u32, backends: u32) -> Self {
        let start = Instant::now();
        let mut world = Self {
            start,
            now: start,
            health: Health::new(seed),
            used: Used::default(),
            by_cluster: BTreeMap::new(),
            by_address: BTreeMap::new(),
            networks: BTreeMap::new(),
            pods: BTreeMap::new(),
            connected: true,
            traffic: BTreeMap::new(),
            seen: Seen::default(),
            queue: BTreeMap::new(),
            sequence: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            unanswered: BTreeMap::new(),
            suspect_until: BTreeMap::new(),
            history: Vec::new(),
            probes: 0,
            last_failure: None,
            poll_at: start,
        };
        for cluster in 0..=clusters {
            world.add_cluster(cluster, &name(cluster), Path::Pod, backends);
        }
        world
    }

    /// Adds an index of `CLUSTERS` with its backends; [`use_these`](Self::use_these) has to follow.
    pub(super) fn add_cluster(&mut self, index: u32, name: &ClusterName, path: Path, backends: u32) {
        let cluster =
            UsedCluster { name: name.clone(), table_name: ClusterName(format!("{name}{index}")), down: false };
        self.used.clusters.insert(index, cluster);
        self.networks.insert((index, path), Network { rtt: MILLI, loss: 0.0, up: true });
        for number in 0..backends {
            let backend = index * 1000 + number;
            let network = number % 2 + number / 400 * 2;
            let address: SocketAddr = format!("10.{index}.{network}.{}:80", number / 2 % 200 + 1).parse().unwrap();
            let used = UsedBackend {
                generation: 1,
                address,
                cluster: index,
                path,
                udp: false,
                local: false,
                dead: false,
                serves: true,
            };
            self.used.backends.insert(backend, used);
        }
    }

    pub(super) fn use_these(&mut self) {
        self.by_cluster.clear();
        for (&index, used) in self.used.backends.iter() {
            self.by_cluster.entry(used.cluster).or_default().push(index);
            self.by_address.insert(used.address, index);
        }
        self.seen.now = Some(self.now);
        self.health.use_these(self.used.clone(), &self.seen, self.now);
        self.poll();
    }

    /// From now on pods connect so often, in all, to the cluster; with 0, no more.
    pub(super) fn traffic(&mut self, cluster: u32, per_second: u32) {
        self.traffic.insert(cluster, per_second);
        self.later(self.now, Happens::Connect(cluster));
    }

    /// Lets `time` pass in which the agent doesn't run: it is told afterwards what came of its probes.
    pub(super) fn stall(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((&(at, _), _)) = self.queue.first_key_value()
            && at < end
        {
            let (_, happens) = self.queue.pop_first().expect("it was there");
            self.now = at;
            match happens {
                Happens::Connect(cluster) => self.connect(cluster),
                other => self.later(end, other),
            }
        }
        self.now = end;
        self.poll_at = self.poll_at.max(end);
    }

    /// The kernel has heard these backends, long before anything else happens.
    pub(super) fn seen_backends(&mut self, backends: impl Iterator<Item = u32>) {
        self.seen.backends.extend(backends.map(|backend| (backend, self.now)));
    }

    /// Sets a cluster's path up or down.
    pub(super) fn set_up(&mut self, cluster: u32, up: bool) {
        self.network(cluster).up = up;
    }

    pub(super) fn network(&mut self, cluster: u32) -> &mut Network {
        self.networks.get_mut(&(cluster, Path::Pod)).unwrap()
    }

    /// Lets `time` pass.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        if self.by_cluster.is_empty() {
            self.use_these();
        }
        loop {
            let next = self.queue.keys().next().map(|(at, _)| *at);
            let due = next.map_or(self.poll_at, |next| next.min(self.poll_at));
            if due > end {
                break;
            }
            self.now = due.max(self.now);
            if next == Some(due) {
                let ((_, _), happens) = self.queue.pop_first().unwrap();
                self.happen(happens);
            } else {
                self.poll();
            }
        }
        self.now = end;
    }

    /// The canaries of a cluster's flat path, with the reserves.
    pub(super) fn asked(&self, cluster: u32) -> Vec<u32> {
        let canaries = &self.health.clusters[&name(cluster)].paths[&Path::Pod].canaries;
        canaries.all().iter().map(|canary| canary.candidate.backend).collect()
    }

    pub(super) fn since_start(&self) -> Duration {
        self.now - self.start
    }

    fn happen(&mut self, happens: Happens) {
        self.seen.now = Some(self.now);
        match happens {
            Happens::Probed(id, outcome) => {
                self.health.probed(id, outcome, self.now);
                self.take_in_what_ended();
                self.poll();
            }
            Happens::Established(backend) => {
                self.seen.backends.insert(backend, self.now);
                self.alive(backend);
            }
            Happens::Refused(backend) => {
                self.alive(backend);
                self.fail(backend, Failure::Refused);
            }
            Happens::Unanswered(backend, begun) => {
                self.last_failure = self.last_failure.max(Some(begun));
                self.fail(backend, Failure::Unanswered);
                let cluster = self.used.backends[&backend].cluster;
                let unanswered = self.unanswered.entry(cluster).or_default();
                unanswered.insert(backend);
                if unanswered.len() >= 3 {
                    self.suspect_until.insert(cluster, self.now + SECOND);
                    self.health.event(Event::Suspect { cluster }, &self.seen, self.now);
                    self.poll();
                }
            }
            Happens::Connect(cluster) => self.connect(cluster),
        }
    }

    /// As the driver does before it polls: whatever has ended by now.
    fn take_in_what_ended(&mut self) {
        let is_ended = |((at, _), happens): &(&(Instant, u64), &Happens)| {
            *at <= self.now && matches!(happens, Happens::Probed(..))
        };
        let ended: Vec<_> = self.queue.iter().take_while(|((at, _), _)| *at <= self.now).filter(is_ended).collect();
        let ended: Vec<(Instant, u64)> = ended.into_iter().map(|(key, _)| *key).collect();
        for key in ended {
            if let Some(Happens::Probed(id, outcome)) = self.queue.remove(&key) {
                self.health.probed(id, outcome, self.now);
            }
        }
    }

    fn alive(&mut self, backend: u32) {
        let cluster = self.used.backends[&backend].cluster;
        self.seen.clusters.insert(cluster, self.now);
        self.unanswered.remove(&cluster);
        self.suspect_until.remove(&cluster);
    }

    fn fail(&mut self, backend: u32, failure: Failure) {
        self.health.event(Event::Failed { backend, generation: 1, failure }, &self.seen, self.now);
        self.take_in_what_ended();
        self.poll();
    }

    /// One connect of a pod, unless the kernel would send it elsewhere.
    fn connect(&mut self, cluster: u32) {
        let Some(every) = SECOND.checked_div(self.traffic[&cluster]) else {
            return;
        };
        self.later(self.now + every, Happens::Connect(cluster));
        let is_suspect = self.suspect_until.get(&cluster).is_some_and(|until| *until > self.now);
        if is_suspect || self.is_down(cluster) {
            return;
        }
        let mut backends: Vec<u32> = self.by_cluster[&cluster].clone();
        if !self.changed().dead.is_empty() {
            backends.retain(|index| !is_dead(self.changed(), &self.used.backends[index]));
        }
        if backends.is_empty() {
            return;
        }
        let backend = backends[usize::try_from(self.draw() >> 33).unwrap() % backends.len()];
        let used = self.used.backends[&backend];
        let rtt = self.networks[&(cluster, used.path)].rtt;
        let timeout = (rtt * 3).max(200 * MILLI);
        match self.ask(&used, backend, true) {
            Some(true) => self.later(self.now + rtt, Happens::Established(backend)),
            Some(false) => self.later(self.now + rtt, Happens::Refused(backend)),
            None => self.later(self.now + timeout, Happens::Unanswered(backend, self.now)),
        }
    }

    /// What comes of a SYN sent now: whether it is accepted, none if nothing comes back.
    fn ask(&mut self, used: &UsedBackend, backend: u32, by_pod: bool) -> Option<bool> {
        let network = self.networks[&(used.cluster, used.path)].clone();
        let is_lost = self.chance(network.loss) || self.chance(network.loss);
        if is_lost || !network.up || !(self.connected || used.local) {
            return None;
        }
        match self.pods.get(&backend).copied().unwrap_or(Pod::Answers) {
            Pod::Answers => Some(true),
            Pod::Refuses => Some(false),
            Pod::Hangs => None,
            Pod::Closed => by_pod.then_some(true),
        }
    }

    pub(super) fn poll(&mut self) {
        self.seen.now = Some(self.now);
        let probes = self.health.poll(&self.seen, self.now);
        for probe in probes {
            self.start(probe);
        }
        self.poll_at = self.health.next(self.now);
        assert!(self.poll_at > self.now);
        let changed = self.health.changed(self.now);
        if self.history.last().is_none_or(|(_, last)| *last != changed) {
            self.history.push((self.since_start(), changed));
        }
    }

    fn start(&mut self, probe: Probe) {
        self.probes += 1;
        let backend = self.by_address[&probe.address];
        let used = self.used.backends[&backend];
        let rtt = self.networks[&(used.cluster, used.path)].rtt;
        let (after, outcome) = match self.ask(&used, backend, false) {
            Some(true) => (rtt, Outcome::Open(rtt)),
            Some(false) => (rtt, Outcome::Refused(rtt)),
            None => (probe.timeout, Outcome::Silent),
        };
        self.later(self.now + after, Happens::Probed(probe.id, outcome));
    }

    fn later(&mut self, at: Instant, happens: Happens) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), happens);
    }

    fn chance(&mut self, of: f64) -> bool {
        let drawn = u32::try_from(self.draw() >> 32).unwrap();
        f64::from(drawn) < of * f64::from(u32::MAX)
    }

    /// xorshift64*.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// What holds since the last poll.
    pub(super) fn changed(&self) -> &Changed {
        &self.history.last().expect("it was polled").1
    }

    pub(super) fn is_down(&self, cluster: u32) -> bool {
        let name = &self.used.clusters[&cluster].table_name;
        self.changed().clusters.get(name).is_some_and(|judged| judged.down)
    }

    pub(super) fn is_dead(&self, backend: u32) -> bool {
        is_dead(self.changed(), &self.used.backends[&backend])
    }

    /// When the cluster went down for the first time after `since`, and how long after it.
    pub(super) fn went_down_after(&self, cluster: u32, since: Duration) -> Option<Duration> {
        let name = &self.used.clusters[&cluster].table_name;
        let is_down =
            |(_, changed): &&(Duration, Changed)| changed.clusters.get(name).is_some_and(|judged| judged.down);
        let down = self.history.iter().filter(|(at, _)| *at >= since).find(is_down)?;
        Some(down.0 - since)
    }

    /// When the cluster went down or came back.
    pub(super) fn flips(&self, cluster: u32) -> Vec<Duration> {
        let name = &self.used.clusters[&cluster].table_name;
        let states = self
            .history
            .iter()
            .map(|(at, changed)| (*at, changed.clusters.get(name).is_some_and(|judged| judged.down)));
        let mut flips = Vec::new();
        let mut last = false;
        for (at, down) in states {
            if down != last {
                flips.push(at);
                last = down;
            }
        }
        flips
    }
}

pub(super) fn name(cluster: u32) -> ClusterName {
    ClusterName(
        ["west", "east", "north"]
            .get(usize::try_from(cluster).unwrap())
            .map_or_else(|| format!("c{cluster}"), |&name| name.to_owned()),
    )
}

fn is_dead(changed: &Changed, used: &UsedBackend) -> bool {
    let std::net::IpAddr::V4(v4) = used.address.ip() else { panic!("the simulation is of IPv4") };
    let wanted = (v4.to_ipv6_mapped().octets(), used.address.port().to_be_bytes());
    changed.dead.iter().any(|key| (key.addr, key.port) == wanted)
}
