//! Plans run on every change, so what did not change has to cost next to nothing.

use crate::{
    desired::{cluster_name, v4_address},
    world::ROOMY,
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};
use tombolo::{
    model::{
        Change, Endpoint, Model, ObjectName, Path, PeerState, Place, Protocol, Service, ServiceKind, ServicePort,
        ServiceRef, Slice, Traffic,
    },
    plan::plan,
    resolve::{Conditions, resolve},
    tables::{Capacity, Desired, DesiredGroup, DesiredService, Installed, Member},
};
use tombolo_ebpf::abi::{FrontendKey, TCP};

const CAPACITY: Capacity = Capacity { slots: 600_000, backends: 300_000, ..ROOMY };

/// 5,000 services of 50 endpoints each in release builds.
#[test]
fn a_change_costs_little_whatever_else_is_installed() {
    let services = if cfg!(debug_assertions) { 200 } else { 5000 };
    let mut desired = tables(services);
    let own = cluster_name(0);
    let mut installed = Installed::default();
    let first = timed("first plan", || plan(&desired, &installed, &CAPACITY, &own, true));
    assert_eq!(first.1.refused, []);
    timed("carried out", || first.1.steps.iter().for_each(|step| installed.apply(step)));
    let idle = (0..20).map(|_| timed("plan without a change", || plan(&desired, &installed, &CAPACITY, &own, true)));
    let idle: Vec<_> = idle.collect();
    assert!(idle.iter().all(|(_, plan)| plan.steps.is_empty()));

    desired.services.values_mut().nth(17).unwrap().tiers[0][1].members.pop();
    let one = timed("plan of one change", || plan(&desired, &installed, &CAPACITY, &own, true));
    assert!(one.1.steps.len() < 10);
    timed("read back", || Installed::from_maps(installed.to_maps()));
    let best = idle.iter().map(|(took, _)| *took).min().unwrap();
    // Against the first plan and not the clock, because the machine may be busy; it takes about a thirtieth.
    assert!(best * 8 < first.0, "{best:?} against {:?}", first.0);
}

/// The same size through `resolve`, whose result is what plans compare.
#[test]
fn resolving_everything_is_quick() {
    let services = if cfg!(debug_assertions) { 200 } else { 5000 };
    let model = model(services);
    let place = Place { cluster: cluster_name(0), node: "node".into(), zone: Some("a".into()) };
    let (took, resolved) = timed("resolve", || resolve(&model, &place, &Conditions::default(), &BTreeMap::new(), 0));
    assert_eq!(resolved.desired.services.len(), usize::from(services));
    assert!(cfg!(debug_assertions) || took < Duration::from_secs(3), "{took:?}");
}

/// Each service has five slices of ten endpoints, one in the own cluster.
fn model(services: u16) -> Model {
    let mut model = Model::default();
    for number in 0..services {
        let [high, low] = number.to_be_bytes();
        let object = ObjectName { namespace: "shop".into(), name: format!("service-{number}") };
        let owner = ServiceRef { kind: ServiceKind::Service, object };
        let port = ServicePort { name: "http".into(), port: 80, protocol: Protocol::Tcp };
        let service = Service {
            addresses: vec![IpAddr::from([10, 96, high, low])],
            ports: vec![port.clone()],
            affinity: None,
            federated: true,
            opted_out: false,
            exclusive: false,
            abort: true,
            local_member: None,
            traffic: Traffic::default(),
            problems: Vec::new(),
        };
        model.apply(Change::Service(owner.clone(), Some(service)));
        for cluster in 0..5u8 {
            let endpoint = |host: u8| Endpoint {
                address: IpAddr::from([10, high, low, cluster * 10 + host]),
                ready: true,
                serving: true,
                terminating: false,
                zone: Some("a".into()),
                node: None,
            };
            let slice = Slice {
                owner: owner.clone(),
                source_cluster: Some(cluster_name(usize::from(cluster))),
                built_in: false,
                path: Path::Pod,
                fallback: false,
                peer: PeerState::Fresh,
                problems: Vec::new(),
                weight: 1,
                ports: vec![port.clone()],
                endpoints: (0..10).map(endpoint).collect(),
            };
            let name = ObjectName { namespace: "shop".into(), name: format!("service-{number}-{cluster}") };
            model.apply(Change::Slice(name, Some(slice)));
        }
    }
    model
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = run();
    let took = start.elapsed();
    println!("{what}: {took:?}");
    (took, result)
}

/// Each service has 25 endpoints in the own cluster and 25 in another.
fn tables(services: u16) -> Desired {
    let service = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let group = |cluster: usize| DesiredGroup {
            cluster: cluster_name(cluster),
            weight: 25,
            members: (0..25)
                .map(|host| Member {
                    addr: v4_address([10, high, low, host + u8::try_from(cluster).unwrap() * 100]),
                    port: 8080u16.to_be_bytes(),
                    path: Path::Pod,
                    cluster: cluster_name(cluster),
                    weight: 1,
                })
                .collect(),
        };
        let service = DesiredService {
            name: ObjectName { namespace: "shop".into(), name: format!("service-{number}") },
            affinity_seconds: None,
            exclusive: false,
            no_abort: false,
            draining: Vec::new(),
            tiers: vec![vec![group(0), group(1 + usize::from(number % 2))]],
        };
        (FrontendKey { addr: v4_address([10, 96, high, low]), port: 80u16.to_be_bytes(), proto: TCP, pad: 0 }, service)
    };
    Desired { services: (0..services).map(service).collect(), ..Desired::default() }
}
