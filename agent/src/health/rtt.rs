//! What is measured on a path: its round-trip time and how much it loses, and what follows for patience.

use std::time::Duration;

/// The least time that an answer is waited for.
pub(super) const LEAST_TIMEOUT: Duration = Duration::from_millis(200);
/// Timeouts are multiples of this, so that a small change of the round-trip time changes nothing.
const STEP_MILLIS: u128 = 50;
/// The longest timeout: TCP's own for a first SYN.
pub(super) const MOST_TIMEOUT: Duration = Duration::from_secs(1);

/// A round-trip time, smoothed as TCP does it: an eighth of each new sample.
#[derive(Clone, Debug, Default)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    /// Kept until it is clearly wrong.
    timeout: Option<Duration>,
}

impl Rtt {
    pub(super) fn note(&mut self, sample: Duration) {
        let smoothed = self.smoothed.map_or(sample, |old| old * 7 / 8 + sample / 8);
        self.smoothed = Some(smoothed);
        let wanted = timeout_of(smoothed);
        // A round-trip time between two steps must not write the map again and again.
        let keeps = |kept: Duration| kept >= wanted && timeout_of(smoothed * 5 / 4) >= kept;
        if !self.timeout.is_some_and(keeps) {
            self.timeout = Some(wanted);
        }
    }

    pub(super) fn get(&self) -> Option<Duration> {
        self.smoothed
    }

    /// How long an answer is waited for, once the round-trip time is known.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

/// Three round trips, in steps, between 200 ms and TCP's own 1 s.
fn timeout_of(rtt: Duration) -> Duration {
    let millis = (rtt * 3).as_micros().div_ceil(1000).div_ceil(STEP_MILLIS) * STEP_MILLIS;
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    Duration::from_millis(millis).clamp(LEAST_TIMEOUT, MOST_TIMEOUT)
}

/// How much a path loses while it works, from about its last 200 probes.
///
/// Only losses that turned out to be no outage count: of an endpoint that answered again.
#[derive(Clone, Debug, Default)]
pub(super) struct Loss {
    sent: f64,
    lost: f64,
}

impl Loss {
    /// Takes in a probe that was answered after `lost` that were not.
    pub(super) fn note(&mut self, lost: u32) {
        for lost in (0..lost).map(|_| 1.0).chain([0.0]) {
            self.sent = self.sent * 0.995 + 1.0;
            self.lost = self.lost * 0.995 + lost;
        }
    }

    /// Of all probes, the part that gets lost. Before anything is known, 1 %.
    pub(super) fn rate(&self) -> f64 {
        ((self.lost + 0.5) / (self.sent + 50.0)).clamp(0.01, 0.6)
    }

    /// The same in parts of 1,000.
    pub(super) fn permille(&self) -> u64 {
        let lost = self.lost / self.sent.max(1.0);
        (0..1000).take_while(|part| f64::from(*part) < lost * 1000.0 - 0.5).count().try_into().unwrap_or(1000)
    }

    /// How many probes in a row are lost by chance with a probability of at most `chance`, within `least..=most`.
    pub(super) fn needed(&self, chance: f64, least: u32, most: u32) -> u32 {
        needed(self.rate(), chance, least, most)
    }

    /// The same if more is lost than was measured, which few probes leave open.
    pub(super) fn needed_at_worst(&self, chance: f64, least: u32, most: u32) -> u32 {
        needed(((self.lost + 1.0) / (self.sent + 20.0)).clamp(0.01, 0.6), chance, least, most)
    }
}

fn needed(rate: f64, chance: f64, least: u32, most: u32) -> u32 {
    let mut needed = least;
    while needed < most && rate.powi(i32::try_from(needed).unwrap_or(i32::MAX)) > chance {
        needed += 1;
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn patience_is_three_round_trips_but_never_less_than_200_ms() {
        let timeout = |rtt: Duration| {
            let mut measured = Rtt::default();
            measured.note(rtt);
            measured.timeout().unwrap()
        };
        assert_eq!(timeout(MILLI), 200 * MILLI);
        assert_eq!(timeout(66 * MILLI), 200 * MILLI);
        assert_eq!(timeout(67 * MILLI), 250 * MILLI);
        assert_eq!(timeout(100 * MILLI), 300 * MILLI);
        assert_eq!(timeout(700 * MILLI), MOST_TIMEOUT);
        assert_eq!(Rtt::default().timeout(), None);
    }

    #[test]
    fn a_round_trip_time_at_the_edge_of_a_step_does_not_flutter() {
        let mut rtt = Rtt::default();
        let mut changes = 0;
        for round in 0..1000 {
            let before = rtt.timeout();
            rtt.note((80 + round % 7) * MILLI);
            changes += u32::from(before.is_some() && before != rtt.timeout());
        }
        assert!(changes <= 1, "{changes}");
        (0..100).for_each(|_| rtt.note(10 * MILLI));
        assert_eq!(rtt.timeout(), Some(200 * MILLI));
    }

    #[test]
    fn a_lossy_path_asks_for_more_evidence() {
        let mut loss = Loss::default();
        assert_eq!(loss.needed(1e-8, 4, 40), 4);
        (0..300).for_each(|_| loss.note(1));
        assert!((0.3..0.6).contains(&loss.rate()), "{}", loss.rate());
        assert!((15..=36).contains(&loss.needed(1e-8, 4, 40)));
        (0..2000).for_each(|_| loss.note(0));
        assert_eq!(loss.needed(1e-8, 4, 40), 4);
    }
}
