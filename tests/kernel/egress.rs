//! Connected UDP sockets whose backend is gone or dead: their next send() fails, so that resolvers connect again.

use crate::{
    draws::{effort, own4, own6},
    ground::Ground,
    sockets::{PATIENCE, ask, local, peer, recv_from, send_to, tcp_connect, udp_connect, udp_socket},
    tables::{group, service, tcp, udp},
};
use rustix::net::connect_unspec;
use socket2::Socket;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tombolo::tables::Step;
use tombolo_ebpf::abi::{Counter, verdict};

/// A service of each family, and the first one as IPv6 sockets dial it.
fn dialled() -> [SocketAddr; 3] {
    ["10.96.0.1:53", "[fd96::1]:53", "[::ffff:10.96.0.1]:53"].map(|frontend| frontend.parse().unwrap())
}

/// A ground with four backends of either family, two in each of two clusters, which all serve.
fn ground() -> Option<(Ground, [Vec<SocketAddr>; 2])> {
    let mut ground = Ground::new()?;
    let backends = [own4(&ground, 1, 4), own6(&ground, 1, 4)];
    for backend in backends.iter().flatten() {
        ground.serve(*backend);
        // The kernel takes a moment to have a new IPv6 address answer, and a socket keeps the route that it found first.
        let answers = || {
            let socket = udp_connect(*backend).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            converse(&socket).is_ok()
        };
        let deadline = Instant::now() + PATIENCE;
        while !ground.client.run(answers) {
            assert!(Instant::now() < deadline, "{backend} doesn't answer");
        }
    }
    want(&mut ground, &backends, |_| true);
    ground.kernel.refuse_udp(true).unwrap();
    Some((ground, backends))
}

/// Installs the services with those backends that are `wanted`.
fn want(ground: &mut Ground, backends: &[Vec<SocketAddr>; 2], wanted: impl Fn(SocketAddr) -> bool) {
    desire(ground, backends, wanted);
    ground.install();
}

fn desire(ground: &mut Ground, backends: &[Vec<SocketAddr>; 2], wanted: impl Fn(SocketAddr) -> bool) {
    for (frontend, backends) in dialled().into_iter().zip(backends) {
        let of = |name, backends: &[SocketAddr]| {
            let backends: Vec<_> = backends.iter().copied().filter(|backend| wanted(*backend)).collect();
            (!backends.is_empty()).then(|| group(name, 1, &backends))
        };
        let groups: Vec<_> = [of("west", &backends[..2]), of("east", &backends[2..])].into_iter().flatten().collect();
        ground.want(udp(frontend), service(vec![groups.clone()])).want(tcp(frontend), service(vec![groups]));
    }
}

/// The backend that a connected socket is connected to, by asking it.
fn converse(socket: &Socket) -> io::Result<SocketAddr> {
    socket.send(b"?")?;
    Ok(recv_from(socket)?.0)
}

/// Sockets connected to each of the services, several to each backend, with their backends.
fn connected(ground: &Ground) -> Vec<(SocketAddr, Socket, SocketAddr)> {
    let dial = |to: SocketAddr| {
        let socket = udp_connect(to).unwrap();
        let server = converse(&socket).unwrap();
        (to, socket, server)
    };
    let times = if effort() < 100_000 { 16 } else { 64 };
    ground.client.run(|| dialled().iter().flat_map(|to| vec![*to; times]).map(dial).collect())
}

/// All sockets that are `lost` get EPERM, and no others; those connect again, and are served by a backend that isn't lost.
fn only_lost_are_refused(
    ground: &Ground,
    sockets: &[(SocketAddr, Socket, SocketAddr)],
    lost: impl Fn(SocketAddr) -> bool + Sync,
) {
    let before = ground.count(Counter::UdpRefused);
    let refused = ground.client.run(|| {
        let mut refused = 0;
        for (to, socket, server) in sockets {
            if !lost(*server) {
                assert_eq!(converse(socket).unwrap(), *server);
                continue;
            }
            for _ in 0..2 {
                let error = socket.send(b"?").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{to} by {server}");
                refused += 1;
            }
            socket.connect(&(*to).into()).unwrap();
            assert!(!lost(converse(socket).unwrap()));
            assert_eq!(peer(socket).unwrap(), *to);
        }
        refused
    });
    assert!(refused > 0, "there are some");
    assert_eq!(ground.count(Counter::UdpRefused) - before, refused);
}

