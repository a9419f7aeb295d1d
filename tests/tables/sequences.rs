//! T6: long lists of random operations, the tables compared with a simple model after each.
//!
//! The simple model knows nothing of tiers, indexes or versions: only which endpoints may be reached by which frontend.
//! `TOMBOLO_SEQUENCES` says how many lists are tried.

use crate::{
    desired::v4_address,
    kernel::End,
    world::{ROOMY, World, cases},
};
use proptest::{prelude::*, test_runner::TestCaseError};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use tombolo::{
    model::{
        Change, ClusterName, Endpoint, Model, ObjectName, Order, Path, PeerState, Place, Protocol, Service,
        ServiceKind, ServicePort, ServiceRef, Slice, Traffic,
    },
    resolve::{Conditions, resolve},
};
use tombolo_ebpf::abi::{FrontendKey, TCP, UDP};

/// Operations in each list.
const LENGTH: usize = 200;

fn sequences() -> u32 {
    let wanted =
        std::env::var("TOMBOLO_SEQUENCES").ok().map(|count| count.parse().expect("TOMBOLO_SEQUENCES is a number"));
    wanted.unwrap_or(if cfg!(debug_assertions) { 8 } else { 500 })
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// An object is written or goes.
    Change(Box<Change>),
    /// Connections are open to the backends whose bit is set, by index modulo 16, and to no other.
    Connect(u16),
    /// The agent is killed after so many of the steps for the next change (modulo their number), and starts again.
    Kill(prop::sample::Index),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), max_shrink_iters: 2000, ..cases(0) })]

    #[test]
    fn after_every_operation_the_tables_are_what_a_simple_model_says(
        operations in prop::collection::vec(operation(), LENGTH..=LENGTH),
    ) {
        run(operations).map_err(TestCaseError::fail)?;
    }
}

fn run(operations: Vec<Operation>) -> Result<(), String> {
    let place = Place { cluster: cluster(0), node: "node".into(), zone: Some("a".into()) };
    let (mut world, mut model) = (World::new(ROOMY), Model::default());
    let mut kill = None;
    for operation in operations {
        let change = match operation {
            Operation::Kill(after) => {
                kill = Some(after);
                continue;
            }
            Operation::Connect(bits) => {
                world.kernel.connect(|index| bits & 1 << (index % 16) != 0);
                continue;
            }
            Operation::Change(change) => change,
        };
        model.apply(*change);
        let desired = resolve(&model, &place, &Conditions::default(), &BTreeMap::new(), 0).desired;
        if let Some(after) = kill.take() {
            let plan = world.plan(&desired, true);
            world.carry_out(&plan, &desired, true, after.index(plan.steps.len() + 1))?;
            world.restart();
        }
        let plan = world.plan(&desired, true);
        if !plan.refused.is_empty() {
            return Err(format!("refused {:?} in {model:#?}", plan.refused));
        }
        world.carry_out(&plan, &desired, true, usize::MAX)?;
        let expected = simple_model(&model, &place);
        for key in all_frontends() {
            let (reached, expected) = (world.kernel.lookup(&key), expected.get(&key).cloned());
            if reached != expected {
                return Err(format!("{key:?} leads to {reached:?} instead of {expected:?} in {model:#?}"));
            }
        }
    }
    Ok(())
}

/// Which endpoints each frontend may lead to, by the plainest reading of the rules.
fn simple_model(model: &Model, place: &Place) -> BTreeMap<FrontendKey, BTreeSet<End>> {
    let mut frontends = BTreeMap::new();
    for (name, service) in model.services.iter().filter(|(_, service)| service.federated && !service.opted_out) {
        for address in &service.addresses {
            for port in &service.ports {
                let slices = model.slices.values().filter(|slice| speaks_for(slice, name, service, place));
                let offers: Vec<_> = slices.flat_map(|slice| offers(slice, port, address.is_ipv4())).collect();
                let of = |kind: &str| offers.iter().filter(|offer| offer.1 == kind).map(|offer| offer.0).collect();
                let (ready, leaving): (BTreeSet<_>, BTreeSet<_>) = (of("ready"), of("leaving"));
                let (fallback, stale): (BTreeSet<_>, BTreeSet<_>) = (of("fallback"), of("stale"));
                let lost: BTreeSet<_> = of("lost");
                let mut reached: BTreeSet<_> =
                    ready.iter().chain(&fallback).chain(&stale).chain(&lost).copied().collect();
                if ready.is_empty() {
                    reached.extend(leaving);
                } else {
                    // What is offered twice is the better of the two, and so left out here.
                    reached.retain(|end| !leaving.contains(end) || ready.contains(end));
                }
                frontends.entry(frontend(*address, port)).or_insert(reached);
            }
        }
    }
    frontends
}

