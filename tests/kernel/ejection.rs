//! A backend that fails is left out for a while: by the pod that met it, and by all once a second pod has.

use crate::{
    ground::Client,
    scene::{EAST, SYN_TIMEOUT, Scene, begin, black_hole, frontend, jiffies, lift, now, only},
    sockets::{local, tcp_connect},
    tables::{backed_by, tcp},
};
use rustix::net::connect_unspec;
use std::{collections::BTreeSet, io::ErrorKind, net::SocketAddr, thread, time::Duration};
use tombolo_ebpf::abi::{EJECTION_FIRST_NS, TRIAL_NS, ejection};

/// Longer than any stall of the machine: for SYNs that are not to time out before they are cancelled.
const NEVER: Duration = Duration::from_secs(6);

/// Connects of `pod` to all backends alike, as long as it is before `end`: which backends they were sent to. Empty if there
/// was no time for a single one.
fn chosen_before(pod: &Client, end: u64) -> BTreeSet<SocketAddr> {
    let mut chosen = BTreeSet::new();
    pod.run(|| {
        for _ in 0..200 {
            // Not waited for: one that comes too late may meet a backend that doesn't answer.
            let socket = begin(frontend());
            if now() >= end {
                break;
            }
            chosen.insert(SocketAddr::new(local(&socket).unwrap().ip(), 8080));
        }
    });
    chosen
}

/// What `pod` chooses while `bad` is out. A machine that stalls for that long gets another chance: `again` takes `bad` out
/// once more, when its time has passed.
fn chosen_while_out(scene: &Scene, pod: &Client, bad: SocketAddr, again: impl Fn()) -> BTreeSet<SocketAddr> {
    for _ in 0..20 {
        let until = scene.state(bad).ejected_until;
        let chosen = chosen_before(pod, until);
        if !chosen.is_empty() {
            return chosen;
        }
        scene.until("over", |_| now() > until);
        again();
    }
    panic!("there was no time for a single connect");
}

#[test]
fn a_backend_that_refuses_is_left_out_from_the_second_connect_on() {
    let Some(scene) = Scene::new(2, 0) else { return };
    let pod = scene.pod();
    let (good, bad) = (scene.local[0], scene.local[1]);
    scene.ground.servers.tcp(&pod.netns, good);
    let before = now();
    let error = pod.run(|| tcp_connect(only(bad))).unwrap_err();
    let after = now();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let state = scene.state(bad);
    assert_eq!((state.failed, state.established, state.ejection), (1, 0, 1));
    assert!((before..=after).contains(&(state.ejected_until - EJECTION_FIRST_NS)), "{state:?}");
    assert!((before..=after).contains(&state.last_alive), "an RST is a sign of life");
    let again = || drop(pod.run(|| tcp_connect(only(bad))).unwrap_err());
    assert_eq!(chosen_while_out(&scene, &pod, bad, again), BTreeSet::from([good]));
    // Nothing is held against the one that answered.
    assert_eq!(scene.state(good).ejected_until, 0);
}

#[test]
fn others_leave_a_backend_out_once_a_second_pod_found_it_failing() {
    let Some(scene) = Scene::new(2, 0) else { return };
    let (good, bad) = (scene.local[0], scene.local[1]);
    let (first, second, third) = (scene.pod(), scene.another_pod(), scene.another_pod());
    for pod in [&first, &second] {
        scene.ground.servers.tcp(&pod.netns, good);
    }
    scene.serve(&third);

    first.run(|| tcp_connect(only(bad))).unwrap_err();
    let state = scene.state(bad);
    assert_eq!(state.ejection & ejection::SHARED, 0);
    // The third pod has no reason to doubt, and an answer to show for it.
    third.run(|| {
        while scene.state(bad).established == 0 {
            tcp_connect(frontend()).unwrap();
        }
    });
    let contested = scene.state(bad);
    assert_eq!(contested.ejection, 1 | ejection::CONTESTED);
    assert_eq!(contested.ejected_until, state.ejected_until, "the first pod's own affair");

    // With that answer in between, a second failure is a first one.
    second.run(|| tcp_connect(only(bad))).unwrap_err();
    let state = scene.state(bad);
    assert_eq!(state.ejection, 1, "{state:?}");
    assert_ne!(state.ejected_by, contested.ejected_by);
    // Without one, it is a confirmation.
    first.run(|| tcp_connect(only(bad))).unwrap_err();
    let state = scene.state(bad);
    assert_eq!(state.ejection & ejection::SHARED, ejection::SHARED, "{state:?}");
    let again = || {
        for pod in [&first, &second] {
            pod.run(|| tcp_connect(only(bad))).unwrap_err();
        }
    };
    assert_eq!(chosen_while_out(&scene, &third, bad, again), BTreeSet::from([good]));
    // When its time has passed, those that failed leave it to others to try again.
    for pod in [&first, &second] {
        let chosen = (0..20).map(|_| {
            again();
            let until = scene.state(bad).ejected_until;
            scene.until("over", |_| now() > until);
            chosen_before(pod, until + TRIAL_NS)
        });
        assert_eq!(chosen.into_iter().find(|chosen| !chosen.is_empty()), Some(BTreeSet::from([good])));
    }
    third.run(|| {
        while scene.state(bad).ejected_until != 0 {
            tcp_connect(frontend()).unwrap();
        }
    });
    assert_eq!(scene.state(bad).ejection, 0);
}

