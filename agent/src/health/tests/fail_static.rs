//! When everything goes dark at once, it is we who are cut off.

use crate::health::simulation::{MILLI, Pod, SECOND, World};
use std::time::Duration;

fn settled(seed: u64, clusters: u32) -> World {
    let mut world = World::new(seed, clusters, 10);
    for cluster in 0..=clusters {
        world.traffic(cluster, 15);
    }
    world.pass(4 * SECOND + Duration::from_micros(seed * 79_190 % 1_000_000));
    world
}

fn is_held(world: &World, cluster: &str) -> bool {
    world.health.view(world.now).iter().any(|view| view.name == cluster && view.held.is_some())
}

/// Nothing was taken out of the tables in the whole history.
fn nothing_changed(world: &World, clusters: u32) {
    for cluster in 0..=clusters {
        assert_eq!(world.flips(cluster), [Duration::ZERO; 0], "cluster {cluster}");
    }
    assert!(world.history.iter().all(|(_, changed)| changed.dead.is_empty()));
    assert!(world.history.iter().all(|(_, changed)| changed.ramps.is_empty() && changed.paths_out.is_empty()));
}

#[test]
fn if_all_peers_are_dark_nothing_changes_and_it_is_said_within_five_seconds() {
    for seed in 0..4 {
        let mut world = settled(seed, 3);
        (1..=3).for_each(|cluster| world.set_up(cluster, false));
        world.pass(2 * SECOND);
        assert!(["east", "north", "c3"].iter().all(|cluster| is_held(&world, cluster)), "seed {seed}");
        world.pass(30 * SECOND);
        (1..=3).for_each(|cluster| world.set_up(cluster, true));
        world.pass(30 * SECOND);
        nothing_changed(&world, 3);
        assert!(!is_held(&world, "east"));
    }
}

#[test]
fn if_nothing_leaves_this_node_nothing_changes() {
    for (seed, clusters) in (0..3).flat_map(|seed| [(seed, 1), (seed, 2), (seed, 4)]) {
        let mut world = settled(seed, clusters);
        world.connected = false;
        world.pass(30 * SECOND);
        assert!(is_held(&world, "east"), "seed {seed}, {clusters} peers");
        world.connected = true;
        world.pass(30 * SECOND);
        nothing_changed(&world, clusters);
    }
}

#[test]
fn peers_that_answer_again_one_after_the_other_are_not_taken_for_dead() {
    for seed in 0..4 {
        let mut world = settled(seed, 3);
        world.connected = false;
        world.pass(20 * SECOND);
        // Routes to east are there again a second before those to the others.
        (2..=3).for_each(|cluster| world.set_up(cluster, false));
        world.connected = true;
        world.pass(SECOND);
        (2..=3).for_each(|cluster| world.set_up(cluster, true));
        world.pass(20 * SECOND);
        nothing_changed(&world, 3);
    }
}

#[test]
fn a_peer_that_stays_dark_once_another_answers_again_is_down() {
    let mut world = settled(1, 3);
    world.connected = false;
    world.pass(20 * SECOND);
    world.set_up(2, false);
    world.connected = true;
    world.pass(4 * SECOND);
    assert!(world.is_down(2) && !world.is_down(1) && !world.is_down(3));
}

#[test]
fn an_only_peer_is_down_if_the_own_clusters_other_nodes_answer() {
    for seed in 0..4 {
        let mut world = settled(seed, 1);
        let lost = world.since_start();
        world.set_up(1, false);
        world.pass(5 * SECOND);
        let after = world.went_down_after(1, lost).unwrap();
        assert!(after <= 600 * MILLI, "{after:?} with a connect every 70 ms");
    }
}

#[test]
fn pods_of_this_node_bear_no_witness() {
    let mut world = settled(2, 1);
    for backend in world.used.backends.values_mut().filter(|backend| backend.cluster == 0) {
        backend.local = backend.address.ip().to_string() != "10.0.1.1";
    }
    world.use_these();
    world.pass(5 * SECOND);
    world.connected = false;
    world.pass(20 * SECOND);
    assert!(is_held(&world, "east"));
    nothing_changed(&world, 1);
}

