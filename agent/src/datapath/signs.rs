//! Signs of life, as the programs saw them.

use super::{clock, table::Table};
use crate::health::Signs;
use aya::maps::{Map, MapData};
use std::{os::fd::OwnedFd, time::Duration};
use tombolo_ebpf::abi::{BackendState, ClusterState, map};
use tracing::warn;

/// Reads when clusters and backends were last heard: one system call a question.
pub struct KernelSigns {
    clusters: Table<ClusterState>,
    backends: Table<BackendState>,
}

impl KernelSigns {
    /// Reads from these maps.
    pub(super) fn new(clusters: OwnedFd, backends: OwnedFd) -> anyhow::Result<Self> {
        Ok(Self {
            clusters: Table::new(Map::Array(MapData::from_fd(clusters)?), map::CLUSTER_STATE)?,
            backends: Table::new(Map::Array(MapData::from_fd(backends)?), map::BACKEND_STATE)?,
        })
    }
}

impl Signs for KernelSigns {
    fn cluster_alive(&self, cluster: u32) -> Option<Duration> {
        since(self.clusters.get(cluster).map(|state| state.last_alive))
    }

    fn backend_alive(&self, index: u32, generation: u32) -> Option<Duration> {
        let state = self.backends.get(index);
        since(state.map(|state| if state.generation == generation { state.last_alive } else { 0 }))
    }
}

/// How long ago that was; none if it never was, or can't be read, for then probes have to find out.
fn since(at: anyhow::Result<u64>) -> Option<Duration> {
    let age = at.and_then(|at| Ok((at, clock::now()?)));
    match age {
        Ok((0, _)) => None,
        Ok((at, now)) => Some(Duration::from_nanos(now.saturating_sub(at))),
        Err(error) => {
            warn!(error = format!("{error:#}"), "signs of life not read");
            None
        }
    }
}
