//! Waiting until every program that is running now has ended.
//!
//! Programs on these hooks run in an RCU read section, so an RCU grace period is what is waited for.

use super::bpf::{create_array, membarrier};
use anyhow::Context;
use aya::maps::{ArrayOfMaps, Map, MapData};
use std::os::fd::AsFd;
use tracing::info;

/// Waits by `membarrier`, or by exchanging a map where that is refused: with nohz_full (EINVAL), or by a seccomp filter.
#[derive(Default)]
pub(super) struct Grace(Option<Exchange>);

/// An array of maps. When its element is written, the kernel doesn't return before programs have let go of the map that
/// was there (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c). Which map it is is of no account: no program knows it.
struct Exchange {
    outer: ArrayOfMaps<MapData>,
    inner: MapData,
}

impl Grace {
    /// Waits. Once `membarrier` was refused, it isn't tried again.
    pub(super) fn wait(&mut self) -> anyhow::Result<()> {
        if self.0.is_none() {
            let Err(refused) = membarrier() else { return Ok(()) };
            info!(%refused, "no membarrier, waiting for programs by exchanging a map");
        }
        let exchange = match self.0.take() {
            Some(exchange) => exchange,
            None => Exchange::new().context("prepare to wait for programs without membarrier")?,
        };
        self.0.insert(exchange).wait().context("wait for programs by exchanging a map")
    }
}

impl Exchange {
    fn new() -> anyhow::Result<Self> {
        let inner = MapData::from_fd(create_array(None)?)?;
        let outer = MapData::from_fd(create_array(Some(inner.fd().as_fd()))?)?;
        Ok(Self { outer: ArrayOfMaps::try_from(Map::from_map_data(outer)?)?, inner })
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        Ok(self.outer.set(0, &self.inner, 0)?)
    }
}