#[test]
fn on_a_cluster_of_one_node_the_uplinks_state_is_all_there_is() {
    let mut alone = World::new(4, 1, 10);
    alone.used.backends.values_mut().filter(|backend| backend.cluster == 0).for_each(|backend| backend.local = true);
    alone.use_these();
    alone.traffic(1, 100);
    alone.pass(10 * SECOND);
    alone.health.uplink(false, alone.now);
    alone.connected = false;
    alone.pass(20 * SECOND);
    assert!(is_held(&alone, "east"));
    nothing_changed(&alone, 1);
    alone.connected = true;
    alone.health.uplink(true, alone.now);
    alone.pass(20 * SECOND);
    nothing_changed(&alone, 1);
    alone.set_up(1, false);
    alone.pass(2 * SECOND);
    assert!(alone.is_down(1));
}

#[test]
fn two_of_three_peers_may_die_together() {
    for seed in 0..4 {
        let mut world = settled(seed, 3);
        world.set_up(1, false);
        world.set_up(2, false);
        world.pass(SECOND);
        assert!(world.is_down(1) && world.is_down(2) && !world.is_down(3), "seed {seed}");
    }
}

#[test]
fn the_last_peer_may_die_long_after_the_others() {
    let mut world = settled(6, 2);
    world.set_up(1, false);
    world.pass(10 * SECOND);
    world.set_up(2, false);
    world.pass(2 * SECOND);
    assert!(world.is_down(1) && world.is_down(2));
}

#[test]
fn while_the_uplink_is_down_nothing_goes_down() {
    let mut world = settled(8, 3);
    world.health.uplink(false, world.now);
    world.set_up(1, false);
    world.pass(10 * SECOND);
    assert!(!world.is_down(1) && is_held(&world, "east"));
    nothing_changed(&world, 3);
    world.health.uplink(true, world.now);
    world.pass(4 * SECOND);
    assert!(world.is_down(1));
}

#[test]
fn the_own_cluster_is_never_down() {
    let mut world = settled(10, 2);
    world.set_up(0, false);
    world.pass(60 * SECOND);
    assert_eq!(world.flips(0), [Duration::ZERO; 0]);
    for number in 0..10 {
        world.pods.insert(number, Pod::Hangs);
    }
    world.set_up(0, true);
    world.pass(60 * SECOND);
    assert_eq!(world.flips(0), [Duration::ZERO; 0]);
}

#[test]
fn an_agent_that_could_not_run_holds_nothing_against_anybody() {
    let mut world = settled(12, 2);
    for _ in 0..100 {
        // Probes start, then nothing runs for a while, and all of them seem to have timed out.
        world.health.event(super::super::Event::Suspect { cluster: 1 }, &world.seen, world.now);
        let stuck = world.now + 700 * MILLI;
        world.pass(MILLI);
        world.seen = Default::default();
        let probes = world.health.poll(&world.seen, world.now);
        world.health.next(world.now);
        world.now = stuck;
        world.health.poll(&world.seen, stuck);
        for probe in probes {
            world.health.probed(probe.id, super::super::Outcome::Silent, stuck);
        }
        world.poll();
        world.pass(SECOND);
        assert!(!world.is_down(1));
    }
}

#[test]
fn an_agent_that_hardly_runs_still_finds_out_what_is_dead() {
    for (stalled, runs) in [(200, 100), (300, 50), (300, 200)] {
        let mut world = settled(14, 2);
        world.traffic(1, 200);
        world.pass(4 * SECOND);
        let lost = world.since_start();
        world.set_up(1, false);
        for _ in 0..20 {
            world.pass(runs * MILLI);
            world.stall(stalled * MILLI);
        }
        let after = world.went_down_after(1, lost);
        println!("stalled for {stalled} ms after each {runs} ms: down after {after:?}");
        assert!(after.is_some_and(|after| after <= 5 * SECOND), "{stalled} {runs}: {after:?}");
        assert!(!world.is_down(2));
    }
}
