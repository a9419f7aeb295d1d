//! How long to wait before an API server is asked again.
//!
//! When it comes back, every node's agent wants its watches back. So that they don't knock it over again, they spread
//! over a time that grows with the number of nodes; in a small cluster nobody waits long.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Requests of one agent once the API server is back: one to find that out, and one a watch.
const REQUESTS: u32 = 7;
/// Requests per second, of all agents together, that are aimed at.
const RATE: u32 = 10;
/// Nobody waits longer, however large the cluster is.
const LONGEST: Duration = Duration::from_secs(90);
/// The first wait and the longest, for a cluster of one node.
const FIRST: Duration = Duration::from_millis(250);
const LAST: Duration = Duration::from_secs(2);
/// Nodes that are assumed until they were counted.
pub(super) const ASSUMED_NODES: u32 = 10;

/// What was refused is asked for again after this time, doubling up to the second one.
const REFUSED: Duration = Duration::from_secs(5);
const LONG_REFUSED: Duration = Duration::from_secs(60);

/// The wait before try number `attempt`, counted from 0, to reach an API server that answers nobody; `chance` is from 0 to 1.
///
/// The first wait is drawn, and those that follow are alike on all nodes: so whenever the API server comes back, tries
/// are spread evenly. Drawn anew each time they would be twice as dense at the beginning.
pub(super) fn unreachable(attempt: u32, nodes: u32, chance: f64) -> Duration {
    let alone = FIRST.saturating_mul(1 << attempt.min(10)).min(LAST);
    let window = Duration::from_secs(1).saturating_mul(nodes) * REQUESTS / RATE;
    let window = window.clamp(alone, LONGEST);
    if attempt == 0 { FIRST / 2 + window.mul_f64(chance) } else { window.mul_f64(0.95 + chance / 10.0) }
}

/// The wait before what was refused is asked for again.
pub(super) fn refused(attempt: u32, chance: f64) -> Duration {
    REFUSED.saturating_mul(1 << attempt.min(10)).min(LONG_REFUSED).mul_f64(0.5 + chance)
}

/// From 0 to 1, another one each time and on each node.
pub(super) fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(bits).expect("half of 64 bits")) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_agents_ask_ten_times_a_second_at_most() {
        // Each tries until the API server is back after a minute, and then wants its watches.
        let back = 60.0;
        let mut requests = vec![0_u32; 200];
        for _ in 0..100 {
            let (mut now, mut attempt) = (0.0, 0);
            while now < back {
                now += unreachable(attempt, 100, chance()).as_secs_f64();
                attempt += 1;
            }
            let second = (0..200_u32).take_while(|second| f64::from(*second) <= now).count() - 1;
            requests[second] += REQUESTS;
        }
        let last = requests.iter().rposition(|n| *n > 0).unwrap();
        let most = requests.windows(10).map(|ten| ten.iter().sum::<u32>()).max().unwrap();
        println!("{} requests in {} s, at most {most} in 10 s", requests.iter().sum::<u32>(), last - 59);
        // Ten a second on average; chance makes some seconds denser.
        assert!(last - 59 >= 60, "{last}");
        assert!(most < 200, "{most}");
    }

    #[test]
    fn in_a_small_cluster_nobody_waits_long() {
        for attempt in 0..20 {
            let longest = unreachable(attempt, 3, 1.0);
            assert!(longest <= Duration::from_millis(2_500), "{longest:?}");
            assert!(unreachable(attempt, 3, 0.0) >= Duration::from_millis(125));
        }
        assert!(unreachable(1, 1, 1.0) < unreachable(9, 1, 0.0), "who is alone waits longer and longer");
    }

    #[test]
    fn nobody_waits_for_ever_in_a_large_one() {
        assert!(unreachable(u32::MAX, 100_000, 1.0) <= LONGEST * 2);
        assert!(refused(u32::MAX, 1.0) <= LONG_REFUSED * 2);
        assert!(refused(0, 0.0) >= Duration::from_secs(2));
    }

    #[test]
    fn chances_differ_and_cover_what_they_should() {
        let chances: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(chances.iter().all(|chance| (0.0..=1.0).contains(chance)));
        assert!(chances.iter().any(|chance| *chance < 0.1) && chances.iter().any(|chance| *chance > 0.9));
    }
}