#[test]
fn sockets_of_a_backend_that_is_gone_are_refused_from_the_moment_it_leaves_the_service() {
    let Some((mut ground, backends)) = ground() else { return };
    let gone = [backends[0][0], backends[1][0]];
    let sockets = connected(&ground);
    desire(&mut ground, &backends, |backend| !gone.contains(&backend));
    let mut looked = 0;
    ground.install_stepwise(|ground, step| {
        // It is still there, and drains.
        let drains = gone.iter().all(|gone| !ground.backends_at(*gone).is_empty());
        if matches!(step, Step::Grace) && drains && members_at(ground, &gone) == 0 {
            looked += 1;
            let refused = |(_, socket, server): &(_, Socket, _)| {
                assert_eq!(gone.contains(server), converse(socket).is_err(), "{server}");
            };
            ground.client.run(|| sockets.iter().for_each(refused));
        }
    });
    assert!(looked > 0);
    assert!(gone.iter().all(|gone| ground.backends_at(*gone).is_empty()), "now they are cleared");
    only_lost_are_refused(&ground, &sockets, |server| gone.contains(&server));
}

/// How many services say that one of these is theirs.
fn members_at(ground: &Ground, backends: &[SocketAddr]) -> usize {
    let at: Vec<_> = backends.iter().flat_map(|backend| ground.backends_at(*backend)).map(|(index, _)| index).collect();
    ground.installed.members().iter().filter(|member| at.contains(&member.backend)).count()
}

#[test]
fn sockets_of_an_address_that_another_backend_has_by_now_are_refused() {
    let Some((mut ground, backends)) = ground() else { return };
    let gone = [backends[0][1], backends[1][1]];
    let sockets = connected(&ground);
    want(&mut ground, &backends, |backend| !gone.contains(&backend));
    want(&mut ground, &backends, |_| true);
    let again = |socket: &Socket| socket.send(b"?").map_err(|error| error.raw_os_error());
    ground.client.run(|| {
        for (to, socket, server) in sockets.iter().filter(|(.., server)| gone.contains(server)) {
            assert_eq!(again(socket), Err(Some(libc::EPERM)), "{to}");
            // It may well be that backend again: as a new one it is good.
            socket.connect(&(*to).into()).unwrap();
            converse(socket).unwrap_or_else(|error| panic!("{to} by {server}: {error}"));
        }
    });
}

#[test]
fn sockets_of_a_dead_backend_are_refused_and_those_of_a_draining_one_are_not() {
    let Some((mut ground, backends)) = ground() else { return };
    let sockets = connected(&ground);
    let of = |n: usize| [backends[0][n], backends[1][n]];
    of(1).into_iter().for_each(|backend| ground.judge_backend(backend, verdict::DRAINING));
    of(2).into_iter().for_each(|backend| ground.judge_backend(backend, verdict::DEAD));
    only_lost_are_refused(&ground, &sockets, |server| of(2).contains(&server));
}

#[test]
fn sockets_of_a_cluster_that_is_down_are_refused_until_it_is_up_again() {
    let Some((mut ground, backends)) = ground() else { return };
    let is_east = |server: SocketAddr| backends.iter().any(|backends| backends[2..].contains(&server));
    let sockets = connected(&ground);
    let others = connected(&ground);
    ground.judge_cluster("east", verdict::DEAD);
    only_lost_are_refused(&ground, &sockets, is_east);
    ground.judge_cluster("east", verdict::OK);
    ground.client.run(|| others.iter().for_each(|(_, socket, server)| assert_eq!(converse(socket).unwrap(), *server)));
}

#[test]
fn what_was_chosen_although_it_is_dead_is_tried() {
    let Some((mut ground, backends)) = ground() else { return };
    let sockets = connected(&ground);
    ground.judge_cluster("west", verdict::DEAD);
    ground.judge_cluster("east", verdict::DEAD);
    ground.client.run(|| {
        for (to, socket, _) in &sockets {
            assert_eq!(socket.send(b"?").unwrap_err().raw_os_error(), Some(libc::EPERM));
            socket.connect(&(*to).into()).unwrap();
            converse(socket).unwrap();
            converse(socket).unwrap();
        }
    });
    // Gone is gone all the same.
    want(&mut ground, &backends, |backend| backends.iter().any(|backends| backends[0] == backend));
    let is_lost = |socket: &Socket| socket.send(b"?").is_err();
    let lost = ground.client.run(|| sockets.iter().filter(|(_, socket, _)| is_lost(socket)).count());
    assert!(lost > 0 && lost < sockets.len(), "{lost} of {}", sockets.len());
}

#[test]
fn a_thousand_sockets_that_are_not_connected_notice_nothing() {
    let Some((mut ground, backends)) = ground() else { return };
    let count = if effort() < 100_000 { 100 } else { 1_000 };
    let ask = |socket: &Socket, to| {
        send_to(socket, b"?", to).unwrap();
        let (server, source) = recv_from(socket).unwrap();
        assert_eq!(source, to);
        (server, local(socket).unwrap().port())
    };
    let sockets: Vec<_> = ground.client.run(|| {
        let open = |to: &SocketAddr| {
            let socket = udp_socket(*to);
            let first = ask(&socket, *to);
            (*to, socket, first)
        };
        dialled().iter().cycle().take(count).map(open).collect()
    });
    let lost =
        |server: SocketAddr| backends.iter().any(|backends| backends[0] == server || backends[2..].contains(&server));
    want(&mut ground, &backends, |backend| !backends.iter().any(|backends| backends[0] == backend));
    ground.judge_cluster("east", verdict::DEAD);
    let moved = ground.client.run(|| {
        let mut moved = 0;
        for (to, socket, (server, port)) in &sockets {
            let (by, from) = ask(socket, *to);
            assert_eq!(from, *port, "it is the same socket with the same port");
            assert_eq!(by == *server, !lost(*server));
            moved += usize::from(by != *server);
        }
        moved
    });
    println!("{count} sockets, {moved} went on with another backend");
    assert!(moved > 0);
    assert_eq!(ground.count(Counter::UdpRefused), 0);
}

