//! The columns of the matrix: what there is to dial, and who should answer.
//!
//! The client's namespace has a router, which stands for the rest of the world: behind it another cluster's pod, on it a
//! gateway to a second port of that pod, and, at every virtual address, what stands in for kube-proxy: a server that gets
//! whatever the programs leave alone.

use super::kinds::{Family, lacks};
use crate::{
    ground::Ground,
    tables::{backed_by, tcp, udp},
};
use lab::{netns::Netns, nft};
use socket2::{Protocol, Type};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tombolo::model::Path;
use tombolo_ebpf::abi::verdict;

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A backend in the client's own namespace.
    Local,
    /// A backend in another namespace, by way of the router.
    Remote,
    /// The same pod through a gateway.
    Gateway,
    /// The backend is the client's own address.
    Hairpin,
    /// A service of ours alone without endpoints.
    NoneExclusive,
    /// A service without endpoints that kube-proxy serves too.
    NoneShared,
    /// Two backends, one of them draining.
    Draining,
    /// An address of ours at a port that isn't.
    OtherPort,
    /// An address outside all service ranges.
    Foreign,
}

/// What should come of dialling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// This server answers.
    Server(SocketAddr),
    /// ECONNREFUSED, at once and without a packet.
    Refused,
}

impl Destination {
    /// All columns.
    pub(crate) const ALL: [Self; 9] = [
        Self::Local,
        Self::Remote,
        Self::Gateway,
        Self::Hairpin,
        Self::NoneExclusive,
        Self::NoneShared,
        Self::Draining,
        Self::OtherPort,
        Self::Foreign,
    ];

    /// What the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Gateway => "gateway",
            Self::Hairpin => "hairpin",
            Self::NoneExclusive => "none",
            Self::NoneShared => "none+kp",
            Self::Draining => "drain",
            Self::OtherPort => "port",
            Self::Foreign => "foreign",
        }
    }

    /// What a client of this family dials.
    pub(crate) fn dialled(self, family: Family) -> SocketAddr {
        let v6 = family == Family::V6;
        let address = match self {
            Self::Foreign if v6 => POD6,
            Self::Foreign => POD4,
            _ => vip(self as u8, v6),
        };
        let port = if self == Self::OtherPort { 81 } else { 80 };
        in_form(SocketAddr::new(address, port), family)
    }

    /// What should come of dialling it; `translated` for sockets of kinds that are.
    pub(crate) fn expected(self, family: Family, translated: bool) -> Expected {
        let v6 = family == Family::V6;
        match self {
            Self::NoneExclusive if translated => Expected::Refused,
            Self::Gateway if translated => Expected::Server(behind_gateway(v6)),
            _ => match self.backend(family) {
                Some(backend) if translated => Expected::Server(backend),
                _ => {
                    let dialled = self.dialled(family);
                    Expected::Server(SocketAddr::new(dialled.ip().to_canonical(), dialled.port()))
                }
            },
        }
    }

    /// The backend that a new connection is sent to, if there is one.
    pub(crate) fn backend(self, family: Family) -> Option<SocketAddr> {
        self.backends(family == Family::V6).last().copied()
    }

    /// The backends; of several, all but the last are draining.
    fn backends(self, v6: bool) -> Vec<SocketAddr> {
        let at = |v4: IpAddr, v6_address: IpAddr, port| SocketAddr::new(if v6 { v6_address } else { v4 }, port);
        match self {
            Self::Local => vec![at(LOOPBACK4, LOOPBACK6, 8080)],
            Self::Remote => vec![at(POD4, POD6, 8080)],
            Self::Gateway => vec![at(ROUTER4, ROUTER6, 30080)],
            Self::Hairpin => vec![at(CLIENT4, CLIENT6, 8080)],
            Self::Draining => vec![at(LOOPBACK4, LOOPBACK6, 8081), at(LOOPBACK4, LOOPBACK6, 8082)],
            Self::NoneExclusive | Self::NoneShared | Self::OtherPort | Self::Foreign => vec![],
        }
    }

    fn is_service(self) -> bool {
        !matches!(self, Self::OtherPort | Self::Foreign)
    }
}

const LOOPBACK4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 5));
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// The client's own addresses.
pub(crate) const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2));
const ROUTER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
const ROUTER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1));
const POD4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
const POD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 2));

/// A service that no column changes, of one backend in the client's namespace. Not on a loopback address: a socket
/// connected there could send nowhere else.
pub(crate) const HOME: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 99)), 80);
const HOME_BACKEND: SocketAddr = SocketAddr::new(CLIENT4, 8090);

fn vip(number: u8, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 10 + u16::from(number)))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10 + number))
    }
}

