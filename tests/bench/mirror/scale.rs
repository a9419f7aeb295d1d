//! What a large peer costs: 5,000 exported Services with 20 endpoints each, unless others are wanted.
//!
//! Both clusters are real API servers. The mirror imports all of the peer, an agent starts on what it made of it, slices
//! change at an even rate, then both API servers forget their history and restart, and the mirror restarts. Of each part
//! there is the time that it took, what the programs had in memory at most, and the processor time, which doesn't depend on what
//! else the machine does.

use crate::{
    changes::{Load, changes},
    figures::milliseconds,
    namespace,
    peers::Batch,
    programs::{Agent, Mirror, PATIENCE, Usage, frontends},
    server::Server,
};
use anyhow::{Context, ensure};
use kube::Client;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tombolo::datapath::KernelMaps;

/// Requests that are on their way to the peer at once while it is filled.
const AT_ONCE: usize = 24;
const SUFFIX: &str = "-federated";
/// A program that uses less processor time than that in a second has nothing to do but its rounds.
const IDLE: Duration = Duration::from_millis(60);

/// How large the peer is, and how it changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) services: usize,
    pub(crate) endpoints: usize,
    pub(crate) load: Load,
    /// Whether an agent can be started.
    pub(crate) has_agent: bool,
}

pub(crate) async fn measure(wanted: &Wanted) -> anyhow::Result<Option<Value>> {
    let (Some(mut west), Some(mut east)) = (Server::start().await?, Server::start().await?) else { return Ok(None) };
    let (own, peer) = (west.client(0, "admin").await?, east.client(0, "admin").await?);
    namespace(&own).await?;
    namespace(&peer).await?;
    let batch = Batch {
        stem: "shop",
        services: wanted.services,
        endpoints: wanted.endpoints,
        labels: json!({"mirror.linkerd.io/federated": "member"}),
        octet: 100,
    };
    let began = Instant::now();
    batch.fill(&peer, AT_ONCE).await?;
    eprintln!("peer filled in {:.1?}", began.elapsed());

    let mirror = Mirror::start(&west, &[("east", &east)])?;
    let began = mirror.leads().await?;
    let written = batch.until_mirrored(&own, SUFFIX, wanted.endpoints, began).await?;
    let import = json!({"written_ms": milliseconds(written), "mirror": mirror.usage()?.figures()});
    eprintln!("import {import}");

    let mut agent = None;
    let mut full = Value::Null;
    if wanted.has_agent {
        let (started, figures) = full_map(&west, &own, wanted).await?;
        eprintln!("agent {figures}");
        (agent, full) = (Some(started), figures);
    }

    idle(&mirror, agent.as_ref()).await?;
    mirror.usage()?.forget_peak()?;
    let before = (mirror.usage()?, usage(agent.as_ref())?);
    let mut changed = changes(&own, &peer, (&batch, SUFFIX), wanted.load, agent.as_ref()).await?;
    changed["mirror"] = mirror.usage()?.since(&before.0);
    if let (Some(after), Some(before)) = (usage(agent.as_ref())?, &before.1) {
        changed["agent"] = after.since(before);
    }
    eprintln!("changes {changed}");

    idle(&mirror, agent.as_ref()).await?;
    let (quiet, seconds) = (mirror.usage()?, Duration::from_secs(10));
    let quiet_agent = usage(agent.as_ref())?;
    sleep(seconds).await;
    let mut quiet = json!({"seconds": seconds.as_secs(), "mirror": mirror.usage()?.since(&quiet)});
    if let (Some(after), Some(before)) = (usage(agent.as_ref())?, &quiet_agent) {
        quiet["agent"] = after.since(before);
    }
    eprintln!("quiet {quiet}");

    let before = (mirror.usage()?, usage(agent.as_ref())?);
    for server in [&mut west, &mut east] {
        server.forget_history()?;
        server.kill_api(0)?;
        server.start_api(0).await?;
    }
    // Watches that failed wait a moment before they list.
    sleep(Duration::from_secs(20)).await;
    idle(&mirror, agent.as_ref()).await?;
    let mut relisted = json!({"mirror": mirror.usage()?.since(&before.0), "writes": writes(&own).await?});
    if let (Some(after), Some(before)) = (usage(agent.as_ref())?, &before.1) {
        relisted["agent"] = after.since(before);
    }
    eprintln!("relisted {relisted}");

    mirror.stop()?;
    let written = writes(&own).await?;
    let mirror = Mirror::start(&west, &[("east", &east)])?;
    mirror.says("peer listed").await?;
    idle(&mirror, agent.as_ref()).await?;
    let restarted = json!({"writes": writes(&own).await? - written, "mirror": mirror.usage()?.figures()});
    eprintln!("restarted {restarted}");
    if let Some(agent) = &mut agent {
        agent.check()?;
    }
    if let Some(agent) = agent {
        agent.stop()?;
    }
    Ok(Some(json!({
        "services": wanted.services, "endpoints": wanted.services * wanted.endpoints, "import": import, "agent": full,
        "changes": changed, "quiet": quiet, "relisted": relisted, "restarted": restarted,
    })))
}

