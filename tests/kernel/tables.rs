//! Short words for what the tables should hold.

use std::net::{IpAddr, SocketAddr};
use tombolo::{
    model::{ClusterName, ObjectName, Path},
    tables::{DesiredGroup, DesiredService, Member},
};
use tombolo_ebpf::abi::{FrontendKey, TCP, UDP};

/// The cluster that clients are in.
pub(crate) const OWN: &str = "west";

/// What a client of TCP dials.
pub(crate) fn tcp(frontend: SocketAddr) -> FrontendKey {
    key(frontend, TCP)
}

/// What a client of UDP dials.
pub(crate) fn udp(frontend: SocketAddr) -> FrontendKey {
    key(frontend, UDP)
}

fn key(frontend: SocketAddr, proto: u8) -> FrontendKey {
    FrontendKey { addr: mapped(frontend.ip()), port: frontend.port().to_be_bytes(), proto, pad: 0 }
}

/// A service of these tiers that nobody else serves.
pub(crate) fn service(tiers: Vec<Vec<DesiredGroup>>) -> DesiredService {
    let name = ObjectName { namespace: "test".to_owned(), name: "service".to_owned() };
    DesiredService { name, affinity_seconds: None, exclusive: true, no_abort: false, tiers, draining: Vec::new() }
}

/// A service of one tier with these backends, all in the own cluster and alike; without any it has no tier.
pub(crate) fn backed_by(backends: &[SocketAddr]) -> DesiredService {
    let tiers = if backends.is_empty() { vec![] } else { vec![vec![group(OWN, 1, backends)]] };
    service(tiers)
}

/// Endpoints of `cluster`, all alike.
pub(crate) fn group(cluster: &str, weight: u32, backends: &[SocketAddr]) -> DesiredGroup {
    weighted_group(cluster, weight, &backends.iter().map(|address| (*address, 1)).collect::<Vec<_>>())
}

/// Endpoints of `cluster`, each with its weight.
pub(crate) fn weighted_group(cluster: &str, weight: u32, backends: &[(SocketAddr, u32)]) -> DesiredGroup {
    let cluster = ClusterName(cluster.to_owned());
    let member = |(address, weight): &(SocketAddr, u32)| Member {
        addr: mapped(address.ip()),
        port: address.port().to_be_bytes(),
        path: Path::Pod,
        cluster: cluster.clone(),
        weight: *weight,
    };
    let mut members: Vec<_> = backends.iter().map(member).collect();
    members.sort_unstable();
    DesiredGroup { cluster, weight, members }
}

/// An address as the tables have it: IPv4 as an IPv4-mapped IPv6 address.
pub(crate) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
