//! What the agent and the CLI tell people and programs: one document per question, the JSON of `-o json`.
//!
//! Each says whose truth it is: what the source stated, what the tables should hold (desired), or what the kernel holds
//! (installed).

mod learned;
#[cfg(test)]
mod tests;

pub use learned::{ClusterRow, Ejected, Learned, Suspect, seconds};

use crate::{
    datapath::{Counts, probe},
    health::{ClusterView, Findings},
    model::{ClusterName, ObjectName},
    tables::{DesiredService, Installed, cluster_name},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};
use tombolo_ebpf::abi::{Backend, BackendState, Cluster, ClusterState, FrontendKey, TCP, path, service_flag, verdict};

/// A question to a running agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Question {
    /// [`Status`].
    Status,
    /// [`Services`].
    Services,
    /// [`Backends`].
    Backends,
}

/// Whether there is an agent to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Agent {
    /// It answered.
    Running,
    /// It did not; the rest was read from the pinned maps.
    Gone,
}

/// How the agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether it answered.
    pub agent: Agent,
    /// Whether connections are being sent to backends as the source states: attached, proven, synced, in step.
    pub ready: bool,
    /// Why it isn't ready, and what else is odd.
    pub problems: Vec<String>,
    /// The agent's version.
    pub version: String,
    /// Where the agent stands; unknown once it is gone.
    pub place: Option<Place>,
    /// The cgroup that the hooks are attached to; none if it is gone.
    pub cgroup: Option<String>,
    /// The folder of the pins.
    pub pins: String,
    /// The hooks that are attached.
    pub hooks: Vec<Hook>,
    /// The watches at the API server; empty with another source, or if the agent is gone.
    #[serde(default)]
    pub watches: Vec<Watch>,
    /// Frontends desired and installed.
    pub frontends: Tally,
    /// Backends installed.
    pub backends: usize,
    /// Pods of this node, installed, whose connections are left alone.
    pub exempt_pods: usize,
    /// Clusters by name, as the kernel has them.
    pub clusters: BTreeMap<String, ClusterRow>,
    /// Backends that are left out, whoever found them failing.
    pub ejected: usize,
    /// What the programs counted since their maps were made.
    pub counters: BTreeMap<String, u64>,
    /// How often the tables were found to hold something else than this agent wrote; unknown once the agent is gone.
    pub drift: Option<u64>,
    /// What this agent found out since it started, and how often; unknown once it is gone.
    pub findings: Option<Findings>,
}

/// Where an agent stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its cluster.
    pub cluster: String,
    /// Its node.
    pub node: String,
    /// Its zone.
    pub zone: Option<String>,
}

/// A hook in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Its name, as the kernel names it.
    pub name: String,
    /// Whether this agent took over an earlier one's link; unknown once the agent is gone.
    pub adopted: Option<bool>,
    /// Instructions that the verifier processed; none where the kernel doesn't tell (before 5.16) or the agent is gone.
    pub verified_instructions: Option<u32>,
}

/// A watch at the API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// What is watched.
    pub name: String,
    /// Seconds since it last listed everything; none if it never did.
    pub synced_for_s: Option<u64>,
    /// Seconds since it last told anything; none if it never did.
    pub heard_before_s: Option<u64>,
    /// Objects that are known by it and concern the agent, federated or not.
    pub objects: usize,
    /// Whether the API server has no such kind.
    pub absent: bool,
    /// Why it doesn't go on; what it told before stays.
    pub problem: Option<String>,
}

/// How many should be there, and are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Should be; unknown once the agent is gone.
    pub desired: Option<usize>,
    /// Are, in the kernel.
    pub installed: usize,
}

/// All frontends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Whether the agent answered.
    pub agent: Agent,
    /// By name and address.
    pub services: Vec<Service>,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `namespace/name`.
    pub name: String,
    /// What clients dial.
    pub address: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// ClientIP affinity's timeout.
    pub affinity_seconds: Option<u32>,
    /// Whether its connections to what is known dead are aborted.
    pub abort: bool,
    /// Backends that it should have; unknown once the agent is gone.
    pub desired_backends: Option<usize>,
    /// Endpoints that keep what they have and take nothing new; unknown once the agent is gone.
    pub draining: Option<Vec<SocketAddr>>,
    /// Its tiers in the kernel, best first; empty if it isn't installed or has no endpoint.
    pub tiers: Vec<Vec<Group>>,
    /// Its backends in the kernel, all tiers together.
    pub backends: Vec<SocketAddr>,
    /// What is wrong with it, in a person's words.
    pub problems: Vec<String>,
}

/// The backends of one cluster within a tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The cluster.
    pub cluster: String,
    /// Its cluster's state: `up`, `suspect`, `draining` or `down`. Suspicion may be one pod's only.
    pub state: String,
    /// Its share of the tier while all the tier's clusters are up, 0 to 1.
    pub share: f64,
    /// Its backends.
    pub backends: Vec<SocketAddr>,
    /// How many of them are left out, because they are dead or ejected for all.
    pub out: usize,
}

impl Eq for Group {}

