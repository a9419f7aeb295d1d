//! Single backends that fail while their cluster works.

use crate::health::simulation::{MILLI, Pod, SECOND, World};
use std::time::Duration;

fn settled(seed: u64) -> World {
    let mut world = World::new(seed, 2, 10);
    world.traffic(1, 100);
    world.pass(5 * SECOND);
    world
}

#[test]
fn a_backend_that_hangs_is_dead_soon_and_back_once_it_answers() {
    for seed in 0..10 {
        let mut world = settled(seed);
        // The others are reserves, which are asked in doubt only.
        let asked = world.asked(1)[..3].to_vec();
        world.pods.insert(1004, Pod::Hangs);
        let hung = world.since_start();
        world.pass(30 * SECOND);
        assert!(world.is_dead(1004), "seed {seed}");
        let dead = world.history.iter().find(|(at, changed)| *at >= hung && !changed.dead.is_empty()).unwrap().0 - hung;
        // One that probes never met takes a few connects more.
        let most = if asked.contains(&1004) { 1000 } else { 1500 };
        assert!(dead <= most * MILLI, "seed {seed}: {dead:?} with a connect to it every 100 ms");
        assert_eq!(world.flips(1), [Duration::ZERO; 0]);
        world.pods.remove(&1004);
        world.pass(31 * SECOND);
        assert!(!world.is_dead(1004));
        assert_eq!(world.changed().dead.len(), 0);
    }
}

#[test]
fn a_backend_that_refuses_is_left_to_the_kernel() {
    for seed in 0..10 {
        let mut world = settled(seed);
        world.pods.insert(1004, Pod::Refuses);
        // A connect that was not answered has it asked, too.
        let failure = super::super::Failure::Unanswered;
        let event = super::super::Event::Failed { backend: 1004, generation: 1, failure };
        world.health.event(event, &world.seen, world.now);
        world.pass(60 * SECOND);
        assert_eq!(world.flips(1), [Duration::ZERO; 0]);
        let dead = |(_, changed): &(_, crate::health::Changed)| !changed.dead.is_empty();
        assert!(!world.history.iter().any(dead), "what is still connected to it would be aborted");
    }
}

#[test]
fn a_backend_that_died_again_is_asked_less_often() {
    let mut world = settled(2);
    let mut deaths = Vec::new();
    for round in 0..240 {
        world.pods.insert(1004, if round % 2 == 0 { Pod::Hangs } else { Pod::Answers });
        world.pass(SECOND);
        deaths.push(world.is_dead(1004));
    }
    let flips = |deaths: &[bool]| deaths.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(flips(&deaths[..60]) > flips(&deaths[180..]), "{} {}", flips(&deaths[..60]), flips(&deaths[180..]));
    assert!(flips(&deaths[180..]) <= 8);
}

#[test]
fn pods_that_hang_take_no_cluster_along() {
    for seed in 0..10 {
        let mut world = settled(seed);
        // As many as there are canaries, wherever these are.
        for number in [seed % 10, (seed + 3) % 10, (seed + 7) % 10] {
            world.pods.insert(1000 + u32::try_from(number).unwrap(), Pod::Hangs);
        }
        world.pass(60 * SECOND);
        assert_eq!(world.flips(1), [Duration::ZERO; 0], "seed {seed}");
        assert_eq!(world.changed().dead.len(), 3);
    }
}

#[test]
fn canaries_that_hang_without_traffic_are_found_too() {
    for seed in 0..10 {
        let mut world = World::new(seed, 1, 10);
        world.pass(10 * SECOND);
        let canaries = world.health.view(world.now)[0].paths[0].canaries.clone();
        for canary in &canaries {
            let (backend, _) = world.used.backends.iter().find(|(_, used)| used.address == canary.address).unwrap();
            world.pods.insert(*backend, Pod::Hangs);
        }
        world.pass(60 * SECOND);
        assert_eq!(world.flips(1), [Duration::ZERO; 0], "seed {seed}");
        assert_eq!(world.changed().dead.len(), 3, "seed {seed}");
    }
}

#[test]
fn one_pod_that_hangs_and_is_all_there_is_of_a_cluster_is_like_a_cluster_that_is_gone() {
    let mut world = World::new(3, 2, 1);
    world.traffic(1, 50);
    world.pass(10 * SECOND);
    world.pods.insert(1000, Pod::Hangs);
    world.pass(SECOND);
    assert!(world.is_down(1));
}

