//! Which backend is drawn, and how often: weights, clusters that are down, backends that are out, tiers.

use crate::{
    chi::assert_shares,
    draws::{draw, effort, own4, tally},
    ground::Ground,
    tables::{backed_by, group, service, udp, weighted_group},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};
use tombolo_ebpf::abi::{Counter, verdict};

/// Name, weight, and the weights of its endpoints.
const CLUSTERS: [(&str, u32, &[u32]); 3] = [("west", 5, &[1, 1, 3]), ("east", 3, &[2, 7]), ("north", 2, &[1, 1, 1, 1])];

fn frontend() -> SocketAddr {
    "10.96.0.10:53".parse().unwrap()
}

#[test]
fn whatever_clusters_are_down_the_others_share_by_their_weights() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 9);
    let (mut groups, mut shares, mut rest) = (vec![], vec![], &backends[..]);
    for (name, weight, endpoints) in CLUSTERS {
        let (own, others) = rest.split_at(endpoints.len());
        rest = others;
        let weighted: Vec<_> = own.iter().copied().zip(endpoints.iter().copied()).collect();
        let sum: u32 = endpoints.iter().sum();
        shares.push(weighted.iter().map(|(a, w)| (a.ip(), f64::from(weight * w) / f64::from(sum))).collect::<Vec<_>>());
        groups.push(weighted_group(name, weight, &weighted));
    }
    ground.want(udp(frontend()), service(vec![groups])).install();
    for down in 0..8 {
        let is_down = |i: usize| down >> i & 1 == 1;
        for (i, (name, ..)) in CLUSTERS.into_iter().enumerate() {
            ground.judge_cluster(name, if is_down(i) { verdict::DEAD } else { verdict::OK });
        }
        // With all of them down, a try beats a certain refusal.
        let all_down = down == 7;
        let last_resorts = ground.count(Counter::LastResort);
        let before: Vec<u64> = backends.iter().map(|backend| ground.chosen(*backend)).collect();
        let counts = ground.client.run(|| tally(frontend(), effort()));
        let up = (0..3).filter(|&i| all_down || !is_down(i));
        let expected: BTreeMap<IpAddr, f64> = up.flat_map(|i| shares[i].iter().copied()).collect();
        let (chi, bound) = assert_shares(&counts, &expected);
        println!("down {down:03b}: χ² {chi:.1} of {bound:.1}");
        let last_resorts = ground.count(Counter::LastResort) - last_resorts;
        assert_eq!(last_resorts, if all_down { effort() as u64 } else { 0 });
        for (backend, before) in backends.iter().zip(before) {
            let count = counts.get(&backend.ip()).copied().unwrap_or(0) as u64;
            assert_eq!(ground.chosen(*backend) - before, count, "the program counts what it chose");
        }
    }
}

#[test]
fn what_a_backend_that_is_out_would_have_had_goes_to_the_others_by_their_weights() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 4);
    let weights = [(backends[0], 1), (backends[1], 2), (backends[2], 3)];
    let groups = vec![weighted_group("west", 3, &weights), group("east", 1, &backends[3..])];
    ground.want(udp(frontend()), service(vec![groups])).install();
    for out in [verdict::DRAINING, verdict::DEAD] {
        ground.judge_backend(backends[0], out);
        let counts = ground.client.run(|| tally(frontend(), effort() / 4));
        // 3/4 of 2/6 and of 3/6, and 1/4.
        let expected = [(1, 6.0), (2, 9.0), (3, 6.0)].map(|(i, share)| (backends[i].ip(), share));
        assert_shares(&counts, &BTreeMap::from(expected));
    }
}

#[test]
fn the_only_backend_left_of_sixteen_is_found_every_time() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 16);
    ground.want(udp(frontend()), backed_by(&backends)).install();
    for backend in &backends[1..] {
        ground.judge_backend(*backend, verdict::DEAD);
    }
    let draws = effort() / 10;
    let counts = ground.client.run(|| tally(frontend(), draws));
    assert_eq!(counts, BTreeMap::from([(backends[0].ip(), draws)]));
    assert_eq!(ground.count(Counter::LastResort), 0);
}

