//! How a peer stands: fresh, lost, stale, removed, and back, with hysteresis.
//!
//! A lease is renewed by every sign of life of the peer's API, an answer or an event, as long as its Services and
//! EndpointSlices can be watched and its link is understood. When it runs out the peer is lost, which changes no endpoint by
//! itself; whether its pods still answer is found out by probes. Addresses get reused while nobody looks, so what was not
//! heard of for long comes last, and for very long goes.

use crate::model::PeerState;
use std::time::{Duration, Instant};

/// How a peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Its API is heard.
    Fresh,
    /// Its API is not heard.
    Lost {
        /// Whether none of its endpoints that were probed answers either.
        silent: bool,
    },
    /// Its API has not been heard for so long that addresses may be others' by now.
    Stale,
    /// Its API has not been heard for so long that its endpoints are taken away.
    Removed,
}

impl Standing {
    /// As slices say it.
    pub fn peer_state(self) -> PeerState {
        match self {
            Self::Fresh => PeerState::Fresh,
            Self::Lost { .. } => PeerState::Lost,
            Self::Stale | Self::Removed => PeerState::Stale,
        }
    }
}

/// How long what takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Without a sign of life for so long, a peer is lost.
    pub lease: Duration,
    /// Lost for so long, its endpoints are stale.
    pub stale: Duration,
    /// Lost for so long, its endpoints are removed.
    pub removed: Duration,
    /// Heard again for so long, and listed since, it is fresh: one that comes and goes stays lost.
    pub steady: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(40),
            stale: Duration::from_secs(600),
            removed: Duration::from_secs(3600),
            steady: Duration::from_secs(5),
        }
    }
}

/// A peer's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    terms: Terms,
    began: Instant,
    /// The last sign of life; the start before the first one.
    heard: Instant,
    /// The first sign of life since it was lost.
    back: Option<Instant>,
    /// Since when it is lost.
    lost: Option<Instant>,
    /// Whether all was listed since it was lost.
    listed: bool,
    silent: bool,
}

impl Lease {
    /// A peer that nothing was heard of yet. It counts as heard just now: a mirror that starts has no reason to think ill.
    pub fn new(terms: Terms, now: Instant) -> Self {
        Self { terms, began: now, heard: now, back: None, lost: None, listed: false, silent: false }
    }

    /// Other terms hold from now on.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// A sign of life.
    pub fn heard(&mut self, now: Instant) {
        // A sign after a pause as long as a lease is the first one of a new try.
        let was_quiet = now.saturating_duration_since(self.heard) >= self.terms.lease;
        self.settle(now);
        if self.lost.is_some() && (self.back.is_none() || was_quiet) {
            self.back = Some(now);
        }
        self.heard = self.heard.max(now);
    }

    /// Everything was listed: what is known is how it is now.
    pub fn listed(&mut self, now: Instant) {
        self.heard(now);
        self.listed = true;
    }

    /// The peer failed: a way back, if it was on one, starts anew.
    pub fn failed(&mut self, now: Instant) {
        self.settle(now);
        if self.lost.is_some() {
            (self.back, self.listed) = (None, false);
        }
    }

    /// Whether it is heard again, and can't be fresh before all is listed once more.
    pub fn awaits_list(&self) -> bool {
        self.back.is_some() && !self.listed
    }

    /// Whether it could have been listed for as long as a lost one is waited for.
    pub fn is_overdue(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= self.terms.removed
    }

    /// What probes of its endpoints found while it was lost.
    pub fn probed(&mut self, answered: bool) {
        self.silent = !answered;
    }

    /// How it stands.
    pub fn standing(&mut self, now: Instant) -> Standing {
        self.settle(now);
        let Some(lost) = self.lost else { return Standing::Fresh };
        let gone = now.saturating_duration_since(lost);
        if gone >= self.terms.removed {
            Standing::Removed
        } else if gone >= self.terms.stale {
            Standing::Stale
        } else {
            Standing::Lost { silent: self.silent }
        }
    }

