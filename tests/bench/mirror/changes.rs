//! How long a change of a peer's slice takes until it is in ours, and from there until the agent's tables have it.

use crate::{
    NAMESPACE, figures,
    peers::{Batch, address},
    programs::{Agent, PATIENCE, frontends, has},
};
use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::mpsc as blocking,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    task::JoinHandle as Task,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tombolo::datapath::KernelMaps;
use tombolo_ebpf::abi::FrontendKey;

/// Addresses that endpoints get by changes begin with 10.120 or more.
pub(crate) const NEW: u8 = 120;
/// After so long without news nothing is on its way any more.
const QUIET: Duration = Duration::from_secs(5);
/// How often the tables are looked at.
const LOOK: Duration = Duration::from_micros(500);

/// Changes that are made at an even rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// A second.
    pub(crate) rate: u32,
    pub(crate) seconds: u64,
}

/// What is to become of one change, or has.
struct Marked {
    owner: String,
    address: Ipv4Addr,
    at: Instant,
}

/// Changes slices of the peer, and watches ours and the agent's tables: how long each change took, from the answer to
/// the peer's write on, and from our slice at a client on.
///
/// A change that a later one of the same slice overtakes has come when that one has.
pub(crate) async fn changes(
    own: &Client,
    peer: &Client,
    (batch, suffix): (&Batch, &str),
    load: Load,
    agent: Option<&Agent>,
) -> anyhow::Result<Value> {
    let (mut news, watching) = watch(own).await?;
    let tables = match agent {
        Some(agent) => Some(Tables::watch(agent, frontends(own).await?)?),
        None => None,
    };
    let (made, mut writes) = mpsc::unbounded_channel();
    let slices: Api<EndpointSlice> = Api::namespaced(peer.clone(), NAMESPACE);
    let total = usize::try_from(u64::from(load.rate) * load.seconds)?;
    let mut tick = interval(Duration::from_secs(1) / load.rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut waiting = Waiting::default();
    let mut early: BTreeMap<(String, Ipv4Addr), Instant> = BTreeMap::new();
    let (mut started, mut written) = (0, 0);
    let mut last = Instant::now();
    let deadline = Instant::now() + Duration::from_secs(load.seconds) + PATIENCE;
    while written < total || !waiting.is_empty() {
        // Answers may come in another order than their writes were done: what was overtaken so is never seen.
        if written == total && last.elapsed() > QUIET {
            break;
        }
        ensure!(Instant::now() < deadline, "{written} of {total} written, {} on their way", waiting.count());
        ensure!(!watching.is_finished(), "the watch ended");
        tokio::select! {
            _ = tick.tick(), if started < total => {
                let number = started % batch.services;
                let address = address(NEW, started);
                let body = json!({"endpoints": batch.endpoints_of(number, Some(address))});
                let (name, owner) = (format!("{}-{number}-1", batch.stem), format!("{}-{number}{suffix}", batch.stem));
                started += 1;
                let (slices, made) = (slices.clone(), made.clone());
                tokio::spawn(async move {
                    let done = slices.patch(&name, &PatchParams::default(), &Patch::Merge(body)).await;
                    drop(made.send((Marked { owner, address, at: Instant::now() }, done.map(drop))));
                });
            }
            Some((change, done)) = writes.recv() => {
                done?;
                written += 1;
                // Ours may be seen before the answer is.
                let seen = early.remove(&(change.owner.clone(), change.address));
                let (owner, address) = (change.owner.clone(), change.address);
                waiting.push(change);
                if let Some(at) = seen {
                    waiting.came(&Marked { owner, address, at });
                }
            }
            Some(seen) = news.recv() => {
                last = seen.at;
                if !waiting.came(&seen) {
                    early.insert((seen.owner.clone(), seen.address), seen.at);
                }
                if let Some(tables) = &tables {
                    tables.expect(seen);
                }
            }
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
    watching.abort();
    let mut measured = json!({
        "wanted_a_second": load.rate, "seconds": load.seconds, "made": waiting.latencies.len(),
        "to_slice": figures::spread(waiting.latencies),
    });
    if let Some(tables) = tables {
        measured["slice_to_map"] = figures::spread(tables.end()?);
    }
    Ok(measured)
}

/// Watches our slices: the addresses that are of a change.
async fn watch(own: &Client) -> anyhow::Result<(mpsc::UnboundedReceiver<Marked>, Task<anyhow::Result<()>>)> {
    let (seen, news) = mpsc::unbounded_channel();
    let watched: Api<EndpointSlice> = Api::namespaced(own.clone(), NAMESPACE);
    let version =
        watched.list(&ListParams::default().limit(1)).await?.metadata.resource_version.context("a version")?;
    let watching = tokio::spawn(async move {
        let mut events = watched.watch(&WatchParams::default(), &version).await?.boxed();
        while let Some(event) = events.try_next().await? {
            let (WatchEvent::Added(slice) | WatchEvent::Modified(slice)) = event else { continue };
            let owner = slice.labels().get("kubernetes.io/service-name").cloned().unwrap_or_default();
            let addresses = slice.endpoints.iter().filter_map(|endpoint| endpoint.addresses[0].parse().ok());
            for address in addresses.filter(|address: &Ipv4Addr| address.octets()[1] >= NEW) {
                drop(seen.send(Marked { owner: owner.clone(), address, at: Instant::now() }));
            }
        }
        Ok(())
    });
    Ok((news, watching))
}

/// Changes that are on their way, by the Service that they are of, and how long the others took.
#[derive(Default)]
struct Waiting {
    by_owner: BTreeMap<String, Vec<(Ipv4Addr, Instant)>>,
    latencies: Vec<Duration>,
}

impl Waiting {
    fn push(&mut self, change: Marked) {
        self.by_owner.entry(change.owner).or_default().push((change.address, change.at));
    }

    /// It has come, and all of its Service before it; false if it isn't on its way.
    fn came(&mut self, seen: &Marked) -> bool {
        let Some(waiting) = self.by_owner.get_mut(&seen.owner) else { return false };
        let Some(place) = waiting.iter().position(|(known, _)| *known == seen.address) else { return false };
        let came = waiting.drain(..=place).map(|(_, since)| seen.at.saturating_duration_since(since));
        self.latencies.extend(came);
        if waiting.is_empty() {
            self.by_owner.remove(&seen.owner);
        }
        true
    }

    fn count(&self) -> usize {
        self.by_owner.values().map(Vec::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.by_owner.is_empty()
    }
}

/// A thread that looks up frontends in the agent's tables, as programs do.
struct Tables {
    told: blocking::Sender<Marked>,
    thread: JoinHandle<anyhow::Result<Vec<Duration>>>,
}

impl Tables {
    fn watch(agent: &Agent, frontends: BTreeMap<String, FrontendKey>) -> anyhow::Result<Self> {
        let maps = filled(agent, &frontends)?;
        let (told, asked) = blocking::channel();
        Ok(Self { told, thread: thread::spawn(move || look(&maps, &frontends, &asked)) })
    }

    /// Has it look for this address from now on.
    fn expect(&self, seen: Marked) {
        // A thread that has ended says why at the end.
        self.told.send(seen).ok();
    }

    fn end(self) -> anyhow::Result<Vec<Duration>> {
        drop(self.told);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that reads the tables panicked"))?
    }
}

/// The agent's tables, once all these frontends lead somewhere.
fn filled(agent: &Agent, frontends: &BTreeMap<String, FrontendKey>) -> anyhow::Result<KernelMaps> {
    let began = Instant::now();
    loop {
        if let Ok(maps) = KernelMaps::open(&agent.pins()) {
            let leads = |key| Ok(!maps.reached(key)?.is_empty());
            let all: Vec<bool> = frontends.values().map(leads).collect::<anyhow::Result<_>>()?;
            if all.iter().all(|leads| *leads) {
                return Ok(maps);
            }
        }
        ensure!(began.elapsed() < PATIENCE, "the agent's tables are not filled: {}", agent.log()?);
        thread::sleep(LOOK * 100);
    }
}

fn look(
    maps: &KernelMaps,
    frontends: &BTreeMap<String, FrontendKey>,
    asked: &blocking::Receiver<Marked>,
) -> anyhow::Result<Vec<Duration>> {
    let mut waiting = Waiting::default();
    let mut last = Instant::now();
    loop {
        if waiting.is_empty() {
            match asked.recv() {
                Ok(seen) => waiting.push(seen),
                Err(_) => return Ok(waiting.latencies),
            }
            last = Instant::now();
        }
        let is_over = loop {
            match asked.try_recv() {
                Ok(seen) => waiting.push(seen),
                Err(blocking::TryRecvError::Empty) => break false,
                Err(blocking::TryRecvError::Disconnected) => break true,
            }
        };
        let mut came = Vec::new();
        for (owner, changes) in &waiting.by_owner {
            let key = frontends.get(owner).with_context(|| format!("{owner} has no address"))?;
            let reached = maps.reached(key)?;
            let newest = changes.iter().rev().find(|(address, _)| has(&reached, *address));
            came.extend(newest.map(|(address, _)| Marked {
                owner: owner.clone(),
                address: *address,
                at: Instant::now(),
            }));
        }
        for seen in came {
            last = seen.at;
            waiting.came(&seen);
        }
        ensure!(!is_over || waiting.is_empty() || last.elapsed() < QUIET * 4, "{} not in the tables", waiting.count());
        thread::sleep(LOOK);
    }
}
