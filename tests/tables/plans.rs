//! Plans between random tables: they arrive, come to rest, and can be broken off anywhere.

use crate::{
    desired::{cluster_name, desired, v4_address},
    world::{ROOMY, World, cases, compare, reached},
};
use proptest::{prelude::*, test_runner::TestCaseError};
use std::{collections::BTreeSet, slice};
use tombolo::{
    model::{ClusterName, ObjectName, Path},
    plan::plan,
    tables::{Capacity, Desired, DesiredGroup, DesiredService, Installed, Maps, Member, Step, groups},
};
use tombolo_ebpf::abi::{BackendKey, FrontendKey, TCP, UDP};

pub(crate) fn fails(reason: String) -> TestCaseError {
    TestCaseError::fail(reason)
}

fn small() -> impl Strategy<Value = Capacity> {
    (2..10u32, 3..20u32, 5..60u32, 4..20u32, 2..30u32, 1..4u32).prop_map(
        |(frontends, services, slots, backends, members, pods)| Capacity {
            frontends,
            services,
            slots,
            backends,
            members,
            pods,
        },
    )
}

proptest! {
    #![proptest_config(cases(30))]

    #[test]
    fn a_plan_arrives_and_then_there_is_nothing_left_to_do(tables in prop::collection::vec(desired(7), 1..6)) {
        let mut world = World::new(ROOMY);
        for desired in &tables {
            let plan = world.plan(desired, true);
            prop_assert!(plan.refused.is_empty(), "{:?}", plan.refused);
            world.carry_out(&plan, desired, true, usize::MAX).map_err(fails)?;
            compare(&world.installed.view(), desired, &[]).map_err(fails)?;
            let again = world.plan(desired, true);
            world.carry_out(&again, desired, true, usize::MAX).map_err(fails)?;
            let rest = world.plan(desired, true);
            prop_assert!(rest.steps.is_empty(), "{:?}", rest.steps);
        }
    }

    #[test]
    fn a_plan_that_is_broken_off_anywhere_is_taken_up_again(
        tables in prop::collection::vec((desired(6), any::<prop::sample::Index>(), any::<bool>()), 2..6),
    ) {
        let mut world = World::new(ROOMY);
        for (desired, stop, killed) in &tables {
            let plan = world.plan(desired, true);
            world.carry_out(&plan, desired, true, stop.index(plan.steps.len() + 1)).map_err(fails)?;
            if *killed {
                world.restart();
            }
        }
        let (desired, ..) = tables.last().unwrap();
        world.settle(desired).map_err(fails)?;
        compare(&world.installed.view(), desired, &[]).map_err(fails)?;
    }

    #[test]
    fn what_does_not_fit_is_refused_whole_and_the_rest_goes_on(
        tables in prop::collection::vec((desired(9), any::<prop::sample::Index>(), any::<bool>()), 1..7),
        capacity in small(),
    ) {
        let mut world = World::new(capacity);
        for (desired, stop, killed) in &tables {
            let plan = world.plan(desired, true);
            prop_assert_eq!(&plan, &world.plan(desired, true));
            world.carry_out(&plan, desired, true, stop.index(plan.steps.len() + 1)).map_err(fails)?;
            if *killed {
                world.restart();
            }
        }
        let (desired, ..) = tables.last().unwrap();
        let plan = world.settle(desired).map_err(fails)?;
        let mut wanted = desired.clone();
        wanted.pods.retain(|cgroup, _| !plan.refused_pods.contains(cgroup));
        compare(&world.installed.view(), &wanted, &plan.refused).map_err(fails)?;
        // With nothing else in the way, whatever fits by itself finds its place.
        world.capacity = ROOMY;
        let plan = world.settle(desired).map_err(fails)?;
        prop_assert!(plan.refused.is_empty());
        compare(&world.installed.view(), desired, &[]).map_err(fails)?;
    }

    #[test]
    fn before_all_sources_are_synced_nothing_is_taken_away(
        before in desired(6),
        partial in prop::collection::vec(desired(6), 1..4),
        after in desired(6),
        killed in any::<bool>(),
    ) {
        let mut world = World::new(ROOMY);
        world.settle(&before).map_err(fails)?;
        if killed {
            world.restart();
        }
        for desired in &partial {
            let had = world.installed.view();
            let plan = world.plan(desired, false);
            let drops = |step: &Step| !format!("{step:?}").starts_with("Put") && *step != Step::Grace;
            prop_assert!(!plan.steps.iter().any(drops), "{:?}", plan.steps);
            world.carry_out(&plan, desired, false, usize::MAX).map_err(fails)?;
            for (key, old) in &had.services {
                let now = &world.installed.view().services[key];
                prop_assert!(reached(now).is_superset(&reached(old)), "{:?} lost endpoints", key);
            }
            prop_assert!(had.pods.keys().all(|cgroup| world.installed.pods().contains_key(cgroup)));
        }
        world.settle(&after).map_err(fails)?;
        compare(&world.installed.view(), &after, &[]).map_err(fails)?;
    }
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn every_single_step_is_a_safe_place_to_stop(first in desired(3), second in desired(3)) {
        let mut start = World::new(ROOMY);
        start.settle(&first).map_err(fails)?;
        let steps = start.plan(&second, true).steps.len();
        for stop in 0..=steps {
            for killed in [false, true] {
                let mut world = World { kernel: start.kernel.clone(), installed: start.installed.clone(), ..World::new(ROOMY) };
                let plan = world.plan(&second, true);
                world.carry_out(&plan, &second, true, stop).map_err(fails)?;
                if killed {
                    world.restart();
                }
                world.settle(&second).map_err(fails)?;
                compare(&world.installed.view(), &second, &[]).map_err(fails)?;
            }
        }
    }
}

