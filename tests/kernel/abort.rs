//! Flows to what is known dead end soon, all others end as TCP would have it.

use crate::{
    ground::Client,
    scene::{EAST, Scene, begin, black_hole, jiffies, lift, only, rounds, timed},
    sockets::{PATIENCE, ask, read_answer, tcp_connect},
    tables::{group, service, tcp},
};
use socket2::{Socket, TcpKeepalive};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::{ABORT_UNANSWERED, Counter, verdict};

/// More than anything here takes on a busy machine; less than what TCP would take by itself.
const SLOW: Duration = PATIENCE;

/// A backend of east that serves the pod, behind a frontend of its own.
fn scene() -> Option<(Scene, Client, SocketAddr)> {
    let scene = Scene::new(0, 1)?;
    let pod = scene.pod();
    scene.serve(&pod);
    let backend = scene.remote[0];
    Some((scene, pod, backend))
}

/// Sends over a connection that is dark, and waits for the end of it.
fn wait_for_the_end(mut socket: &Socket) -> (io::Result<usize>, Duration) {
    timed(|| {
        socket.write_all(b"?")?;
        socket.read(&mut [0])
    })
}

fn user_timeout(socket: &Socket) -> Option<Duration> {
    socket.tcp_user_timeout().unwrap()
}

#[test]
fn a_connect_to_a_dead_backend_ends_at_its_second_timeout() {
    let Some((mut scene, pod, backend)) = scene() else { return };
    black_hole(&pod, &[backend]);
    scene.ground.judge_backend(backend, verdict::DEAD);
    let (result, took) = timed(|| pod.run(|| tcp_connect(only(backend))));
    println!("a connect to a dead backend returned after {took:?}");
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(took < SLOW && took > Duration::from_millis(380), "{took:?}");
    assert_eq!((scene.ground.count(Counter::Aborted), scene.ground.count(Counter::Spared)), (1, 0));
}

#[test]
fn a_connect_to_a_cluster_that_is_down_ends_at_its_first_timeout() {
    let Some((mut scene, pod, backend)) = scene() else { return };
    black_hole(&pod, &[backend]);
    scene.ground.judge_cluster(EAST, verdict::DEAD);
    let (result, took) = timed(|| pod.run(|| tcp_connect(only(backend))));
    println!("a connect to a cluster that is down returned after {took:?}");
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(took < SLOW && took > Duration::from_millis(180), "{took:?}");
}

#[test]
fn a_connect_is_not_ended_on_its_own_word_nor_on_that_of_a_few() {
    let Some(scene) = Scene::new(0, 4) else { return };
    let (pod, another) = (scene.pod(), scene.another_pod());
    for pod in [&pod, &another] {
        scene.serve(pod);
        pod.run(|| scene.remote.iter().for_each(|backend| drop(tcp_connect(only(*backend)).unwrap())));
        black_hole(pod, &scene.remote);
    }
    thread::sleep(Duration::from_millis(20));
    let mut pending = vec![];
    // One after the other: what times out at once counts once.
    let ask = |backend: &_| {
        thread::sleep(Duration::from_millis(6));
        begin(only(*backend))
    };
    for pod in [&pod, &another] {
        pending.extend(pod.run(|| scene.remote.iter().map(ask).collect::<Vec<_>>()));
    }
    // Eight SYNs, ejected by two pods, the cluster suspect: not enough for the first timeout of any.
    // Their second timeouts make it more than enough: some are ended then, by the word of the others.
    let mut ended = false;
    scene.until("ended", |scene| {
        ended |= pending.iter().any(|socket| socket.take_error().unwrap().is_some());
        let unanswered = scene.east().unanswered;
        assert!(!ended || unanswered >= ABORT_UNANSWERED, "ended after {unanswered}");
        ended
    });
    assert!(scene.east().unanswered >= ABORT_UNANSWERED);
    scene.until("counted", |scene| scene.ground.count(Counter::Aborted) > 0);

    // One alone is never ended, however often it times out: one backend is no cluster.
    drop(pending);
    for pod in [&pod, &another] {
        lift(pod);
    }
    pod.run(|| scene.remote.iter().for_each(|backend| drop(tcp_connect(only(*backend)).unwrap())));
    black_hole(&pod, &scene.remote[..1]);
    let aborted = scene.ground.count(Counter::Aborted);
    let pending = pod.run(|| begin(only(scene.remote[0])));
    thread::sleep(Duration::from_millis(2_500));
    assert!(pending.take_error().unwrap().is_none());
    lift(&pod);
    scene.until("established", |_| pending.peer_addr().is_ok());
    assert_eq!(scene.ground.count(Counter::Aborted), aborted);
}

