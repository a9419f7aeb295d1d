//! T12: a cluster's network is there for half a second and gone for half a second, for minutes. What agents make of it is
//! read from the kernel of the callers' node.

use super::{Args, Figure};
use anyhow::{Context, Result};
use lab::{
    addresses::Network,
    attempts::Figures,
    caller::Kind,
    clusters::{Calls, Clusters, NAMES, Programs},
    manifests::SERVICE_PORT,
    report::now,
};
use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};
use tombolo::{
    datapath::{KernelMaps, pins::Pins},
    tables::cluster_name,
};
use tombolo_ebpf::abi::verdict;

/// The cluster that flaps, and the one that calls it.
const FLAPS: &str = "east";
const CALLERS: &str = "west";
const SERVICE: &str = "frontend-federated";
/// How long it is there, and how long it is gone.
const HALF: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(20);
const MINUTE: Duration = Duration::from_secs(60);
const READY_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn play(args: &Args) -> Result<Vec<Figure>> {
    let beside = env::current_exe().context("find this program")?;
    let (lab, agent) = (beside.with_file_name("lab"), beside.with_file_name("tombolo"));
    let mut clusters = Clusters::build(Programs { lab, agent: Some(agent), agent_flags: Vec::new() })?;
    clusters.start_pods(&NAMES.map(|cluster| (cluster, "frontend", Network::Flat, 3)))?;
    clusters.publish()?;
    for agent in clusters.agents() {
        agent.wait_until_ready(READY_WITHIN)?;
    }
    let targets = clusters.service_addresses(CALLERS, SERVICE).both();
    let calls = Calls {
        targets: targets.map(|address| SocketAddr::new(address, SERVICE_PORT)).to_vec(),
        kind: Kind::NewConnections,
        rate: args.rate,
        connections: 1,
        timeout: Duration::from_millis(2500),
    };
    let mut caller = clusters.call(CALLERS, "client", "new connections".to_owned(), &calls)?;
    thread::sleep(Duration::from_secs(5));
    caller.take();
    let pins = Pins::new(clusters.cluster_mut(CALLERS).client_agent()?.pins());
    let maps = KernelMaps::open(&pins)?;

    let (began, struck) = (Instant::now(), now()?);
    let end = MINUTE * args.minutes;
    let (mut down, mut flips) = (read(&maps)?, BTreeMap::<String, Vec<Duration>>::new());
    let (mut dark, mut due) = (false, Duration::ZERO);
    while began.elapsed() < end {
        if began.elapsed() >= due {
            if dark {
                clusters.light_up(FLAPS)?
            } else {
                clusters.black_out(FLAPS)?
            }
            (dark, due) = (!dark, due + HALF);
        }
        let now = read(&maps)?;
        for (cluster, is_down) in &now {
            if down.get(cluster).is_some_and(|before| before != is_down) {
                flips.entry(cluster.clone()).or_default().push(began.elapsed());
            }
        }
        down = now;
        thread::sleep(LOOK);
    }
    clusters.light_up(FLAPS)?;
    caller.check()?;
    let figures = Figures::of(&caller.take(), struck);
    caller.stop()?;
    let mut crashed = 0;
    for agent in clusters.agents() {
        crashed += u64::from(!agent.is_running()?);
    }
    let most = flips.values().map(|flips| most_in_a_minute(flips)).max().unwrap_or(0);
    let of_others = flips.iter().filter(|(cluster, _)| *cluster != FLAPS).map(|(_, flips)| flips.len() as u64).sum();
    clusters.agents().try_for_each(|agent| agent.unload())?;
    Ok(vec![
        Figure::count("minutes", args.minutes.into()),
        Figure::count("verdicts that changed, in all", flips.values().map(|flips| flips.len() as u64).sum()),
        Figure::count("at most in a minute, of one cluster", most).at_most(12.0),
        Figure::count("of clusters that didn't flap", of_others).none(),
        Figure::count("agents that ended", crashed).none(),
        Figure::count("requests", figures.requests),
        Figure::count("failed", figures.failed),
        Figure::count("failed in spite of a retry", figures.failed_with_retry),
    ])
}

/// Which clusters are down, as programs see it.
fn read(maps: &KernelMaps) -> Result<BTreeMap<String, bool>> {
    let clusters = maps.clusters()?;
    Ok(clusters.values().map(|entry| (cluster_name(entry).0, entry.verdict == verdict::DEAD)).collect())
}

fn most_in_a_minute(flips: &[Duration]) -> u64 {
    let within = |from: &Duration| flips.iter().filter(|at| (*from..*from + MINUTE).contains(at)).count() as u64;
    flips.iter().map(within).max().unwrap_or(0)
}
