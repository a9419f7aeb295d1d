//! Clusters that go away and come back.

use crate::{
    health::simulation::{MILLI, Pod, SECOND, World, name},
    model::{ClusterName, PeerState},
};
use std::time::Duration;

/// Three clusters that have run for a while; east has traffic. Seeds shift the moment.
fn settled(seed: u64, rtt: Duration) -> World {
    let mut world = World::new(seed, 2, 10);
    world.network(1).rtt = rtt;
    world.traffic(1, 500);
    world.pass(5 * SECOND + Duration::from_micros(seed * 79_190 % 1_000_000));
    world
}

#[test]
fn a_cluster_that_vanishes_under_load_is_down_in_time() {
    for (rtt, most, last) in [(MILLI, 500 * MILLI, 300 * MILLI), (100 * MILLI, 1100 * MILLI, 600 * MILLI)] {
        let (mut worst, mut worst_failure) = (Duration::ZERO, Duration::ZERO);
        for seed in 0..30 {
            let mut world = settled(seed, rtt);
            let lost = world.since_start();
            world.set_up(1, false);
            world.pass(3 * SECOND);
            let after = world.went_down_after(1, lost).unwrap();
            worst = worst.max(after);
            let failure = world.last_failure.unwrap() - (world.start + lost);
            worst_failure = worst_failure.max(failure);
            assert!(after <= most, "seed {seed}: {after:?}");
            assert!(failure <= last, "seed {seed}: {failure:?}");
            assert!(!world.is_down(2));
        }
        println!("rtt {rtt:?}: down after at most {worst:?}, last failing connect began after {worst_failure:?}");
    }
}

#[test]
fn a_cluster_that_nobody_uses_is_down_soon() {
    let mut worst = Duration::ZERO;
    for seed in 0..30 {
        let mut world = World::new(seed, 2, 10);
        world.pass(10 * SECOND + Duration::from_micros(seed * 79_190 % 1_000_000));
        let lost = world.since_start();
        world.set_up(1, false);
        world.pass(5 * SECOND);
        let after = world.went_down_after(1, lost).unwrap();
        worst = worst.max(after);
        assert!(after <= 1700 * MILLI, "seed {seed}: {after:?}");
    }
    println!("down after at most {worst:?}");
}

#[test]
fn a_cluster_of_one_or_two_pods_is_down_a_little_later() {
    for (pods, most) in [(1, 750), (2, 600)] {
        for seed in 0..30 {
            let mut world = World::new(seed, 2, pods);
            world.traffic(1, 200);
            world.pass(10 * SECOND);
            let lost = world.since_start();
            world.set_up(1, false);
            world.pass(3 * SECOND);
            let after = world.went_down_after(1, lost).unwrap();
            assert!(after <= most * MILLI, "{pods} pods, seed {seed}: {after:?}");
        }
    }
}

#[test]
fn an_hour_of_one_per_cent_loss_takes_nothing_down() {
    for (seed, pods) in [(1, 30), (2, 3), (3, 1)] {
        let mut world = World::new(seed, 3, pods);
        for cluster in 0..=3 {
            world.network(cluster).loss = 0.01;
        }
        world.traffic(1, 10);
        world.traffic(2, 1);
        world.pass(3600 * SECOND);
        for cluster in 0..=3 {
            assert_eq!(world.flips(cluster), [Duration::ZERO; 0], "cluster {cluster} of {pods} pods");
        }
        let deaths = world.history.windows(2).filter(|pair| pair[1].1.dead.len() > pair[0].1.dead.len()).count();
        println!("{pods} pods: {} probes, {deaths} backends taken for dead", world.probes);
        assert!(deaths <= 10, "{deaths}");
    }
}

#[test]
fn heavy_loss_is_no_outage() {
    for (loss, seconds) in [(0.1, 1200), (0.3, 600)] {
        let mut world = World::new(11, 2, 20);
        for cluster in 0..=2 {
            world.network(cluster).loss = loss;
        }
        world.traffic(1, 20);
        world.pass(seconds * SECOND);
        assert_eq!(world.flips(1), [Duration::ZERO; 0], "at {loss}");
        println!("loss {loss}: {} flips of the cluster without traffic", world.flips(2).len());
        assert!(world.flips(2).len() <= 4, "at {loss}: {:?}", world.flips(2));
    }
}

