//! Random desired tables out of small pools, so that frontends, backends and clusters meet each other often.

use proptest::prelude::*;
use tombolo::{
    model::{ClusterName, ObjectName, Path},
    tables::{Desired, DesiredGroup, DesiredService, Member},
};
use tombolo_ebpf::abi::{FrontendKey, TCP, UDP};

/// Tables of up to `most` frontends.
pub(crate) fn desired(most: usize) -> impl Strategy<Value = Desired> {
    let pods = prop::collection::btree_map(1..6u64, 1..3u32, 0..3);
    (prop::collection::btree_map(frontend(), service(), 0..=most), pods).prop_map(|(services, pods)| {
        let pod_level = if pods.is_empty() { 0 } else { 2 };
        Desired { services, pods, pod_level }
    })
}

fn frontend() -> impl Strategy<Value = FrontendKey> {
    (0..8u8, any::<bool>(), prop_oneof![3 => Just(false), 1 => Just(true)]).prop_map(|(host, udp, v6)| FrontendKey {
        // Far apart, so that prefixes widen and narrow.
        addr: if v6 { v6_address(0xfd, host) } else { v4_address([10, 96 + host % 3, host << 4, host]) },
        port: 80u16.to_be_bytes(),
        proto: if udp { UDP } else { TCP },
        pad: 0,
    })
}

fn service() -> impl Strategy<Value = DesiredService> {
    let affinity = prop_oneof![2 => Just(None), 1 => Just(Some(60)), 1 => Just(Some(10_800))];
    let tiers = prop::collection::vec(prop::collection::vec(group(), 1..4), 0..4);
    let draining = prop_oneof![2 => Just(Vec::new()), 1 => group().prop_map(|group| group.members)];
    let flags = (any::<bool>(), any::<bool>());
    (0..3u8, affinity, flags, tiers, draining).prop_map(|(name, affinity_seconds, flags, tiers, draining)| {
        DesiredService {
            name: ObjectName { namespace: "shop".into(), name: format!("service-{name}") },
            affinity_seconds,
            exclusive: flags.0,
            no_abort: flags.1,
            tiers,
            draining,
        }
    })
}

fn group() -> impl Strategy<Value = DesiredGroup> {
    let members = prop::collection::btree_map(0..12u8, (0..3usize, member_weight()), 1..6);
    let weight = prop_oneof![1..5u32, 1..1_000_000u32];
    (0..5usize, weight, members).prop_map(|(cluster, weight, members)| {
        let mut members: Vec<Member> = members.into_iter().map(|(host, rest)| member(cluster, host, rest)).collect();
        members.sort();
        DesiredGroup { cluster: cluster_name(cluster), weight, members }
    })
}

fn member_weight() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(1u32), 1 => 1..50u32]
}

/// A member, mostly of the group's own cluster.
fn member(cluster: usize, host: u8, (other, weight): (usize, u32)) -> Member {
    Member {
        addr: v4_address([10, host % 4, 7, host]),
        port: 8080u16.to_be_bytes(),
        path: if host == 11 { Path::Gateway } else { Path::Pod },
        cluster: cluster_name(if other == 0 && host.is_multiple_of(2) { (cluster + 1) % 5 } else { cluster }),
        weight,
    }
}

pub(crate) fn cluster_name(number: usize) -> ClusterName {
    ClusterName(["west", "east", "north", "south", "far"][number].into())
}

pub(crate) fn v4_address(octets: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(octets).to_ipv6_mapped().octets()
}

fn v6_address(first: u8, last: u8) -> [u8; 16] {
    let mut octets = [0; 16];
    (octets[0], octets[15]) = (first, last);
    octets
}