#[test]
fn a_backend_that_does_not_answer_is_left_out() {
    let Some(scene) = Scene::new(2, 0) else { return };
    let pod = scene.pod();
    let (good, bad) = (scene.local[0], scene.local[1]);
    scene.serve(&pod);
    black_hole(&pod, &[bad]);
    let began = now();
    let pending = pod.run(|| begin(only(bad)));
    scene.until("unanswered", |scene| scene.state(bad).ejected_until != 0);
    let state = scene.state(bad);
    let took = Duration::from_nanos(state.ejected_until - EJECTION_FIRST_NS - began);
    println!("found unanswered after {took:?}");
    assert!(took >= SYN_TIMEOUT - Duration::from_millis(20), "{took:?}");
    assert_eq!((state.failed, state.last_alive), (1, 0));
    let again = || scene.until("ejected again", |scene| scene.state(bad).ejected_until > now());
    assert_eq!(chosen_while_out(&scene, &pod, bad, again), BTreeSet::from([good]));
    drop(pending);
}

#[test]
fn a_syn_timeout_of_nothing_is_the_kernels_own() {
    let Some(mut scene) = Scene::new(0, 1) else { return };
    let pod = scene.pod();
    let bad = scene.remote[0];
    black_hole(&pod, &[bad]);
    let mut wait = |timeout: Duration| {
        scene.set_cluster("east", |cluster| cluster.syn_timeout = jiffies(timeout));
        let (before, failed) = (now(), scene.state(bad).failed);
        let pending = pod.run(|| begin(only(bad)));
        scene.until("unanswered", |scene| scene.state(bad).failed > failed);
        drop(pending);
        Duration::from_nanos(now() - before)
    };
    let (own, long) = (wait(Duration::ZERO), wait(Duration::from_millis(600)));
    assert!(own >= Duration::from_millis(980) && long >= Duration::from_millis(580), "{own:?}, {long:?}");
    // A busy machine makes them longer, never shorter.
    let short = (0..20).map(|_| wait(SYN_TIMEOUT)).find(|short| *short < Duration::from_millis(580));
    println!("SYN timeouts: the kernel's {own:?}, 600 ms {long:?}, 200 ms {short:?}");
    assert!(short.is_some_and(|short| short >= SYN_TIMEOUT - Duration::from_millis(20)), "{short:?}");
}

#[test]
fn ejections_that_follow_each_other_double_and_a_connection_ends_them() {
    let Some(scene) = Scene::new(1, 0) else { return };
    let pod = scene.pod();
    let bad = scene.local[0];
    let mut last = 0;
    // With nothing else left it is tried all the same, so every connect fails.
    for step in 0..4 {
        let (before, after) = pod.run(|| {
            loop {
                let before = now();
                tcp_connect(only(bad)).unwrap_err();
                if scene.state(bad).ejection & ejection::STEPS != last {
                    break (before, now());
                }
            }
        });
        let state = scene.state(bad);
        last = state.ejection & ejection::STEPS;
        assert_eq!(state.ejection, step + 1);
        let time = EJECTION_FIRST_NS << step;
        assert!((before..=after).contains(&(state.ejected_until - time)), "step {step}: {state:?}");
    }
    let failed = scene.state(bad).failed;
    assert!(failed > 4, "what fails while it is out doesn't prolong that: {failed}");
    scene.serve(&pod);
    pod.run(|| tcp_connect(only(bad))).unwrap();
    let state = scene.state(bad);
    assert_eq!((state.ejected_until, state.ejection, state.established), (0, 0, 1));
}

/// Sets it for the own cluster.
fn set_syn_timeout(scene: &mut Scene, timeout: Duration) {
    scene.set_cluster("west", |cluster| cluster.syn_timeout = jiffies(timeout));
}

