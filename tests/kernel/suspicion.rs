//! A cluster that falls silent is avoided for a second, by the pod that met the silence, and by all once a second pod has.

use crate::{
    ground::Client,
    scene::{EAST, SYN_TIMEOUT, Scene, begin, black_hole, frontend, lift, now, only, rounds},
    sockets::{PATIENCE, local, recv_from, send_to, tcp_connect, udp_connect, udp_socket},
    tables::{group, service, tcp, udp},
};
use socket2::Socket;
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::{Counter, SUSPECT_NS, verdict};

/// Two backends of the own cluster and `remote` of east, all of which answered `pods` once.
fn scene(remote: u8, pods: usize) -> Option<(Scene, Vec<Client>)> {
    let scene = Scene::new(2, remote)?;
    let mut all = vec![scene.pod()];
    all.extend((1..pods).map(|_| scene.another_pod()));
    for pod in &all {
        scene.serve(pod);
        greet(pod, &scene.remote);
    }
    // The sign of life that this was is over once a tick has passed.
    thread::sleep(Duration::from_millis(20));
    Some((scene, all))
}

/// A connection to each of `backends`.
fn greet(pod: &Client, backends: &[SocketAddr]) {
    pod.run(|| backends.iter().for_each(|backend| drop(tcp_connect(only(*backend)).unwrap())));
}

/// Connects that are waiting for an answer from each of `backends`, begun one after the other: what times out at once counts
/// once.
fn ask(pod: &Client, backends: &[SocketAddr]) -> Vec<Socket> {
    let ask = |backend: &SocketAddr| {
        thread::sleep(Duration::from_millis(6));
        begin(only(*backend))
    };
    pod.run(|| backends.iter().map(ask).collect())
}

/// How many of 40 connects of `pod` to all backends alike ended in the own cluster, if all were made before `end`.
fn stayed_home(scene: &Scene, pod: &Client, end: u64) -> Option<usize> {
    let is_at_home = |_: &i32| {
        let reached = local(&tcp_connect(frontend()).unwrap()).unwrap().ip();
        scene.local.iter().any(|backend| backend.ip() == reached)
    };
    let at_home = pod.run(|| (0..40).filter(is_at_home).count());
    (now() < end).then_some(at_home)
}

#[test]
fn three_backends_that_do_not_answer_make_their_cluster_suspect_for_a_second() {
    let Some((scene, pods)) = scene(4, 1) else { return };
    let pod = &pods[0];
    black_hole(pod, &scene.remote);
    let pending = ask(pod, &scene.remote[..2]);
    scene.until("two unanswered", |scene| scene.east().unanswered >= 2);
    assert_eq!(scene.east().suspect_until, 0, "two are too few");
    let (mut before, mut east) = (now(), scene.east());
    let more = ask(pod, &scene.remote[2..3]);
    scene.until("suspect", |scene| {
        let asked = now();
        east = scene.east();
        if east.suspect_until == 0 {
            before = asked;
        }
        east.suspect_until != 0
    });
    // The time of the timeout is taken a little before the suspicion is there to be read.
    let began = before - 50_000_000;
    assert!((began..=now()).contains(&(east.suspect_until - SUSPECT_NS)), "{east:?}");
    drop((pending, more));
    // The rest of east would answer now, yet is left alone.
    lift(pod);
    assert_eq!(stayed_home(&scene, pod, east.suspect_until).unwrap_or(40), 40);
    scene.until("over", |_| now() > east.suspect_until);
    // Ejected backends may be avoided still; the fourth one was never asked.
    pod.run(|| while local(&tcp_connect(frontend()).unwrap()).unwrap().ip() != scene.remote[3].ip() {});
    assert_eq!(scene.east().suspect_until, 0, "a sign of life clears it of all suspicion");
    assert_eq!(scene.east().unanswered, 0);
}

#[test]
fn backends_that_never_answered_say_nothing_about_their_cluster() {
    let Some(scene) = Scene::new(1, 5) else { return };
    let pod = scene.pod();
    scene.serve(&pod);
    greet(&pod, &scene.remote[..2]);
    black_hole(&pod, &scene.remote);
    thread::sleep(Duration::from_millis(20));
    let pending = ask(&pod, &scene.remote);
    scene.until("ejected", |scene| scene.remote.iter().all(|backend| scene.state(*backend).failed == 1));
    scene.until("counted", |scene| scene.east().unanswered_backends.count_ones() == 2);
    let east = scene.east();
    assert_eq!((east.unanswered.min(2), east.unanswered_backends.count_ones(), east.suspect_until), (2, 2, 0));
    drop(pending);
}

#[test]
fn an_rst_every_now_and_then_keeps_a_cluster_from_being_suspect() {
    let Some((scene, pods)) = scene(5, 1) else { return };
    let pod = &pods[0];
    let refusing: SocketAddr = scene.remote[4];
    let mut ground_only_refuses = scene;
    // Its server is elsewhere now: nobody listens at this port.
    let refused = SocketAddr::new(refusing.ip(), 8081);
    let to_refused = service(vec![vec![group(EAST, 1, &[refused])]]);
    ground_only_refuses.ground.want(tcp(only(refusing)), to_refused).install();
    let scene = ground_only_refuses;
    black_hole(pod, &scene.remote);
    let failed = || scene.remote[..4].iter().map(|backend| scene.state(*backend).failed).min().unwrap();
    rounds("an RST every now and then", || {
        let (began, failed_before) = (Instant::now(), failed());
        let mut last = began;
        let pending = ask(pod, &scene.remote[..4]);
        // A SYN timeout of each, and most of a second one.
        while began.elapsed() < Duration::from_millis(500) || failed() == failed_before {
            assert!(began.elapsed() < PATIENCE, "they time out");
            let next = Instant::now();
            pod.run(|| tcp_connect(only(refusing))).unwrap_err();
            let east = scene.east();
            // Between two that are that far apart, a SYN may be sent and time out.
            if last.elapsed() > SYN_TIMEOUT - Duration::from_millis(20) {
                return false;
            }
            assert_eq!((east.suspect_until, east.unanswered), (0, 0), "{east:?}");
            last = next;
        }
        // Without it, their next SYNs are enough.
        scene.until("suspect", |scene| scene.east().suspect_until != 0);
        drop(pending);
        true
    });
}