#[test]
fn a_shrinking_service_is_switched_over_before_its_backend_goes() {
    let mut world = World::new(ROOMY);
    let wide = tables(&[(frontend(1, TCP), vec![group("east", &[4, 7])])]);
    let narrow = tables(&[(frontend(1, TCP), vec![group("east", &[4])])]);
    world.settle(&wide).unwrap();
    let plan = world.plan(&narrow, true);
    assert_eq!(kinds(&plan.steps), ["PutSlots", "PutService", "PutFrontend", "Grace", "PutBackend"]);
    world.carry_out(&plan, &narrow, true, usize::MAX).unwrap();
    assert_eq!(
        kinds(&world.plan(&narrow, true).steps),
        ["DropBackendOf", "Grace", "DropBackend", "PutConfig", "PutConfig"]
    );
}

#[test]
fn a_new_frontend_is_covered_and_named_before_it_is_there() {
    let mut world = World::new(ROOMY);
    let desired = tables(&[(frontend(1, UDP), vec![group("east", &[4])])]);
    let expected = [
        "PutCluster",
        "PutCluster",
        "PutBackend",
        "PutBackendOf",
        "PutSlots",
        "PutService",
        "PutName",
        "PutMember",
        "PutConfig",
        "PutConfig",
        "PutFrontend",
    ];
    assert_eq!(kinds(&world.plan(&desired, true).steps), expected);
}

#[test]
fn a_frontend_that_goes_takes_everything_of_its_own_along() {
    let mut world = World::new(ROOMY);
    let stays = (frontend(1, UDP), vec![group("east", &[4])]);
    let goes = (frontend(2, UDP), vec![group("east", &[4]), group("north", &[5])]);
    world.settle(&tables(&[stays.clone(), goes])).unwrap();
    let desired = tables(&[stays]);
    let plan = world.plan(&desired, true);
    let expected =
        ["DropFrontend", "DropMember", "DropMember", "DropName", "Grace", "PutBackend", "PutConfig", "PutConfig"];
    assert_eq!(kinds(&plan.steps), expected);
    world.carry_out(&plan, &desired, true, usize::MAX).unwrap();
    let expected = ["DropBackendOf", "Grace", "DropBackend", "DropCluster", "PutConfig", "PutConfig"];
    assert_eq!(kinds(&world.plan(&desired, true).steps), expected);
}

#[test]
fn services_share_a_backend_and_only_the_last_one_frees_it() {
    let mut world = World::new(ROOMY);
    let both = [frontend(1, TCP), frontend(2, TCP)].map(|key| (key, vec![group("east", &[4])]));
    world.settle(&tables(&both)).unwrap();
    assert_eq!(world.installed.backends().count(), 1);
    world.settle(&tables(&both[..1])).unwrap();
    assert_eq!(world.installed.backends().count(), 1);
    world.settle(&tables(&[])).unwrap();
    assert_eq!(world.installed.backends().count(), 0);
    assert_eq!(world.installed.clusters().len(), 1);
}

