//! Which backend a connect gets, asked of the kernel and not of the programs.
//!
//! Backends are addresses of the client's own namespace. A socket that is connected to one of these has it as its own
//! address too, so getsockname tells what getpeername hides. A UDP connect sends nothing, and needs no server.

use crate::{
    ground::Ground,
    sockets::{local, tcp_connect, udp_connect, udp_socket},
};
use rustix::net::connect_unspec;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Fewer would leave shares that can't be told from chance.
const LEAST: usize = 2_000;

/// How many connects the tests that count and hammer make; others make a fraction of it.
///
/// `TOMBOLO_TEST_CONNECTS` says otherwise: less for a guest without hardware virtualisation, more for a long run.
pub(crate) fn effort() -> usize {
    let told = std::env::var("TOMBOLO_TEST_CONNECTS").ok();
    let told: usize = told.map_or(100_000, |number| number.parse().expect("TOMBOLO_TEST_CONNECTS is a number"));
    told.max(LEAST)
}

/// `count` addresses that `ground`'s client has from now on, with a port each, from the `first` on.
pub(crate) fn own4(ground: &Ground, first: u8, count: u8) -> Vec<SocketAddr> {
    own(ground, (first..first + count).map(|i| Ipv4Addr::new(10, 0, 0, i).into()))
}

/// Likewise of IPv6.
pub(crate) fn own6(ground: &Ground, first: u8, count: u8) -> Vec<SocketAddr> {
    own(ground, (first..first + count).map(|i| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, i.into()).into()))
}

fn own(ground: &Ground, addresses: impl Iterator<Item = IpAddr>) -> Vec<SocketAddr> {
    let own = |address: IpAddr| {
        ground.client.netns.address("lo", address.into()).unwrap();
        SocketAddr::new(address, 8080)
    };
    addresses.map(own).collect()
}

/// Which of its addresses a new UDP socket gets when it connects to `frontend`: the backend's.
pub(crate) fn draw(frontend: SocketAddr) -> io::Result<IpAddr> {
    Ok(local(&udp_connect(frontend)?)?.ip().to_canonical())
}

/// Likewise a TCP socket, which needs a server there. Leaves nothing behind that would use up ports.
pub(crate) fn draw_tcp(frontend: SocketAddr) -> io::Result<IpAddr> {
    let socket = tcp_connect(frontend)?;
    let own = local(&socket)?;
    socket.set_linger(Some(std::time::Duration::ZERO))?;
    Ok(own.ip().to_canonical())
}

/// How often each backend came in `count` draws, all by one socket that is disconnected between them.
pub(crate) fn tally(frontend: SocketAddr, count: usize) -> BTreeMap<IpAddr, usize> {
    let socket = udp_socket(frontend);
    let mut tally = BTreeMap::new();
    for _ in 0..count {
        socket.connect(&frontend.into()).unwrap();
        *tally.entry(local(&socket).unwrap().ip().to_canonical()).or_default() += 1;
        connect_unspec(&socket).unwrap();
    }
    tally
}
