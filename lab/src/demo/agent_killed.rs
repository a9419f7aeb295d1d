//! The agent dies and comes back; the data path stays.

use super::{
    READY_WITHIN, Scene,
    shares::{by_endpoint, check},
    stage::Stage,
};
use crate::manifests::SERVICE_PORT;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

pub(super) const SCENE: Scene = Scene {
    name: "agent-killed",
    shows: "west's agent is killed under load: its kernel goes on; restarted, it catches up with what it missed",
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<()> {
    let mut without = by_endpoint();
    without.remove("north");

    stage.ask_everywhere("frontend-federated")?;
    stage.watch(Duration::from_secs(1))?;
    stage.clusters.cluster_mut("west").client_agent()?.kill()?;
    let before = stage.report("west");
    stage.watch(Duration::from_secs(2))?;
    let dead = stage.report("west").since(&before);
    check("west while its agent is dead", &dead.by_cluster, &by_endpoint())?;
    stage.said.fact("requests_while_dead", dead.requests);

    let address = stage.clusters.service_addresses("west", "frontend-federated").v4;
    let services = stage.clusters.cluster_mut("west").client_agent()?.services()?;
    let backends = backends(&services, SocketAddr::new(address.into(), SERVICE_PORT))
        .with_context(|| format!("tombolo services knows nothing of {address} while the agent is dead: {services}"))?;
    ensure!(backends == 6, "tombolo services lists {backends} of 6 backends while the agent is dead");
    stage.said.fact("backends_listed_while_dead", backends);

    stage.clusters.mirroring.withdrawn.insert("north".to_owned());
    stage.clusters.publish()?;
    let restart = Instant::now();
    let agent = stage.clusters.cluster_mut("west").client_agent()?;
    agent.start()?;
    agent.wait_until_ready(READY_WITHIN)?;
    let ready = restart.elapsed();
    stage.settle("frontend-federated", &without, &["west"])?;
    stage.watch(Duration::from_millis(300))?;
    let before = stage.report("west");
    stage.watch(Duration::from_secs(2))?;
    check("west with its agent back", &stage.report("west").since(&before).by_cluster, &without)?;
    stage.stop()?;
    stage.said.fact_ms("ready_again_ms", ready);
    stage.said.note(format!(
        "{} requests while it was dead; ready again {} ms after its start",
        dead.requests,
        ready.as_millis()
    ));
    Ok(())
}

/// How many backends `tombolo services -o json` lists for `address` (TCP).
fn backends(services: &Value, address: SocketAddr) -> Option<usize> {
    let address = address.to_string();
    let is_it = |service: &&Value| service["address"] == address.as_str() && service["protocol"] == "TCP";
    Some(services["services"].as_array()?.iter().find(is_it)?["backends"].as_array()?.len())
}