#[test]
fn the_order_of_members_does_not_matter() {
    let mut world = World::new(ROOMY);
    let mut desired = tables(&[(frontend(1, TCP), vec![group("east", &[4, 5, 6])])]);
    desired.services.values_mut().for_each(|service| service.tiers[0][0].members[1].weight = 7);
    world.settle(&desired).unwrap();
    desired.services.values_mut().for_each(|service| service.tiers[0][0].members.reverse());
    assert_eq!(world.plan(&desired, true).steps, []);
}

#[test]
fn groups_of_the_same_members_share_their_slots() {
    let mut world = World::new(ROOMY);
    let mut desired = tables(&[(frontend(1, TCP), vec![group("east", &[4, 5, 6])])]);
    desired.services.values_mut().for_each(|service| service.tiers.push(service.tiers[0].clone()));
    world.settle(&desired).unwrap();
    assert_eq!(world.installed.to_maps().slots.values().map(Vec::len).sum::<usize>(), 3);
    compare(&world.installed.view(), &desired, &[]).unwrap();
}

#[test]
fn a_version_is_never_given_out_twice_even_after_its_service_is_gone() {
    let mut world = World::new(ROOMY);
    let (one, two) = ((frontend(1, UDP), vec![group("east", &[4])]), (frontend(2, UDP), vec![group("east", &[4])]));
    world.settle(&tables(slice::from_ref(&one))).unwrap();
    world.settle(&tables(&[one.clone(), two.clone()])).unwrap();
    let gone = world.installed.service(&two.0).unwrap().version;
    world.settle(&tables(slice::from_ref(&one))).unwrap();
    world.restart();
    world.settle(&tables(&[one, two.clone()])).unwrap();
    assert!(world.installed.service(&two.0).unwrap().version > gone);
}

#[test]
fn versions_start_over_after_the_last_number() {
    let mut world = World::new(ROOMY);
    let one = (frontend(1, TCP), vec![group("east", &[4])]);
    world.settle(&tables(slice::from_ref(&one))).unwrap();
    let mut maps = world.kernel.read();
    maps.services.values_mut().for_each(|service| service.version = u32::MAX - 1);
    let mut installed = Installed::from_maps(maps);
    let mut versions = Vec::new();
    for host in 5..8 {
        let desired = tables(&[(one.0, vec![group("east", &[host])])]);
        for step in plan(&desired, &installed, &ROOMY, &world.own, true).steps {
            installed.check(&step, &ROOMY).unwrap();
            installed.apply(&step);
        }
        versions.push(installed.service(&one.0).unwrap().version);
    }
    // 1 is the generation of the first backend no more, so it is free by then.
    assert_eq!(versions, [u32::MAX, 1, 2]);
}

#[test]
fn a_member_that_was_left_behind_keeps_its_id_from_being_given_to_another() {
    let mut world = World::new(ROOMY);
    let (one, two) = ((frontend(1, UDP), vec![group("east", &[4])]), (frontend(2, UDP), vec![group("east", &[5])]));
    world.settle(&tables(slice::from_ref(&one))).unwrap();
    let plan = world.plan(&tables(&[]), true);
    let dropped = plan.steps.iter().position(|step| matches!(step, Step::DropFrontend(_))).unwrap();
    world.carry_out(&plan, &tables(&[]), true, dropped + 1).unwrap();
    world.restart();
    let mut maps = world.kernel.read();
    let old_id = maps.members.first().unwrap().service;
    let desired = tables(slice::from_ref(&two));
    let plan = world.plan(&desired, true);
    world.carry_out(&plan, &desired, true, usize::MAX).unwrap();
    assert_ne!(world.installed.service(&two.0).unwrap().id, old_id);
    assert_eq!(world.installed.members().len(), 1);

    // Not even if its name is gone already.
    maps.names.clear();
    world.installed = Installed::from_maps(maps);
    let plan = world.plan(&desired, true);
    plan.steps.iter().for_each(|step| world.installed.apply(step));
    assert_ne!(world.installed.service(&two.0).unwrap().id, old_id);
}

