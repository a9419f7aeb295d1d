//! Health for people.

use super::{Findings, Health, Held, path::PathHealth, ramp};
use crate::model::{ClusterName, Path, PeerState};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What is known of all clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// How they are, by name.
    pub clusters: Vec<ClusterView>,
    /// What was found out since the agent started.
    pub findings: Findings,
}

/// What is known of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Its id in the ClusterSet.
    pub name: String,
    /// Whether it is the agent's own.
    pub own: bool,
    /// `up`, `in doubt`, `held`, `down`, `returning` (down, but it answers again) or `ramping`.
    pub state: String,
    /// Why it is used although it is dark, as a sentence: an alarm.
    pub held: Option<String>,
    /// What the mirror says of its API: `fresh`, `stale` or `lost`.
    pub peer: String,
    /// The part of its weight that it has, in per cent.
    pub share: u8,
    /// How often one of its paths went down or came back.
    pub flips: u64,
    /// The ways to it.
    pub paths: Vec<PathView>,
    /// How many of its backends probes have found dead.
    pub dead_backends: usize,
}

/// What is known of one path to a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathView {
    /// `pod` or `gateway`.
    pub path: String,
    /// `up`, `in doubt`, `held`, `down` or `returning`.
    pub state: String,
    /// Milliseconds since it went down or came back; none if it never did.
    pub changed_ms: Option<u64>,
    /// Milliseconds since anything was heard over it; none if nothing ever was.
    pub heard_ms: Option<u64>,
    /// Its round-trip time in microseconds.
    pub rtt_us: Option<u64>,
    /// How much it loses while it works, in parts of 1,000.
    pub loss_permille: u64,
    /// Whom it is asked by.
    pub canaries: Vec<CanaryView>,
}

/// An endpoint that a path is judged by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryView {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it ever answered this node; one that didn't doesn't count.
    pub counts: bool,
    /// How many of its probes failed since anything was heard over the path.
    pub failed: usize,
}

impl Health {
    /// All clusters, by name.
    pub fn view(&self, now: Instant) -> Vec<ClusterView> {
        self.clusters.keys().filter_map(|name| self.view_of(name, now)).collect()
    }

    fn view_of(&self, name: &ClusterName, now: Instant) -> Option<ClusterView> {
        let cluster = self.clusters.get(name)?;
        let paths = cluster.paths.iter().map(|(path, health)| view_path(*path, health, now));
        let held = cluster.paths.values().find_map(|health| health.held);
        let share = cluster.ramp.and_then(|since| ramp::step(since, now));
        let state = match (cluster.is_down(), share) {
            (true, _) if cluster.paths.values().any(PathHealth::is_returning) => "returning",
            (true, _) => "down",
            (false, Some(_)) => "ramping",
            (false, None) if cluster.paths.values().any(|health| state(health) == "up") => "up",
            (false, None) if held.is_some() => "held",
            (false, None) => "in doubt",
        };
        let is_here = |cluster: u32| self.used.clusters.get(&cluster).is_some_and(|used| used.name == *name);
        let dead = self.checks.iter().filter(|(_, check)| check.is_dead() && is_here(check.backend.cluster));
        Some(ClusterView {
            name: name.0.clone(),
            own: cluster.paths.values().any(|health| health.index == 0),
            state: state.to_owned(),
            held: held.map(|held| why(held).to_owned()),
            peer: match cluster.peer {
                PeerState::Fresh => "fresh",
                PeerState::Stale => "stale",
                PeerState::Lost => "lost",
            }
            .to_owned(),
            share: if cluster.is_down() { 0 } else { share.unwrap_or(100) },
            flips: cluster.paths.values().map(|health| health.flips).sum(),
            paths: paths.collect(),
            dead_backends: dead.count(),
        })
    }
}

fn view_path(path: Path, health: &PathHealth, now: Instant) -> PathView {
    let since = |at: Instant| millis(now.saturating_duration_since(at));
    let canary = |canary: &super::canaries::Canary| CanaryView {
        address: canary.candidate.address,
        counts: canary.counts,
        failed: canary.failed.len(),
    };
    PathView {
        path: if path == Path::Gateway { "gateway" } else { "pod" }.to_owned(),
        state: state(health).to_owned(),
        changed_ms: health.changed.map(since),
        heard_ms: health.last_sign.map(since),
        rtt_us: health.rtt.get().map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        loss_permille: health.loss.permille(),
        canaries: health.canaries.regular().iter().map(canary).collect(),
    }
}

fn state(health: &PathHealth) -> &'static str {
    match (health.is_down(), health.held, health.doubt) {
        (true, _, _) if health.is_returning() => "returning",
        (true, _, _) => "down",
        (false, Some(_), _) => "held",
        (false, None, Some(_)) => "in doubt",
        (false, None, None) => "up",
    }
}

fn why(held: Held) -> &'static str {
    match held {
        Held::AllDark => "nothing else answers either: it may be we who are cut off, so nothing is changed",
        Held::Uplink => "this node's own uplink is down, so nothing is changed",
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
