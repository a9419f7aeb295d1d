//! Which flows the programs watch, and that they count them right for as long as these live.

use crate::{
    draws::effort,
    scene::{EAST, Scene, begin, black_hole, frontend, jiffies, lift, only},
    sockets::{ask, local, peer, read_answer, tcp_connect, tcp_socket},
    tables::{backed_by, tcp},
};
use rustix::net::connect_unspec;
use socket2::Socket;
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener},
    thread,
    time::Duration,
};
use tombolo_ebpf::abi::{Counter, MAX_ORIGINS, verdict};

/// How many connections each backend has, by what the sockets say.
fn held(sockets: &[Socket]) -> BTreeMap<IpAddr, u64> {
    let mut held = BTreeMap::new();
    for socket in sockets {
        *held.entry(local(socket).unwrap().ip().to_canonical()).or_default() += 1;
    }
    held
}

/// Checks that the programs count just these.
fn assert_open(scene: &Scene, backends: &[SocketAddr], held: &BTreeMap<IpAddr, u64>) {
    for backend in backends {
        let expected = held.get(&backend.ip()).copied().unwrap_or(0);
        // The end of a connection may be a matter of a timer.
        scene.until(&format!("{expected} open at {backend}"), |scene| scene.state(*backend).open == expected);
    }
}

#[test]
fn open_connections_are_counted_however_they_end() {
    let Some(scene) = Scene::new(2, 2) else { return };
    let pod = scene.pod();
    scene.serve(&pod);
    let backends = [&scene.local[..], &scene.remote[..]].concat();
    let mapped = SocketAddr::new("::ffff:10.96.0.10".parse().unwrap(), 80);
    let mut sockets: Vec<Socket> = pod.run(|| {
        let dialled = [frontend(), mapped].into_iter().cycle();
        dialled.take(240).map(|frontend| tcp_connect(frontend).unwrap()).collect()
    });
    assert_open(&scene, &backends, &held(&sockets));
    let established: u64 = backends.iter().map(|backend| scene.state(*backend).established).sum();
    assert_eq!(established, 240);
    for way in 0..5 {
        for socket in sockets.drain(..40) {
            match way {
                0 => drop(socket),
                1 => drop(socket.set_linger(Some(Duration::ZERO))),
                2 => connect_unspec(&socket).unwrap(),
                3 => socket.shutdown(Shutdown::Both).unwrap(),
                // The server says goodbye once it is spoken to.
                _ => {
                    ask(&socket).unwrap();
                    socket.shutdown(Shutdown::Write).unwrap();
                }
            }
        }
        assert_open(&scene, &backends, &held(&sockets));
    }
    drop(sockets);
    assert_open(&scene, &backends, &BTreeMap::new());
}

#[test]
fn connections_of_ipv6_are_counted_too() {
    let Some(mut scene) = Scene::new(1, 0) else { return };
    let backend = SocketAddr::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(), 8080);
    let frontend: SocketAddr = "[fd96::10]:80".parse().unwrap();
    scene.ground.client.netns.address("lo", backend.ip().into()).unwrap();
    scene.ground.want(tcp(frontend), backed_by(&[backend])).install();
    let pod = scene.pod();
    let error = pod.run(|| tcp_connect(frontend)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!((scene.state(backend).failed, scene.state(backend).ejection), (1, 1));
    scene.ground.servers.tcp(&pod.netns, backend);
    let socket = pod.run(|| tcp_connect(frontend)).unwrap();
    let state = scene.state(backend);
    assert_eq!((state.established, state.open, state.ejected_until), (1, 1, 0));
    drop(socket);
    scene.until("closed", |scene| scene.state(backend).open == 0);
}

