//! What health has found out, as writes that change entries in place.

use super::{Installed, Step};
use crate::model::ClusterName;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_ebpf::abi::{Backend, BackendKey, Cluster, verdict};

/// What is known of clusters and backends beyond what sources say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Clusters; one that isn't named stays as it is installed.
    pub clusters: BTreeMap<ClusterName, ClusterVerdict>,
    /// Backends that a probe found dead. All others are not: those that slots name take connections, and one that left
    /// while it was dead drains.
    pub dead: BTreeSet<BackendKey>,
}

/// What is known of one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterVerdict {
    /// A value of [`verdict`].
    pub verdict: u8,
    /// [`Cluster::syn_timeout`], in jiffies.
    pub syn_timeout: u32,
    /// [`Cluster::keepalive_idle`], in seconds.
    pub keepalive_idle: u8,
    /// [`Cluster::keepalive_interval`], in seconds.
    pub keepalive_interval: u8,
    /// [`Cluster::keepalive_count`].
    pub keepalive_count: u8,
}

impl Installed {
    /// The steps that put `verdicts` into force, one write for each cluster and backend that they change. They may be
    /// carried out at any time: plans leave them as they are.
    pub fn verdict_steps(&self, verdicts: &Verdicts) -> Vec<Step> {
        let clusters = self.clusters().iter().filter_map(|(&index, entry)| {
            let judged = verdicts.clusters.get(&super::cluster_name(entry))?;
            let wanted = judged.put_into(*entry);
            (wanted != *entry).then_some(Step::PutCluster(index, Box::new(wanted)))
        });
        let dead = verdicts.dead.iter().flat_map(|key| self.holders(key));
        let dead: BTreeSet<u32> = dead.collect();
        let judge = |&index: &u32| match dead.contains(&index) {
            true => self.judge_backend(index, verdict::DEAD),
            false if self.backend_users(index) > 0 => self.judge_backend(index, verdict::OK),
            false => self.judge_backend(index, verdict::DRAINING),
        };
        clusters.chain(self.dead.union(&dead).filter_map(judge)).collect()
    }

    /// The step that gives a backend a verdict; none if it has it, or isn't there.
    pub(crate) fn judge_backend(&self, index: u32, verdict: u8) -> Option<Step> {
        let entry = self.backend(index).filter(|entry| entry.verdict != verdict)?;
        Some(Step::PutBackend(index, Backend { verdict, ..*entry }))
    }
}

impl ClusterVerdict {
    fn put_into(self, entry: Cluster) -> Cluster {
        let Self { verdict, syn_timeout, keepalive_idle, keepalive_interval, keepalive_count } = self;
        Cluster { verdict, syn_timeout, keepalive_idle, keepalive_interval, keepalive_count, ..entry }
    }
}