#[test]
fn the_only_cluster_with_a_backend_left_is_found_every_time() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 15);
    let groups = CLUSTERS.iter().zip(backends.chunks(5)).map(|((name, ..), own)| group(name, 1, own)).collect();
    ground.want(udp(frontend()), service(vec![groups])).install();
    for backend in &backends[..14] {
        ground.judge_backend(*backend, verdict::DEAD);
    }
    ground.judge_cluster("west", verdict::DEAD);
    let draws = effort() / 10;
    let counts = ground.client.run(|| tally(frontend(), draws));
    assert_eq!(counts, BTreeMap::from([(backends[14].ip(), draws)]));
}

#[test]
fn a_tier_is_used_only_when_those_before_it_have_nothing_left() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 6);
    let [first, second, third] = [&backends[..2], &backends[2..4], &backends[4..]];
    let tiers = vec![vec![group("west", 1, first)], vec![group("east", 1, second)], vec![group("north", 1, third)]];
    ground.want(udp(frontend()), service(tiers)).install();
    let check = |ground: &Ground, tier: &[SocketAddr], when: &str| {
        let counts = ground.client.run(|| tally(frontend(), effort() / 20));
        let shares: BTreeMap<IpAddr, f64> = tier.iter().map(|backend| (backend.ip(), 1.0)).collect();
        println!("{when}: {counts:?}");
        assert_shares(&counts, &shares);
    };
    check(&ground, first, "all up");
    ground.judge_backend(first[0], verdict::DEAD);
    check(&ground, &first[1..], "one of the first is dead");
    ground.judge_backend(first[1], verdict::DRAINING);
    check(&ground, second, "the other one is draining");
    ground.judge_cluster("east", verdict::DEAD);
    check(&ground, third, "the second cluster is down");
    ground.judge_cluster("north", verdict::DEAD);
    assert_eq!(ground.count(Counter::LastResort), 0);
    check(&ground, first, "nothing is left: the first cluster is up at least");
    ground.judge_cluster("west", verdict::DEAD);
    check(&ground, first, "all clusters are down: the first tier");
    assert_eq!(ground.count(Counter::LastResort), 2 * (effort() / 20) as u64);
    ground.judge_cluster("east", verdict::OK);
    check(&ground, second, "the second is back");
    ground.judge_cluster("west", verdict::OK);
    ground.judge_backend(first[0], verdict::OK);
    check(&ground, &first[..1], "so is one of the first");
}

#[test]
fn sixteen_clusters_of_a_tier_get_their_shares() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 16);
    let weight = |i: usize| 1 + u32::try_from(i).unwrap();
    let groups = backends.iter().enumerate().map(|(i, own)| group(&format!("cluster-{i}"), weight(i), &[*own]));
    ground.want(udp(frontend()), service(vec![groups.collect()])).install();
    let check = |ground: &Ground, up: &dyn Fn(usize) -> bool| {
        let counts = ground.client.run(|| tally(frontend(), effort() / 2));
        let shares = backends.iter().enumerate().filter(|(i, _)| up(*i));
        assert_shares(&counts, &shares.map(|(i, backend)| (backend.ip(), f64::from(weight(i)))).collect());
    };
    check(&ground, &|_| true);
    for i in (0..16).step_by(3) {
        ground.judge_cluster(&format!("cluster-{i}"), verdict::DEAD);
    }
    check(&ground, &|i| i % 3 != 0);
}

#[test]
fn a_backend_that_has_left_is_not_drawn_and_one_that_came_is() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 3);
    ground.want(udp(frontend()), backed_by(&backends[..2])).install();
    ground.want(udp(frontend()), backed_by(&backends[1..])).install();
    let counts = ground.client.run(|| tally(frontend(), effort() / 10));
    assert_shares(&counts, &BTreeMap::from([(backends[1].ip(), 1.0), (backends[2].ip(), 1.0)]));
    ground.desired.services.clear();
    ground.install();
    let gone = ground.client.run(|| draw(frontend())).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ENETUNREACH), "the namespace has no way to the address itself");
}
