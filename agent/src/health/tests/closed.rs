//! Pods whose NetworkPolicy admits other pods and not the node: their silence to our probes says nothing.

use crate::{
    health::{
        Event, Failure,
        simulation::{MILLI, Pod, SECOND, World, name},
    },
    model::PeerState,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// East's first `closed` pods of ten are closed to us.
fn world(closed: u32) -> World {
    let mut world = World::new(3, 2, 10);
    world.pods.extend((0..closed).map(|number| (1000 + number, Pod::Closed)));
    world
}

/// A connect to each of east's backends was not answered.
fn fail_one_by_one(world: &mut World) {
    for backend in 1000..1010 {
        let event = Event::Failed { backend, generation: 1, failure: Failure::Unanswered };
        world.health.event(event, &world.seen, world.now);
        world.poll();
        world.pass(100 * MILLI);
    }
}

/// `seconds` pass, and at no time was one that is closed to us taken for dead.
fn nothing_closed_dies(mut world: World, seconds: u32) {
    world.pass(seconds * SECOND);
    assert_eq!(world.flips(1), [Duration::ZERO; 0]);
    let closed = (1000..1005).map(|backend| world.used.backends[&backend].address).collect::<Vec<_>>();
    let port = |port: [u8; 2]| u16::from_be_bytes(port);
    for (at, changed) in &world.history {
        let dead = changed.dead.iter().map(|key| (IpAddr::from(key.addr).to_canonical(), port(key.port)).into());
        let wrong: Vec<SocketAddr> = dead.filter(|dead| closed.contains(dead)).collect();
        assert!(wrong.is_empty(), "after {at:?}: {wrong:?}");
    }
}

/// `seconds` pass, and at no time was anything taken for dead or down.
fn nothing_dies(mut world: World, seconds: u32) {
    world.pass(seconds * SECOND);
    assert_eq!(world.flips(1), [Duration::ZERO; 0]);
    let dead = world.history.iter().find(|(_, changed)| !changed.dead.is_empty());
    assert_eq!(dead.map(|(at, changed)| (at, &changed.dead)), None);
}

#[test]
fn an_agent_that_restarts_finds_them_in_the_kernels_tables_and_takes_none_for_dead() {
    let mut world = world(10);
    world.seen_backends(1000..1010);
    nothing_dies(world, 60);
}

#[test]
fn they_stay_when_pods_stop_connecting() {
    for closed in [5, 10] {
        let mut world = world(closed);
        world.traffic(1, 20);
        world.pass(60 * SECOND);
        world.traffic(1, 0);
        nothing_dies(world, 60);
    }
}

#[test]
fn a_lost_packet_makes_none_dead() {
    let mut world = world(10);
    world.network(1).loss = 0.01;
    world.traffic(1, 20);
    nothing_dies(world, 600);
}

#[test]
fn those_of_a_cluster_whose_api_is_lost_stay_as_well() {
    for traffic in [1, 20] {
        let mut world = world(10);
        world.traffic(1, traffic);
        world.pass(30 * SECOND);
        world.traffic(1, 0);
        world.health.peer(name(1), PeerState::Lost);
        nothing_dies(world, 120);
    }
}

#[test]
fn some_that_are_closed_beside_open_ones_on_the_same_port_survive_a_lossy_path() {
    for (seed, loss, seconds) in [(1, 0.01, 1800), (2, 0.03, 1800), (3, 0.1, 1200)] {
        for traffic in [1, 20] {
            let mut world = World::new(seed, 2, 10);
            world.pods.extend((0..5).map(|number| (1000 + number, Pod::Closed)));
            world.network(1).loss = loss;
            // Ten per cent are not expected by anybody: they have to be measured first.
            world.pass(60 * SECOND);
            world.traffic(1, traffic);
            nothing_closed_dies(world, seconds);
        }
    }
}

#[test]
fn one_that_is_closed_and_was_taken_for_dead_does_not_stay_so() {
    // An earlier agent's error, or a burst of losses; nobody connects to it any more, so only time can tell.
    let mut world = world(5);
    world.used.backends.get_mut(&1002).unwrap().dead = true;
    world.traffic(1, 20);
    world.pass(SECOND);
    assert!(world.is_dead(1002));
    world.used.backends.get_mut(&1002).unwrap().dead = false;
    world.pass(150 * SECOND);
    assert!(!world.is_dead(1002));
}

#[test]
fn a_pod_that_may_not_connect_makes_none_dead() {
    let mut world = world(10);
    world.traffic(1, 20);
    world.pass(5 * SECOND);
    fail_one_by_one(&mut world);
    nothing_dies(world, 120);
}

#[test]
fn one_that_pods_hear_is_not_dead_although_it_closes_to_us() {
    let mut world = world(0);
    world.traffic(1, 200);
    world.pass(20 * SECOND);
    world.pods.extend((1000..1010).map(|backend| (backend, Pod::Closed)));
    fail_one_by_one(&mut world);
    nothing_dies(world, 60);
}
