//! What the programs learn must not do harm: where segments get lost at random, and where one pod's all do.

use crate::{
    chi::assert_shares,
    draws::{draw_tcp, effort},
    ground::Client,
    scene::{Scene, begin, black_hole, frontend},
    sockets::{PATIENCE, tcp_socket},
};
use lab::nft;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::{Counter, ejection};

/// Clients at a time, of each pod.
const CLIENTS: usize = 6;

/// Has so many in a hundred of this pod's SYNs vanish.
fn lose_syns(pod: &Client, percent: u32) {
    let rules = format!(
        "table inet loss {{\nchain lost {{\ntype filter hook input priority 0;\n\
         tcp flags & (syn | ack) == syn numgen random mod 100 < {percent} drop\n}}\n}}"
    );
    nft::apply(&pod.netns, &rules).unwrap();
}

#[test]
fn no_connect_fails_because_syns_get_lost() {
    for percent in [1, 10, 30] {
        let Some(scene) = Scene::new(1, 4) else { return };
        let pods = [scene.pod(), scene.another_pod(), scene.another_pod()];
        for pod in &pods {
            scene.serve(pod);
            lose_syns(pod, percent);
            // TCP's own 6 tries would all get lost now and then.
            pod.netns.sysctl("net.ipv4.tcp_syn_retries", 30).unwrap();
        }
        let connects = (effort() / 2_000).min(60);
        let dial = || {
            for _ in 0..connects {
                let socket = tcp_socket(frontend());
                // As long as TCP itself has patience.
                socket.set_write_timeout(None).unwrap();
                socket.connect(&frontend().into()).unwrap();
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
        };
        let began = Instant::now();
        thread::scope(|scope| {
            for pod in pods.iter().flat_map(|pod| [pod; CLIENTS]) {
                scope.spawn(move || pod.run(dial));
            }
        });
        let states = scene.local.iter().chain(&scene.remote).map(|backend| scene.state(*backend));
        let failed: u64 = states.map(|state| state.failed).sum();
        println!(
            "{percent} %: {} connects in {:?}, {failed} timed out",
            pods.len() * CLIENTS * connects,
            began.elapsed()
        );
        assert_eq!((scene.ground.count(Counter::Aborted), scene.ground.count(Counter::Spared)), (0, 0));
    }
}

#[test]
fn a_pod_that_reaches_nothing_changes_nothing_for_others() {
    let Some(scene) = Scene::new(4, 4) else { return };
    let (cut_off, other) = (scene.pod(), scene.another_pod());
    scene.serve(&cut_off);
    scene.serve(&other);
    let all = [&scene.local[..], &scene.remote[..]].concat();
    // It has reached them all before, so that it has a say about their cluster.
    let reach_all = || {
        while all.iter().any(|backend| scene.state(*backend).established == 0) {
            draw_tcp(frontend()).unwrap();
        }
    };
    cut_off.run(reach_all);
    black_hole(&cut_off, &all);
    let done = AtomicBool::new(false);
    let (counts, tried, longest) = thread::scope(|scope| {
        let trying = scope.spawn(|| {
            let (mut pending, mut tried) = (vec![], 0);
            cut_off.run(|| {
                while !done.load(Ordering::Relaxed) {
                    pending.push(begin(frontend()));
                    tried += 1;
                    if pending.len() > 200 {
                        pending.drain(..100);
                    }
                    thread::sleep(Duration::from_millis(2));
                }
            });
            tried
        });
        let ejected = |backend| scene.state(backend).ejected_until != 0;
        let is_ejected_for_one = || all.iter().filter(|backend| ejected(**backend)).count() >= 6;
        let end = Instant::now() + PATIENCE;
        let (mut longest, mut seen) = (Duration::ZERO, false);
        let counts = other.run(|| {
            let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
            let mut drawn = 0;
            while Instant::now() < end && (drawn < effort() / 20 || !seen) {
                let began = Instant::now();
                *counts.entry(draw_tcp(frontend()).unwrap()).or_default() += 1;
                drawn += 1;
                seen |= drawn % 64 == 0 && is_ejected_for_one();
                longest = longest.max(began.elapsed());
            }
            counts
        });
        done.store(true, Ordering::Relaxed);
        assert!(seen, "ejected for one");
        (counts, trying.join().unwrap(), longest)
    });
    let failed: u64 = all.iter().map(|backend| scene.state(*backend).failed).sum();
    let expected: BTreeMap<IpAddr, f64> = all.iter().map(|backend| (backend.ip(), 1.0)).collect();
    let (chi, bound) = assert_shares(&counts, &expected);
    println!("one pod's {failed} of {tried} connects timed out; the other's choices: χ² {chi:.1} of {bound:.1}");
    assert!(failed > 0, "{failed}");
    assert!(all.iter().all(|backend| scene.state(*backend).ejection & ejection::SHARED == 0));
    // The other's answers are what keeps the cluster from looking silent. Where this machine stalled there were none.
    if longest < Duration::from_millis(100) {
        assert_eq!(scene.ground.count(Counter::Aborted), 0);
    } else {
        println!("skipped: whether anything was aborted: the machine stalled for {longest:?}");
    }
}
