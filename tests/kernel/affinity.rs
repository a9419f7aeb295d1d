//! ClientIP affinity: a pod keeps its backend while it keeps coming, and only then.

use crate::{
    draws::{draw, draw_tcp, effort, own4},
    ground::{Client, Ground},
    tables::{backed_by, group, service, tcp, udp},
};
use lab::netns::Netns;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tombolo::tables::DesiredService;
use tombolo_ebpf::abi::verdict;

/// Services of a test that compares sessions: one for each, so that all are equal by chance never.
const MANY: u8 = 32;
/// The API's default timeout: no test gets there.
const HOURS: u32 = 10_800;

fn frontend(number: u8) -> SocketAddr {
    SocketAddr::new([10, 96, 0, number].into(), 53)
}

fn with_affinity(mut service: DesiredService, seconds: u32) -> DesiredService {
    service.affinity_seconds = Some(seconds);
    service
}

#[test]
fn a_client_keeps_its_backend_for_each_service_and_another_pod_has_its_own() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 8);
    for number in 0..MANY {
        ground.want(udp(frontend(number)), with_affinity(backed_by(&backends), HOURS));
    }
    ground.install();
    let neighbour = another_pod(&ground, &backends);
    let (own, others) = (ground.client.run(sessions), neighbour.run(sessions));
    assert_ne!(own, others);
    for sessions in [&own, &others] {
        assert!(sessions.iter().collect::<BTreeSet<_>>().len() > 2, "services don't share a session: {sessions:?}");
    }
    for _ in 0..20 {
        assert_eq!(ground.client.run(sessions), own);
        assert_eq!(neighbour.run(sessions), others);
    }
}

#[test]
fn tcp_has_sessions_too() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 8);
    backends.iter().for_each(|backend| ground.serve(*backend));
    ground.want(tcp(frontend(1)), with_affinity(backed_by(&backends), HOURS)).install();
    let reached: BTreeSet<IpAddr> = ground.client.run(|| (0..50).map(|_| draw_tcp(frontend(1)).unwrap()).collect());
    assert_eq!(reached.len(), 1);
}

#[test]
fn connects_at_once_share_a_session() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 8);
    for number in 0..MANY {
        ground.want(udp(frontend(number)), with_affinity(backed_by(&backends), HOURS));
    }
    ground.install();
    let (client, each) = (&ground.client, effort() / 20);
    for number in 0..MANY {
        let reached: Vec<BTreeSet<IpAddr>> = thread::scope(|scope| {
            let dial = || client.run(|| (0..each / 32).map(|_| draw(frontend(number)).unwrap()).collect());
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(dial)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let all: BTreeSet<_> = reached.into_iter().flatten().collect();
        assert_eq!(all.len(), 1, "session {number}: {all:?}");
    }
}

#[test]
fn a_session_ends_when_its_client_stays_away_for_the_timeout() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 8);
    for number in 0..MANY {
        ground.want(udp(frontend(number)), with_affinity(backed_by(&backends), 1));
    }
    ground.install();
    let before = ground.client.run(sessions);
    thread::sleep(Duration::from_millis(1050));
    let after = ground.client.run(sessions);
    // Each new draw is the old one's with odds of 1 in 8: 20 of 32 are in less than one of 10¹⁰ runs.
    let same = before.iter().zip(&after).filter(|(before, after)| before == after).count();
    println!("{same} of {MANY} the same after the timeout");
    assert!(same < 20, "{same} of {MANY} sessions outlived the timeout");
}

#[test]
fn a_session_lasts_as_long_as_its_client_keeps_coming() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 8);
    let timeout = Duration::from_secs(2);
    for number in 0..MANY {
        ground.want(udp(frontend(number)), with_affinity(backed_by(&backends), 2));
    }
    ground.install();
    // A machine that can't keep the pace tells nothing: then once more.
    for _ in 0..5 {
        let before = ground.client.run(sessions);
        let (start, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        while start.elapsed() < timeout + Duration::from_millis(500) {
            thread::sleep(Duration::from_millis(200));
            let now = ground.client.run(sessions);
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if longest < timeout {
                assert_eq!(now, before);
            }
        }
        if longest < timeout {
            return;
        }
    }
    println!("skipped: how long sessions last: this machine is too busy to come back within {timeout:?}");
}

