//! What a client dials is what it is told: by getpeername, and as the source of every answer.

use crate::{
    draws::{effort, own4, own6},
    ground::Ground,
    sockets::{ask, peer, recv_from, recv_msg, send_msg, send_to, tcp_connect, udp_connect, udp_socket},
    tables::{backed_by, tcp, udp},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    thread,
};

/// Services of each family; each has its backends to itself.
const SERVICES: u8 = 4;
/// Backends of a service.
const BACKENDS: u8 = 3;
/// Threads of clients.
const THREADS: usize = 2;

#[test]
fn every_peer_and_every_source_is_what_was_dialled() {
    let Some(mut ground) = Ground::new() else { return };
    let mut frontends = Vec::new();
    for service in 0..SERVICES {
        let backends4 = own4(&ground, 1 + service * BACKENDS, BACKENDS);
        let backends6 = own6(&ground, 1 + service * BACKENDS, BACKENDS);
        for (frontend, backends) in [([10, 96, 0, service].into(), backends4), (vip6(service), backends6)] {
            let frontend = SocketAddr::new(frontend, 53);
            backends.iter().for_each(|backend| ground.serve(*backend));
            ground.want(tcp(frontend), backed_by(&backends)).want(udp(frontend), backed_by(&backends));
            frontends.push((frontend, backends.clone()));
            if let IpAddr::V4(v4) = frontend.ip() {
                frontends.push((SocketAddr::new(v4.to_ipv6_mapped().into(), 53), backends));
            }
        }
    }
    ground.install();

    let rounds = effort() / 10;
    let reached: BTreeSet<SocketAddr> = ground.client.run(|| {
        let client = |number| {
            let mut reached = BTreeSet::new();
            for round in (number..rounds).step_by(THREADS) {
                let (frontend, backends) = &frontends[round % frontends.len()];
                let server = dial(round / frontends.len(), *frontend);
                assert!(backends.contains(&server), "{frontend} was served by {server}");
                reached.insert(server);
            }
            reached
        };
        thread::scope(|scope| {
            let clients: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || client(number))).collect();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        })
    });
    assert_eq!(reached.len(), usize::from(2 * SERVICES * BACKENDS), "all of them had a part in it");
    println!("{rounds} of {rounds} over {} frontends and {} backends", frontends.len(), reached.len());
}

/// One conversation, of a kind by its number; everything that the client is told is checked. Who served it.
fn dial(number: usize, frontend: SocketAddr) -> SocketAddr {
    match number % 3 {
        0 => {
            let socket = tcp_connect(frontend).unwrap();
            assert_eq!(peer(&socket).unwrap(), frontend, "TCP's getpeername");
            ask(&socket).unwrap()
        }
        1 => {
            let socket = udp_connect(frontend).unwrap();
            assert_eq!(peer(&socket).unwrap(), frontend, "connected UDP's getpeername");
            socket.send(b"?").unwrap();
            let (server, source) = recv_from(&socket).unwrap();
            assert_eq!(source, frontend, "connected UDP's recvfrom");
            socket.send(b"?").unwrap();
            assert_eq!(recv_msg(&socket).unwrap(), (server, frontend), "connected UDP's recvmsg");
            server
        }
        _ => {
            let socket = udp_socket(frontend);
            send_to(&socket, b"?", frontend).unwrap();
            let (server, source) = recv_from(&socket).unwrap();
            assert_eq!(source, frontend, "recvfrom");
            send_msg(&socket, b"?", frontend).unwrap();
            assert_eq!(recv_msg(&socket).unwrap(), (server, frontend), "recvmsg");
            server
        }
    }
}

fn vip6(service: u8) -> IpAddr {
    [0xfd96, 0, 0, 0, 0, 0, 0, u16::from(service)].into()
}