#[test]
fn what_failed_for_somebody_and_answers_us_is_not_dead() {
    let mut world = settled(4);
    for _ in 0..50 {
        let failure = super::super::Failure::Unanswered;
        let event = super::super::Event::Failed { backend: 1003, generation: 1, failure };
        world.health.event(event, &world.seen, world.now);
        world.poll();
        world.pass(200 * MILLI);
    }
    assert!(world.history.iter().all(|(_, changed)| changed.dead.is_empty()));
}

#[test]
fn a_dying_cluster_does_not_have_its_backends_judged_one_by_one() {
    let mut world = World::new(5, 2, 500);
    world.traffic(1, 500);
    world.pass(10 * SECOND);
    let before = world.probes;
    world.set_up(1, false);
    world.pass(2 * SECOND);
    assert!(world.is_down(1));
    assert!(world.history.iter().all(|(_, changed)| changed.dead.is_empty()), "one write takes the cluster out");
    assert!(world.probes - before <= 300, "{}", world.probes - before);
}

#[test]
fn a_dead_backend_that_no_service_leads_to_stays_dead_and_is_no_canary() {
    let mut world = settled(7);
    world.pods.insert(1004, Pod::Hangs);
    world.pass(2 * SECOND);
    let backend = world.used.backends.get_mut(&1004).unwrap();
    (backend.dead, backend.serves) = (true, false);
    let gone = backend.address;
    world.use_these();
    world.pass(10 * SECOND);
    assert!(world.is_dead(1004));
    let view = world.health.view(world.now);
    assert!(
        view.iter().flat_map(|view| &view.paths).flat_map(|path| &path.canaries).all(|canary| canary.address != gone)
    );
}

#[test]
fn a_dead_backend_is_asked_again_whatever_else_its_path_has() {
    // Its service is gone, and with it all others of its cluster; or they don't answer, and the path is down.
    for alone in [true, false] {
        let mut world = settled(9);
        world.pods.insert(1004, Pod::Hangs);
        world.pass(2 * SECOND);
        assert!(world.is_dead(1004));
        world.traffic(1, 0);
        world.pass(SECOND);
        let backend = world.used.backends.get_mut(&1004).unwrap();
        (backend.dead, backend.serves) = (true, false);
        if alone {
            world.used.backends.retain(|index, used| used.cluster != 1 || *index == 1004);
        } else {
            world.pods.extend((1000..1010).map(|backend| (backend, Pod::Hangs)));
        }
        world.use_these();
        let before = world.probes;
        world.pass(90 * SECOND);
        assert!(world.is_dead(1004));
        assert_eq!(world.is_down(1), !alone);
        let probes = world.probes - before;
        assert!(
            !alone || probes < 90 * 2 + 15,
            "with back-off: {probes}, of which the other clusters had one a second"
        );
        world.pods.remove(&1004);
        world.pass(31 * SECOND);
        assert!(!world.is_dead(1004), "alone: {alone}");
    }
}

#[test]
fn one_that_never_answered_us_is_dead_once_pods_confirm_it() {
    for seed in 0..10 {
        let mut world = World::new(seed, 2, 30);
        world.traffic(1, 100);
        world.pass(5 * SECOND);
        let asked = world.asked(1);
        let unknown = (1000..1030).find(|backend| !asked.contains(backend)).unwrap();
        world.pods.insert(unknown, Pod::Hangs);
        let hung = world.since_start();
        world.pass(10 * SECOND);
        let dead = world.history.iter().find(|(at, changed)| *at >= hung && !changed.dead.is_empty()).unwrap().0 - hung;
        println!("seed {seed}: dead after {dead:?}, with three connects a second to it");
        assert!(dead <= 4000 * MILLI, "seed {seed}: {dead:?}");
        assert_eq!(world.changed().dead.len(), 1);
    }
}

#[test]
fn a_backend_that_is_no_longer_used_is_forgotten() {
    let mut world = settled(6);
    world.pods.insert(1004, Pod::Hangs);
    world.pass(2 * SECOND);
    assert!(world.is_dead(1004));
    world.used.backends.get_mut(&1004).unwrap().generation = 2;
    world.use_these();
    assert!(!world.is_dead(1004), "its index has another backend now");
}
