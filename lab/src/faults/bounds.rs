//! What a fault can't but lose, and no more: whatever is lost beyond that makes it one that was not survived.

use crate::caller::{Attempt, End, Kind};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long after a fault a try may begin that fails: a busy machine needs that long to have everything in place.
const AFTER: Duration = Duration::from_secs(1);
/// By how many standard deviations chance may exceed what is expected.
const SIGMAS: f64 = 4.0;

/// What a fault can't but lose: of pods that could not be talked to, for a while.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Toll {
    /// When it was over, by [`crate::report::now`].
    pub(super) over: Duration,
    /// Their names.
    pub(super) pods: BTreeSet<String>,
    /// How likely a retry fails that opens a connection, which may be to any pod.
    pub(super) connects: f64,
    /// How likely a request is lost by UDP on a socket of one of these pods, both tries together. A resolver doesn't
    /// open another one for an answer that doesn't come, and nothing else tells it.
    pub(super) datagrams: f64,
    /// How likely a retry by way of the gateway fails.
    pub(super) by_gateway: f64,
}

/// What was lost although it need not have been, in sentences: anything, if no `toll` is taken. `struck` is when the fault
/// began.
pub(super) fn excess(
    toll: Option<&Toll>,
    struck: Duration,
    attempts: &BTreeMap<Kind, Vec<Attempt>>,
    by_gateway: &[Attempt],
) -> Vec<String> {
    let kinds = attempts.iter().map(|(&kind, attempts)| {
        (kind.to_string(), is_udp(kind), toll.map_or(0.0, |toll| toll.connects), attempts.as_slice())
    });
    let gateway = ("by gateway".to_owned(), false, toll.map_or(0.0, |toll| toll.by_gateway), by_gateway);
    let of = |(name, is_udp, connects, attempts): (String, bool, f64, &[Attempt])| match toll {
        None => any(&name, attempts),
        Some(toll) => toll.excess(&name, is_udp, connects, struck, attempts),
    };
    kinds.chain([gateway]).flat_map(of).collect()
}

fn is_udp(kind: Kind) -> bool {
    matches!(kind, Kind::ConnectedUdp | Kind::UnconnectedUdp)
}

fn is_lost(attempt: &&Attempt) -> bool {
    attempt.retry && matches!(attempt.end, End::Failed(_))
}

fn any(name: &str, attempts: &[Attempt]) -> Vec<String> {
    let lost = attempts.iter().filter(is_lost).count();
    if lost > 0 { vec![format!("{name}: {lost} lost")] } else { Vec::new() }
}

impl Toll {
    fn excess(&self, name: &str, is_udp: bool, connects: f64, struck: Duration, attempts: &[Attempt]) -> Vec<String> {
        let is_during = |attempt: &&Attempt| (struck..=self.over + AFTER).contains(&attempt.began);
        let lost = || attempts.iter().filter(is_lost);
        let mut excess = Vec::new();
        let late = lost().filter(|attempt| !is_during(attempt)).map(|attempt| attempt.began);
        if let Some(last) = late.max() {
            let after = last.saturating_sub(self.over).as_secs_f64();
            excess.push(format!("{name}: one that began {after:.1} s after the fault was lost"));
        }
        let of_others = lost().filter_map(|attempt| attempt.pod.as_ref()).filter(|pod| !self.pods.contains(*pod));
        for pod in of_others.collect::<BTreeSet<_>>() {
            excess.push(format!("{name}: one was lost that talked to {pod}, which was well"));
        }
        let during = attempts.iter().filter(is_during);
        let (of, tried, chance) = if is_udp {
            // A socket that is new may have got one of these pods, too.
            let may_fail = |attempt: &&Attempt| attempt.pod.as_ref().is_none_or(|pod| self.pods.contains(pod));
            ("requests by sockets of these pods", during.filter(|a| !a.retry).filter(may_fail).count(), self.datagrams)
        } else {
            ("retries", during.filter(|attempt| attempt.retry).count(), connects)
        };
        let (lost, bound) = (lost().filter(is_during).count(), bound(tried, chance));
        if lost > bound {
            excess.push(format!("{name}: {lost} lost of {tried} {of}, chance explains {bound} at most"));
        }
        excess
    }
}

