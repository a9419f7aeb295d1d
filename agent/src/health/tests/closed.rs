//! Pods whose NetworkPolicy admits other pods and not the node: their silence to our probes says nothing.

use crate::health::{
    Event, Failure,
    simulation::{MILLI, Pod, SECOND, World},
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

/// `seconds` pass, and at no time was anything taken for dead or down.
fn nothing_dies(mut world: World, seconds: u32) {
    world.pass(seconds * SECOND);
    assert_eq!(world.flips(1), []);
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
