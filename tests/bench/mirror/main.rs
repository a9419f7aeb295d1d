//! How long a mirror takes: from what two peers export to what is there, from a peer's slice to ours, and from there to an
//! agent's tables; and with `--scale`, what a large peer costs.
//!
//! Real API servers, and the programs `tombolo mirror` and `tombolo agent` as they run in a cluster, all on this machine, in a
//! network namespace of its own. `cargo xtask bench mirror` builds all of it in release and runs this. Without root there is neither a
//! namespace nor an agent.

mod changes;
mod figures;
mod peers;
mod programs;
mod scale;
#[path = "../../cluster/server.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod server;
mod world;

use anyhow::{Context, bail, ensure};
use changes::{Load, changes};
use figures::milliseconds;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use lab::netns::{Netns, need_root};
use peers::Batch;
use programs::{Agent, Mirror};
use serde_json::{Value, json};
use server::Server;
use std::{
    env, fs, io,
    net::{Ipv4Addr, TcpListener},
    process::Command,
    thread,
};
use tokio::time::Instant;

const NAMESPACE: &str = "shop";
/// Requests that are on their way to a peer at once while it is filled.
const AT_ONCE: usize = 8;

struct Wanted {
    flat: usize,
    federated: usize,
    load: Load,
    /// Services of a large peer, if that is to be measured instead, and endpoints of each.
    scale: Option<usize>,
    endpoints: usize,
    json: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let wanted = Wanted::of(env::args().skip(1))?;
    let figures = match need_root() {
        Ok(()) => Netns::anonymous()?.run(|| pods().and_then(|()| run(&wanted, true)))??,
        Err(_) => {
            eprintln!("without root there is no agent: only the mirror is measured");
            run(&wanted, false)?
        }
    };
    let Some(figures) = figures else { return Ok(()) };
    println!("{figures:#}");
    if let Some(file) = &wanted.json {
        fs::write(file, figures.to_string()).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

/// Has somebody answer at the address of every pod: the agent's health checks are to find all in order.
fn pods() -> anyhow::Result<()> {
    let made = Command::new("ip").args(["route", "add", "local", "10.0.0.0/8", "dev", "lo"]).status().context("ip")?;
    ensure!(made.success(), "ip route: {made}");
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).context("listen for pods")?;
    thread::spawn(move || listener.incoming().for_each(|stream: io::Result<_>| drop(stream)));
    Ok(())
}

fn run(wanted: &Wanted, has_agent: bool) -> anyhow::Result<Option<Value>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Wanted { load, endpoints, .. } = *wanted;
    match wanted.scale {
        Some(services) => {
            let world = world::measure(services, endpoints)?;
            eprintln!("world {world}");
            let scale = scale::Wanted { services, endpoints, load, has_agent };
            let measured = runtime.block_on(scale::measure(&scale))?;
            Ok(measured.map(|measured| json!({"world": world, "scale": measured})))
        }
        None => runtime.block_on(measure(wanted, has_agent)),
    }
}

impl Wanted {
    fn of(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let load = Load { rate: 300, seconds: 30 };
        let mut wanted = Self { flat: 200, federated: 100, load, scale: None, endpoints: 20, json: None };
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--flat" => wanted.flat = value()?.parse()?,
                "--federated" => wanted.federated = value()?.parse()?,
                "--rate" => wanted.load.rate = value()?.parse()?,
                "--seconds" => wanted.load.seconds = value()?.parse()?,
                "--scale" => wanted.scale = Some(value()?.parse()?),
                "--endpoints" => wanted.endpoints = value()?.parse()?,
                "--json" => wanted.json = Some(value()?),
                // cargo's own.
                "--bench" => {}
                other => {
                    bail!("{other} is none of --flat, --federated, --rate, --seconds, --scale, --endpoints, --json")
                }
            }
        }
        Ok(wanted)
    }
}

/// Makes the namespace that everything is in.
async fn namespace(client: &Client) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    Ok(())
}

async fn measure(wanted: &Wanted, has_agent: bool) -> anyhow::Result<Option<Value>> {
    let mut servers = Vec::new();
    for _ in 0..3 {
        let Some(server) = Server::start().await? else { return Ok(None) };
        namespace(&server.client(0, "admin").await?).await?;
        servers.push(server);
    }
    let [west, east, north] = &servers[..] else { bail!("three servers") };
    let (own, east_api, north_api) =
        (west.client(0, "admin").await?, east.client(0, "admin").await?, north.client(0, "admin").await?);
    let batch = |stem: &'static str, services: usize, labels: Value, octet: u8| Batch {
        stem,
        services,
        endpoints: 1,
        labels,
        octet,
    };
    let exported = json!({"mirror.linkerd.io/exported": "remote-discovery"});
    let flat = batch("flat", wanted.flat, exported.clone(), 108);
    flat.fill(&east_api, AT_ONCE).await?;

    let mirror = Mirror::start(west, &[("east", east), ("north", north)])?;
    let mut agent = has_agent.then(|| Agent::start(west)).transpose()?;
    let began = mirror.leads().await?;
    let listed = flat.until_mirrored(&own, "-east", 1, began).await?;

    let began = Instant::now();
    let member = json!({"mirror.linkerd.io/federated": "member"});
    let federated = batch("fed", wanted.federated, member.clone(), 109);
    federated.fill(&east_api, AT_ONCE).await?;
    batch("fed", wanted.federated, member, 116).fill(&north_api, AT_ONCE).await?;
    let filled = Instant::now();
    let since_first = federated.until_mirrored(&own, "-federated", 2, began).await?;
    let since_last = filled.elapsed();

    // Labels that are set on Services which are there already, all at once.
    let late = batch("late", wanted.flat, json!({}), 110);
    late.fill(&east_api, AT_ONCE).await?;
    let began = Instant::now();
    let services: Api<Service> = Api::namespaced(east_api.clone(), NAMESPACE);
    let label = Patch::Merge(json!({"metadata": {"labels": exported}}));
    let names: Vec<String> = (0..wanted.flat).map(|number| format!("late-{number}")).collect();
    stream::iter(&names)
        .map(async |name| anyhow::Ok(services.patch(name, &PatchParams::default(), &label).await.map(drop)?))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    let labelled = began.elapsed();
    let late = late.until_mirrored(&own, "-east", 1, began).await?;

    let changes = changes(&own, &east_api, (&flat, "-east"), wanted.load, agent.as_ref()).await?;
    let agents = agent.as_ref().map(Agent::usage).transpose()?.map(|usage| usage.figures());
    if let Some(agent) = &mut agent {
        agent.check()?;
    }
    if let Some(agent) = agent {
        agent.stop()?;
    }
    Ok(Some(json!({
        "flat": {"services": wanted.flat, "listed_ms": milliseconds(listed), "labelled_within_ms": milliseconds(labelled),
            "labelled_ms": milliseconds(late)},
        "federated": {"services": wanted.federated, "links": 2, "since_first_ms": milliseconds(since_first),
            "since_last_ms": milliseconds(since_last)},
        "changes": changes,
        "mirror": mirror.usage()?.figures(),
        "agent": agents,
    })))
}