#[test]
fn an_established_flow_ends_once_its_cluster_or_backend_is_dead() {
    for by_cluster in [true, false] {
        let Some((mut scene, pod, backend)) = scene() else { return };
        let socket = pod.run(|| tcp_connect(only(backend))).unwrap();
        ask(&socket).unwrap();
        black_hole(&pod, &[backend]);
        if by_cluster {
            scene.ground.judge_cluster(EAST, verdict::DEAD);
        } else {
            scene.ground.judge_backend(backend, verdict::DEAD);
        }
        let (result, took) = wait_for_the_end(&socket);
        println!("an established flow ended {took:?} after it sent (cluster: {by_cluster})");
        assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(took < SLOW, "{took:?}");
        assert_eq!(scene.ground.count(Counter::Aborted), 1);
        scene.until("closed", |scene| scene.state(backend).open == 0);
    }
}

#[test]
fn a_flow_that_began_to_time_out_before_its_cluster_was_down_ends_at_its_next_timeout() {
    let Some((mut scene, pod, backend)) = scene() else { return };
    let socket = pod.run(|| tcp_connect(only(backend))).unwrap();
    black_hole(&pod, &[backend]);
    (&socket).write_all(b"?").unwrap();
    let began = Instant::now();
    thread::sleep(Duration::from_millis(1_000));
    assert!(socket.take_error().unwrap().is_none());
    scene.ground.judge_cluster(EAST, verdict::DEAD);
    let (result, took) = timed(|| (&socket).read(&mut [0]));
    println!("ended {:?} after it sent, {took:?} after the verdict", began.elapsed());
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(took < SLOW, "{took:?}");
}

#[test]
fn a_flow_that_turns_out_alive_has_its_old_timeout_again() {
    // With timestamps the first acknowledgement tells; without, the next timeout finds that there was one.
    for timestamps in [1, 0] {
        rounds("a flow that turns out alive", || turns_out_alive(timestamps).unwrap_or(true));
    }
}

/// Whether the machine kept pace; none without root.
fn turns_out_alive(timestamps: u32) -> Option<bool> {
    const OWN: Duration = Duration::from_secs(20);
    let (mut scene, pod, backend) = scene()?;
    pod.netns.sysctl("net.ipv4.tcp_timestamps", timestamps).unwrap();
    let socket = pod.run(|| tcp_connect(only(backend))).unwrap();
    socket.set_tcp_user_timeout(Some(OWN)).unwrap();
    ask(&socket).unwrap();
    black_hole(&pod, &[backend]);
    let began = Instant::now();
    (&socket).write_all(b"?").unwrap();
    // It timed out at about 0.4, 0.8 and 1.7 s; the verdict comes when the way is just free again, before 3.4 s.
    thread::sleep(Duration::from_millis(2_000));
    lift(&pod);
    scene.ground.judge_backend(backend, verdict::DEAD);
    if began.elapsed() > Duration::from_millis(3_200) {
        return Some(false);
    }
    assert_eq!(read_answer(&socket).unwrap(), backend, "timestamps {timestamps}");
    if timestamps == 0 {
        assert!(user_timeout(&socket).unwrap() < OWN, "it was to be ended");
        scene.ground.judge_backend(backend, verdict::OK);
        black_hole(&pod, &[backend]);
        (&socket).write_all(b"?").unwrap();
        scene.until("spared", |scene| scene.ground.count(Counter::Spared) == 1);
        lift(&pod);
        assert_eq!(read_answer(&socket).unwrap(), backend);
    }
    assert_eq!((scene.ground.count(Counter::Aborted), scene.ground.count(Counter::Spared)), (0, 1));
    assert_eq!(user_timeout(&socket), Some(OWN), "timestamps {timestamps}");
    Some(true)
}

