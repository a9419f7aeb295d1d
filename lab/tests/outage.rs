//! Clusters that go dark, and callers of all kinds: needs root.

use anyhow::Result;
use clap::ValueEnum;
use lab::{
    addresses::Network,
    attempts::Figures,
    caller::{Attempt, End, Kind},
    cleanup,
    clusters::{Caller, Calls, Clusters, KUBE_PROXY_CLIENT, NAMES, Programs},
    manifests::{POD_PORT, SERVICE_PORT},
    netns::need_root,
    report::now,
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

/// What an attempt may take.
const TIMEOUT: Duration = Duration::from_millis(700);

#[test]
fn a_dark_cluster_says_nothing_at_all_and_callers_of_every_kind_notice() -> Result<()> {
    let _alone = alone();
    let Some(clusters) = &mut clusters()? else { return Ok(()) };
    let east: Vec<SocketAddr> = sockets(clusters, "east");
    let mut callers = Vec::new();
    for &kind in Kind::value_variants() {
        callers.push(call(clusters, "client", &east, kind)?);
    }
    for caller in &callers {
        wait_for("an answer", caller, |attempts| attempts.iter().any(is_answer))?;
    }

    clusters.black_out("east")?;
    let dark = now()?;
    assert!(clusters.is_dark("east"));
    // Longer than a node takes to call a neighbour unreachable that doesn't answer it.
    sleep(Duration::from_secs(4));
    for caller in &mut callers {
        caller.ask()?;
    }
    sleep(Duration::from_millis(300));
    for caller in &callers {
        let attempts = caller.attempts(Duration::ZERO, Duration::MAX);
        let kind = caller.kind();
        let late = attempts.iter().filter(|attempt| attempt.began > dark).collect::<Vec<_>>();
        assert!(!late.iter().any(|attempt| is_answer(attempt)), "{kind} was answered in the dark");
        if kind == Kind::WaitingStream {
            let silent = attempts.iter().filter(|attempt| attempt.end == End::Unfinished).map(|attempt| attempt.took);
            let silence = silent.max().expect("it waits");
            assert!(silence > Duration::from_secs(2), "{kind} waits for {silence:?} only");
            continue;
        }
        let figures = Figures::of(late, dark);
        assert!(figures.failed > 0 && figures.failed_with_retry > 0, "{kind} sees failures: {figures:?}");
        for failure in &figures.failures {
            assert!(failure.error.contains("no answer within"), "{kind} is told something: {}", failure.error);
        }
    }

    clusters.light_up("east")?;
    let back = now()?;
    for caller in callers.iter().filter(|caller| caller.kind() != Kind::WaitingStream) {
        let again = |attempts: &[Attempt]| attempts.iter().any(|attempt| attempt.began > back && is_answer(attempt));
        wait_for("an answer after the cluster is back", caller, again)?;
    }
    callers.iter_mut().try_for_each(Caller::stop)
}

#[test]
fn the_rules_of_a_kube_proxy_reach_every_pod_of_a_federated_service() -> Result<()> {
    let _alone = alone();
    let Some(clusters) = &mut clusters()? else { return Ok(()) };
    clusters.start_kube_proxy_client("west", "frontend-federated")?;
    // Again, for pods that have changed since.
    clusters.start_kube_proxy_client("west", "frontend-federated")?;
    let addresses = clusters.service_addresses("west", "frontend-federated").both();
    let service = addresses.map(|address| SocketAddr::new(address, SERVICE_PORT));
    let all = |attempts: &[Attempt]| {
        let from: BTreeSet<_> = attempts.iter().filter_map(cluster).collect();
        from == BTreeSet::from(NAMES)
    };
    for kind in [Kind::NewConnections, Kind::Stream, Kind::ConnectedUdp] {
        let mut caller = call(clusters, KUBE_PROXY_CLIENT, &service, kind)?;
        wait_for("answers from all clusters", &caller, all)?;
        caller.stop()?;
        let figures = Figures::of(&caller.take(), Duration::ZERO);
        assert_eq!((figures.failed, figures.other_peer), (0, 0), "{kind}: {:?}", figures.failures);
    }
    let mut without = call(clusters, "client", &service, Kind::NewConnections)?;
    wait_for("a failure without the rules", &without, |attempts| !attempts.is_empty())?;
    without.stop()?;
    assert!(!without.take().iter().any(is_answer), "nothing else translates");
    Ok(())
}

/// Clusters have the names of their process, so there can be one set of them at a time. Dropped after them, it takes
/// away what they leave to the process.
struct Alone(#[expect(dead_code, reason = "held until it is dropped")] MutexGuard<'static, ()>);

fn alone() -> Alone {
    static ALONE: Mutex<()> = Mutex::new(());
    Alone(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Err(error) = cleanup::remove_own() {
            eprintln!("{error:#}");
        }
    }
}

/// Clusters without agents, two pods each; none without root.
fn clusters() -> Result<Option<Clusters>> {
    if need_root().is_err() {
        eprintln!("skipped: needs root");
        return Ok(None);
    }
    let mut clusters =
        Clusters::build(Programs { lab: env!("CARGO_BIN_EXE_lab").into(), agent: None, agent_flags: Vec::new() })?;
    clusters.start_pods(&NAMES.map(|cluster| (cluster, "frontend", Network::Flat, 2)))?;
    Ok(Some(clusters))
}

fn call(clusters: &Clusters, pod: &str, targets: &[SocketAddr], kind: Kind) -> Result<Caller> {
    // So many that hardly ever a cluster of three has none of them: 3 × (2/3)⁴⁸.
    let calls = Calls { targets: targets.to_vec(), kind, rate: 40, connections: 48, timeout: TIMEOUT };
    clusters.call("west", pod, kind.to_string(), &calls)
}

fn wait_for(what: &str, caller: &Caller, seen: impl Fn(&[Attempt]) -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let attempts = caller.attempts(Duration::ZERO, Duration::MAX);
        if seen(&attempts) {
            return Ok(());
        }
        let last = attempts.last();
        anyhow::ensure!(Instant::now() < deadline, "{} has not seen {what}; the last attempt: {last:?}", caller.kind());
        sleep(Duration::from_millis(20));
    }
}

fn is_answer(attempt: &Attempt) -> bool {
    cluster(attempt).is_some()
}

fn cluster(attempt: &Attempt) -> Option<&str> {
    match &attempt.end {
        End::Answered(cluster) => Some(cluster),
        _ => None,
    }
}

fn sockets(clusters: &Clusters, cluster: &str) -> Vec<SocketAddr> {
    let pods = clusters.cluster(cluster).pods_of("frontend");
    pods.flat_map(|pod| pod.addresses().both()).map(|address| SocketAddr::new(address, POD_PORT)).collect()
}