/// All backends in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    /// Whether the agent answered.
    pub agent: Agent,
    /// By cluster and address.
    pub backends: Vec<BackendRow>,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendRow {
    /// Its cluster.
    pub cluster: String,
    /// Where packets go.
    pub address: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `pod` or `gateway`.
    pub path: String,
    /// `ok`, `draining` or `dead`.
    pub verdict: String,
    /// How often it was chosen.
    pub chosen: u64,
    /// What became of it; for UDP nothing is known.
    #[serde(flatten)]
    pub learned: Learned,
    /// The services it belongs to.
    pub services: Vec<String>,
}

/// What programs learned, as it was read from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// About backends, by index.
    pub backends: BTreeMap<u32, BackendState>,
    /// About clusters, by index.
    pub clusters: BTreeMap<u32, ClusterState>,
    /// The kernel's time in nanoseconds when it was read.
    pub now: u64,
}

impl States {
    /// What was learned about this backend, and not about one that had its index before.
    fn of(&self, index: u32, backend: &Backend) -> BackendState {
        let state = self.backends.get(&index).filter(|state| state.generation == backend.generation);
        state.copied().unwrap_or_default()
    }

    fn is_out(&self, index: u32, backend: &Backend) -> bool {
        let ejected = Learned::of(&self.of(index, backend), self.now).ejected;
        backend.verdict != verdict::OK || ejected.is_some_and(|ejected| ejected.for_all)
    }

    fn cluster_row(&self, index: u32, entry: &Cluster) -> ClusterRow {
        let state = self.clusters.get(&index).copied().unwrap_or_default();
        ClusterRow::of(cluster_verdict(entry.verdict), entry.syn_timeout, &state, self.now)
    }
}

/// The frontends as the kernel holds them, with what is known of the desired ones and their problems.
pub fn services(
    agent: Agent,
    installed: &Installed,
    states: &States,
    desired: Option<&BTreeMap<FrontendKey, DesiredService>>,
    problems: &BTreeMap<FrontendKey, Vec<String>>,
) -> Services {
    let keys: BTreeSet<_> =
        installed.frontends().keys().chain(desired.into_iter().flatten().map(|(key, _)| key)).collect();
    let mut services: Vec<_> = keys
        .into_iter()
        .filter(|key| !probe::is_probe(key.addr))
        .map(|key| {
            let wanted = desired.and_then(|desired| desired.get(key));
            service(key, installed, states, wanted, problems.get(key).cloned().unwrap_or_default())
        })
        .collect();
    services.sort_by(|a, b| (&a.name, a.address, &a.protocol).cmp(&(&b.name, b.address, &b.protocol)));
    Services { agent, services }
}

fn service(
    key: &FrontendKey,
    installed: &Installed,
    states: &States,
    wanted: Option<&DesiredService>,
    problems: Vec<String>,
) -> Service {
    let entry = installed.service(key);
    let name = wanted.map(|wanted| &wanted.name).or_else(|| installed.names().get(&entry?.id));
    let tiers = entry.map(|entry| tiers(entry, installed, states)).unwrap_or_default();
    let backends: BTreeSet<_> = tiers.iter().flatten().flat_map(|group| &group.backends).copied().collect();
    Service {
        name: name.map_or_else(|| "?".to_owned(), ObjectName::to_string),
        address: socket_address(key.addr, key.port),
        protocol: protocol(key.proto),
        affinity_seconds: entry.filter(|entry| entry.flags & service_flag::AFFINITY != 0).map(|e| e.affinity_seconds),
        abort: entry.is_none_or(|entry| entry.flags & service_flag::NO_ABORT == 0),
        desired_backends: wanted.map(wanted_backends),
        draining: wanted.map(draining),
        tiers,
        backends: backends.into_iter().collect(),
        problems,
    }
}

fn wanted_backends(wanted: &DesiredService) -> usize {
    let members = wanted.tiers.iter().flatten().flat_map(|group| &group.members);
    members.map(|member| (member.addr, member.port)).collect::<BTreeSet<_>>().len()
}

fn draining(wanted: &DesiredService) -> Vec<SocketAddr> {
    let ends: BTreeSet<_> = wanted.draining.iter().map(|member| socket_address(member.addr, member.port)).collect();
    ends.into_iter().collect()
}

fn tiers(entry: &tombolo_ebpf::abi::Service, installed: &Installed, states: &States) -> Vec<Vec<Group>> {
    let mut tiers = Vec::new();
    let mut start = 0;
    for end in entry.tier_end.map(usize::from) {
        let Some(groups) = entry.groups.get(start..end).filter(|groups| !groups.is_empty()) else { continue };
        let total = groups.last().map_or(1, |group| group.upto.max(1));
        let mut before = 0;
        let mut tier = Vec::new();
        for group in groups {
            let slots: BTreeSet<u32> = installed.slots(group).iter().map(|slot| slot.backend).collect();
            let entries: Vec<_> =
                slots.into_iter().filter_map(|index| Some((index, installed.backend(index)?))).collect();
            let addresses = entries.iter().map(|(_, backend)| socket_address(backend.addr, backend.port));
            let backends: BTreeSet<_> = addresses.collect();
            tier.push(Group {
                cluster: cluster(installed, group.cluster),
                state: cluster_state(installed, states, group.cluster),
                out: entries.iter().filter(|(index, backend)| states.is_out(*index, backend)).count(),
                share: f64::from(group.upto.saturating_sub(before)) / f64::from(total),
                backends: backends.into_iter().collect(),
            });
            before = group.upto;
        }
        tiers.push(tier);
        start = end;
    }
    tiers
}

