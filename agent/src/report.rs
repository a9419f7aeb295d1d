//! What the agent and the CLI tell people and programs: one document per question, the JSON of `-o json`.
//!
//! Each says whose truth it is: what the source stated, what the tables should hold (desired), or what the kernel holds
//! (installed).

use crate::{
    datapath::{Counts, probe},
    model::{ClusterName, ObjectName},
    tables::{DesiredService, Installed, cluster_name},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};
use tombolo_ebpf::abi::{Backend, BackendState, FrontendKey, TCP, path, service_flag, verdict};

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
    /// Frontends desired and installed.
    pub frontends: Tally,
    /// Backends installed.
    pub backends: usize,
    /// Pods of this node, installed, whose connections are left alone.
    pub exempt_pods: usize,
    /// Clusters by name, as the kernel has them: `ok`, `draining` or `dead`.
    pub clusters: BTreeMap<String, String>,
    /// What the programs counted since their maps were made.
    pub counters: BTreeMap<String, u64>,
    /// How often the tables were found to hold something else than this agent wrote; unknown once the agent is gone.
    pub drift: Option<u64>,
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
    /// Backends that it should have; unknown once the agent is gone.
    pub desired_backends: Option<usize>,
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
    /// Its share of the tier while all the tier's clusters are up, 0 to 1.
    pub share: f64,
    /// Its backends.
    pub backends: Vec<SocketAddr>,
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
    /// The services it belongs to.
    pub services: Vec<String>,
}

/// The frontends as the kernel holds them, with what is known of the desired ones and their problems.
pub fn services(
    agent: Agent,
    installed: &Installed,
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
            service(key, installed, wanted, problems.get(key).cloned().unwrap_or_default())
        })
        .collect();
    services.sort_by(|a, b| (&a.name, a.address, &a.protocol).cmp(&(&b.name, b.address, &b.protocol)));
    Services { agent, services }
}

fn service(
    key: &FrontendKey,
    installed: &Installed,
    wanted: Option<&DesiredService>,
    problems: Vec<String>,
) -> Service {
    let entry = installed.service(key);
    let name = wanted.map(|wanted| &wanted.name).or_else(|| installed.names().get(&entry?.id));
    let tiers = entry.map(|entry| tiers(entry, installed)).unwrap_or_default();
    let backends: BTreeSet<_> = tiers.iter().flatten().flat_map(|group| &group.backends).copied().collect();
    Service {
        name: name.map_or_else(|| "?".to_owned(), ObjectName::to_string),
        address: socket_address(key.addr, key.port),
        protocol: protocol(key.proto),
        affinity_seconds: entry.filter(|entry| entry.flags & service_flag::AFFINITY != 0).map(|e| e.affinity_seconds),
        desired_backends: wanted.map(wanted_backends),
        tiers,
        backends: backends.into_iter().collect(),
        problems,
    }
}

fn wanted_backends(wanted: &DesiredService) -> usize {
    let members = wanted.tiers.iter().flatten().flat_map(|group| &group.members);
    members.map(|member| (member.addr, member.port)).collect::<BTreeSet<_>>().len()
}