#[test]
fn sockets_that_dial_the_pod_itself_are_left_alone() {
    let Some((mut ground, backends)) = ground() else { return };
    let sockets: Vec<_> = ground.client.run(|| {
        let fresh = backends.iter().flatten().map(|backend| (udp_connect(*backend).unwrap(), *backend));
        let fresh: Vec<_> = fresh.collect();
        // A socket that a service had sent there before, and one that was disconnected in between.
        let used = |disconnects: bool| {
            let (to, backends) = (dialled()[0], &backends[0]);
            let socket = udp_connect(to).unwrap();
            let server = converse(&socket).unwrap();
            if disconnects {
                connect_unspec(&socket).unwrap();
            }
            assert!(backends.contains(&server));
            socket.connect(&server.into()).unwrap();
            assert_eq!(peer(&socket).unwrap(), server, "it dialled the pod");
            (socket, server)
        };
        let used: Vec<_> = (0..64).map(|n| used(n % 2 == 0)).collect();
        fresh.into_iter().chain(used).collect()
    });
    let streams: Vec<_> = ground.client.run(|| (0..16).map(|_| tcp_connect(dialled()[0]).unwrap()).collect());
    want(&mut ground, &backends, |backend| !backends.iter().any(|backends| backends[0] == backend));
    ground.judge_cluster("east", verdict::DEAD);
    ground.client.run(|| {
        sockets.iter().for_each(|(socket, backend)| assert_eq!(converse(socket).unwrap(), *backend));
        streams.iter().for_each(|stream| assert!(backends[0].contains(&ask(stream).unwrap())));
    });
    assert_eq!(ground.count(Counter::UdpRefused), 0);
}

#[test]
fn a_connected_socket_may_send_elsewhere() {
    let Some((mut ground, backends)) = ground() else { return };
    let sockets = connected(&ground);
    let is_east = |server: SocketAddr| backends.iter().any(|backends| backends[2..].contains(&server));
    ground.judge_cluster("east", verdict::DEAD);
    ground.client.run(|| {
        for (to, socket, server) in sockets.iter().filter(|(_, _, server)| is_east(*server)) {
            assert!(socket.send(b"?").is_err());
            // A connected socket gets no answer from elsewhere; that its datagram is let go is all there is to see.
            send_to(socket, b"?", *to).unwrap();
            let good = backends.iter().find(|backends| backends.contains(server)).unwrap()[0];
            let good = match (to, good) {
                (SocketAddr::V6(_), SocketAddr::V4(v4)) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
                _ => good,
            };
            send_to(socket, b"?", good).unwrap();
        }
    });
}

#[test]
fn sockets_that_come_and_go_are_refused_only_while_their_backend_is_lost() {
    let Some((mut ground, backends)) = ground() else { return };
    ground.judge_cluster("east", verdict::DEAD);
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1)), 9);
    let rounds = effort() / 10;
    ground.client.run(|| {
        let socket = udp_socket(dialled()[0]);
        for round in 0..rounds {
            let to = match round % 4 {
                0 | 1 => dialled()[0],
                // Of the cluster that is down.
                2 => backends[0][2 + round / 4 % 2],
                _ => nowhere,
            };
            socket.connect(&to.into()).unwrap();
            // That nobody listens there may be told by the next one.
            let errno = socket.send(b"?").err().and_then(|error| error.raw_os_error());
            assert_ne!(errno, Some(libc::EPERM), "{to}, round {round}");
            if round % 3 == 0 {
                connect_unspec(&socket).unwrap();
            }
        }
    });
    println!("{rounds} rounds");
    assert_eq!(ground.count(Counter::UdpRefused), 0);
}

#[test]
fn without_the_hook_nothing_is_refused() {
    let Some((mut ground, _)) = ground() else { return };
    let sockets = connected(&ground);
    ground.judge_cluster("east", verdict::DEAD);
    ground.kernel.refuse_udp(false).unwrap();
    assert!(!ground.kernel.refuses_udp());
    ground.client.run(|| sockets.iter().for_each(|(_, socket, server)| assert_eq!(converse(socket).unwrap(), *server)));
    ground.kernel.refuse_udp(true).unwrap();
    let lost = ground.client.run(|| sockets.iter().filter(|(_, socket, _)| socket.send(b"?").is_err()).count());
    assert!(lost > 0);
}