/// The backends in the kernel, with what the programs learned about them.
pub fn backends(agent: Agent, installed: &Installed, states: &States) -> Backends {
    let mut names: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for key in installed.frontends().keys() {
        let Some(entry) = installed.service(key) else { continue };
        let name = installed.names().get(&entry.id).map_or_else(|| "?".to_owned(), ObjectName::to_string);
        let used = usize::from(entry.tier_end.iter().copied().max().unwrap_or(0));
        for slot in entry.groups.iter().take(used).flat_map(|group| installed.slots(group)) {
            names.entry(slot.backend).or_default().insert(name.clone());
        }
    }
    let row = |(index, backend): (u32, &Backend)| BackendRow {
        cluster: cluster(installed, backend.cluster),
        address: socket_address(backend.addr, backend.port),
        protocol: protocol(backend.proto),
        path: if backend.path == path::GATEWAY { "gateway" } else { "pod" }.to_owned(),
        verdict: verdict_text(backend.verdict).to_owned(),
        chosen: states.of(index, backend).chosen,
        learned: Learned::of(&states.of(index, backend), states.now),
        services: names.get(&index).into_iter().flatten().cloned().collect(),
    };
    let mut backends: Vec<_> = installed.backends().filter(|(_, backend)| !is_probed(backend)).map(row).collect();
    backends.sort();
    Backends { agent, backends }
}

/// How many of these frontends are users', not our own probe's.
pub fn count<'a>(frontends: impl Iterator<Item = &'a FrontendKey>) -> usize {
    frontends.filter(|key| !probe::is_probe(key.addr)).count()
}

/// How many backends are users'.
pub fn count_backends(installed: &Installed) -> usize {
    installed.backends().filter(|(_, backend)| !is_probed(backend)).count()
}

/// Whether this is the backend behind one of our probe's addresses.
fn is_probed(backend: &Backend) -> bool {
    socket_address(backend.addr, backend.port).ip().is_loopback() && backend.port == probe::PORT.to_be_bytes()
}

/// What the programs counted.
pub fn counters(counts: Counts) -> BTreeMap<String, u64> {
    counts.into_iter().map(|(name, n)| (name.to_owned(), n)).collect()
}

/// Clusters by name, with what is in the kernel about them and what a running agent thinks of their health.
pub fn clusters(installed: &Installed, states: &States, health: &[ClusterView]) -> BTreeMap<String, ClusterRow> {
    let row = |(index, entry): (&u32, &Cluster)| {
        let name = cluster_name(entry).0;
        let health = health.iter().find(|view| view.name == name).cloned();
        let since_ms = health.as_ref().and_then(|view| view.paths.iter().filter_map(|path| path.changed_ms).min());
        (name, ClusterRow { health, since_ms, ..states.cluster_row(*index, entry) })
    };
    installed.clusters().iter().map(row).collect()
}

/// How many backends are ejected, be it for one pod only.
pub fn count_ejected(installed: &Installed, states: &States) -> usize {
    let is_ejected = |(index, backend): &(u32, &Backend)| states.of(*index, backend).ejected_until != 0;
    installed.backends().filter(|(_, backend)| !is_probed(backend)).filter(is_ejected).count()
}

fn cluster_state(installed: &Installed, states: &States, index: u32) -> String {
    let Some(entry) = installed.clusters().get(&index) else { return "?".to_owned() };
    let row = states.cluster_row(index, entry);
    if row.verdict == "up" && row.suspect.is_some() { "suspect".to_owned() } else { row.verdict }
}

fn cluster_verdict(value: u8) -> &'static str {
    match value {
        verdict::OK => "up",
        verdict::DRAINING => "draining",
        verdict::DEAD => "down",
        _ => "?",
    }
}

fn cluster(installed: &Installed, index: u32) -> String {
    let name = installed.clusters().get(&index).map(cluster_name);
    name.map_or_else(|| "?".to_owned(), |ClusterName(name)| name)
}

fn verdict_text(value: u8) -> &'static str {
    match value {
        verdict::OK => "ok",
        verdict::DRAINING => "draining",
        verdict::DEAD => "dead",
        _ => "?",
    }
}

fn protocol(number: u8) -> String {
    if number == TCP { "TCP" } else { "UDP" }.to_owned()
}

/// An address and port of the tables as people write them.
pub fn socket_address(addr: [u8; 16], port: [u8; 2]) -> SocketAddr {
    let addr = Ipv6Addr::from(addr);
    let addr = addr.to_ipv4_mapped().map_or(IpAddr::V6(addr), IpAddr::V4);
    SocketAddr::new(addr, u16::from_be_bytes(port))
}
