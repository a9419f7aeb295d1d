//! How a cluster that was down gets its share back.

use super::{Health, path::PathHealth};
use std::time::{Duration, Instant};

/// The steps in which a cluster that was down gets its share back, in per cent, each for [`STEP`].
pub(super) const STEPS: [u8; 4] = [10, 25, 50, 75];
/// See [`STEPS`].
const STEP: Duration = Duration::from_millis(2500);

impl Health {
    /// Gives clusters that were down their share back, step by step.
    pub(super) fn follow_ramps(&mut self, now: Instant) {
        for cluster in self.clusters.values_mut().filter(|cluster| cluster.was_down) {
            cluster.returned |= cluster.paths.values().any(PathHealth::is_returning);
            match cluster.ramp {
                _ if cluster.is_down() => {}
                None => cluster.ramp = Some(now),
                Some(since) if step(since, now).is_none() => {
                    (cluster.ramp, cluster.was_down, cluster.returned) = (None, false, false);
                }
                Some(_) => {}
            }
        }
    }
}

/// The share that a cluster has, in per cent, which has been ramped in since `since`; none once it has all of it.
pub(super) fn step(since: Instant, now: Instant) -> Option<u8> {
    let steps = now.saturating_duration_since(since).as_nanos() / STEP.as_nanos();
    usize::try_from(steps).ok().and_then(|step| STEPS.get(step)).copied()
}

/// When it gets the next.
pub(super) fn next(since: Instant, now: Instant) -> Instant {
    let steps = now.saturating_duration_since(since).as_nanos() / STEP.as_nanos();
    since + STEP * u32::try_from(steps + 1).unwrap_or(u32::MAX)
}