fn speaks_for(slice: &Slice, name: &ServiceRef, service: &Service, place: &Place) -> bool {
    let is_own = slice.source_cluster.as_ref().is_none_or(|cluster| *cluster == place.cluster);
    match &service.local_member {
        None => slice.owner == *name,
        Some(member) => {
            let local = ServiceRef {
                kind: ServiceKind::Service,
                object: ObjectName { namespace: name.object.namespace.clone(), name: member.clone() },
            };
            (slice.owner == local && slice.built_in) || (slice.owner == *name && (!is_own || slice.built_in))
        }
    }
}

fn offers(slice: &Slice, port: &ServicePort, v4: bool) -> Vec<(End, &'static str)> {
    let Some(target) = slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol) else {
        return Vec::new();
    };
    let offer = |endpoint: &Endpoint| {
        let is_stale = slice.peer == PeerState::Stale;
        let kind = if is_stale && (slice.fallback || endpoint.ready || endpoint.serving) {
            "stale"
        } else if is_stale {
            "unusable"
        } else if slice.fallback {
            "fallback"
        } else if endpoint.ready {
            "ready"
        } else if endpoint.serving && endpoint.terminating {
            "leaving"
        } else if slice.peer == PeerState::Lost && !endpoint.terminating {
            "lost"
        } else {
            "unusable"
        };
        ((octets(endpoint.address), target.port.to_be_bytes()), kind)
    };
    slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == v4).map(offer).collect()
}

pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    let service = (0..SERVICES).prop_flat_map(|number| {
        prop_oneof![
            6 => service(number).prop_map(Some),
            1 => Just(None),
        ]
        .prop_map(move |service| Operation::Change(Box::new(Change::Service(service_ref(number), service))))
    });
    let slice = (0..8u8).prop_flat_map(|number| {
        let name = ObjectName { namespace: "shop".into(), name: format!("slice-{number}") };
        prop_oneof![
            6 => slice().prop_map(Some),
            1 => Just(None),
        ]
        .prop_map(move |slice| Operation::Change(Box::new(Change::Slice(name.clone(), slice))))
    });
    let connect = any::<u16>().prop_map(Operation::Connect);
    let kill = any::<prop::sample::Index>().prop_map(Operation::Kill);
    prop_oneof![3 => service, 6 => slice, 2 => connect, 1 => kill]
}

const SERVICES: u8 = 4;

/// Numbers 0 to 2 are Services, 3 is a ServiceImport; 2 is only ever the local member of others.
fn service_ref(number: u8) -> ServiceRef {
    let kind = if number == 3 { ServiceKind::ServiceImport } else { ServiceKind::Service };
    ServiceRef { kind, object: ObjectName { namespace: "shop".into(), name: format!("service-{number}") } }
}

