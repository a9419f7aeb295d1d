//! Somebody else's program on `sock_ops` wants callbacks of all sockets: that makes none of them ours.

use crate::{
    agent_foreign::{Count, Foreign, MULTI},
    agent_site::{Site, service as manifest},
    clock::{SOON, until},
    scene::{EAST, Scene, begin, black_hole, lift, only},
    sockets::{ask, read_answer, tcp_connect, tcp_socket},
    tables::{group, service, tcp},
};
use rustix::net::connect_unspec;
use socket2::Socket;
use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    thread,
    time::Duration,
};
use tombolo_ebpf::abi::{Counter, verdict};

/// `BPF_SOCK_OPS_*`: a connect begins, is established, was accepted; a socket listens; its state changes.
const TCP_CONNECT: u32 = 3;
const ESTABLISHED: [u32; 2] = [4, 5];
const LISTEN: u32 = 11;
/// Callbacks for timeouts, retransmissions, changes of state, and round-trip times.
const ALL: u32 = 0xf;
const TIMEOUT: u32 = 1;
const STATE: u32 = 4;

/// A backend of east that serves the pod.
fn scene() -> Option<(Scene, SocketAddr)> {
    let scene = Scene::new(0, 1)?;
    scene.serve(&scene.pod());
    let backend = scene.remote[0];
    Some((scene, backend))
}

fn others(scene: &Scene, wanted: u32, rude: bool, ops: &[u32]) -> Foreign {
    Foreign::callbacks(scene.ground.client.cgroup.path(), MULTI, wanted, rude, ops).unwrap()
}

/// Connections established and open at the backend.
fn counted(scene: &Scene, backend: SocketAddr) -> (u64, u64) {
    let state = scene.state(backend);
    (state.established, state.open)
}

#[test]
fn connections_of_others_to_a_backend_are_not_counted_when_they_begin_nor_when_they_end() {
    let early = [TCP_CONNECT, LISTEN, ESTABLISHED[0], ESTABLISHED[1]];
    for ops in [&early[..], &ESTABLISHED] {
        for wanted in [ALL, STATE | TIMEOUT, STATE] {
            let Some((scene, backend)) = scene() else { return };
            let pod = scene.pod();
            let _others = others(&scene, wanted, false, ops);
            let ours: Vec<Socket> = pod.run(|| (0..3).map(|_| tcp_connect(only(backend)).unwrap()).collect());
            assert_eq!(counted(&scene, backend), (3, 3));
            for _ in 0..10 {
                drop(pod.run(|| tcp_connect(backend)).unwrap());
            }
            let direct = pod.run(|| tcp_connect(backend)).unwrap();
            ask(&direct).unwrap();
            thread::sleep(Duration::from_millis(50));
            assert_eq!(counted(&scene, backend), (3, 3), "{ops:?} {wanted:#x}");
            drop(ours);
            scene.until("closed", |scene| scene.state(backend).open == 0);
            drop(direct);
            thread::sleep(Duration::from_millis(20));
            assert_eq!(counted(&scene, backend), (3, 0));
        }
    }
}

#[test]
fn a_socket_that_connects_again_to_the_same_pod_by_itself_is_not_ours_any_more() {
    let Some((scene, backend)) = scene() else { return };
    let pod = scene.pod();
    let _others = others(&scene, ALL, false, &[TCP_CONNECT, LISTEN, ESTABLISHED[0], ESTABLISHED[1]]);
    pod.run(|| {
        let socket = tcp_socket(backend);
        for (dialled, expected) in [(only(backend), (1, 1)), (backend, (1, 0)), (only(backend), (2, 1))] {
            socket.connect(&dialled.into()).unwrap();
            assert_eq!(counted(&scene, backend), expected, "{dialled}");
            connect_unspec(&socket).unwrap();
            assert_eq!(scene.state(backend).open, 0, "{dialled}");
        }
    });
}

