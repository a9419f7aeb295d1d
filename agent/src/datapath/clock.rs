//! The clock by which programs tell the time.

use anyhow::Context;
use nix::time::{ClockId, clock_getres, clock_gettime};
use std::time::Duration;

/// Nanoseconds since boot, as `bpf_ktime_get_ns` counts them.
pub fn now() -> anyhow::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the monotonic clock")?;
    u64::try_from(Duration::from(now).as_nanos()).context("a machine that is up for 584 years")
}

/// The length of a jiffy, the kernel's unit of timeouts.
pub fn tick() -> anyhow::Result<Duration> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("read the clock's tick")?;
    Ok(tick.into())
}