/// Starts an agent, and waits until every frontend leads to all of its endpoints.
async fn full_map(west: &Server, own: &Client, wanted: &Wanted) -> anyhow::Result<(Agent, Value)> {
    let frontends = frontends(own).await?;
    let mut missing: Vec<_> = frontends.values().copied().collect();
    ensure!(missing.len() == wanted.services, "{} frontends for {} Services", missing.len(), wanted.services);
    let began = Instant::now();
    let mut agent = Agent::start(west)?;
    let mut synced = None;
    let mut maps = None;
    while let Some(key) = missing.last() {
        ensure!(began.elapsed() < PATIENCE, "{} frontends are missing: {}", missing.len(), agent.log()?);
        agent.check()?;
        if synced.is_none() && agent.log()?.contains("source synced") {
            synced = Some(began.elapsed());
        }
        if maps.is_none() {
            maps = KernelMaps::open(&agent.pins()).ok();
        }
        let reached = maps.as_ref().map_or(Ok(0), |maps| maps.reached(key).map(|reached| reached.len()))?;
        if reached == wanted.endpoints {
            missing.pop();
        } else {
            sleep(Duration::from_millis(5)).await;
        }
    }
    let full = began.elapsed();
    let synced = synced.context("the agent doesn't say that it has listed everything")?;
    let figures = json!({
        "since_start_ms": milliseconds(full), "since_list_ms": milliseconds(full.saturating_sub(synced)),
        "agent": agent.usage()?.figures(), "maps_kib": agent.maps_kib()?,
    });
    Ok((agent, figures))
}

fn usage(agent: Option<&Agent>) -> anyhow::Result<Option<Usage>> {
    agent.map(Agent::usage).transpose()
}

/// Waits until neither has anything to do.
async fn idle(mirror: &Mirror, agent: Option<&Agent>) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut quiet = 0;
    while quiet < 3 {
        ensure!(began.elapsed() < PATIENCE, "the mirror or the agent doesn't come to rest");
        let before = (mirror.usage()?, usage(agent)?);
        sleep(Duration::from_secs(1)).await;
        let after = (mirror.usage()?, usage(agent)?);
        let agents = after.1.zip(before.1).map_or(Duration::ZERO, |(after, before)| after.cpu_since(&before));
        // The agent compares its tables with the kernel's every few seconds, and that takes more when they are large.
        quiet = if after.0.cpu_since(&before.0) < IDLE && agents < IDLE * 10 { quiet + 1 } else { 0 };
    }
    Ok(())
}

/// How many requests the API server has had that change Services, slices, or imports.
async fn writes(own: &Client) -> anyhow::Result<i64> {
    const VERBS: [&str; 6] = ["APPLY", "PATCH", "POST", "PUT", "DELETE", "DELETECOLLECTION"];
    const KINDS: [&str; 3] = ["services", "endpointslices", "serviceimports"];
    let text = own.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
    let mut count = 0.0;
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let has =
            |label: &str, values: &[&str]| values.iter().any(|value| line.contains(&format!("{label}=\"{value}\"")));
        if has("verb", &VERBS) && has("resource", &KINDS) {
            count += line.rsplit(' ').next().context("a number")?.parse::<f64>()?;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "a count")]
    Ok(count as i64)
}