#[test]
fn every_difference_is_noticed() {
    type Change = fn(&mut DesiredService);
    let changes: [Change; 16] = [
        |service| service.exclusive = true,
        |service| service.no_abort = true,
        |service| service.affinity_seconds = None,
        |service| service.affinity_seconds = Some(61),
        |service| service.tiers.reverse(),
        |service| drop(service.tiers.pop()),
        |service| service.tiers[0][0].weight = 2,
        |service| service.tiers[0][0].cluster = ClusterName("north".into()),
        |service| service.tiers[0][0].members[0].cluster = ClusterName("north".into()),
        |service| service.tiers[0][0].members[1].cluster = ClusterName("east".into()),
        |service| service.tiers[0][0].members[0].path = Path::Gateway,
        |service| service.tiers[0][0].members[2].port = 8081u16.to_be_bytes(),
        |service| service.tiers[0][0].members[2].addr = v4_address([10, 1, 0, 9]),
        |service| service.tiers[0][0].members[2].weight = 3,
        // The same weights, other owners: the heavy one stands in for the others in the first case.
        |service| {
            service.tiers[0][0].members.iter_mut().zip([2, 1, 1]).for_each(|(member, weight)| member.weight = weight)
        },
        |service| {
            service.tiers[0][0].members.iter_mut().zip([1, 1, 1]).for_each(|(member, weight)| member.weight = weight)
        },
    ];
    let mut desired = tables(&[(frontend(1, TCP), vec![group("east", &[4, 5, 6]), group("north", &[7])])]);
    let service = desired.services.values_mut().next().unwrap();
    service.affinity_seconds = Some(60);
    service.tiers.push(vec![group("west", &[8])]);
    service.tiers[0][0].members[2].weight = 2;
    service.tiers[0][0].members[1].cluster = ClusterName("north".into());
    for (number, change) in changes.iter().enumerate() {
        let mut world = World::new(ROOMY);
        world.settle(&desired).unwrap();
        let mut changed = desired.clone();
        change(changed.services.values_mut().next().unwrap());
        assert_ne!(world.plan(&changed, true).steps, [], "change {number}");
        world.settle(&changed).unwrap();
        compare(&world.installed.view(), &changed, &[]).unwrap_or_else(|reason| panic!("change {number}: {reason}"));
    }
}

#[test]
fn weights_that_differ_in_an_alias_only_are_told_apart() {
    let mut world = World::new(ROOMY);
    let mut desired = tables(&[(frontend(1, TCP), vec![group("east", &[4, 5, 6, 7])])]);
    for weights in [[1, 1, 3, 3], [1, 1, 4, 2]] {
        let members = &mut desired.services.values_mut().next().unwrap().tiers[0][0].members;
        members.iter_mut().zip(weights).for_each(|(member, weight)| member.weight = weight);
        assert_ne!(world.plan(&desired, true).steps, []);
        world.settle(&desired).unwrap();
        compare(&world.installed.view(), &desired, &[]).unwrap();
    }
}

#[test]
fn a_renamed_service_keeps_its_tables() {
    let mut world = World::new(ROOMY);
    let mut desired = tables(&[(frontend(1, TCP), vec![group("east", &[4])])]);
    world.settle(&desired).unwrap();
    desired.services.values_mut().for_each(|service| service.name.name = "renamed".into());
    assert_eq!(kinds(&world.plan(&desired, true).steps), ["PutName"]);
    world.settle(&desired).unwrap();
    assert_eq!(world.kernel.name(&frontend(1, TCP)).unwrap().name, "renamed");
}

