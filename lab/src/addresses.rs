//! Who has which address in the clusters. Clusters and nodes count from 1: west, east, north; west-1, west-2.
//!
//! | what | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | node `k` of cluster `i`, on the fabric between all nodes | 10.60.0.`ik`/24 | fd60::`ik`/64 |
//! | gateway of cluster `i`, likewise | 10.60.0.`i`9/24 | fd60::`i`9/64 |
//! | pods on node `k` of cluster `i`: .1 is the node, the rest pods | 10.6`i`.`k`.0/24 | fd6`i`:0:0:`k`::/64 |
//! | private pods there: nothing outside cluster `i` has a route to them | 10.7`i`.`k`.0/24 | fd7`i`:0:0:`k`::/64 |
//! | ClusterIPs of cluster `i`, on no interface at all | 10.10`i`.0.0/16 | fd00:10`i`::/112 |

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dual {
    /// The IPv4 one.
    pub v4: Ipv4Addr,
    /// The IPv6 one.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// Both, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Both as prefixes that hold nothing else.
    pub fn hosts(self) -> [IpNet; 2] {
        self.both().map(IpNet::from)
    }

    fn nets(self, v4_length: u8, v6_length: u8) -> [IpNet; 2] {
        let v4 = Ipv4Net::new_assert(self.v4, v4_length);
        [v4.into(), Ipv6Net::new_assert(self.v6, v6_length).into()]
    }
}

/// Whether a pod can be reached from other clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It can, by its own address.
    Flat,
    /// Its cluster's nodes and gateway alone have a route to it.
    Private,
}

impl Network {
    fn base(self, cluster: u8) -> u8 {
        match self {
            Network::Flat => 60 + cluster,
            Network::Private => 70 + cluster,
        }
    }
}

/// Node `node` of cluster `cluster` on the fabric.
pub fn node(cluster: u8, node: u8) -> Dual {
    let host = 10 * cluster + node;
    Dual { v4: Ipv4Addr::new(10, 60, 0, host), v6: Ipv6Addr::new(0xfd60, 0, 0, 0, 0, 0, 0, alike(host)) }
}

/// The gateway of cluster `cluster` on the fabric.
pub fn gateway(cluster: u8) -> Dual {
    node(cluster, 9)
}

/// An address on the fabric with the fabric's prefix length.
pub fn on_fabric(host: Dual) -> [IpNet; 2] {
    host.nets(24, 64)
}

/// The pods on a node.
pub fn pods(network: Network, cluster: u8, node: u8) -> [IpNet; 2] {
    pod(network, cluster, node, 0).nets(24, 64)
}

/// Number `number` of the pods on a node. 1 is the node itself, as its pods see it.
pub fn pod(network: Network, cluster: u8, node: u8, number: u8) -> Dual {
    let base = network.base(cluster);
    let head = 0xfd00 + alike(base);
    Dual {
        v4: Ipv4Addr::new(10, base, node, number),
        v6: Ipv6Addr::new(head, 0, 0, alike(node), 0, 0, 0, alike(number)),
    }
}

/// ClusterIP number `number` of a cluster.
pub fn service(cluster: u8, number: u8) -> Dual {
    let base = 100 + cluster;
    Dual {
        v4: Ipv4Addr::new(10, base, 0, number),
        v6: Ipv6Addr::new(0xfd00, alike(base), 0, 0, 0, 0, 0, alike(number)),
    }
}

/// The number whose hexadecimal digits look like the decimal digits of `number`.
fn alike(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100) << 8 | (number / 10 % 10) << 4 | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn addresses_are_as_the_table_says() {
        let words = |nets: [IpNet; 2]| nets.map(|net| net.to_string());
        assert_eq!(words(on_fabric(node(1, 2))), ["10.60.0.12/24", "fd60::12/64"]);
        assert_eq!(words(on_fabric(gateway(2))), ["10.60.0.29/24", "fd60::29/64"]);
        assert_eq!(words(pods(Network::Flat, 3, 1)), ["10.63.1.0/24", "fd63:0:0:1::/64"]);
        assert_eq!(words(pods(Network::Private, 2, 2)), ["10.72.2.0/24", "fd72:0:0:2::/64"]);
        assert_eq!(words(pod(Network::Flat, 1, 1, 117).hosts()), ["10.61.1.117/32", "fd61:0:0:1::117/128"]);
        assert_eq!(words(service(3, 20).hosts()), ["10.103.0.20/32", "fd00:103::20/128"]);
    }

    #[test]
    fn no_two_ranges_overlap() {
        let each = (1..=3).flat_map(|cluster| (1..=2).map(move |node| (cluster, node)));
        let ranges: Vec<IpNet> = each
            .flat_map(|(cluster, node)| {
                [Network::Flat, Network::Private].map(|network| pods(network, cluster, node)).into_iter().flatten()
            })
            .chain(on_fabric(node(1, 1)))
            .chain((1..=3).flat_map(|cluster| service(cluster, 0).nets(16, 112)))
            .collect();
        assert_eq!(ranges.iter().collect::<BTreeSet<_>>().len(), 2 * (3 * 2 * 2 + 1 + 3));
        for (index, range) in ranges.iter().enumerate() {
            let mut others = ranges[..index].iter().map(|other| other.trunc());
            assert!(others.all(|other| !other.contains(range) && !range.contains(&other)), "{range}");
        }
    }
}