#[test]
fn a_cluster_that_is_back_is_used_after_two_seconds_and_ramped_in_over_ten() {
    let mut world = settled(5, MILLI);
    world.set_up(1, false);
    world.pass(20 * SECOND);
    assert!(world.is_down(1));
    assert_eq!(world.changed().ramps, [].into());
    let back = world.since_start();
    world.set_up(1, true);
    world.pass(30 * SECOND);
    let east = ClusterName("east".to_owned());
    let after: Vec<(Duration, bool, Option<u8>)> = world
        .history
        .iter()
        .filter(|(at, _)| *at >= back)
        .map(|(at, changed)| {
            (*at - back, changed.clusters[&ClusterName("east1".to_owned())].down, changed.ramps.get(&east).copied())
        })
        .collect();
    let first = |wanted: (bool, Option<u8>)| after.iter().find(|(_, down, ramp)| (*down, *ramp) == wanted).unwrap().0;
    let prepared = first((true, Some(10)));
    let up = first((false, Some(10)));
    println!("first answer {prepared:?}, used {up:?}, whole {:?}", first((false, None)));
    assert!(prepared <= 700 * MILLI);
    assert!(up - prepared >= 2 * SECOND && up - prepared <= 3 * SECOND, "the share is lowered before it is used");
    let steps: Vec<Duration> = [25, 50, 75].iter().map(|share| first((false, Some(*share))) - up).collect();
    assert_eq!(steps, [2500 * MILLI, 5000 * MILLI, 7500 * MILLI]);
    let whole = first((false, None));
    assert_eq!(whole - up, 10 * SECOND);
    assert!((5 * SECOND..=15 * SECOND).contains(&(whole - prepared)));
}

#[test]
fn a_link_that_flaps_changes_little() {
    for half_period in [250, 500, 1000, 2500, 4000, 7000, 15_000] {
        let mut world = World::new(3, 2, 10);
        world.traffic(1, 20);
        world.pass(10 * SECOND);
        let start = world.since_start();
        for half in 0..600_000 / half_period {
            world.set_up(1, half % 2 == 1);
            world.pass(half_period * MILLI);
        }
        let flips = world.flips(1);
        let most = (0..540).map(|second| {
            let from = start + second * SECOND;
            flips.iter().filter(|at| (from..from + 60 * SECOND).contains(at)).count()
        });
        let most = most.max().unwrap();
        println!("up and down for {half_period} ms each: {} flips in 10 minutes, at most {most} in one", flips.len());
        assert!(most <= 12, "{half_period}: {most}");
        assert!(!flips.is_empty() || half_period < 500);
        // Once it stays up, it is used again.
        world.set_up(1, true);
        world.pass(90 * SECOND);
        assert!(!world.is_down(1));
    }
}

#[test]
fn an_api_that_is_lost_changes_nothing_while_pods_answer() {
    let mut world = settled(7, MILLI);
    for state in [PeerState::Lost, PeerState::Stale, PeerState::Fresh, PeerState::Lost] {
        world.health.peer(name(1), state);
        world.pass(30 * SECOND);
        assert_eq!(world.flips(1), [Duration::ZERO; 0]);
    }
    world.set_up(1, false);
    world.pass(SECOND);
    assert!(world.is_down(1));
}

#[test]
fn a_cluster_that_refuses_is_alive_although_its_api_is_lost() {
    for (seed, loss, traffic) in [(1, 0.0, 0), (2, 0.01, 0), (3, 0.01, 20), (4, 0.1, 0)] {
        // From the start, so that no canary counts; or its servers go, and the ports are closed from then on.
        for from_the_start in [true, false] {
            let mut world = World::new(seed, 2, 10);
            world.network(1).loss = loss;
            world.traffic(1, traffic);
            let refuse = |world: &mut World| world.pods.extend((1000..1010).map(|backend| (backend, Pod::Refuses)));
            if from_the_start {
                refuse(&mut world);
            }
            world.pass(10 * SECOND);
            world.health.peer(name(1), PeerState::Lost);
            refuse(&mut world);
            world.pass(600 * SECOND);
            assert_eq!(world.flips(1), [Duration::ZERO; 0], "seed {seed}, from the start: {from_the_start}");
            // What answered by RSTs only is known to let us through: silence says that it is gone.
            world.set_up(1, false);
            world.pass(60 * SECOND);
            assert!(world.is_down(1), "seed {seed}, from the start: {from_the_start}");
            // And the first RST that it is there again.
            world.set_up(1, true);
            world.pass(20 * SECOND);
            assert!(!world.is_down(1), "seed {seed}, from the start: {from_the_start}");
        }
    }
}

