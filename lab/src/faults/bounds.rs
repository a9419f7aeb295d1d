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
    /// Their names.
    pub(super) pods: BTreeSet<String>,
    /// That a retry fails which opens a connection, to whatever pod.
    pub(super) connects: Chance,
    /// That a request is lost by UDP on a socket of one of these pods, both tries together. A resolver doesn't open
    /// another one for an answer that doesn't come, and nothing else tells it.
    pub(super) datagrams: Chance,
    /// That a retry by way of the gateway fails.
    pub(super) by_gateway: Chance,
}

/// How likely something is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Chance {
    /// 0 to 1.
    pub(super) likely: f64,
    /// And that until then, by [`crate::report::now`]: when the fault was over.
    pub(super) until: Duration,
}

/// What was lost although it need not have been, in sentences: anything, if no `toll` is taken. `struck` is when the fault
/// began.
pub(super) fn excess(
    toll: Option<&Toll>,
    struck: Duration,
    attempts: &BTreeMap<Kind, Vec<Attempt>>,
    by_gateway: &[Attempt],
) -> Vec<String> {
    let nothing = Toll::default();
    let toll = toll.unwrap_or(&nothing);
    let of_kind = |(&kind, attempts): (&Kind, &Vec<Attempt>)| {
        let chance = if is_udp(kind) { toll.datagrams } else { toll.connects };
        toll.excess(&kind.to_string(), is_udp(kind), chance, struck, attempts)
    };
    let mut excess: Vec<String> = attempts.iter().flat_map(of_kind).collect();
    excess.extend(toll.excess("by gateway", false, toll.by_gateway, struck, by_gateway));
    excess
}

fn is_udp(kind: Kind) -> bool {
    matches!(kind, Kind::ConnectedUdp | Kind::UnconnectedUdp)
}

fn is_lost(attempt: &&Attempt) -> bool {
    attempt.retry && matches!(attempt.end, End::Failed(_))
}

impl Toll {
    fn excess(&self, name: &str, is_udp: bool, chance: Chance, struck: Duration, attempts: &[Attempt]) -> Vec<String> {
        let lost = || attempts.iter().filter(is_lost);
        if chance.likely <= 0.0 {
            let lost = lost().count();
            return if lost > 0 { vec![format!("{name}: {lost} lost")] } else { Vec::new() };
        }
        let is_during = |attempt: &&Attempt| (struck..=chance.until + AFTER).contains(&attempt.began);
        let mut excess = Vec::new();
        let late = lost().filter(|attempt| !is_during(attempt)).map(|attempt| attempt.began);
        if let Some(last) = late.max() {
            let after = last.saturating_sub(chance.until).as_secs_f64();
            excess.push(format!("{name}: one was lost that began {after:.1} s after it had to be well"));
        }
        let during = attempts.iter().filter(is_during);
        let (of, tried) = if is_udp {
            let of_others = lost().filter_map(|attempt| attempt.pod.as_ref()).filter(|pod| !self.pods.contains(*pod));
            for pod in of_others.collect::<BTreeSet<_>>() {
                excess.push(format!("{name}: one was lost that talked to {pod}, which was well"));
            }
            // A socket that is new may have got one of these pods, too.
            let may_fail = |attempt: &&Attempt| attempt.pod.as_ref().is_none_or(|pod| self.pods.contains(pod));
            ("requests by sockets of these pods", during.filter(|a| !a.retry).filter(may_fail).count())
        } else {
            ("retries", during.filter(|attempt| attempt.retry).count())
        };
        let (lost, bound) = (lost().filter(is_during).count(), bound(tried, chance.likely));
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
        let lost = |kind| BTreeMap::from([(kind, pairs(1, None))]);
        let (tcp, udp, gateway) = (lost(Kind::KeepAlive), lost(Kind::ConnectedUdp), lost(Kind::KeepAlive));
        let gateway = &gateway[&Kind::KeepAlive];
        for (toll, losses) in [
            (None, [1, 1, 1]),
            (Some(toll(0.0, 0.0)), [1, 1, 1]),
            (Some(toll(1.0, 0.0)), [0, 1, 1]),
            (Some(toll(0.0, 1.0)), [1, 0, 1]),
            (Some(Toll { by_gateway: chance(1.0), ..toll(0.0, 0.0) }), [1, 1, 0]),
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
        assert_eq!(late, ["keep-alive: one was lost that began 2.5 s after it had to be well"]);
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
        let (connects, datagrams) = (chance(connects), chance(datagrams));
        Toll { pods: BTreeSet::from(["east-1".to_owned()]), connects, datagrams, by_gateway: Chance::default() }
    }

    fn chance(likely: f64) -> Chance {
        Chance { likely, until: at(10_000) }
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
