//! Backends that leave: how long they stay, what leads to them, and what health says of them meanwhile.

use crate::{
    desired::{cluster_name, desired},
    plans::{fails, frontend, group, tables},
    world::{ROOMY, World, cases},
};
use proptest::{prelude::*, test_runner::TestCaseError};
use std::{collections::BTreeSet, slice};
use tombolo::{
    model::Path,
    tables::{ClusterVerdict, Installed, Member, Step, Verdicts},
};
use tombolo_ebpf::abi::{Backend, BackendKey, FrontendKey, TCP, UDP, path, verdict};

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn a_backend_stays_as_long_as_it_has_connections_or_drains(
        tables in prop::collection::vec((desired(5), any::<u16>(), any::<prop::sample::Index>(), any::<bool>()), 2..8),
    ) {
        let mut world = World::new(ROOMY);
        for (desired, open, stop, killed) in &tables {
            world.kernel.connect(|index| open & 1 << (index % 16) != 0);
            let before = world.installed.clone();
            let plan = world.plan(desired, true);
            world.carry_out(&plan, desired, true, stop.index(2 * plan.steps.len() + 1)).map_err(fails)?;
            for (key, member) in desired.services.iter().flat_map(|(key, s)| s.draining.iter().map(move |m| (key, m))) {
                let was = backends_of(&before, key, member);
                let is = backends_of(&world.installed, key, member);
                prop_assert!(was.is_subset(&is), "{:?} drains, {:?} became {:?}", member, was, is);
            }
            if *killed {
                world.restart();
            }
        }
        let (desired, ..) = tables.last().unwrap();
        world.settle(desired).map_err(fails)?;
        let named = |index: u32| !world.installed.unnamed_backends().contains(&index);
        for (index, backend) in world.installed.backends() {
            prop_assert_eq!(backend.verdict == verdict::OK, named(index), "{:?}", backend);
        }
        // Once everything is closed and nothing drains any more, only what is named is left.
        world.kernel.connect(|_| false);
        let mut last = desired.clone();
        last.services.values_mut().for_each(|service| service.draining.clear());
        world.settle(&last).map_err(fails)?;
        prop_assert_eq!(world.installed.unnamed_backends().len(), 0);
    }

    #[test]
    fn verdicts_hold_whatever_plans_do(
        tables in prop::collection::vec((desired(5), any::<u16>(), 0..3u8), 2..6),
    ) {
        let mut world = World::new(ROOMY);
        for (desired, dead, cluster) in &tables {
            world.settle(desired).map_err(fails)?;
            let is_dead = |index: u32| dead & 1 << (index % 16) != 0;
            let found = world.installed.backends().filter(|(index, _)| is_dead(*index));
            let mut verdicts = Verdicts { dead: found.map(|(_, backend)| address(backend)).collect(), ..Verdicts::default() };
            let judged = ClusterVerdict { verdict: *cluster, syn_timeout: 50, ..ClusterVerdict::default() };
            verdicts.clusters.insert(cluster_name(1), judged);
            world.judge(&verdicts).map_err(fails)?;
            check_verdicts(&world.installed, &verdicts)?;
            world.restart();
            world.settle(&tables[0].0).map_err(fails)?;
            let all = world.installed.verdict_steps(&verdicts);
            let is_new = |step: &Step| matches!(step, Step::PutBackend(_, backend) if backend.verdict == verdict::DEAD)
                || matches!(step, Step::PutCluster(..));
            prop_assert!(all.iter().all(is_new), "a plan took a verdict back: {:?}", all);
            world.judge(&verdicts).map_err(fails)?;
            check_verdicts(&world.installed, &verdicts)?;
            world.judge(&Verdicts { dead: BTreeSet::new(), ..verdicts }).map_err(fails)?;
            let named = |index: &u32| !world.installed.unnamed_backends().contains(index);
            let mut used = world.installed.backends().filter(|(index, _)| named(index));
            prop_assert!(used.all(|(_, backend)| backend.verdict == verdict::OK));
        }
    }
}

