//! The range check: what lies within is found up to the borders, what lies without is left as it is.

use crate::{
    draws::{draw, own4, own6},
    ground::Ground,
    sockets::{peer, recv_from, recv_msg, send_to, udp_connect, udp_socket},
    tables::{backed_by, tcp, udp},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

const PORT: u16 = 53;

#[test]
fn frontends_at_the_borders_are_found_and_their_neighbours_left_alone() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = [own4(&ground, 1, 1)[0], own6(&ground, 1, 1)[0]];
    let ours: [&[&str]; 2] = [
        &["10.96.0.0", "10.96.255.255", "10.98.1.0", "172.16.3.7", "172.16.3.8", "203.0.113.255"],
        &["fd96::", "fd96::ffff:ffff:ffff:ffff", "fd98::1:0:0:0", "2001:db8::7", "2001:db8::8"],
    ];
    let strangers: [&[&str]; 2] = [
        &[
            "10.95.255.255",
            "10.97.0.0",
            "10.96.0.1",
            "10.98.1.1",
            "172.16.3.6",
            "172.16.3.9",
            "203.0.113.254",
            "11.96.0.0",
        ],
        &["fd95:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd97::", "fd96::1", "2001:db8::6", "2001:db8::9", "fd96:0:0:1::"],
    ];
    for (ours, backend) in ours.iter().zip(&backends) {
        for address in *ours {
            ground.want(udp(at(address)), backed_by(&[*backend]));
        }
    }
    ground.install();
    for address in strangers.concat() {
        ground.client.netns.address("lo", at(address).ip().into()).unwrap();
    }
    ground.client.run(|| {
        for (ours, backend) in ours.iter().zip(&backends) {
            for address in *ours {
                assert_eq!(draw(at(address)).unwrap(), backend.ip(), "{address} is ours");
            }
        }
        for address in strangers.concat() {
            let socket = udp_connect(at(address)).unwrap();
            assert_eq!(peer(&socket).unwrap(), at(address));
            assert_eq!(draw(at(address)).unwrap(), at(address).ip(), "{address} is not ours");
        }
    });
}

#[test]
fn only_the_port_and_the_protocol_that_are_served_are_ours() {
    let Some(mut ground) = Ground::new() else { return };
    let backend = own4(&ground, 1, 1)[0];
    let frontend = at("10.96.0.10");
    ground.client.netns.address("lo", frontend.ip().into()).unwrap();
    ground.want(tcp(frontend), backed_by(&[backend])).install();
    let own = ground.client.run(|| draw(frontend).unwrap());
    assert_eq!(own, frontend.ip(), "TCP is served, not UDP");
    ground.want(udp(frontend), backed_by(&[backend])).install();
    let (served, other_port) =
        ground.client.run(|| (draw(frontend).unwrap(), draw(SocketAddr::new(frontend.ip(), PORT + 1)).unwrap()));
    assert_eq!((served, other_port), (backend.ip(), frontend.ip()));
}

#[test]
fn however_frontends_and_backends_are_scattered_all_are_found_and_answer_from_their_own_address() {
    let Some(mut ground) = Ground::new() else { return };
    // Far more than there are prefixes, all over the address space. The same in every run.
    let mut scatter = Scatter(0x9e37_79b9_7f4a_7c15);
    let mut pairs = BTreeSet::new();
    while pairs.len() < 40 {
        let v6 = pairs.len() % 2 == 1;
        pairs.insert((scatter.address(v6), scatter.address(v6)));
    }
    let pairs: Vec<(SocketAddr, SocketAddr)> = pairs.into_iter().collect();
    for (frontend, backend) in &pairs {
        ground.client.netns.address("lo", backend.ip().into()).unwrap();
        ground.serve(*backend);
        ground.want(udp(*frontend), backed_by(&[*backend]));
    }
    ground.install();
    let check = |ground: &Ground, pairs: &[(SocketAddr, SocketAddr)]| {
        ground.client.run(|| {
            for (frontend, backend) in pairs {
                let socket = udp_socket(*frontend);
                send_to(&socket, b"?", *frontend).unwrap();
                assert_eq!(recv_from(&socket).unwrap(), (*backend, *frontend));
                let socket = udp_connect(*frontend).unwrap();
                socket.send(b"?").unwrap();
                assert_eq!(recv_msg(&socket).unwrap(), (*backend, *frontend));
            }
        });
    };
    check(&ground, &pairs);
    // With fewer the prefixes narrow; with none of one family nothing of it is looked at.
    for (frontend, _) in &pairs[10..] {
        ground.desired.services.remove(&udp(*frontend));
    }
    ground.install();
    check(&ground, &pairs[..10]);
    for (frontend, _) in &pairs {
        if frontend.is_ipv4() {
            ground.desired.services.remove(&udp(*frontend));
        }
    }
    ground.install();
    let left: Vec<_> = pairs[..10].iter().copied().filter(|(frontend, _)| frontend.is_ipv6()).collect();
    check(&ground, &left);
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), PORT)
}

/// Marsaglia's xorshift: scattered numbers, the same in every run.
struct Scatter(u64);

impl Scatter {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A unicast address that is nobody's loopback or link-local one.
    fn address(&mut self, v6: bool) -> SocketAddr {
        let ip: IpAddr = if v6 {
            let bits = u128::from(self.next()) << 64 | u128::from(self.next());
            // fc00::/7: unique local addresses.
            Ipv6Addr::from_bits(bits >> 7 | 0xfc << 120).into()
        } else {
            let [a, b, c, d, ..] = self.next().to_be_bytes();
            Ipv4Addr::new(1 + a % 126, b, c, d).into()
        };
        SocketAddr::new(ip, PORT)
    }
}
