//! What health has found out, for the tables and for `resolve`.

use super::{Health, ramp};
use crate::{
    model::{ClusterName, Path},
    tables::{ClusterVerdict, Verdicts},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::{self, BackendKey, verdict};

use super::hz::Hz;

/// Idle flows to other clusters are asked after this time, so often, and so far apart: an outage of less than 10 s
/// costs nobody an idle connection.
const KEEPALIVE: (u8, u8, u8) = (5, 1, 10);

/// All that holds now; not a difference, so that none can be missed.
///
/// Whoever carries it out does so in this order, and so no cluster that comes back gets more than its share for a moment:
/// first the [`verdicts`](Self::verdicts) [`worse_than`](Self::worse_than) those carried out last; then tables resolved with
/// [`ramps`](Self::ramps) and [`paths_out`](Self::paths_out), if these differ from those resolved with last; then the verdicts
/// in full. A cluster that is down and answers again has its ramp's first share here some 2 s before its verdict changes. When
/// a cluster goes down the ramps stay, so the first of these is all there is to do: one write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Every cluster in use, by the name it has in the tables.
    pub clusters: BTreeMap<ClusterName, Judged>,
    /// Backends that probes found dead.
    pub dead: BTreeSet<BackendKey>,
    /// The part of its weight, in per cent, that a cluster has while it comes back; clusters that have all are left out.
    pub ramps: BTreeMap<ClusterName, u8>,
    /// Paths that are down of clusters that are not. Their verdicts say so, unless both paths share an entry.
    pub paths_out: BTreeSet<(ClusterName, Path)>,
}

/// What was found out about a cluster's entry in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Whether it is down.
    pub down: bool,
    /// Whether it is the agent's own cluster.
    pub own: bool,
    /// How long the first SYN of a connection waits; none while nothing was measured.
    pub syn_timeout: Option<Duration>,
}

impl Changed {
    /// The verdicts as the tables take them. Without `hz` SYN timeouts are left to the kernel.
    pub fn verdicts(&self, hz: Option<Hz>) -> Verdicts {
        let judge = |(name, judged): (&ClusterName, &Judged)| {
            let (idle, interval, count) = if judged.own { (0, 0, 0) } else { KEEPALIVE };
            let jiffies = hz.zip(judged.syn_timeout).map_or(0, |(hz, timeout)| hz.jiffies(timeout));
            let verdict = ClusterVerdict {
                verdict: if judged.down { verdict::DEAD } else { verdict::OK },
                syn_timeout: jiffies,
                keepalive_idle: idle,
                keepalive_interval: interval,
                keepalive_count: count,
            };
            (name.clone(), verdict)
        };
        Verdicts { clusters: self.clusters.iter().map(judge).collect(), dead: self.dead.clone() }
    }

    /// These verdicts without what gets better than in `before`, the ones carried out last.
    pub fn worse_than(&self, before: &Self) -> Self {
        let mut worse = self.clone();
        for (name, judged) in &mut worse.clusters {
            judged.down |= before.clusters.get(name).is_some_and(|before| before.down);
        }
        worse.dead.extend(&before.dead);
        worse
    }
}

impl Health {
    /// What holds now.
    pub fn changed(&self, now: Instant) -> Changed {
        let mut changed = Changed::default();
        for (&index, used) in &self.used.clusters {
            let paths = self.clusters.get(&used.name).into_iter().flat_map(|cluster| cluster.paths.values());
            let mut paths = paths.filter(|path| path.index == index).peekable();
            let syn_timeout = paths.clone().filter_map(|path| path.rtt.timeout()).max();
            // One without a path can't be asked (what it has only drains): what was found out before doesn't stick.
            let down = index != 0 && paths.peek().is_some() && paths.all(|path| path.is_down());
            let judged = Judged { down, own: index == 0, syn_timeout };
            changed.clusters.insert(used.table_name.clone(), judged);
        }
        for (name, cluster) in &self.clusters {
            if !cluster.is_down() {
                let out = cluster.paths.iter().filter(|(_, health)| health.is_down());
                changed.paths_out.extend(out.map(|(path, _)| (name.clone(), *path)));
            }
            let share = match cluster.ramp {
                Some(since) => ramp::step(since, now),
                None => cluster.was_down.then_some(ramp::STEPS[0]).filter(|_| cluster.returned),
            };
            changed.ramps.extend(share.map(|share| (name.clone(), share)));
        }
        for (_, check) in self.checks.iter().filter(|(_, check)| check.is_dead()) {
            let address = &check.backend.address;
            changed.dead.insert(BackendKey {
                addr: match address.ip() {
                    std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    std::net::IpAddr::V6(v6) => v6.octets(),
                },
                port: address.port().to_be_bytes(),
                proto: abi::TCP,
                pad: 0,
            });
        }
        changed
    }
}