#[test]
fn a_draining_member_keeps_its_conversations_until_it_is_gone() {
    let mut world = World::new(ROOMY);
    let whole = (frontend(1, UDP), vec![group("east", &[4, 7])]);
    world.settle(&tables(slice::from_ref(&whole))).unwrap();
    let old = world.installed.members().clone();
    let mut desired = tables(&[(whole.0, vec![group("east", &[4])])]);
    let service = desired.services.values_mut().next().unwrap();
    service.draining = group("east", &[7]).members;
    world.settle(&desired).unwrap();
    assert_eq!(*world.installed.members(), old, "what programs remember of it stays true");
    let drains: Vec<u8> = world.installed.backends().map(|(_, backend)| backend.verdict).collect();
    assert_eq!(drains, [verdict::OK, verdict::DRAINING]);
    assert_eq!(world.kernel.lookup(&whole.0).unwrap().len(), 1, "nothing new is sent there");
    // It may come back as well.
    world.settle(&tables(slice::from_ref(&whole))).unwrap();
    assert!(world.installed.backends().all(|(_, backend)| backend.verdict == verdict::OK));
    world.settle(&desired).unwrap();
    desired.services.values_mut().for_each(|service| service.draining.clear());
    world.settle(&desired).unwrap();
    assert_eq!((world.installed.members().len(), world.installed.backends().count()), (1, 1));
}

#[test]
fn a_backend_that_left_while_it_was_dead_stays_dead_until_it_answers() {
    let mut world = World::new(ROOMY);
    let both = tables(&[(frontend(1, TCP), vec![group("east", &[4, 7])])]);
    let one = tables(&[(frontend(1, TCP), vec![group("east", &[4])])]);
    world.settle(&both).unwrap();
    let (index, backend) = world.installed.backends().find(|(_, backend)| backend.addr[15] == 7).unwrap();
    let dead = Verdicts { dead: BTreeSet::from([address(backend)]), ..Verdicts::default() };
    let verdict_of = |world: &World| world.installed.backend(index).unwrap().verdict;
    world.kernel.connect(|open| open == index);
    world.judge(&dead).unwrap();
    world.settle(&one).unwrap();
    assert_eq!(verdict_of(&world), verdict::DEAD, "what is connected to it can be aborted");
    world.settle(&both).unwrap();
    assert_eq!(verdict_of(&world), verdict::DEAD);
    world.settle(&one).unwrap();
    // It answers: what is connected to it stays, and nothing new is sent there.
    world.judge(&Verdicts::default()).unwrap();
    assert_eq!(verdict_of(&world), verdict::DRAINING);
    world.settle(&both).unwrap();
    assert_eq!(verdict_of(&world), verdict::OK);
}

#[test]
fn an_address_of_two_backends_leads_to_the_one_that_is_left() {
    let mut world = World::new(ROOMY);
    let both = [(frontend(1, TCP), vec![group("east", &[4])]), (frontend(2, TCP), vec![group("north", &[4])])];
    world.settle(&tables(&both)).unwrap();
    assert_eq!((world.installed.backends().count(), world.installed.backend_of().len()), (2, 1));
    for left in &both {
        world.settle(&tables(slice::from_ref(left))).unwrap();
        let (index, backend) = world.installed.backends().next().unwrap();
        assert_eq!(world.installed.backend_of().get(&address(backend)), Some(&index));
        world.settle(&tables(&both)).unwrap();
    }
}

fn check_verdicts(installed: &Installed, verdicts: &Verdicts) -> Result<(), TestCaseError> {
    for (index, backend) in installed.backends() {
        let is_dead = verdicts.dead.contains(&address(backend));
        let left_dead = backend.verdict == verdict::DEAD && installed.unnamed_backends().contains(&index);
        if left_dead && !is_dead {
            continue;
        }
        prop_assert_eq!(backend.verdict == verdict::DEAD, is_dead, "{}: {:?}", index, backend);
    }
    for entry in installed.clusters().values() {
        let judged = verdicts.clusters.get(&tombolo::tables::cluster_name(entry)).copied().unwrap_or_default();
        prop_assert_eq!((entry.verdict, entry.syn_timeout), (judged.verdict, judged.syn_timeout));
    }
    Ok(())
}

fn address(backend: &Backend) -> BackendKey {
    BackendKey { addr: backend.addr, port: backend.port, proto: backend.proto, pad: 0 }
}

/// The indexes and generations that a member of a service has.
fn backends_of(installed: &Installed, key: &FrontendKey, member: &Member) -> BTreeSet<(u32, u32)> {
    let is_it = |(_, backend): &(u32, &Backend)| {
        let cluster = installed.clusters().get(&backend.cluster).map(tombolo::tables::cluster_name);
        let path = if member.path == Path::Gateway { path::GATEWAY } else { path::POD };
        let wanted = BackendKey { addr: member.addr, port: member.port, proto: key.proto, pad: 0 };
        address(backend) == wanted && backend.path == path && cluster.as_ref() == Some(&member.cluster)
    };
    installed.backends().filter(is_it).map(|(index, backend)| (index, backend.generation)).collect()
}