fn tiers(entry: &tombolo_ebpf::abi::Service, installed: &Installed) -> Vec<Vec<Group>> {
    let mut tiers = Vec::new();
    let mut start = 0;
    for end in entry.tier_end.map(usize::from) {
        let Some(groups) = entry.groups.get(start..end).filter(|groups| !groups.is_empty()) else { continue };
        let total = groups.last().map_or(1, |group| group.upto.max(1));
        let mut before = 0;
        let mut tier = Vec::new();
        for group in groups {
            let backends: BTreeSet<_> = installed
                .slots(group)
                .iter()
                .filter_map(|slot| installed.backend(slot.backend))
                .map(|backend| socket_address(backend.addr, backend.port))
                .collect();
            tier.push(Group {
                cluster: cluster(installed, group.cluster),
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

/// The backends in the kernel; `states` is what the programs learned about them, by index.
pub fn backends(agent: Agent, installed: &Installed, states: &BTreeMap<u32, BackendState>) -> Backends {
    // What was learned of an earlier generation is about another backend.
    let chosen = |index: u32, generation: u32| {
        states.get(&index).filter(|state| state.generation == generation).map_or(0, |state| state.chosen)
    };
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
        chosen: chosen(index, backend.generation),
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

/// Clusters by name, with the kernel's verdict.
pub fn clusters(installed: &Installed) -> BTreeMap<String, String> {
    let entries = installed.clusters().values();
    entries.map(|entry| (cluster_name(entry).0, verdict_text(entry.verdict).to_owned())).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{ClusterName, Path},
        plan::plan,
        tables::{Capacity, Desired, DesiredGroup, Member},
    };
    use tombolo_ebpf::abi::UDP;

    const CAPACITY: Capacity =
        Capacity { frontends: 64, services: 128, slots: 512, backends: 128, members: 512, pods: 8 };

    fn mapped(text: &str) -> ([u8; 16], [u8; 2]) {
        let address: SocketAddr = text.parse().unwrap();
        let bytes = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        (bytes, address.port().to_be_bytes())
    }

    fn key(address: &str, proto: u8) -> FrontendKey {
        let (addr, port) = mapped(address);
        FrontendKey { addr, port, proto, pad: 0 }
    }

    fn group(cluster: &str, weight: u32, backends: &[&str], path: Path) -> DesiredGroup {
        let cluster = ClusterName(cluster.to_owned());
        let member = |backend: &&str| {
            let (addr, port) = mapped(backend);
            Member { addr, port, path, cluster: cluster.clone(), weight: 1 }
        };
        DesiredGroup { members: backends.iter().map(member).collect(), weight, cluster }
    }

    fn service(name: &str, tiers: Vec<Vec<DesiredGroup>>) -> DesiredService {
        let name = ObjectName { namespace: "shop".to_owned(), name: name.to_owned() };
        DesiredService { name, affinity_seconds: None, exclusive: false, tiers }
    }

    /// A service of two tiers, one of UDP with affinity, one without endpoints, and the probe's own.
    fn desired() -> Desired {
        let own = ClusterName("west".to_owned());
        let near = group("west", 3, &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], Path::Pod);
        let far = group("east", 1, &["10.1.0.1:80"], Path::Pod);
        let last = group("north", 1, &["192.168.0.1:15000"], Path::Gateway);
        let mut services: BTreeMap<_, _> = probe::services(&own).collect();
        services.insert(key("10.96.0.10:80", TCP), service("web", vec![vec![near, far], vec![last]]));
        let dns = vec![vec![group("west", 1, &["[fd00::1]:53"], Path::Pod)]];
        services
            .insert(key("[fd00:96::a]:53", UDP), DesiredService { affinity_seconds: Some(600), ..service("dns", dns) });
        services.insert(key("10.96.0.11:80", TCP), service("empty", Vec::new()));
        Desired { services, ..Desired::default() }
    }

    fn installed(desired: &Desired) -> Installed {
        let mut installed = Installed::default();
        let plan = plan(desired, &installed, &CAPACITY, &ClusterName("west".to_owned()), true);
        plan.steps.iter().for_each(|step| installed.apply(step));
        installed
    }

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn services_are_told_with_tiers_and_shares_and_without_the_probes_own() {
        let desired = desired();
        let told = services(Agent::Running, &installed(&desired), Some(&desired.services), &BTreeMap::new());
        let names: Vec<_> = told.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["shop/dns", "shop/empty", "shop/web"]);
        let [dns, empty, web] = &told.services[..] else { panic!("three services") };
        assert_eq!((dns.protocol.as_str(), dns.affinity_seconds), ("UDP", Some(600)));
        assert_eq!((dns.address, &dns.backends), ("[fd00:96::a]:53".parse().unwrap(), &addresses(&["[fd00::1]:53"])));
        assert_eq!((empty.desired_backends, empty.tiers.len(), empty.backends.len()), (Some(0), 0, 0));
        assert_eq!((web.desired_backends, web.backends.len(), web.affinity_seconds), (Some(5), 5, None));
        let shares: Vec<Vec<_>> = web
            .tiers
            .iter()
            .map(|tier| tier.iter().map(|group| (group.cluster.as_str(), group.share)).collect())
            .collect();
        assert_eq!(shares, [vec![("west", 0.75), ("east", 0.25)], vec![("north", 1.0)]]);
        assert_eq!(web.tiers[1][0].backends, addresses(&["192.168.0.1:15000"]));
    }

    #[test]
    fn what_is_installed_and_what_is_desired_are_told_apart() {
        let desired = desired();
        let kernel = installed(&desired);
        let gone = services(Agent::Gone, &kernel, None, &BTreeMap::new());
        assert!(gone.services.iter().all(|service| service.desired_backends.is_none()), "nobody knows it any more");
        assert_eq!(gone.services[2].name, "shop/web", "the name is in the tables");

        let problems = BTreeMap::from([(key("10.96.0.12:80", TCP), vec!["not installed: no room".to_owned()])]);
        let mut more = desired.services.clone();
        more.insert(
            key("10.96.0.12:80", TCP),
            service("late", vec![vec![group("west", 1, &["10.0.0.9:80"], Path::Pod)]]),
        );
        let told = services(Agent::Running, &kernel, Some(&more), &problems);
        let late = told.services.iter().find(|service| service.name == "shop/late").unwrap();
        assert_eq!((late.desired_backends, late.backends.len()), (Some(1), 0));
        assert_eq!(late.problems, ["not installed: no room"]);
    }

    #[test]
    fn backends_are_told_with_their_services_and_how_often_they_were_chosen() {
        let kernel = installed(&desired());
        let index =
            |address: &str| kernel.backends().find(|(_, backend)| (backend.addr, backend.port) == mapped(address));
        let (near, entry) = index("10.0.0.2:80").unwrap();
        let (far, other) = index("10.1.0.1:80").unwrap();
        let state = |generation, chosen| BackendState { generation, pad: 0, chosen };
        // The second was learned of a backend that had the index before.
        let states = BTreeMap::from([(near, state(entry.generation, 7)), (far, state(other.generation + 1, 9))]);
        let told = backends(Agent::Gone, &kernel, &states);
        let row = |address: &str| {
            let address = address.parse().unwrap();
            told.backends.iter().find(|row| row.address == address).unwrap()
        };
        assert_eq!(told.backends.len(), 6, "the probe's own are left out");
        assert_eq!((row("10.0.0.2:80").chosen, row("10.1.0.1:80").chosen, row("10.0.0.1:80").chosen), (7, 0, 0));
        assert_eq!(row("10.0.0.2:80").services, ["shop/web"]);
        assert_eq!((row("192.168.0.1:15000").path.as_str(), row("10.0.0.2:80").path.as_str()), ("gateway", "pod"));
        assert_eq!((row("[fd00::1]:53").protocol.as_str(), row("[fd00::1]:53").cluster.as_str()), ("UDP", "west"));
        assert!(told.backends.iter().all(|row| row.verdict == "ok"));
        assert!(told.backends.is_sorted());
    }

    #[test]
    fn counts_leave_the_probe_out() {
        let desired = desired();
        let kernel = installed(&desired);
        assert_eq!((kernel.frontends().len(), count(kernel.frontends().keys())), (5, 3));
        assert_eq!((kernel.backends().count(), count_backends(&kernel)), (8, 6));
        let expected = ["east", "north", "west"].map(|name| (name.to_owned(), "ok".to_owned()));
        assert_eq!(clusters(&kernel), expected.into());
    }

    #[test]
    fn every_document_comes_back_as_it_was_sent() {
        let desired = desired();
        let kernel = installed(&desired);
        let told = services(Agent::Running, &kernel, Some(&desired.services), &BTreeMap::new());
        let again: Services = serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
        assert_eq!(again, told);
        let told = backends(Agent::Running, &kernel, &BTreeMap::new());
        let again: Backends = serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
        assert_eq!(again, told);
        let told = Status {
            agent: Agent::Running,
            ready: false,
            problems: vec!["a \"problem\"".to_owned()],
            version: "1".to_owned(),
            place: Some(Place { cluster: "west".to_owned(), node: "n".to_owned(), zone: None }),
            cgroup: Some("/sys/fs/cgroup/kubepods".to_owned()),
            pins: "/sys/fs/bpf/tombolo/v1".to_owned(),
            hooks: vec![Hook { name: "connect4".to_owned(), adopted: Some(true), verified_instructions: None }],
            frontends: Tally { desired: Some(3), installed: 3 },
            backends: 6,
            exempt_pods: 1,
            clusters: clusters(&kernel),
            counters: counters(BTreeMap::from([("refused", 1)])),
            drift: Some(0),
        };
        let again: Status = serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
        assert_eq!(again, told);
    }
}