#[test]
fn a_connect_that_gets_through_at_the_last_moment_is_an_ordinary_connection() {
    let Some((mut scene, pod, backend)) = scene() else { return };
    scene.ground.judge_cluster(EAST, verdict::DEAD);
    scene.set_cluster(EAST, |cluster| cluster.syn_timeout = jiffies(Duration::from_secs(6)));
    black_hole(&pod, &[backend]);
    let socket = pod.run(|| begin(only(backend)));
    lift(&pod);
    // Its first timeout is its last, but for the SYN that goes out with it.
    scene.until("established", |_| socket.peer_addr().is_ok());
    socket.set_nonblocking(false).unwrap();
    assert_eq!(ask(&socket).unwrap(), backend);
    assert_eq!((scene.ground.count(Counter::Aborted), scene.ground.count(Counter::Spared)), (0, 1));
    assert_eq!(user_timeout(&socket), None);
}

#[test]
fn flows_to_a_draining_backend_are_not_ended_while_its_cluster_is_up() {
    let Some((mut scene, pod, backend)) = scene() else { return };
    let established = pod.run(|| tcp_connect(only(backend))).unwrap();
    ask(&established).unwrap();
    scene.ground.judge_backend(backend, verdict::DRAINING);
    are_left_alone(&scene, &pod, established);
}

#[test]
fn flows_of_a_service_that_opted_out_are_never_ended() {
    // Nor if the backend drains besides.
    for of_backend in [verdict::DEAD, verdict::DRAINING] {
        let Some((mut scene, pod, backend)) = scene() else { return };
        let mut wanted = service(vec![vec![group(EAST, 1, &[backend])]]);
        wanted.no_abort = true;
        scene.ground.want(tcp(only(backend)), wanted).install();
        let established = pod.run(|| tcp_connect(only(backend))).unwrap();
        ask(&established).unwrap();
        scene.ground.judge_cluster(EAST, verdict::DEAD);
        scene.ground.judge_backend(backend, of_backend);
        are_left_alone(&scene, &pod, established);
    }
}

/// An outage of some timeouts ends neither a connect nor an established connection of the pod.
fn are_left_alone(scene: &Scene, pod: &Client, mut established: Socket) {
    let backend = scene.remote[0];
    black_hole(pod, &[backend]);
    let connecting = pod.run(|| begin(only(backend)));
    established.write_all(b"?").unwrap();
    thread::sleep(Duration::from_millis(2_500));
    for socket in [&connecting, &established] {
        assert!(socket.take_error().unwrap().is_none());
        assert_eq!(user_timeout(socket), None);
    }
    assert_eq!(scene.state(backend).failed, 1, "it is watched all the same");
    lift(pod);
    assert_eq!(read_answer(&established).unwrap(), backend);
    scene.until("established", |_| connecting.peer_addr().is_ok());
    scene.until("both open", |scene| scene.state(backend).open == 2);
    drop((connecting, established));
    scene.until("closed", |scene| scene.state(backend).open == 0);
    assert_eq!((scene.ground.count(Counter::Aborted), scene.ground.count(Counter::Spared)), (0, 0));
}