fn service(number: u8) -> impl Strategy<Value = Service> {
    let flags = (prop::bool::weighted(0.9), prop::bool::weighted(0.1), any::<bool>());
    let affinity = prop_oneof![3 => Just(None), 1 => Just(Some(Duration::from_secs(600)))];
    let member = prop_oneof![2 => Just(None), 1 => Just(Some("service-2".to_owned()))];
    let ports = prop::collection::btree_set(0..3usize, 0..3);
    // Now and then one claims another's address.
    let extra = prop::option::weighted(0.1, 0..SERVICES);
    (flags, affinity, member, ports, extra, prop::bool::weighted(0.3), traffic()).prop_map(
        move |((federated, opted_out, exclusive), affinity, local_member, ports, extra, v6, traffic)| {
            let mut addresses = vec![address(number, false)];
            addresses.extend(v6.then(|| address(number, true)));
            addresses.extend(extra.map(|other| address(other, false)));
            Service {
                addresses,
                ports: ports.into_iter().map(|at| service_ports()[at].clone()).collect(),
                affinity,
                federated,
                opted_out,
                exclusive,
                abort: true,
                local_member,
                traffic,
                problems: Vec::new(),
            }
        },
    )
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let order = prop_oneof![
        Just(Order::Spread),
        Just(Order::LocalFirst),
        Just(Order::ZoneFirst),
        Just(Order::Clusters(vec![cluster(2), cluster(1)])),
    ];
    let weights = prop::collection::btree_map((0..3usize).prop_map(cluster), 0..120u32, 0..3);
    (order, weights, prop::option::of(0..4u32)).prop_map(|(order, weights, local_minimum)| Traffic {
        order,
        weights,
        local_minimum,
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let source = prop_oneof![1 => Just(None), 3 => (0..3usize).prop_map(|number| Some(cluster(number)))];
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.15), peer_state(), any::<bool>());
    let ports = prop::collection::btree_set(0..3usize, 1..4);
    let endpoints = prop::collection::btree_map(endpoint_address(), (0..8u8, 0..3usize), 0..5);
    (0..SERVICES, source, flags, 1..4u32, ports, endpoints).prop_map(
        |(owner, source_cluster, (built_in, fallback, peer, pod), weight, ports, endpoints)| Slice {
            owner: service_ref(owner),
            source_cluster: source_cluster.filter(|_| !built_in),
            built_in,
            path: if pod { Path::Pod } else { Path::Gateway },
            fallback: fallback && !built_in,
            peer: if built_in { PeerState::Fresh } else { peer },
            problems: Vec::new(),
            weight,
            ports: ports.into_iter().map(|at| ServicePort { port: 8080, ..service_ports()[at].clone() }).collect(),
            endpoints: endpoints.into_iter().map(|(address, rest)| endpoint(address, rest)).collect(),
        },
    )
}

fn peer_state() -> impl Strategy<Value = PeerState> {
    prop_oneof![8 => Just(PeerState::Fresh), 1 => Just(PeerState::Lost), 1 => Just(PeerState::Stale)]
}

fn endpoint(address: IpAddr, (conditions, zone): (u8, usize)) -> Endpoint {
    // Mostly ready.
    let (ready, serving, terminating) = match conditions {
        0 => (false, false, false),
        1 | 2 => (false, true, true),
        3 => (false, false, true),
        _ => (true, true, false),
    };
    let zone = [None, Some("a".into()), Some("b".into())][zone].clone();
    Endpoint { address, ready, serving, terminating, zone, node: None }
}

fn endpoint_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => (1..9u8).prop_map(|host| IpAddr::V4(Ipv4Addr::new(10, 244, 0, host))),
        1 => (1..4u16).prop_map(|host| IpAddr::V6(Ipv6Addr::new(0xfd, 0, 0, 0, 0, 0, 1, host))),
    ]
}

fn service_ports() -> [ServicePort; 3] {
    let port = |name: &str, port, protocol| ServicePort { name: name.to_owned(), port, protocol };
    [port("http", 80, Protocol::Tcp), port("dns", 53, Protocol::Udp), port("dns", 53, Protocol::Tcp)]
}

fn address(number: u8, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd, 0, 0, 0, 0, 0, 0, number.into()))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 96, number, 1))
    }
}

fn all_frontends() -> impl Iterator<Item = FrontendKey> {
    let addresses = (0..SERVICES).flat_map(|number| [address(number, false), address(number, true)]);
    addresses.flat_map(|address| service_ports().map(|port| frontend(address, &port)))
}

fn frontend(address: IpAddr, port: &ServicePort) -> FrontendKey {
    let proto = if port.protocol == Protocol::Udp { UDP } else { TCP };
    FrontendKey { addr: octets(address), port: port.port.to_be_bytes(), proto, pad: 0 }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4_address(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(crate) fn cluster(number: usize) -> ClusterName {
    ClusterName(["west", "east", "north"][number].to_owned())
}