/// How many of `tried` may fail, if each does with the probability `chance`.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2⁵³")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it lies between 0 and the count")]
fn bound(tried: usize, chance: f64) -> usize {
    let tried = tried as f64;
    let spread = (tried * chance * (1.0 - chance)).sqrt();
    (tried * chance + SIGMAS * spread).ceil().clamp(0.0, tried) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_toll_nothing_may_be_lost_and_with_one_only_what_it_names() {
        let lost = |kind| BTreeMap::from([(kind, vec![lost(2000, None)])]);
        let (tcp, udp, gateway) = (lost(Kind::KeepAlive), lost(Kind::ConnectedUdp), lost(Kind::KeepAlive));
        let gateway = &gateway[&Kind::KeepAlive];
        for (toll, losses) in [
            (None, [1, 1, 1]),
            (Some(toll(0.0, 0.0)), [1, 1, 1]),
            (Some(toll(1.0, 0.0)), [0, 1, 1]),
            (Some(toll(0.0, 1.0)), [1, 0, 1]),
            (Some(Toll { by_gateway: 1.0, ..toll(0.0, 0.0) }), [1, 1, 0]),
        ] {
            let excess = |attempts, gateway| excess(toll.as_ref(), at(1000), attempts, gateway).len();
            let found = [excess(&tcp, &[]), excess(&udp, &[]), excess(&BTreeMap::new(), gateway)];
            assert_eq!(found, losses, "{toll:?}");
        }
    }

    #[test]
    fn what_begins_later_than_a_moment_after_the_fault_is_not_excused() {
        let toll = toll(1.0, 1.0);
        assert_eq!(of(&toll, Kind::KeepAlive, vec![lost(10_900, None)]), [""; 0]);
        let late = of(&toll, Kind::KeepAlive, vec![lost(10_900, None), lost(12_500, None)]);
        assert_eq!(late, ["keep-alive: one that began 2.5 s after the fault was lost"]);
        assert_eq!(of(&toll, Kind::KeepAlive, vec![lost(900, None)]).len(), 1, "nor before it");
    }

    #[test]
    fn only_sockets_of_the_pods_that_were_struck_may_lose() {
        let toll = toll(1.0, 1.0);
        assert_eq!(of(&toll, Kind::ConnectedUdp, pairs(5, Some("east-1"))), [""; 0]);
        let others = of(&toll, Kind::ConnectedUdp, pairs(5, Some("west-1")));
        assert!(others.contains(&"connected-udp: one was lost that talked to west-1, which was well".to_owned()));
    }

    #[test]
    fn no_more_retries_may_fail_than_chance_explains() {
        let toll = toll(0.1, 0.0);
        // Of 100 retries 10 ± 3 fail; 4 standard deviations make 22.
        let of_100 = |fail| {
            let retries = (0..100).map(|n| if n < fail { lost(2000, None) } else { answered(2000) });
            of(&toll, Kind::NewConnections, retries.collect())
        };
        assert_eq!(of_100(22), [""; 0]);
        assert_eq!(of_100(23), ["new-connections: 23 lost of 100 retries, chance explains 22 at most"]);
        assert_eq!(bound(0, 0.5), 0);
        assert_eq!((bound(7, 0.0), bound(7, 1.0)), (0, 7));
    }

    /// From 1 s to 10 s, of one pod in east.
    fn toll(connects: f64, datagrams: f64) -> Toll {
        Toll { over: at(10_000), pods: BTreeSet::from(["east-1".to_owned()]), connects, datagrams, by_gateway: 0.0 }
    }

    fn of(toll: &Toll, kind: Kind, attempts: Vec<Attempt>) -> Vec<String> {
        excess(Some(toll), at(1000), &BTreeMap::from([(kind, attempts)]), &[])
    }

    /// Requests that fail and fail again.
    fn pairs(count: u64, pod: Option<&str>) -> Vec<Attempt> {
        let pair = |n| [Attempt { retry: false, ..lost(2000 + n, pod) }, lost(4000 + n, pod)];
        (0..count).flat_map(pair).collect()
    }

    fn lost(began: u64, pod: Option<&str>) -> Attempt {
        Attempt { pod: pod.map(str::to_owned), end: End::Failed("no answer".to_owned()), ..answered(began) }
    }

    fn answered(began: u64) -> Attempt {
        let end = End::Answered("west".to_owned());
        Attempt { retry: true, began: at(began), connect: None, took: at(1), pod: None, end }
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
}
