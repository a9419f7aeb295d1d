//! A cluster with a flat path and a gateway.

use crate::{
    health::simulation::{MILLI, SECOND, World, name},
    model::Path,
};

/// East by its pods at index 1 and by its gateway at index 7, and north.
fn settled(seed: u64) -> World {
    let mut world = World::new(seed, 2, 10);
    world.add_cluster(7, &name(1), Path::Gateway, 2);
    world.use_these();
    world.traffic(1, 200);
    world.pass(10 * SECOND);
    world
}

#[test]
fn a_flat_path_that_is_dark_is_out_by_one_verdict_while_the_gateway_serves() {
    for seed in 0..10 {
        let mut world = settled(seed);
        let lost = world.since_start();
        world.set_up(1, false);
        world.pass(10 * SECOND);
        let after = world.went_down_after(1, lost).unwrap();
        assert!(after <= 500 * MILLI, "seed {seed}: {after:?}");
        assert!(!world.is_down(7) && !world.is_down(2));
        assert_eq!(world.changed().paths_out, [(name(1), Path::Pod)].into());
        assert!(world.history.iter().all(|(_, changed)| changed.dead.is_empty()));
        world.set_up(1, true);
        world.pass(SECOND);
        assert!(world.is_down(1), "not at once");
        world.pass(3 * SECOND);
        assert!(!world.is_down(1));
        assert_eq!(world.changed().paths_out, [].into());
        assert!(world.history.iter().all(|(_, changed)| changed.ramps.is_empty()), "the cluster was never gone");
    }
}

#[test]
fn an_only_peers_gateway_bears_witness_against_its_flat_path() {
    let mut world = World::new(1, 1, 10);
    world.used.backends.retain(|_, backend| backend.cluster != 0);
    world.add_cluster(7, &name(1), Path::Gateway, 2);
    world.use_these();
    world.pass(10 * SECOND);
    world.set_up(1, false);
    world.pass(3 * SECOND);
    assert!(world.is_down(1) && !world.is_down(7));
}

#[test]
fn a_cluster_is_ramped_in_if_both_paths_were_down() {
    let mut world = settled(2);
    world.set_up(1, false);
    world.networks.get_mut(&(7, Path::Gateway)).unwrap().up = false;
    world.pass(10 * SECOND);
    assert!(world.is_down(1) && world.is_down(7));
    assert_eq!(world.changed().paths_out, [].into());
    world.networks.get_mut(&(7, Path::Gateway)).unwrap().up = true;
    world.pass(5 * SECOND);
    assert!(world.is_down(1) && !world.is_down(7));
    assert_eq!(world.changed().ramps.len(), 1);
    world.pass(20 * SECOND);
    assert_eq!(world.changed().ramps.len(), 0);
}

#[test]
fn paths_that_share_an_index_are_down_together_only() {
    let mut world = World::new(3, 2, 10);
    world.add_cluster(1, &name(1), Path::Gateway, 0);
    world.networks.insert((1, Path::Pod), world.networks[&(2, Path::Pod)].clone());
    for number in 8..10 {
        world.used.backends.get_mut(&(1000 + number)).unwrap().path = Path::Gateway;
    }
    world.use_these();
    world.pass(10 * SECOND);
    world.set_up(1, false);
    world.pass(5 * SECOND);
    assert!(!world.is_down(1));
    assert_eq!(world.changed().paths_out, [(name(1), Path::Pod)].into());
    world.networks.get_mut(&(1, Path::Gateway)).unwrap().up = false;
    world.pass(5 * SECOND);
    assert!(world.is_down(1));
    assert_eq!(world.changed().paths_out, [].into());
}
