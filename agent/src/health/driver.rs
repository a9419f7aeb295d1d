//! Runs [`Health`]: hands it the time, facts and probes' outcomes, and tells others what it decides.

use super::{Changed, ClusterView, Event, Findings, Health, Signs, Used, View, prober, uplink::Uplink};
use crate::model::{ClusterName, PeerState};
use anyhow::Context;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

/// How often it is looked whether the uplink is up.
const LOOK: Duration = Duration::from_millis(500);
/// How old what people see may be.
const SHOW: Duration = Duration::from_millis(200);

/// Something that the driver is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The tables use these now. To be sent when that changes, once a second at most.
    Used(Arc<Used>),
    /// The kernel reported these, in order.
    Events(Vec<Event>),
    /// The mirror says this of peers; of those not named it said nothing.
    Peers(BTreeMap<ClusterName, PeerState>),
}

/// What the driver needs, and where its decisions go.
pub struct Driver<S> {
    health: Health,
    signs: S,
    facts: mpsc::Receiver<Fact>,
    changed: watch::Sender<Changed>,
    views: watch::Sender<View>,
    peers: BTreeMap<ClusterName, PeerState>,
    /// What was last logged of each path.
    told: BTreeMap<(String, String), String>,
    findings: Findings,
    shown: Option<Instant>,
}

impl<S: Signs> Driver<S> {
    /// `seed` should differ between nodes. `changed` always holds all that is decided (see [`Changed`] for how to carry it
    /// out), `views` the same for people.
    pub fn new(
        seed: u64,
        signs: S,
        facts: mpsc::Receiver<Fact>,
        changed: watch::Sender<Changed>,
        views: watch::Sender<View>,
    ) -> Self {
        let (peers, told, findings) = (BTreeMap::new(), BTreeMap::new(), Findings::default());
        Self { health: Health::new(seed), signs, facts, changed, views, peers, told, findings, shown: None }
    }

    /// Runs until nobody sends facts any more.
    ///
    /// # Errors
    ///
    /// A probe's task panicked.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut probes = JoinSet::new();
        let mut uplink = Uplink::default();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for probe in self.health.poll(&self.signs, Instant::now()) {
                probes.spawn(prober::run(probe));
            }
            self.publish(Instant::now());
            let next = self.health.next(Instant::now());
            tokio::select! {
                fact = self.facts.recv() => {
                    let Some(fact) = fact else { return Ok(()) };
                    self.take_in(fact);
                }
                Some(ended) = probes.join_next() => {
                    let (id, outcome) = ended.context("run a probe")?;
                    self.health.probed(id, outcome, Instant::now());
                }
                () = sleep_until(next.into()) => {}
                _ = look.tick() => self.health.uplink(uplink.is_up(), Instant::now()),
            }
            // Whatever woke us: a poll that is late takes what hasn't ended for our own fault.
            while let Some(ended) = probes.try_join_next() {
                let (id, outcome) = ended.context("run a probe")?;
                self.health.probed(id, outcome, Instant::now());
            }
        }
    }

    fn take_in(&mut self, fact: Fact) {
        match fact {
            Fact::Used(used) => self.health.use_these(used, &self.signs, Instant::now()),
            Fact::Events(events) => {
                let now = Instant::now();
                for event in events {
                    self.findings.event(event);
                    self.health.event(event, &self.signs, now);
                }
            }
            Fact::Peers(peers) => {
                let gone = self.peers.keys().filter(|name| !peers.contains_key(name)).cloned();
                let gone: Vec<ClusterName> = gone.collect();
                for name in gone {
                    self.health.peer(name, PeerState::Fresh);
                }
                for (name, state) in &peers {
                    self.health.peer(name.clone(), *state);
                }
                self.peers = peers;
            }
        }
    }

    /// Tells what is decided, at once if it is new, and people now and then.
    fn publish(&mut self, now: Instant) {
        let changed = self.health.changed(now);
        let is_new = self.changed.send_if_modified(|known| {
            let is_new = *known != changed;
            if is_new {
                self.findings.decided(known, &changed);
                *known = changed;
            }
            is_new
        });
        if is_new || self.shown.is_none_or(|shown| now.saturating_duration_since(shown) >= SHOW) {
            self.shown = Some(now);
            let clusters = self.health.view(now);
            self.log(&clusters);
            self.views.send_replace(View { clusters, findings: self.findings });
        }
    }

    /// What an operator follows: paths that go down, are held or come back.
    fn log(&mut self, clusters: &[ClusterView]) {
        let mut told = BTreeMap::new();
        for cluster in clusters {
            for path in &cluster.paths {
                let key = (cluster.name.clone(), path.path.clone());
                let before = self.told.get(&key).map_or("up", String::as_str);
                let (name, way) = (&cluster.name, &path.path);
                // Doubt and answers come and go; what follows from them is told.
                let state = match path.state.as_str() {
                    "in doubt" if before == "held" => "held",
                    "in doubt" => "up",
                    "returning" => "down",
                    other => other,
                };
                match (before, state) {
                    (before, state) if before == state => {}
                    (_, "down") => {
                        warn!(cluster = %name, path = %way, heard_ms = path.heard_ms, "path is down: its canaries don't answer")
                    }
                    (_, "held") => {
                        warn!(cluster = %name, path = %way, reason = cluster.held, "path is dark and stays in use")
                    }
                    ("down", _) => info!(cluster = %name, path = %way, "path is used again"),
                    (_, _) => info!(cluster = %name, path = %way, "path answers again"),
                }
                told.insert(key, state.to_owned());
            }
            if cluster.dead_backends > 0 {
                debug!(cluster = %cluster.name, backends = cluster.dead_backends, "backends are dead");
            }
        }
        self.told = told;
    }
}
