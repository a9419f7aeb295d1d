//! T13: all peers go dark at once, or the node's own uplink does. Either may be the node's own fault, so nothing is
//! removed, and the agent says what it holds.

use super::{Args, Figure};
use anyhow::{Context, Result, ensure};
use lab::{
    addresses::Network,
    attempts::ms,
    clusters::{Clusters, NAMES, Programs},
    manifests::SERVICE_PORT,
};
use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

/// The cluster whose agent is asked, and whose client calls.
const HERE: &str = "west";
const SERVICE: &str = "frontend-federated";
/// How often each goes dark, for how long, and how long all gets to be as before.
const TIMES: usize = 5;
const LASTS: Duration = Duration::from_secs(10);
const WELL_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn play(_: &Args) -> Result<Vec<Figure>> {
    let beside = env::current_exe().context("find this program")?;
    let (lab, agent) = (beside.with_file_name("lab"), beside.with_file_name("tombolo"));
    let mut clusters = Clusters::build(Programs { lab, agent: Some(agent), agent_flags: Vec::new() })?;
    clusters.start_pods(&NAMES.map(|cluster| (cluster, "frontend", Network::Flat, 3)))?;
    clusters.publish()?;
    for agent in clusters.agents() {
        agent.wait_until_ready(WELL_WITHIN)?;
    }
    // Canaries count once they have answered.
    thread::sleep(Duration::from_secs(10));
    let link = clusters.cluster(HERE).client().node().to_owned();
    let peers = || NAMES.into_iter().filter(|name| *name != HERE);
    let mut figures = Vec::new();
    for uplink in [false, true] {
        let (mut slowest, mut changed) = (Duration::ZERO, 0);
        for _ in 0..TIMES {
            all_are(&mut clusters, "up")?;
            let before = tables(&mut clusters)?;
            ensure!(before.0.len() == NAMES.len(), "not all clusters serve: {before:?}");
            let struck = Instant::now();
            if uplink {
                clusters.fabric().down(&link)?;
            } else {
                peers().try_for_each(|peer| clusters.black_out(peer))?;
            }
            let held = all_are(&mut clusters, "held");
            let alarm = struck.elapsed();
            while held.is_ok() && struck.elapsed() < LASTS {
                changed += u64::from(tables(&mut clusters)? != before);
                thread::sleep(10 * LOOK);
            }
            if uplink {
                clusters.fabric().up(&link)?;
            } else {
                peers().try_for_each(|peer| clusters.light_up(peer))?;
            }
            held?;
            slowest = slowest.max(alarm);
        }
        let by = if uplink { "the own uplink is down" } else { "all peers are dark" };
        figures.push(Figure::new(format!("slowest alarm of {TIMES}, ms: {by}"), ms(slowest)).at_most(5000.0));
        figures.push(Figure::count(format!("looks that found other tables: {by}"), changed).none());
    }
    clusters.agents().try_for_each(|agent| agent.unload())?;
    Ok(figures)
}

/// Waits until the agent says this of all peers' health.
fn all_are(clusters: &mut Clusters, state: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = clusters.cluster_mut(HERE).client_agent()?.status();
        // A busy agent may not answer in time.
        let known = status.as_ref().ok().and_then(|status| status["clusters"].as_object());
        let is =
            |name: &str| known.is_some_and(|known| known.get(name).is_some_and(|row| row["health"]["state"] == state));
        if NAMES.into_iter().filter(|name| *name != HERE).all(is) {
            return Ok(());
        }
        ensure!(began.elapsed() < WELL_WITHIN, "not all are {state}: {status:?}");
        thread::sleep(LOOK);
    }
}

/// The share of each cluster in what the kernel has of the service, and the clusters that are taken out.
fn tables(clusters: &mut Clusters) -> Result<(BTreeMap<String, f64>, Vec<String>)> {
    let address = SocketAddr::new(clusters.service_addresses(HERE, SERVICE).v4.into(), SERVICE_PORT);
    let agent = clusters.cluster_mut(HERE).client_agent()?;
    let shares = agent.shares(address)?.context("the service is installed")?;
    let status = agent.status()?;
    let clusters = status["clusters"].as_object().context("the agent knows of clusters")?;
    let out = clusters.iter().filter(|(_, row)| row["verdict"] == "down").map(|(name, _)| name.clone());
    Ok((shares, out.collect()))
}