#[test]
fn failures_of_others_eject_nothing_and_nothing_of_theirs_is_ended() {
    let Some((mut scene, backend)) = scene() else { return };
    let pod = scene.pod();
    let _others = others(&scene, ALL, false, &[TCP_CONNECT, LISTEN, ESTABLISHED[0], ESTABLISHED[1]]);
    let mut direct = pod.run(|| tcp_connect(backend)).unwrap();
    ask(&direct).unwrap();
    black_hole(&pod, &[backend]);
    scene.ground.judge_cluster(EAST, verdict::DEAD);
    let pending = pod.run(|| begin(backend));
    direct.write_all(b"?").unwrap();
    thread::sleep(Duration::from_millis(2_500));
    for socket in [&pending, &direct] {
        assert!(socket.take_error().unwrap().is_none());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }
    let state = scene.state(backend);
    assert_eq!((state.failed, state.ejected_until, scene.ground.count(Counter::Aborted)), (0, 0, 0));
    lift(&pod);
    assert_eq!(read_answer(&direct).unwrap(), backend);
}

#[test]
fn ours_are_ended_as_ever_unless_their_service_opted_out() {
    for opted_out in [false, true] {
        let Some((mut scene, backend)) = scene() else { return };
        let pod = scene.pod();
        let mut wanted = service(vec![vec![group(EAST, 1, &[backend])]]);
        wanted.no_abort = opted_out;
        scene.ground.want(tcp(only(backend)), wanted).install();
        let _others = others(&scene, ALL, false, &[TCP_CONNECT, LISTEN, ESTABLISHED[0], ESTABLISHED[1]]);
        let mut socket = pod.run(|| tcp_connect(only(backend))).unwrap();
        ask(&socket).unwrap();
        black_hole(&pod, &[backend]);
        scene.ground.judge_cluster(EAST, verdict::DEAD);
        socket.write_all(b"?").unwrap();
        if opted_out {
            thread::sleep(Duration::from_millis(2_500));
            assert!(socket.take_error().unwrap().is_none());
            lift(&pod);
            assert_eq!(read_answer(&socket).unwrap(), backend);
        } else {
            assert_eq!((&socket).read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
        }
        assert_eq!(scene.ground.count(Counter::Aborted), u64::from(!opted_out));
        drop(socket);
        scene.until("closed", |scene| scene.state(backend).open == 0);
    }
}

#[test]
fn a_program_that_takes_our_callbacks_off_does_not_make_others_counts_wrong() {
    // It runs after ours and puts its own in place: what isn't counted when it begins isn't when it ends.
    let Some((scene, backend)) = scene() else { return };
    let pod = scene.pod();
    let kept = pod.run(|| tcp_connect(only(backend))).unwrap();
    let others = others(&scene, TIMEOUT, true, &[TCP_CONNECT]);
    let more = Foreign::callbacks(scene.ground.client.cgroup.path(), MULTI, STATE, true, &[ESTABLISHED[0]]).unwrap();
    for _ in 0..10 {
        drop(pod.run(|| tcp_connect(only(backend))).unwrap());
    }
    thread::sleep(Duration::from_millis(50));
    assert_eq!(scene.state(backend).open, 1);
    drop((kept, others, more));
    scene.until("closed", |scene| scene.state(backend).open == 0);
}

#[test]
fn the_callbacks_of_others_stay_with_sockets_that_are_not_ours() {
    let Some((scene, _)) = scene() else { return };
    let pod = scene.pod();
    let listener = pod.run(|| std::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let others = others(&scene, ALL, false, &[TCP_CONNECT]);
    let closes = Count::new();
    let watch = Foreign::watch(scene.ground.client.cgroup.path(), MULTI, &closes).unwrap();
    let socket = pod.run(|| tcp_connect(listener.local_addr().unwrap())).unwrap();
    drop(socket);
    drop(listener.accept());
    scene.until("its end was told", |_| closes.get() > 0);
    drop((others, watch));
}

#[test]
fn status_names_it_and_stays_ready() {
    let Some(mut site) = Site::new() else { return };
    site.serve("127.0.0.5:8080");
    site.write("web.yaml", &manifest("web-federated", "10.96.0.10:80", &["127.0.0.5:8080"]));
    let _agent = site.ready_agent();
    let others = Foreign::callbacks(site.cgroup.path(), MULTI, ALL, false, &[TCP_CONNECT]).unwrap();
    let told = site.problem("somebody else's sock_ops");
    let wanted = format!("program {} on cgroup {}", others.id(), site.cgroup.path().display());
    assert!(told.contains(&wanted), "{told}");
    assert!(site.json("status").1, "ready");
    drop(others);
    let is_gone = || (site.json("status").0["problems"] == serde_json::json!([])).then_some(());
    assert!(until(SOON, is_gone).is_some());
}