#[test]
fn other_pods_avoid_a_cluster_once_a_second_pod_found_it_silent() {
    let Some((scene, pods)) = scene(6, 3) else { return };
    let [first, second, third] = &pods[..] else { unreachable!() };
    for pod in [first, second] {
        black_hole(pod, &scene.remote);
    }
    let pending = ask(first, &scene.remote[..3]);
    scene.until("suspect", |scene| scene.east().suspect_until != 0);
    let east = scene.east();
    assert_eq!(east.unanswered_shared, 0);
    drop(pending);
    // The third one's connections go there as ever, and show that there is life.
    third.run(|| while local(&tcp_connect(frontend()).unwrap()).unwrap().ip() != scene.remote[5].ip() {});
    assert_eq!(scene.east().suspect_until, 0);
    thread::sleep(Duration::from_millis(20));

    let pending = (ask(first, &scene.remote[..3]), ask(second, &scene.remote[3..4]));
    scene.until("suspect to all", |scene| {
        let east = scene.east();
        east.suspect_until > now() && east.unanswered_shared == 1
    });
    let until = scene.east().suspect_until;
    assert_eq!(stayed_home(&scene, third, until).unwrap_or(40), 40);
    drop(pending);
}

#[test]
fn a_service_that_is_nowhere_else_is_still_tried() {
    let Some((scene, pods)) = scene(4, 1) else { return };
    let pod = &pods[0];
    black_hole(pod, &scene.remote[..3]);
    rounds("a service that is nowhere else", || {
        let pending = ask(pod, &scene.remote[..3]);
        scene.until("suspect", |scene| scene.east().suspect_until > now());
        let end = scene.east().suspect_until;
        let last_resorts = scene.ground.count(Counter::LastResort);
        pod.run(|| tcp_connect(only(scene.remote[3]))).unwrap();
        let in_time = now() < end;
        if in_time {
            assert_eq!(scene.ground.count(Counter::LastResort), last_resorts + 1);
        }
        drop(pending);
        in_time
    });
}

#[test]
fn the_own_cluster_is_never_suspect() {
    let Some(scene) = Scene::new(8, 0) else { return };
    let pod = scene.pod();
    scene.serve(&pod);
    greet(&pod, &scene.local);
    black_hole(&pod, &scene.local);
    let pending = ask(&pod, &scene.local);
    scene.until("ejected", |scene| scene.local.iter().all(|backend| scene.state(*backend).ejected_until != 0));
    let own = scene.own();
    assert_eq!((own.suspect_until, own.unanswered), (0, 0));
    assert!(own.last_alive != 0 && own.rtt_us != 0, "{own:?}");
    drop(pending);
}

#[test]
fn what_user_space_says_outweighs_what_programs_suspect() {
    let Some((mut scene, pods)) = scene(3, 1) else { return };
    let pod = pods[0].clone();
    // West is down, east suspect: east it is.
    black_hole(&pod, &scene.remote);
    let pending = ask(&pod, &scene.remote);
    scene.until("suspect", |scene| scene.east().suspect_until > now());
    scene.ground.judge_cluster("west", verdict::DEAD);
    lift(&pod);
    let reached = pod.run(|| local(&tcp_connect(frontend()).unwrap()).unwrap().ip());
    assert!(scene.remote.iter().any(|backend| backend.ip() == reached), "{reached}");
    drop(pending);
}

#[test]
fn datagrams_keep_their_backend_in_a_cluster_that_is_suspect_and_new_ones_avoid_it() {
    let Some((mut scene, pods)) = scene(3, 1) else { return };
    let pod = pods[0].clone();
    let (local, remote) = (scene.local[0], scene.remote[0]);
    for backend in [local, remote] {
        scene.ground.servers.udp(&pod.netns, backend);
    }
    let groups = vec![group("west", 1, &[local]), group(EAST, 1, &[remote])];
    scene.ground.want(udp(frontend()), service(vec![groups])).install();
    let converse = |socket: &Socket| {
        send_to(socket, b"?", frontend()).unwrap();
        recv_from(socket).unwrap().0
    };
    let talker = pod.run(|| {
        loop {
            let socket = udp_socket(frontend());
            if converse(&socket) == remote {
                return socket;
            }
        }
    });
    black_hole(&pod, &scene.remote);
    let pending = ask(&pod, &scene.remote);
    scene.until("suspect", |scene| scene.east().suspect_until > now());
    let end = scene.east().suspect_until;
    pod.run(|| {
        assert_eq!(converse(&talker), remote);
        for _ in 0..20 {
            let new = (converse(&udp_socket(frontend())), udp_connect(frontend()).unwrap());
            if now() < end {
                assert_eq!((new.0, new.1.local_addr().unwrap().as_socket().unwrap().ip()), (local, local.ip()));
            }
        }
    });
    // What user space says counts for conversations, too.
    scene.ground.judge_cluster(EAST, verdict::DEAD);
    assert_eq!(pod.run(|| converse(&talker)), local);
    drop(pending);
}