#[test]
fn a_backend_that_drains_ends_nothing_any_more_once_its_whole_cluster_is_down() {
    let Some((mut scene, pod, backend)) = scene() else { return };
    let established = pod.run(|| tcp_connect(only(backend))).unwrap();
    ask(&established).unwrap();
    scene.ground.judge_backend(backend, verdict::DRAINING);
    black_hole(&pod, &[backend]);
    scene.ground.judge_cluster(EAST, verdict::DEAD);
    let (result, took) = wait_for_the_end(&established);
    println!("an established flow to a draining backend ended {took:?} after it sent");
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(took < SLOW, "{took:?}");
    // One that was on its way when the backend began to drain.
    let (result, took) = timed(|| pod.run(|| tcp_connect(only(backend))));
    println!("a connect to a draining backend ended after {took:?}");
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(took < SLOW, "{took:?}");
    assert_eq!((scene.ground.count(Counter::Aborted), scene.ground.count(Counter::Spared)), (2, 0));
    scene.until("closed", |scene| scene.state(backend).open == 0);
}

#[test]
fn flows_to_other_clusters_get_keepalive_unless_the_application_keeps_time_itself() {
    let Some(mut scene) = Scene::new(1, 1) else { return };
    let pod = scene.pod();
    scene.serve(&pod);
    for name in ["west", EAST] {
        scene.set_cluster(name, |cluster| {
            let times = if name == EAST { (5, 1, 10) } else { (0, 0, 0) };
            (cluster.keepalive_idle, cluster.keepalive_interval, cluster.keepalive_count) = times;
        });
    }
    let seconds = Duration::from_secs;
    let times = |socket: &Socket| {
        let on = socket.keepalive().unwrap();
        let times = (socket.tcp_keepalive_time(), socket.tcp_keepalive_interval(), socket.tcp_keepalive_retries());
        (on, times.0.unwrap(), times.1.unwrap(), times.2.unwrap())
    };
    let dial = |backend: SocketAddr, prepare: &(dyn Fn(&Socket) + Sync)| {
        pod.run(|| {
            let socket = crate::sockets::tcp_socket(backend);
            prepare(&socket);
            socket.connect(&only(backend).into()).unwrap();
            socket
        })
    };
    let remote = scene.remote[0];
    assert_eq!(times(&dial(remote, &|_| {})), (true, seconds(5), seconds(1), 10));
    let untouched = (false, seconds(7200), seconds(75), 9);
    assert_eq!(times(&dial(scene.local[0], &|_| {})), untouched, "the own cluster");
    let own_timeout = |socket: &Socket| socket.set_tcp_user_timeout(Some(seconds(3))).unwrap();
    assert_eq!(times(&dial(remote, &own_timeout)), untouched, "a TCP_USER_TIMEOUT");
    let own = TcpKeepalive::new().with_time(seconds(60));
    let own_keepalive = |socket: &Socket| socket.set_tcp_keepalive(&own).unwrap();
    assert_eq!(times(&dial(remote, &own_keepalive)), (true, seconds(60), seconds(75), 9), "a keepalive of its own");
    // As Go does, after the connect.
    let later = dial(remote, &|_| {});
    later.set_tcp_keepalive(&TcpKeepalive::new().with_time(seconds(15)).with_interval(seconds(15))).unwrap();
    assert_eq!(times(&later), (true, seconds(15), seconds(15), 10));
}

#[test]
fn a_flow_that_only_waits_ends_by_keepalive() {
    let Some((mut scene, pod, backend)) = scene() else { return };
    scene.set_cluster(EAST, |cluster| {
        (cluster.keepalive_idle, cluster.keepalive_interval, cluster.keepalive_count) = (1, 1, 2);
    });
    let socket = pod.run(|| tcp_connect(only(backend))).unwrap();
    ask(&socket).unwrap();
    let (result, took) = timed(|| {
        black_hole(&pod, &[backend]);
        (&socket).read(&mut [0])
    });
    println!("a flow that only waited ended after {took:?} (1 s idle, 2 probes)");
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(took >= Duration::from_millis(1_980), "{took:?}");
    scene.until("closed", |scene| scene.state(backend).open == 0);
}
