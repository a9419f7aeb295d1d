//! Sockets that are used for long: unconnected UDP, draining backends, sockets that connect elsewhere.

use crate::{
    draws::{draw, own4, own6},
    ground::Ground,
    sockets::{ask, peer, recv_from, send_to, tcp_connect, tcp_socket, udp_connect, udp_socket},
    tables::{backed_by, group, service, tcp, udp},
};
use rustix::net::connect_unspec;
use socket2::Socket;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};
use tombolo_ebpf::abi::verdict;

fn frontend(number: u8) -> SocketAddr {
    SocketAddr::new([10, 96, 0, number].into(), 53)
}

/// One question and its answer, which has to come from where it was sent: who served it.
fn converse(socket: &Socket, to: SocketAddr) -> SocketAddr {
    send_to(socket, b"?", to).unwrap();
    let (server, source) = recv_from(socket).unwrap();
    assert_eq!(source, to);
    server
}

#[test]
fn an_unconnected_socket_stays_with_its_backend_while_that_is_a_member() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 12);
    backends.iter().for_each(|backend| ground.serve(*backend));
    ground.want(udp(frontend(1)), backed_by(&backends[..6])).install();
    let socket = ground.client.run(|| udp_socket(frontend(1)));
    let dial = |ground: &Ground| ground.client.run(|| converse(&socket, frontend(1)));
    let kept = dial(&ground);
    for count in [12, 9, 6, 7, 12] {
        ground.want(udp(frontend(1)), backed_by(&backends[..count])).install();
        for _ in 0..10 {
            assert_eq!(dial(&ground), kept, "{count} backends");
        }
    }
    let others: Vec<_> = backends.iter().copied().filter(|backend| *backend != kept).collect();
    ground.want(udp(frontend(1)), backed_by(&others)).install();
    let moved = dial(&ground);
    assert_ne!(moved, kept);
    assert_eq!(dial(&ground), moved);
}

#[test]
fn frontends_that_share_a_backend_each_answer_from_where_they_were_asked() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 1);
    ground.serve(backends[0]);
    for number in 1..=3 {
        ground.want(udp(frontend(number)), backed_by(&backends));
    }
    ground.install();
    let order = [1, 2, 1, 3, 2, 1, 1, 3, 3, 2, 1, 2];
    ground.client.run(|| {
        let socket = udp_socket(frontend(1));
        for number in order {
            converse(&socket, frontend(number));
        }
        let connected = udp_socket(frontend(1));
        for number in order {
            connected.connect(&frontend(number).into()).unwrap();
            assert_eq!(peer(&connected).unwrap(), frontend(number));
        }
    });
}

#[test]
fn an_unconnected_socket_stays_with_the_backend_it_came_back_to() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 3);
    backends.iter().for_each(|backend| ground.serve(*backend));
    let socket = ground.client.run(|| udp_socket(frontend(1)));
    for only in 0..3 {
        ground.want(udp(frontend(1)), backed_by(&backends[only..=only])).install();
        assert_eq!(ground.client.run(|| converse(&socket, frontend(1))), backends[only]);
    }
    ground.want(udp(frontend(1)), backed_by(&backends[..2])).install();
    let kept = ground.client.run(|| converse(&socket, frontend(1)));
    for _ in 0..30 {
        assert_eq!(ground.client.run(|| converse(&socket, frontend(1))), kept);
    }
}

#[test]
fn an_unconnected_socket_stays_with_a_draining_backend_but_not_with_a_dead_one_or_a_cluster_that_is_down() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 4);
    backends.iter().for_each(|backend| ground.serve(*backend));
    let groups = vec![group("west", 1, &backends[..2]), group("east", 1, &backends[2..])];
    ground.want(udp(frontend(1)), service(vec![groups])).install();
    let socket = ground.client.run(|| udp_socket(frontend(1)));
    let dial = |ground: &Ground| ground.client.run(|| converse(&socket, frontend(1)));
    let first = dial(&ground);
    ground.judge_backend(first, verdict::DRAINING);
    for _ in 0..10 {
        assert_eq!(dial(&ground), first, "what a draining backend has, it keeps");
    }
    ground.judge_backend(first, verdict::DEAD);
    let second = dial(&ground);
    assert_ne!(second, first);
    let down = if backends[..2].contains(&second) { "west" } else { "east" };
    ground.judge_cluster(down, verdict::DEAD);
    let third = dial(&ground);
    assert_ne!(backends[..2].contains(&second), backends[..2].contains(&third));
}