#[test]
fn a_cluster_that_comes_back_without_the_pods_that_were_asked_is_used_again() {
    for seed in 0..10 {
        let mut world = settled(seed, MILLI);
        let asked: Vec<u32> = world.asked(1);
        assert!(asked.len() < 10);
        world.set_up(1, false);
        world.pass(20 * SECOND);
        assert!(world.is_down(1));
        world.pods.extend(asked.into_iter().map(|backend| (backend, Pod::Hangs)));
        world.set_up(1, true);
        world.pass(40 * SECOND);
        assert!(!world.is_down(1), "seed {seed}");
    }
}

#[test]
fn canaries_that_never_answered_count_only_if_the_api_is_lost_too() {
    let mut world = World::new(9, 2, 10);
    world.set_up(1, false);
    world.traffic(1, 50);
    world.pass(30 * SECOND);
    assert!(!world.is_down(1), "they may be closed to this node");
    world.health.peer(name(1), PeerState::Lost);
    world.pass(20 * SECOND);
    assert!(world.is_down(1));
    world.set_up(1, true);
    world.pass(5 * SECOND);
    assert!(!world.is_down(1));
}

#[test]
fn what_the_tables_have_down_stays_down_until_it_answers() {
    let mut world = World::new(13, 2, 10);
    let mut used = world.used.clone();
    used.clusters.get_mut(&1).unwrap().down = true;
    used.backends.get_mut(&2003).unwrap().dead = true;
    world.used = used;
    world.set_up(1, false);
    world.pass(MILLI);
    assert!(world.is_down(1) && world.is_dead(2003) && !world.is_down(2));
    world.pass(60 * SECOND);
    assert!(world.is_down(1) && !world.is_dead(2003));
    world.set_up(1, true);
    world.pass(4 * SECOND);
    assert!(!world.is_down(1));
    assert_eq!(world.changed().ramps.get(&name(1)), Some(&10));
}

#[test]
fn probes_cost_a_second_as_much_as_there_are_clusters() {
    let mut small = World::new(17, 4, 1000);
    small.pass(10 * SECOND);
    let before = small.probes;
    small.pass(60 * SECOND);
    let per_second = (small.probes - before) / 60;
    assert!(per_second <= 5, "{per_second} for five clusters of 1,000 pods");
    // What pods hear need not be asked.
    (0..=4).for_each(|cluster| small.traffic(cluster, 100));
    small.pass(10 * SECOND);
    let before = small.probes;
    small.pass(60 * SECOND);
    assert!(
        small.probes - before <= 70,
        "{}: only the own cluster, whose signs may be this node's",
        small.probes - before
    );
}

#[test]
fn the_syn_timeout_follows_the_round_trip_time() {
    let mut world = World::new(19, 2, 10);
    world.network(2).rtt = 100 * MILLI;
    world.pass(30 * SECOND);
    let changed = world.changed();
    let timeouts: Vec<Option<Duration>> = changed.clusters.values().map(|judged| judged.syn_timeout).collect();
    assert_eq!(timeouts, [Some(200 * MILLI), Some(300 * MILLI), Some(200 * MILLI)], "east1, north2, west0");
    let verdicts = changed.verdicts(crate::health::Hz::of_tick(4 * MILLI));
    assert_eq!(verdicts.clusters[&ClusterName("north2".to_owned())].syn_timeout, 75);
    assert_eq!(verdicts.clusters[&ClusterName("west0".to_owned())].keepalive_idle, 0);
    let unknown = changed.verdicts(None);
    assert_eq!(unknown.clusters[&ClusterName("north2".to_owned())].syn_timeout, 0);
    assert_eq!(unknown.clusters[&ClusterName("north2".to_owned())].keepalive_idle, 5);
}

#[test]
fn a_verdict_does_not_stick_to_a_cluster_that_cannot_be_asked_any_more() {
    let mut world = World::new(23, 2, 10);
    world.used.clusters.get_mut(&1).unwrap().down = true;
    world.set_up(1, false);
    world.pass(SECOND);
    assert!(world.is_down(1));
    // Only services over UDP are left.
    world.used.backends.retain(|_, used| used.cluster != 1);
    world.use_these();
    let east = world.changed().clusters[&ClusterName("east1".to_owned())];
    assert_eq!(east, crate::health::Judged { down: false, own: false, syn_timeout: None });
    assert!(world.changed().clusters[&ClusterName("west0".to_owned())].own);
}
