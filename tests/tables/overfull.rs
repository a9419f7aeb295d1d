//! T19: a fifth more than there is room for, in each table in turn.

use crate::{
    desired::v4_address,
    world::{ROOMY, World, compare},
};
use tombolo::{
    model::{ClusterName, ObjectName, Path},
    tables::{Capacity, Desired, DesiredGroup, DesiredService, Member},
};
use tombolo_ebpf::abi::{FrontendKey, UDP};

/// Fits each of the tight tables, with a sixteenth to spare.
const FITTING: u8 = 50;
const ENDPOINTS: u8 = 8;

#[test]
fn overfull_tables_refuse_whole_services_keep_the_old_ones_and_heal() {
    let each = u32::from(FITTING) * u32::from(ENDPOINTS) * 16 / 15 + 1;
    let tight = [
        Capacity { frontends: u32::from(FITTING), ..ROOMY },
        Capacity { services: u32::from(FITTING) + 2, ..ROOMY },
        Capacity { slots: each, ..ROOMY },
        Capacity { backends: each, ..ROOMY },
        Capacity { members: each, ..ROOMY },
    ];
    for capacity in tight {
        let mut world = World::new(capacity);
        let fitting = tables(FITTING, 0);
        assert_eq!(world.settle(&fitting).unwrap().refused, [], "{capacity:?}");

        let overfull = tables(FITTING + FITTING / 5, 0);
        let plan = world.settle(&overfull).unwrap();
        let refused = plan.refused.len();
        assert!((8..=10).contains(&refused), "{refused} are refused with {capacity:?}");
        assert!(plan.refused.iter().all(|(_, reason)| reason.contains("no room for")), "{:?}", plan.refused);
        compare(&world.installed.view(), &overfull, &plan.refused).unwrap();

        // Even now a service that is there can change.
        let mut changed = overfull.clone();
        let (_, service) = changed.services.first_key_value().map(|(key, service)| (*key, service.clone())).unwrap();
        let mut service = service;
        service.tiers[0][0].members.pop();
        *changed.services.values_mut().next().unwrap() = service;
        let plan = world.settle(&changed).unwrap();
        compare(&world.installed.view(), &changed, &plan.refused).unwrap();

        // Services that are there grow beyond what fits: what does not fit stays as it was, and works.
        let grown = tables(FITTING, 3);
        let plan = world.settle(&grown).unwrap();
        compare(&world.installed.view(), &grown, &plan.refused).unwrap();

        // Once others are gone, everything left finds its place.
        let shrunk = tables(FITTING - FITTING / 5, 1);
        let plan = world.settle(&shrunk).unwrap();
        assert_eq!(plan.refused, [], "{capacity:?}");
        compare(&world.installed.view(), &shrunk, &[]).unwrap();
    }
}

#[test]
fn a_plan_that_makes_room_for_what_it_refuses_says_so() {
    let mut world = World::new(Capacity { frontends: 2, ..ROOMY });
    let three = tables(3, 0);
    let keys: Vec<FrontendKey> = three.services.keys().copied().collect();
    let without = |gone: usize| {
        let mut desired = three.clone();
        desired.services.remove(&keys[gone]);
        desired
    };
    world.settle(&without(2)).unwrap();
    let plan = world.plan(&without(0), true);
    assert_eq!(plan.refused.len(), 1);
    assert!(plan.again);
    assert_eq!(world.settle(&without(0)).unwrap().refused, []);
    let plan = world.plan(&three, true);
    assert_eq!(plan.refused.len(), 1);
    assert!(!plan.again, "nothing becomes free");
}

#[test]
fn slots_are_found_between_others() {
    let mut world = World::new(Capacity { slots: 6 * u32::from(ENDPOINTS), ..ROOMY });
    let mut desired = tables(4, 0);
    world.settle(&desired).unwrap();
    let keys: Vec<FrontendKey> = desired.services.keys().copied().collect();
    desired.services.remove(&keys[1]);
    world.settle(&desired).unwrap();
    let all = tables(4, 0);
    world.settle(&all).unwrap();
    let firsts: Vec<u32> = world.installed.to_maps().slots.into_keys().collect();
    assert_eq!(firsts, [0, 8, 16, 24]);
    assert_eq!(world.installed.service(&keys[1]).unwrap().groups[0].first_slot, 8);
}

#[test]
fn a_short_run_is_found_before_a_long_one_that_was_found_first() {
    let mut world = World::new(Capacity { slots: 19, ..ROOMY });
    // Slots 0 and 1 and from 10 on are free; the long service comes first.
    let mut desired = tables(2, 0);
    let keys: Vec<FrontendKey> = desired.services.keys().copied().collect();
    let long = desired.services[&keys[1]].clone();
    let mut short = long.clone();
    short.tiers[0][0].members.truncate(2);
    let third = FrontendKey { port: [1, 1], ..keys[0] };
    desired.services = [(third, short.clone())].into();
    world.settle(&desired).unwrap();
    desired.services.insert(keys[1], long.clone());
    world.settle(&desired).unwrap();
    desired.services.remove(&third);
    world.settle(&desired).unwrap();
    desired.services.extend([(keys[0], long), (third, short)]);
    let plan = world.plan(&desired, true);
    assert_eq!(plan.refused, []);
}

#[test]
fn what_is_refused_leaves_no_trace() {
    // The first service needs two groups of eight, only one of which fits; the second one then takes its room.
    let tight =
        [Capacity { slots: 12, ..ROOMY }, Capacity { backends: 12, ..ROOMY }, Capacity { members: 12, ..ROOMY }];
    for capacity in tight {
        let mut world = World::new(capacity);
        let mut desired = tables(2, 0);
        let second_group = tables(3, 0).services.into_values().next_back().unwrap().tiers.remove(0).remove(0);
        desired.services.values_mut().next().unwrap().tiers[0].push(second_group);
        let first = *desired.services.keys().next().unwrap();
        let plan = world.settle(&desired).unwrap();
        assert_eq!(plan.refused.iter().map(|refused| refused.0).collect::<Vec<_>>(), [first], "{capacity:?}");
        compare(&world.installed.view(), &desired, &plan.refused).unwrap();
    }
}

/// Services with backends of their own, UDP so that members count too; `more` adds endpoints to each.
fn tables(services: u8, more: u8) -> Desired {
    let cluster = ClusterName("east".into());
    let service = |number: u8| {
        let member = |host: u8| Member {
            addr: v4_address([10, 1, number, host]),
            port: 53u16.to_be_bytes(),
            path: Path::Pod,
            cluster: cluster.clone(),
            weight: 1,
        };
        let members = (0..ENDPOINTS + more).map(member).collect();
        let service = DesiredService {
            name: ObjectName { namespace: "shop".into(), name: format!("service-{number}") },
            affinity_seconds: None,
            exclusive: false,
            no_abort: false,
            draining: Vec::new(),
            tiers: vec![vec![DesiredGroup { cluster: cluster.clone(), weight: 1, members }]],
        };
        let key = FrontendKey { addr: v4_address([10, 96, 0, number]), port: 53u16.to_be_bytes(), proto: UDP, pad: 0 };
        (key, service)
    };
    Desired { services: (0..services).map(service).collect(), ..Desired::default() }
}
