//! Documents of small tables.

use super::*;
use crate::{
    model::{ClusterName, Path},
    plan::plan,
    tables::{Capacity, Desired, DesiredGroup, Member},
};
use tombolo_ebpf::abi::{UDP, ejection};

const CAPACITY: Capacity = Capacity { frontends: 64, services: 128, slots: 512, backends: 128, members: 512, pods: 8 };

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
    DesiredService { name, affinity_seconds: None, exclusive: false, no_abort: false, tiers, draining: Vec::new() }
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
    services.insert(key("[fd00:96::a]:53", UDP), DesiredService { affinity_seconds: Some(600), ..service("dns", dns) });
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
    let told =
        services(Agent::Running, &installed(&desired), &States::default(), Some(&desired.services), &BTreeMap::new());
    let names: Vec<_> = told.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["shop/dns", "shop/empty", "shop/web"]);
    let [dns, empty, web] = &told.services[..] else { panic!("three services") };
    assert_eq!((dns.protocol.as_str(), dns.affinity_seconds), ("UDP", Some(600)));
    assert_eq!((dns.address, &dns.backends), ("[fd00:96::a]:53".parse().unwrap(), &addresses(&["[fd00::1]:53"])));
    assert_eq!((empty.desired_backends, empty.tiers.len(), empty.backends.len()), (Some(0), 0, 0));
    assert_eq!((web.desired_backends, web.backends.len(), web.affinity_seconds), (Some(5), 5, None));
    let shares: Vec<Vec<_>> =
        web.tiers.iter().map(|tier| tier.iter().map(|group| (group.cluster.as_str(), group.share)).collect()).collect();
    assert_eq!(shares, [vec![("west", 0.75), ("east", 0.25)], vec![("north", 1.0)]]);
    assert_eq!(web.tiers[1][0].backends, addresses(&["192.168.0.1:15000"]));
}

#[test]
fn what_is_installed_and_what_is_desired_are_told_apart() {
    let desired = desired();
    let kernel = installed(&desired);
    let gone = services(Agent::Gone, &kernel, &States::default(), None, &BTreeMap::new());
    assert!(gone.services.iter().all(|service| service.desired_backends.is_none()), "nobody knows it any more");
    assert_eq!(gone.services[2].name, "shop/web", "the name is in the tables");

    let problems = BTreeMap::from([(key("10.96.0.12:80", TCP), vec!["not installed: no room".to_owned()])]);
    let mut more = desired.services.clone();
    more.insert(key("10.96.0.12:80", TCP), service("late", vec![vec![group("west", 1, &["10.0.0.9:80"], Path::Pod)]]));
    let told = services(Agent::Running, &kernel, &States::default(), Some(&more), &problems);
    let late = told.services.iter().find(|service| service.name == "shop/late").unwrap();
    assert_eq!((late.desired_backends, late.backends.len()), (Some(1), 0));
    assert_eq!(late.problems, ["not installed: no room"]);
}

#[test]
fn backends_are_told_with_their_services_and_how_often_they_were_chosen() {
    let kernel = installed(&desired());
    let index = |address: &str| kernel.backends().find(|(_, backend)| (backend.addr, backend.port) == mapped(address));
    let (near, entry) = index("10.0.0.2:80").unwrap();
    let (far, other) = index("10.1.0.1:80").unwrap();
    let state = |generation, chosen| BackendState { generation, chosen, ..BackendState::default() };
    // The second was learned of a backend that had the index before.
    let states = BTreeMap::from([(near, state(entry.generation, 7)), (far, state(other.generation + 1, 9))]);
    let states = States { backends: states, ..States::default() };
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
fn what_is_out_is_told_of_backends_and_of_the_services_that_have_them() {
    let desired = desired();
    let kernel = installed(&desired);
    let by_address =
        |address: &str| kernel.backends().find(|(_, backend)| (backend.addr, backend.port) == mapped(address));
    let mut states = States { now: 1_000, ..States::default() };
    for (address, flags) in [("10.0.0.1:80", 1), ("10.0.0.2:80", 1 | ejection::SHARED)] {
        let (index, backend) = by_address(address).unwrap();
        let state = BackendState {
            generation: backend.generation,
            ejection: flags,
            ejected_until: 2_000_000_000,
            failed: 3,
            ..BackendState::default()
        };
        states.backends.insert(index, state);
    }
    let (_, east) = by_address("10.1.0.1:80").unwrap();
    states.clusters.insert(east.cluster, ClusterState { suspect_until: 2_000, ..ClusterState::default() });
    let told = services(Agent::Gone, &kernel, &states, None, &BTreeMap::new());
    let groups: Vec<_> = told.services[2].tiers[0].iter().map(|group| (group.state.as_str(), group.out)).collect();
    assert_eq!(groups, [("up", 1), ("suspect", 0)], "one pod's ejection is nobody else's");
    assert_eq!(count_ejected(&kernel, &states), 2);
    let json = serde_json::to_value(backends(Agent::Gone, &kernel, &states)).unwrap();
    let rows = json["backends"].as_array().unwrap();
    let row = rows.iter().find(|row| row["address"] == "10.0.0.2:80").unwrap();
    assert_eq!((&row["failed"], &row["ejected"]["for_all"]), (&3.into(), &true.into()));
    assert_eq!(clusters(&kernel, &states, &[])["east"].suspect.as_ref().unwrap().for_ms, 1);
}

#[test]
fn counts_leave_the_probe_out() {
    let desired = desired();
    let kernel = installed(&desired);
    assert_eq!((kernel.frontends().len(), count(kernel.frontends().keys())), (5, 3));
    assert_eq!((kernel.backends().count(), count_backends(&kernel)), (8, 6));
    let clusters = clusters(&kernel, &States::default(), &[]);
    let verdicts: Vec<_> = clusters.iter().map(|(name, row)| (name.as_str(), row.verdict.as_str())).collect();
    assert_eq!(verdicts, [("east", "up"), ("north", "up"), ("west", "up")]);
}

#[test]
fn every_document_comes_back_as_it_was_sent() {
    let desired = desired();
    let kernel = installed(&desired);
    let told = services(Agent::Running, &kernel, &States::default(), Some(&desired.services), &BTreeMap::new());
    let again: Services = serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
    assert_eq!(again, told);
    let told = backends(Agent::Running, &kernel, &States::default());
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
        watches: vec![Watch {
            name: "Services".to_owned(),
            synced_for_s: Some(7),
            heard_before_s: None,
            objects: 2,
            absent: false,
            problem: None,
        }],
        frontends: Tally { desired: Some(3), installed: 3 },
        backends: 6,
        exempt_pods: 1,
        clusters: clusters(&kernel, &States::default(), &[]),
        ejected: 0,
        counters: counters(BTreeMap::from([("refused", 1)])),
        drift: Some(0),
        findings: None,
    };
    let again: Status = serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
    assert_eq!(again, told);
}