#[test]
fn a_session_survives_changes_of_the_service_that_leave_its_backend() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 12);
    let change = |ground: &mut Ground, members: &[SocketAddr]| {
        ground.want(udp(frontend(1)), with_affinity(backed_by(members), HOURS)).install();
    };
    change(&mut ground, &backends[..6]);
    let dial = |ground: &Ground| ground.client.run(|| draw(frontend(1)).unwrap());
    let kept = dial(&ground);
    for count in [12, 9, 7, 12, 6] {
        change(&mut ground, &backends[..count]);
        for _ in 0..10 {
            assert_eq!(dial(&ground), kept, "{count} backends");
        }
    }
    // Its backend goes: another one, which is kept in turn.
    let others: Vec<_> = backends.iter().copied().filter(|backend| backend.ip() != kept).collect();
    change(&mut ground, &others);
    let moved = dial(&ground);
    assert_ne!(moved, kept);
    // The old one's return changes nothing.
    change(&mut ground, &backends);
    for _ in 0..10 {
        assert_eq!(dial(&ground), moved);
    }
}

#[test]
fn a_session_moves_when_its_backend_or_its_cluster_takes_no_more_connections() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 8);
    let groups = vec![group("west", 1, &backends[..4]), group("east", 1, &backends[4..])];
    ground.want(udp(frontend(1)), with_affinity(service(vec![groups]), HOURS)).install();
    let dial = |ground: &Ground| ground.client.run(|| draw(frontend(1)).unwrap());
    let mut at = dial(&ground);
    for out in [verdict::DRAINING, verdict::DEAD] {
        ground.judge_backend(SocketAddr::new(at, 8080), out);
        let moved = dial(&ground);
        assert_ne!(moved, at);
        assert_eq!(dial(&ground), moved);
        at = moved;
    }
    let number = backends.iter().position(|backend| backend.ip() == at).unwrap();
    let (down, other) = if number < 4 { ("west", &backends[4..]) } else { ("east", &backends[..4]) };
    ground.judge_cluster(down, verdict::DEAD);
    let moved = dial(&ground);
    assert!(other.iter().any(|backend| backend.ip() == moved), "{moved} is in {down}, which is down");
    for _ in 0..10 {
        assert_eq!(dial(&ground), moved);
    }
}

#[test]
fn a_session_does_not_follow_its_index_to_another_backend() {
    let Some(mut ground) = Ground::new() else { return };
    let backends = own4(&ground, 1, 5);
    let dial = |ground: &Ground| ground.client.run(|| draw(frontend(1)).unwrap());
    ground.want(udp(frontend(1)), with_affinity(backed_by(&backends[..1]), HOURS)).install();
    assert_eq!(dial(&ground), backends[0].ip());
    // The session's backend is away while nobody dials; its index goes to one of the newcomers.
    ground.want(udp(frontend(1)), with_affinity(backed_by(&[]), HOURS)).install();
    ground.want(udp(frontend(1)), with_affinity(backed_by(&backends[1..]), HOURS)).install();
    let moved = dial(&ground);
    assert_ne!(moved, backends[0].ip());
    assert_eq!(dial(&ground), moved);
}

/// Where one round over all services leads.
fn sessions() -> Vec<IpAddr> {
    (0..MANY).map(|number| draw(frontend(number)).unwrap()).collect()
}

/// A pod of the same cgroup in a network namespace of its own, with the same backends in it.
fn another_pod(ground: &Ground, backends: &[SocketAddr]) -> Client {
    let netns = Netns::anonymous().unwrap();
    for backend in backends {
        netns.address("lo", backend.ip().into()).unwrap();
    }
    Client { netns: Arc::new(netns), ..ground.client.clone() }
}