/// Where the gateway forwards to: a port that no backend names, so only the gateway leads there.
fn behind_gateway(v6: bool) -> SocketAddr {
    SocketAddr::new(if v6 { POD6 } else { POD4 }, 9080)
}

fn in_form(address: SocketAddr, family: Family) -> SocketAddr {
    match (family, address.ip()) {
        (Family::Mapped, IpAddr::V4(v4)) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        _ => address,
    }
}

/// The namespaces around the client's, which live as long as this.
pub(crate) struct World {
    _router: Netns,
    _pod: Netns,
}

/// Makes the world around `ground`, and its services.
pub(crate) fn build(ground: &mut Ground) -> World {
    let (router, pod) = links(&ground.client.netns);
    forward_gateway(&router);
    for v6 in [false, true] {
        for destination in Destination::ALL {
            add(ground, &router, &pod, destination, v6);
        }
    }
    ground.serve(HOME_BACKEND);
    ground.want(udp(HOME), backed_by(&[HOME_BACKEND])).install();
    for v6 in [false, true] {
        ground.judge_backend(Destination::Draining.backends(v6)[0], verdict::DRAINING);
    }
    World { _router: router, _pod: pod }
}

/// Client, router, pod, in a row.
fn links(client: &Netns) -> (Netns, Netns) {
    let (router, pod) = (Netns::anonymous().unwrap(), Netns::anonymous().unwrap());
    router.forward().unwrap();
    for (netns, side, host, gateway) in [
        (client, "client", [CLIENT4, CLIENT6], [ROUTER4, ROUTER6]),
        (&pod, "pod", [POD4, POD6], [POD_SIDE4, POD_SIDE6]),
    ] {
        netns.veth("eth0", &router, side).unwrap();
        for (host, gateway) in host.into_iter().zip(gateway) {
            let length = if host.is_ipv4() { 24 } else { 64 };
            netns.address("eth0", format!("{host}/{length}").parse().unwrap()).unwrap();
            router.address(side, format!("{gateway}/{length}").parse().unwrap()).unwrap();
            let everything = if host.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            netns.route_via(everything.parse().unwrap(), gateway).unwrap();
        }
    }
    // A connect that finds nobody ends within seconds.
    client.sysctl("net.ipv4.tcp_syn_retries", 2).unwrap();
    // Everybody may have ping sockets.
    client.sysctl("net.ipv4.ping_group_range", "0 2147483647").unwrap();
    // Client and server, both without cookies: the first SYN carries data already.
    for netns in [client, &router, &pod] {
        netns.sysctl("net.ipv4.tcp_fastopen", 0x607).unwrap();
    }
    (router, pod)
}

const POD_SIDE4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1));
const POD_SIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 1));

fn forward_gateway(router: &Netns) {
    let chain = |family: &str, word: &str, gateway: IpAddr, target: IpAddr| {
        format!(
            "table {family} gateway {{ chain in {{ type nat hook prerouting priority dstnat; \
             {word} daddr {gateway} meta l4proto {{ tcp, udp }} th dport 30080 dnat to {}; }}; }}\n",
            SocketAddr::new(target, 9080)
        )
    };
    let rules = chain("ip", "ip", ROUTER4, POD4) + &chain("ip6", "ip6", ROUTER6, POD6);
    nft::apply(router, &rules).unwrap();
}

/// The servers and the tables of one column.
fn add(ground: &mut Ground, router: &Netns, pod: &Netns, destination: Destination, v6: bool) {
    let backends = destination.backends(v6);
    for &backend in &backends {
        let (netns, at) = match destination {
            Destination::Remote => (pod, backend),
            Destination::Gateway => (pod, behind_gateway(v6)),
            _ => (&*ground.client.netns, backend),
        };
        ground.servers.tcp(netns, at);
        ground.servers.udp(netns, at);
    }
    let dialled = destination.dialled(if v6 { Family::V6 } else { Family::V4 });
    let stand_in = if destination == Destination::Foreign { pod } else { router };
    if destination != Destination::Foreign {
        let length = if v6 { 128 } else { 32 };
        router.address("lo", format!("{}/{length}", dialled.ip()).parse().unwrap()).unwrap();
    }
    ground.servers.tcp(stand_in, dialled);
    ground.servers.udp(stand_in, dialled);
    for (kind, protocol) in [(Type::DGRAM, Protocol::UDPLITE), (Type::STREAM, Protocol::SCTP)] {
        if !v6 && lacks(kind, protocol).is_none() {
            ground.servers.other(stand_in, dialled, kind, protocol);
        }
    }
    if destination.is_service() {
        let mut service = backed_by(&backends);
        service.exclusive = destination != Destination::NoneShared;
        if destination == Destination::Gateway {
            service.tiers[0][0].members[0].path = Path::Gateway;
        }
        ground.want(tcp(dialled), service.clone()).want(udp(dialled), service);
    }
}
