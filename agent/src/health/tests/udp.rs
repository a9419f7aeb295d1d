//! Clusters that serve UDP only: their pods answer a TCP connect to the UDP port with an RST.

use crate::{
    health::{
        Judged,
        simulation::{MILLI, Pod, SECOND, World, name},
    },
    model::{ClusterName, PeerState},
};
use std::time::Duration;

/// East serves UDP only; its pods are `pod` to TCP.
fn world(seed: u64, pod: Pod) -> World {
    let mut world = World::new(seed, 2, 10);
    for (index, used) in world.used.backends.iter_mut().filter(|(_, used)| used.cluster == 1) {
        used.udp = true;
        world.pods.insert(*index, pod);
    }
    world
}

#[test]
fn one_whose_pods_send_an_rst_is_down_soon_after_it_vanished_and_comes_back() {
    let mut worst = Duration::ZERO;
    for seed in 0..30 {
        let mut world = world(seed, Pod::Refuses);
        world.pass(10 * SECOND + Duration::from_micros(seed * 79_190 % 1_000_000));
        assert!(world.health.view(world.now)[0].paths[0].canaries.iter().all(|canary| canary.counts));
        let lost = world.since_start();
        world.set_up(1, false);
        world.pass(5 * SECOND);
        let after = world.went_down_after(1, lost).unwrap();
        assert!(after <= 1700 * MILLI, "seed {seed}: {after:?}");
        worst = worst.max(after);
        world.set_up(1, true);
        world.pass(4 * SECOND);
        assert!(!world.is_down(1) && !world.is_down(2));
        assert_eq!(world.changed().ramps.get(&name(1)), Some(&10));
        assert!(world.history.iter().all(|(_, changed)| changed.dead.is_empty()));
    }
    println!("down after at most {worst:?}");
}

#[test]
fn one_whose_firewall_drops_tcp_says_nothing_whatever_its_api_does() {
    for state in [PeerState::Fresh, PeerState::Lost] {
        let mut world = world(1, Pod::Hangs);
        world.health.peer(name(1), state);
        world.pass(120 * SECOND);
        world.set_up(1, false);
        world.pass(120 * SECOND);
        assert_eq!(world.flips(1), [Duration::ZERO; 0]);
        let judged = world.changed().clusters[&ClusterName("east1".to_owned())];
        assert_eq!(judged, Judged { down: false, own: false, syn_timeout: None });
    }
}

#[test]
fn a_pod_of_it_that_is_silent_is_exchanged_and_not_called_dead() {
    for seed in 0..10 {
        let mut world = world(seed, Pod::Refuses);
        world.pass(10 * SECOND);
        let silent = world.asked(1)[0];
        world.pods.insert(silent, Pod::Hangs);
        world.pass(60 * SECOND);
        assert_eq!(world.flips(1), [Duration::ZERO; 0], "seed {seed}");
        assert!(world.history.iter().all(|(_, changed)| changed.dead.is_empty()), "nobody else asks after it");
        assert!(!world.asked(1).contains(&silent));
    }
}

#[test]
fn it_bears_witness_against_others() {
    let mut world = world(3, Pod::Refuses);
    world.pass(10 * SECOND);
    world.set_up(2, false);
    world.pass(3 * SECOND);
    assert!(world.is_down(2) && !world.is_down(1));
}

#[test]
fn an_hour_of_one_per_cent_loss_takes_it_not_down() {
    let mut world = world(4, Pod::Refuses);
    world.network(1).loss = 0.01;
    world.pass(3600 * SECOND);
    assert_eq!(world.flips(1), [Duration::ZERO; 0]);
}