#[test]
fn flows_are_watched_long_after_their_origins_were_overwritten() {
    let Some(mut scene) = Scene::new(2, 2) else { return };
    let pod = scene.pod();
    scene.serve(&pod);
    let (used, other) = (&scene.local.clone(), scene.remote[0]);
    let dial = |backend: &SocketAddr| (0..20).map(|_| tcp_connect(only(*backend)).unwrap()).collect::<Vec<_>>();
    let sockets: Vec<Socket> = pod.run(|| used.iter().flat_map(dial).collect());
    let opened = held(&sockets);
    assert_open(&scene, used, &opened);
    // Younger sockets, more than there are entries: they meet a black hole and are cancelled, which takes the least. Sockets of
    // other tests get cookies of their own in between, so it is looked at what became of the entries.
    black_hole(&pod, &[other]);
    // No SYN is to time out before it is cancelled, however long the machine stalls.
    scene.set_cluster(EAST, |cluster| cluster.syn_timeout = jiffies(Duration::from_secs(6)));
    let kept = || pod.run(|| sockets.iter().filter(|socket| peer(socket).unwrap().port() != 8080).count());
    let mut younger = 0;
    while younger < MAX_ORIGINS as usize || kept() > 0 {
        assert!(younger < 5 * MAX_ORIGINS as usize, "{} origins are still there", kept());
        pod.run(|| (0..20_000).for_each(|_| drop(begin(only(other)))));
        younger += 20_000;
    }
    assert_eq!(scene.state(other).failed, 0);
    println!("{younger} younger sockets; getpeername shows the pods of all {} flows", sockets.len());
    assert_open(&scene, used, &opened);
    // They are ended like any other, too.
    black_hole(&pod, used);
    scene.ground.judge_backend(used[0], verdict::DEAD);
    let is_dead = |socket: &Socket| local(socket).unwrap().ip() == used[0].ip();
    sockets.iter().for_each(|mut socket| socket.write_all(b"?").unwrap());
    for mut socket in sockets.iter().filter(|socket| is_dead(socket)) {
        assert_eq!(socket.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
    }
    assert_eq!(scene.ground.count(Counter::Aborted), 20);
    lift(&pod);
    for socket in sockets.iter().filter(|socket| !is_dead(socket)) {
        assert_eq!(read_answer(socket).unwrap(), used[1]);
    }
    drop(sockets);
    assert_open(&scene, used, &BTreeMap::new());
}

#[test]
fn a_pod_that_dials_another_pods_own_address_is_none_of_ours() {
    let Some(mut scene) = Scene::new(1, 1) else { return };
    let pod = scene.pod();
    let (own, remote) = (scene.local[0], scene.remote[0]);
    scene.set_cluster(EAST, |cluster| cluster.keepalive_idle = 5);
    // Refused, unanswered, established: nothing of it is counted.
    assert_eq!(pod.run(|| tcp_connect(own)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    black_hole(&pod, &[own]);
    let pending = pod.run(|| begin(own));
    scene.serve(&pod);
    let socket = pod.run(|| tcp_connect(remote)).unwrap();
    thread::sleep(Duration::from_millis(1_200));
    for backend in [own, remote] {
        let state = scene.state(backend);
        assert_eq!((state.failed, state.established, state.open, state.last_alive), (0, 0, 0, 0), "{backend}");
    }
    assert!(!socket.keepalive().unwrap());
    drop((pending, socket));
}

#[test]
fn a_socket_that_connects_again_counts_as_what_it_is_then() {
    let Some(scene) = Scene::new(2, 0) else { return };
    let pod = scene.pod();
    scene.serve(&pod);
    let [one, other] = scene.local[..] else { unreachable!() };
    let socket = pod.run(|| {
        let socket = tcp_socket(one);
        // The same pod by its own address, a different one, and back by the frontend.
        for (dialled, open) in [(only(one), 1), (one, 0), (only(one), 1), (other, 0), (only(one), 1)] {
            socket.connect(&dialled.into()).unwrap();
            assert_eq!((scene.state(one).open, scene.state(other).open), (open, 0), "{dialled}");
            connect_unspec(&socket).unwrap();
            assert_eq!(scene.state(one).open, 0);
        }
        socket
    });
    assert_eq!((scene.state(one).established, scene.state(other).established), (3, 0));
    drop(socket);
}

#[test]
fn servers_in_the_cgroup_are_none_of_ours() {
    let Some(scene) = Scene::new(1, 0) else { return };
    let pod = scene.pod();
    let backend = scene.local[0];
    let listener = pod.run(|| TcpListener::bind(backend)).unwrap();
    let rounds = effort() / 500;
    let sockets: Vec<_> = pod.run(|| {
        let pair = |_| (tcp_connect(only(backend)).unwrap(), listener.accept().unwrap());
        (0..rounds).map(pair).collect()
    });
    let state = scene.state(backend);
    assert_eq!((state.established, state.open), (rounds as u64, rounds as u64));
    let (clients, accepted): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    drop(accepted);
    drop(clients);
    scene.until("all closed", |scene| scene.state(backend).open == 0);
}