    /// When it may stand otherwise without anything happening; none while that takes a sign of life.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let Some(lost) = self.lost else { return Some(self.heard + self.terms.lease) };
        let back = self.back.filter(|_| self.listed).map(|back| back + self.terms.steady);
        [Some(lost + self.terms.stale), Some(lost + self.terms.removed), back]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    fn settle(&mut self, now: Instant) {
        let quiet_since = self.heard + self.terms.lease;
        match self.lost {
            None if now >= quiet_since => {
                self.lost = Some(quiet_since);
                (self.back, self.listed, self.silent) = (None, false, false);
            }
            Some(_) if self.listed && now < quiet_since => {
                if self.back.is_some_and(|back| now.saturating_duration_since(back) >= self.terms.steady) {
                    (self.lost, self.back, self.silent) = (None, None, false);
                }
            }
            Some(_) if now >= quiet_since => (self.back, self.listed) = (None, false),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        lease: Duration::from_secs(40),
        stale: Duration::from_secs(600),
        removed: Duration::from_secs(3600),
        steady: Duration::from_secs(5),
    };

    #[test]
    fn a_peer_goes_from_fresh_to_lost_to_stale_to_removed() {
        let (start, mut lease) = lease();
        for (seconds, standing) in [
            (0, Standing::Fresh),
            (39, Standing::Fresh),
            (40, Standing::Lost { silent: false }),
            (639, Standing::Lost { silent: false }),
            (640, Standing::Stale),
            (3639, Standing::Stale),
            (3640, Standing::Removed),
            (1_000_000, Standing::Removed),
        ] {
            assert_eq!(lease.standing(start + Duration::from_secs(seconds)), standing, "{seconds}");
        }
    }

    #[test]
    fn whatever_is_heard_renews_the_lease() {
        let (start, mut lease) = lease();
        for seconds in (30..3000).step_by(39) {
            lease.heard(start + Duration::from_secs(seconds));
            assert_eq!(lease.standing(start + Duration::from_secs(seconds + 39)), Standing::Fresh);
        }
    }

    #[test]
    fn a_hiccup_shorter_than_the_lease_is_nothing() {
        let (start, mut lease) = lease();
        lease.failed(start + Duration::from_secs(20));
        lease.failed(start + Duration::from_secs(39));
        lease.heard(start + Duration::from_secs(39));
        assert_eq!(lease.standing(start + Duration::from_secs(70)), Standing::Fresh);
    }

    #[test]
    fn it_is_fresh_again_only_when_it_was_listed_and_heard_for_a_while() {
        let (start, mut lease) = lease();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(lease.standing(at(100)), Standing::Lost { silent: false });
        lease.heard(at(101));
        assert_eq!(lease.standing(at(110)), Standing::Lost { silent: false }, "not listed");
        lease.listed(at(111));
        assert_eq!(lease.standing(at(112)), Standing::Fresh, "heard for ten seconds, and listed");
    }

    #[test]
    fn one_that_comes_and_goes_stays_lost() {
        let (start, mut lease) = lease();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        lease.standing(at(100));
        for seconds in (100..500).step_by(4) {
            lease.listed(at(seconds));
            lease.failed(at(seconds + 3));
            assert_eq!(lease.standing(at(seconds + 3)), Standing::Lost { silent: false });
        }
        lease.listed(at(504));
        assert_eq!(lease.standing(at(508)), Standing::Lost { silent: false });
        assert_eq!(lease.standing(at(509)), Standing::Fresh);
    }

    #[test]
    fn a_way_back_that_falls_silent_starts_anew() {
        let (start, mut lease) = lease();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        lease.standing(at(100));
        lease.listed(at(101));
        // Not even five seconds, and nothing for a minute.
        assert_eq!(lease.standing(at(165)), Standing::Lost { silent: false });
        lease.heard(at(166));
        assert_eq!(lease.standing(at(180)), Standing::Lost { silent: false }, "to be listed again");
    }

    #[test]
    fn time_lost_counts_from_when_it_was_lost_not_from_the_last_try() {
        let (start, mut lease) = lease();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for seconds in (100..640).step_by(20) {
            lease.heard(at(seconds));
            lease.failed(at(seconds + 1));
        }
        assert_eq!(lease.standing(at(640)), Standing::Stale);
    }

    #[test]
    fn probes_speak_only_while_it_is_lost() {
        let (start, mut lease) = lease();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        lease.standing(at(50));
        lease.probed(false);
        assert_eq!(lease.standing(at(51)), Standing::Lost { silent: true });
        lease.probed(true);
        assert_eq!(lease.standing(at(52)), Standing::Lost { silent: false });
        lease.probed(false);
        lease.listed(at(53));
        assert_eq!(lease.standing(at(58)), Standing::Fresh);
        assert_eq!(lease.standing(at(100)), Standing::Lost { silent: false }, "an old verdict is not kept");
    }

    #[test]
    fn the_next_moment_is_when_the_standing_changes_and_not_before() {
        let (start, mut lease) = lease();
        let mut now = start;
        let mut seen = vec![lease.standing(now)];
        while let Some(next) = lease.next(now) {
            assert_eq!(lease.standing(next - Duration::from_millis(1)), *seen.last().unwrap());
            now = next;
            seen.push(lease.standing(now));
            if seen.last() == Some(&Standing::Removed) {
                break;
            }
        }
        let lost = Standing::Lost { silent: false };
        assert_eq!(seen, [Standing::Fresh, lost, Standing::Stale, Standing::Removed]);
    }

    fn lease() -> (Instant, Lease) {
        let start = Instant::now();
        (start, Lease::new(TERMS, start))
    }
}
