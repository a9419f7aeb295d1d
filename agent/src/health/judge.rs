//! Who is to blame for silence: a cluster, a path, a backend, or we ourselves.

use super::{
    ClusterHealth, Health, Held, Signs,
    checks::{self, Check},
    is_own,
    path::{self, PathHealth},
    path_of,
    used::UsedBackend,
};
use crate::model::{ClusterName, Path, PeerState};
use std::{
    cmp::Reverse,
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Clusters that went dark within this time of each other went dark at once.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How many paths are asked at a time whether we are connected.
const WITNESSES: usize = 3;

impl Health {
    /// Takes down what is dark, if somebody bears witness that it isn't we who are cut off.
    pub(super) fn judge_paths(&mut self, now: Instant) {
        let dark: Vec<(ClusterName, Path)> = self
            .clusters
            .iter()
            .flat_map(|(name, cluster)| cluster.paths.iter().map(move |(path, health)| (name, cluster, path, health)))
            .filter(|(_, cluster, _, health)| {
                let lost = cluster.peer != PeerState::Fresh;
                health.index != 0 && !health.is_down() && health.is_dark(lost, now)
            })
            .map(|(name, _, path, _)| (name.clone(), *path))
            .collect();
        for (name, path) in dark {
            let cluster = self.clusters.get_mut(&name).expect("found there");
            let health = cluster.paths.get_mut(&path).expect("found there");
            let since = *health.doubt.get_or_insert(now);
            let was_held = health.held.is_some();
            let verdict = if self.uplink { self.witness(&name, path, since) } else { Err(Held::Uplink) };
            let cluster = self.clusters.get_mut(&name).expect("found there");
            let health = cluster.paths.get_mut(&path).expect("found there");
            match verdict {
                Ok(()) if was_held => health.release(now),
                Ok(()) => {
                    health.go_down(now);
                    if cluster.is_down() {
                        cluster.was_down = true;
                        cluster.returned = false;
                        cluster.ramp = None;
                    }
                    let used = &self.used;
                    let is_there = |backend: &UsedBackend| {
                        let cluster = used.clusters.get(&backend.cluster);
                        backend.path == path && cluster.is_some_and(|cluster| cluster.name == name)
                    };
                    self.checks.drop_unclear(is_there);
                }
                Err(held) => health.held = Some(held),
            }
        }
    }

    /// Whether anybody proves that we are connected, since `since` and independently of this path.
    fn witness(&self, name: &ClusterName, path: Path, since: Instant) -> Result<(), Held> {
        let this = &self.clusters[name];
        // The other path of the same cluster goes over the same uplink.
        if this.paths.iter().any(|(other, health)| *other != path && health.signed_since(since)) {
            return Ok(());
        }
        let last_sign = this.last_sign();
        let at_once = |other: &ClusterHealth| match (last_sign, other.last_sign()) {
            (Some(one), Some(other)) => {
                one.saturating_duration_since(other).max(other.saturating_duration_since(one)) <= AT_ONCE
            }
            (None, None) => true,
            _ => false,
        };
        let can_say = |cluster: &ClusterHealth| cluster.paths.values().any(PathHealth::ever_heard);
        let remote =
            || self.clusters.iter().filter(|(other, cluster)| *other != name && !is_own(cluster) && can_say(cluster));
        let mut peers = remote().filter(|(_, other)| !other.is_down() || at_once(other)).peekable();
        let signed = |cluster: &ClusterHealth| cluster.paths.values().any(|health| health.signed_since(since));
        if peers.peek().is_some() {
            return if peers.any(|(_, other)| signed(other)) { Ok(()) } else { Err(Held::AllDark) };
        }
        match self.clusters.values().find(|cluster| is_own(cluster) && can_say(cluster)) {
            Some(own) if !signed(own) => Err(Held::AllDark),
            _ => Ok(()),
        }
    }

    /// Paths to be asked at once. If a path is in doubt, those that could tell whether it is we who are cut off: heard last,
    /// and not in doubt themselves, and the own cluster. If a backend is, its path, to tell which of the two it is.
    pub(super) fn witnesses(&self, now: Instant) -> BTreeSet<(ClusterName, Path)> {
        let paths = || {
            self.clusters
                .iter()
                .flat_map(|(name, cluster)| cluster.paths.iter().map(move |(path, health)| (name, *path, health)))
        };
        let key = |(name, path, _): (&ClusterName, Path, &PathHealth)| (name.clone(), path);
        let asking = self.checks.iter().filter(|(_, check)| check.is_asking());
        let asking: BTreeSet<(u32, Path)> =
            asking.map(|(_, check)| (check.backend.cluster, check.backend.path)).collect();
        let lately = now.checked_sub(path::DOUBT);
        let is_asking = |(_, path, health): &(&ClusterName, Path, &PathHealth)| {
            asking.contains(&(health.index, *path)) && lately.is_none_or(|lately| !health.signed_since(lately))
        };
        let mut chosen: BTreeSet<(ClusterName, Path)> = paths().filter(is_asking).map(key).collect();
        let doubts = paths().filter(|(_, _, health)| health.index != 0).filter_map(|(_, _, health)| health.doubt);
        if let Some(since) = doubts.max() {
            let is_silent =
                |health: &PathHealth| !health.is_down() && !health.signed_since(since) && health.ever_heard();
            let mut remote: Vec<_> = paths()
                .filter(|(_, _, health)| health.index != 0 && health.doubt.is_none() && is_silent(health))
                .collect();
            remote.sort_by_key(|(_, _, health)| Reverse(health.last_sign));
            let own = paths().filter(|(_, _, health)| health.index == 0 && is_silent(health));
            chosen.extend(remote.into_iter().take(WITNESSES).chain(own).map(key));
        }
        chosen
    }

    pub(super) fn judge_backends(&mut self, signs: &impl Signs, now: Instant) {
        // Whom somebody hears is not dead, even if it doesn't answer us.
        let heard = |index: u32, check: &Check| {
            let age = signs.backend_alive(index, check.backend.generation);
            age.is_some_and(|age| check.is_asking() && now.checked_sub(age).is_some_and(|at| at >= check.since))
        };
        let heard: Vec<(u32, u32)> = self
            .checks
            .iter()
            .filter(|(index, check)| heard(*index, check))
            .map(|(index, check)| (index, check.backend.generation))
            .collect();
        heard.into_iter().for_each(|(index, generation)| self.checks.got_through(index, generation, now));
        let (clusters, used, open) = (&self.clusters, &self.used, &self.open);
        self.checks.judge(now, |index, backend| {
            let path = path_of(clusters, used, backend);
            let ((least, most), (fewest, all)) = (checks::SILENT, checks::UNANSWERED);
            let silent = path.map_or(least, |path| path.loss.needed(checks::CHANCE, least, most));
            let unanswered = path.map_or(fewest, |path| path.loss.needed_at_worst(checks::EXAMPLE_CHANCE, fewest, all));
            (silent, if open.contains(&(index, backend.generation)) { 0 } else { unanswered })
        });
    }

    /// Whether a backend's silence to this node says anything: a NetworkPolicy may admit pods and not the node. It does of one
    /// that once accepted a probe. It may of one that never did if a canary on its port does; that is no more than an example, for
    /// the policy may be on some of the pods only, and pods' own connects have to confirm it.
    pub(super) fn is_open_to_us(&self, index: u32, backend: &UsedBackend) -> bool {
        let path = path_of(&self.clusters, &self.used, backend);
        let mut canaries = path.iter().flat_map(|path| path.canaries.all());
        self.open.contains(&(index, backend.generation))
            || canaries.any(|canary| canary.counts && canary.candidate.address.port() == backend.address.port())
    }

    /// Whether a backend that left a probe begun at `began` unanswered is itself to blame.
    pub(super) fn is_to_blame(&self, backend: &UsedBackend, began: Instant) -> bool {
        let mut paths = self.clusters.values().flat_map(|cluster| cluster.paths.values());
        match path_of(&self.clusters, &self.used, backend) {
            _ if !self.uplink => false,
            // A pod of this node is reached without a network.
            _ if backend.local => true,
            // The own cluster is never judged as a whole: anybody who was heard will do.
            _ if backend.cluster == 0 => paths.any(|path| path.worked_since(began)),
            Some(path) => path.worked_since(began),
            None => false,
        }
    }
}