#[test]
fn one_connection_tries_a_backend_again_and_the_others_wait_for_it() {
    let Some(mut scene) = Scene::new(2, 0) else { return };
    let pod = scene.pod();
    let (good, bad) = (scene.local[0], scene.local[1]);
    scene.serve(&pod);
    black_hole(&pod, &[bad]);
    let first = pod.run(|| begin(only(bad)));
    scene.until("ejected", |scene| scene.state(bad).ejected_until != 0);
    drop(first);
    let ejected = scene.state(bad);
    scene.until("over", |_| now() > ejected.ejected_until);
    // The first that draws it tries. It is cancelled, which says nothing.
    set_syn_timeout(&mut scene, NEVER);
    let tries = || {
        pod.run(|| {
            while scene.state(bad).ejected_until <= now() {
                connect_unspec(begin(frontend())).unwrap();
            }
        });
    };
    tries();
    let state = scene.state(bad);
    assert_eq!(state.ejection, ejected.ejection | ejection::TRIAL);
    assert!(state.ejected_until <= now() + TRIAL_NS);
    assert_eq!(chosen_while_out(&scene, &pod, bad, tries), BTreeSet::from([good]));
    // Then another one may, and fails: one more ejection in a row.
    set_syn_timeout(&mut scene, SYN_TIMEOUT);
    let until = scene.state(bad).ejected_until;
    scene.until("over", |_| now() > until);
    let chosen = scene.state(bad).chosen;
    let mut pending = vec![];
    pod.run(|| {
        while scene.state(bad).chosen == chosen {
            pending.push(begin(frontend()));
        }
    });
    scene.until("ejected again", |scene| scene.state(bad).ejection & ejection::STEPS > ejected.ejection);
    // And when it serves again, the one that tries brings it back.
    lift(&pod);
    drop(pending);
    pod.run(|| {
        while scene.state(bad).ejected_until != 0 {
            tcp_connect(frontend()).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(scene.state(bad).ejection, 0);
}

#[test]
fn ten_thousand_cancelled_connects_eject_nothing() {
    let Some(mut scene) = Scene::new(1, 1) else { return };
    let pod = scene.pod();
    let backends = [scene.local[0], scene.remote[0]];
    set_syn_timeout(&mut scene, NEVER);
    scene.set_cluster(EAST, |cluster| cluster.syn_timeout = jiffies(NEVER));
    black_hole(&pod, &backends);
    for backend in backends {
        pod.run(|| {
            for _ in 0..2_500 {
                drop(begin(only(backend)));
                connect_unspec(begin(only(backend))).unwrap();
            }
        });
        let state = scene.state(backend);
        assert_eq!((state.chosen, state.failed, state.ejected_until, state.open), (5_000, 0, 0, 0), "{state:?}");
    }
    let east = scene.east();
    assert_eq!((east.unanswered, east.suspect_until), (0, 0));
}

#[test]
fn a_session_leaves_a_backend_that_is_out() {
    let Some(mut scene) = Scene::new(2, 0) else { return };
    let pod = scene.pod();
    let sticky: SocketAddr = "10.96.0.11:80".parse().unwrap();
    let mut remembered = backed_by(&scene.local);
    remembered.affinity_seconds = Some(3600);
    scene.ground.want(tcp(sticky), remembered).install();
    scene.serve(&pod);
    let dial = || pod.run(|| local(&tcp_connect(sticky).unwrap()).unwrap().ip());
    let leaves = || {
        let first = dial();
        assert_eq!([dial(), dial()], [first, first]);
        let left = *scene.local.iter().find(|backend| backend.ip() == first).unwrap();
        black_hole(&pod, &[left]);
        let pending = pod.run(|| begin(sticky));
        scene.until("ejected", |scene| scene.state(left).ejected_until != 0);
        drop(pending);
        let until = scene.state(left).ejected_until;
        // Not waited for, since it may come too late.
        let second = pod.run(|| local(&begin(sticky)).unwrap().ip());
        if now() >= until {
            lift(&pod);
            pod.run(|| {
                while scene.state(left).ejected_until != 0 {
                    tcp_connect(only(left)).ok();
                }
            });
            return false;
        }
        lift(&pod);
        assert_ne!(second, first);
        // And stays where it is then.
        scene.until("over", |_| now() > until);
        assert_eq!([dial(), dial(), dial()], [second; 3]);
        true
    };
    assert!((0..20).any(|_| leaves()), "there was no time for a single connect");
}