#[test]
fn a_draining_backend_keeps_its_connections_and_gets_no_new_ones() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 2);
    backends.iter().for_each(|backend| ground.serve(*backend));
    ground.want(tcp(frontend(1)), backed_by(&backends)).want(udp(frontend(1)), backed_by(&backends)).install();
    let (stream, datagrams) = ground.client.run(|| {
        let stream =
            (0..64).map(|_| tcp_connect(frontend(1)).unwrap()).find(|socket| ask(socket).unwrap() == backends[0]);
        let at_first = |socket: &Socket| {
            socket.send(b"?").unwrap();
            recv_from(socket).unwrap().0 == backends[0]
        };
        let datagrams = (0..64).map(|_| udp_connect(frontend(1)).unwrap()).find(at_first);
        (stream.expect("half of them go there"), datagrams.expect("half of them go there"))
    });
    ground.judge_backend(backends[0], verdict::DRAINING);
    let chosen = ground.chosen(backends[0]);
    ground.client.run(|| {
        for _ in 0..20 {
            assert_eq!(ask(&stream).unwrap(), backends[0]);
            datagrams.send(b"?").unwrap();
            assert_eq!(recv_from(&datagrams).unwrap(), (backends[0], frontend(1)));
            assert_eq!(ask(&tcp_connect(frontend(1)).unwrap()).unwrap(), backends[1]);
            assert_eq!(converse(&udp_socket(frontend(1)), frontend(1)), backends[1]);
        }
        assert_eq!(peer(&stream).unwrap(), frontend(1));
    });
    assert_eq!(ground.chosen(backends[0]), chosen);
    ground.judge_backend(backends[1], verdict::DEAD);
    let last = ground.client.run(|| draw(frontend(1)).unwrap());
    assert!(backends.iter().any(|backend| backend.ip() == last), "a try beats a certain refusal");
}

#[test]
fn four_services_on_one_socket_each_answer_from_their_own_address() {
    let Some(mut ground) = Ground::new() else { return };
    let all = [own4(&ground, 1, 5), own6(&ground, 1, 5)];
    let frontends = [
        (1..=5).map(frontend).collect::<Vec<_>>(),
        (1..=5).map(|number| SocketAddr::new([0xfd96, 0, 0, 0, 0, 0, 0, number].into(), 53)).collect(),
    ];
    let mut served = BTreeMap::new();
    for (frontends, backends) in frontends.iter().zip(&all) {
        for (frontend, backend) in frontends.iter().zip(backends) {
            ground.serve(*backend);
            ground.want(udp(*frontend), backed_by(&[*backend]));
            served.insert(*frontend, *backend);
        }
    }
    ground.install();
    ground.client.run(|| {
        for frontends in &frontends {
            let socket = udp_socket(frontends[0]);
            for _ in 0..10 {
                for frontend in &frontends[..4] {
                    send_to(&socket, b"?", *frontend).unwrap();
                }
                let answers: BTreeSet<_> = (0..4).map(|_| recv_from(&socket).unwrap()).collect();
                let expected: BTreeSet<_> =
                    frontends[..4].iter().map(|frontend| (served[frontend], *frontend)).collect();
                assert_eq!(answers, expected);
            }
            // One after the other there may be more.
            for frontend in frontends.iter().cycle().take(20) {
                assert_eq!(converse(&socket, *frontend), served[frontend]);
            }
        }
    });
}

#[test]
fn services_that_share_a_backend_are_told_apart_by_who_was_asked_last() {
    let Some(mut ground) = Ground::new() else { return };
    let backend = own4(&ground, 1, 1);
    ground.serve(backend[0]);
    for number in 1..=5 {
        ground.want(udp(frontend(number)), backed_by(&backend));
    }
    ground.install();
    ground.client.run(|| {
        let (talking, connecting) = (udp_socket(frontend(1)), udp_socket(frontend(1)));
        for number in [1, 2, 1, 1, 2, 3, 1, 3, 2, 4, 1, 5, 4, 1, 2, 3, 4, 5, 5, 1] {
            converse(&talking, frontend(number));
            connecting.connect(&frontend(number).into()).unwrap();
            assert_eq!(peer(&connecting).unwrap(), frontend(number));
            connecting.send(b"?").unwrap();
            assert_eq!(recv_from(&connecting).unwrap(), (backend[0], frontend(number)));
        }
    });
}

#[test]
fn a_socket_that_connects_elsewhere_forgets_where_it_was() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 3);
    backends.iter().for_each(|backend| ground.serve(*backend));
    for (number, backend) in (1..).zip(&backends[..2]) {
        ground.want(tcp(frontend(number)), backed_by(&[*backend])).want(udp(frontend(number)), backed_by(&[*backend]));
    }
    ground.install();
    // Two services and an address that is no service's.
    let targets = [(frontend(1), backends[0]), (frontend(2), backends[1]), (backends[2], backends[2])];
    ground.client.run(|| {
        let (stream, datagrams) = (tcp_socket(frontend(1)), udp_socket(frontend(1)));
        for round in 0..12 {
            let (dialled, server) = targets[round * 2 % 3];
            stream.connect(&dialled.into()).unwrap();
            assert_eq!((peer(&stream).unwrap(), ask(&stream).unwrap()), (dialled, server));
            connect_unspec(&stream).unwrap();
            assert!(peer(&stream).is_err());

            // A UDP socket needs no disconnecting in between, and may have it.
            datagrams.connect(&dialled.into()).unwrap();
            assert_eq!(peer(&datagrams).unwrap(), dialled);
            datagrams.send(b"?").unwrap();
            assert_eq!(recv_from(&datagrams).unwrap(), (server, dialled));
            if round % 2 == 0 {
                connect_unspec(&datagrams).unwrap();
                assert!(peer(&datagrams).is_err());
            }
        }
    });
}