#[test]
fn tables_that_no_agent_wrote_are_replaced() {
    let mut world = World::new(ROOMY);
    let keys = [frontend(1, TCP), frontend(2, UDP), frontend(3, TCP), frontend(4, TCP)];
    let desired = tables(&keys.map(|key| (key, vec![group("east", &[4, 5]), group("north", &[6])])));
    world.settle(&desired).unwrap();
    let whole = world.kernel.read();
    let index = |at: usize| whole.frontends[&keys[at]];
    let mut damages: Vec<Damage<'_>> = Vec::new();
    damages.push(Box::new(|maps| _ = maps.services.remove(&index(0))));
    damages.push(Box::new(|maps| _ = maps.frontends.insert(keys[0], index(1))));
    damages.push(Box::new(|maps| _ = maps.backends.pop_first()));
    damages.push(Box::new(|maps| _ = maps.backend_of.pop_first()));
    damages.push(Box::new(|maps| {
        let (first, last) = (*maps.backend_of.keys().next().unwrap(), *maps.backend_of.values().last().unwrap());
        maps.backend_of.insert(first, last);
    }));
    damages.push(Box::new(|maps| {
        let key = BackendKey { addr: [9; 16], ..*maps.backend_of.keys().next().unwrap() };
        maps.backend_of.insert(key, 0);
    }));
    damages.push(Box::new(|maps| _ = maps.slots.pop_first()));
    damages.push(Box::new(|maps| _ = maps.members.pop_first()));
    damages.push(Box::new(|maps| _ = maps.clusters.pop_last()));
    damages.push(Box::new(|maps| _ = maps.names.pop_first()));
    damages.push(Box::new(|maps| maps.config.ranges = Maps::default().config.ranges));
    damages.push(Box::new(|maps| maps.services.get_mut(&index(2)).unwrap().id = maps.services[&index(3)].id));
    damages.push(Box::new(|maps| maps.services.get_mut(&index(2)).unwrap().tier_end = [255, 3, 9, 0, 0, 0, 0, 0]));
    damages.push(Box::new(|maps| {
        let groups = maps.services[&index(2)].groups;
        maps.services.get_mut(&index(3)).unwrap().groups = groups;
    }));
    for (number, damage) in damages.iter().enumerate() {
        let mut maps = whole.clone();
        damage(&mut maps);
        let mut installed = Installed::from_maps(maps);
        for _ in 0..3 {
            for step in plan(&desired, &installed, &ROOMY, &world.own, true).steps {
                installed.apply(&step);
            }
        }
        assert_eq!(plan(&desired, &installed, &ROOMY, &world.own, true).steps, [], "damage {number}");
        compare(&installed.view(), &desired, &[]).unwrap_or_else(|reason| panic!("damage {number}: {reason}"));
        for (key, index) in installed.frontends() {
            let whole = installed.check(&Step::PutFrontend(*key, *index), &ROOMY);
            assert_eq!(whole, Ok(()), "damage {number}");
        }
        let services = installed.frontends().keys().map(|key| installed.service(key).unwrap());
        let firsts = services.flat_map(groups).map(|group| group.first_slot);
        assert_eq!(firsts.collect::<BTreeSet<u32>>().len(), 2 * keys.len(), "damage {number}");
        let read_back = Installed::from_maps(installed.to_maps());
        assert_eq!(plan(&desired, &read_back, &ROOMY, &world.own, true).steps, [], "damage {number}");
    }
}

#[test]
fn a_cluster_too_many_refuses_the_services_that_need_it() {
    let mut world = World::new(ROOMY);
    let many: Vec<_> = (0..600u16)
        .map(|number| {
            let key = FrontendKey { port: number.to_be_bytes(), ..frontend(1, TCP) };
            (key, vec![group(&format!("cluster-{number:03}"), &[4])])
        })
        .collect();
    let plan = world.plan(&tables(&many), true);
    assert_eq!(plan.refused.len(), 600 - 511);
    assert_eq!(plan.refused[0].1, "no room for 1 more clusters: 0 of 512 are left");
}

#[test]
fn another_own_cluster_takes_the_first_index() {
    let mut world = World::new(ROOMY);
    let desired = tables(&[(frontend(1, TCP), vec![group("west", &[4]), group("east", &[5])])]);
    world.settle(&desired).unwrap();
    world.restart();
    world.own = ClusterName("east".into());
    world.settle(&desired).unwrap();
    compare(&world.installed.view(), &desired, &[]).unwrap();
    let own = world.installed.clusters()[&0];
    assert_eq!(tombolo::tables::cluster_name(&own), world.own);
}

type Damage<'a> = Box<dyn Fn(&mut Maps) + 'a>;

fn kinds(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| format!("{step:?}").split('(').next().unwrap().to_owned()).collect()
}

pub(crate) fn tables(services: &[(FrontendKey, Vec<DesiredGroup>)]) -> Desired {
    let service = |tier: &Vec<DesiredGroup>| DesiredService {
        name: ObjectName { namespace: "shop".into(), name: "frontend".into() },
        affinity_seconds: None,
        exclusive: false,
        no_abort: false,
        draining: Vec::new(),
        tiers: vec![tier.clone()],
    };
    Desired { services: services.iter().map(|(key, tier)| (*key, service(tier))).collect(), ..Desired::default() }
}

pub(crate) fn frontend(host: u8, proto: u8) -> FrontendKey {
    FrontendKey { addr: v4_address([10, 96, 0, host]), port: 80u16.to_be_bytes(), proto, pad: 0 }
}

pub(crate) fn group(cluster: &str, hosts: &[u8]) -> DesiredGroup {
    let cluster = ClusterName(cluster.into());
    assert_ne!(cluster, cluster_name(4), "random tables only");
    let member = |&host: &u8| Member {
        addr: v4_address([10, 1, 0, host]),
        port: 8080u16.to_be_bytes(),
        path: Path::Pod,
        cluster: cluster.clone(),
        weight: 1,
    };
    DesiredGroup { weight: 1, members: hosts.iter().map(member).collect(), cluster: cluster.clone() }
}
