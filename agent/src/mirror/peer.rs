//! A peer while it is linked: its watches, its lease, and what is wrong with it. Decides nothing about endpoints.
//!
//! Peers don't delay each other. Each has connections and tasks of its own, so one that hangs hangs alone; its news go through a queue of
//! its own length ([`watch::WAITING`]), so one that floods waits for itself; a heartbeat tells a server that is silent from
//! one that has nothing to tell. What it brings in is bounded by its link's quota, what is held of it by a number of objects, and what
//! one answer may be by its size.
//!
//! Watches run in rounds. A round with a new credential runs beside the one before until it has listed everything: a
//! credential that is wrong, or not valid yet, takes nothing away.

mod kept;

use super::{
    lease::{Lease, Standing, Terms},
    links::{book::Wanted, credentials::Credentials},
    source::{LinkName, Origin},
    watch::{self, News, Teller, Told, Watched},
};
use k8s_openapi::jiff::Timestamp;
use kept::Kept;
use kube::Client;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{info, warn};

/// How often a peer's API server is asked whether it answers, and how long it may take.
const HEARTBEAT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(5);
/// Objects that one peer may have: far more than a cluster has, and few enough to be held.
pub(super) const OBJECTS: usize = 200_000;
/// One that had more is taken for one that hasn't below this: at the limit it would be listed anew again and again.
pub(super) const FEWER: usize = OBJECTS / 10 * 9;
/// What endpoints are made of: a peer that doesn't show these is not heard, whatever else it answers.
const VITAL: [Watched; 2] = [Watched::Services, Watched::Slices];

/// A peer.
pub(super) struct PeerTask {
    name: LinkName,
    pub(super) lease: Lease,
    current: Option<Round>,
    /// With a credential that is tried.
    next: Option<Round>,
    rounds: u64,
    told: mpsc::UnboundedSender<Told>,
    /// Whether it is reached with a credential of Linkerd's.
    pub(super) is_linkerds: bool,
    /// Whether its link was never understood, so that whatever it says brings nothing in.
    pub(super) is_held: bool,
    /// The object that defines the link; none for one that was given as a flag.
    pub(super) wanted: Option<Wanted>,
    /// Whether it failed since it was heard last: then the watches begin anew, and what was missed is found.
    has_failed: bool,
    /// Why it doesn't answer.
    pub(super) failure: Option<String>,
    /// Why a credential that is tried is of no use so far.
    pub(super) refused: Option<String>,
    /// That it has too many objects, if it had.
    pub(super) overflow: Option<&'static str>,
    /// The kinds of objects that it had when they were listed last.
    there: BTreeSet<Watched>,
    /// Why kinds of objects can't be watched.
    pub(super) problems: BTreeMap<Watched, String>,
    pub(super) probe_at: Option<Instant>,
    pub(super) shown: Standing,
    /// When it was heard last.
    pub(super) heard: Option<Timestamp>,
    /// How long it takes to answer.
    pub(super) round_trip: Option<Duration>,
}

/// Watches with one client.
struct Round {
    id: u64,
    client: Client,
    credentials: Option<Credentials>,
    tasks: JoinSet<()>,
    listed: BTreeSet<Watched>,
    /// Whether all was listed with this client, in this round or one before.
    is_proven: bool,
    /// What it told while it was tried; none if it isn't tried any more.
    kept: Option<Kept>,
}

/// What becomes of news of a peer.
pub(super) enum Sorted {
    /// They count, in this order.
    Taken(Vec<(Option<Watched>, News)>),
    /// They are of a round that is over, or kept for later.
    Left,
}

impl PeerTask {
    pub(super) fn new(name: LinkName, terms: Terms, told: mpsc::UnboundedSender<Told>) -> Self {
        Self {
            name,
            lease: Lease::new(terms, Instant::now()),
            current: None,
            next: None,
            rounds: 0,
            told,
            is_linkerds: false,
            is_held: false,
            wanted: None,
            has_failed: false,
            failure: None,
            refused: None,
            overflow: None,
            there: BTreeSet::new(),
            problems: BTreeMap::new(),
            probe_at: None,
            shown: Standing::Fresh,
            heard: None,
            round_trip: None,
        }
    }

    /// Whether it was reached with what it is watched with now.
    pub(super) fn is_connected(&self) -> bool {
        self.current.as_ref().is_some_and(|round| round.listed.len() == Watched::PEER.len()) && !self.has_failed
    }

    /// Whether all was listed in this round.
    pub(super) fn has_listed(&self) -> bool {
        self.current.as_ref().is_some_and(|round| round.listed.len() == Watched::PEER.len())
    }

    /// That a kind of object was listed.
    pub(super) fn listed(&mut self, watched: Watched, now: Instant) {
        if let Some(round) = &mut self.current {
            round.listed.insert(watched);
            round.is_proven |= round.listed.len() == Watched::PEER.len();
        }
        // A kind that the peer lacks is looked for, and listed as none, again and again.
        if self.has_listed() && !self.is_blind() {
            self.lease.listed(now);
        }
    }

    /// Whether endpoints may change without being heard of, though its API answers.
    fn is_blind(&self) -> bool {
        self.is_held || VITAL.iter().any(|watched| self.problems.contains_key(watched))
    }

    /// Whether `credentials` are those that it is watched with, or that are tried.
    pub(super) fn uses(&self, credentials: &Credentials) -> bool {
        let round = self.next.as_ref().or(self.current.as_ref());
        round.is_some_and(|round| round.credentials.as_ref() == Some(credentials))
    }

    /// Watches with this client from now on; with one that already listed everything, until the new one has too.
    pub(super) fn connect(&mut self, client: Client, credentials: Option<Credentials>) {
        let is_proven = self.current.as_ref().is_some_and(|round| round.is_proven);
        if self.current.as_ref().is_some_and(|round| credentials.is_some() && round.credentials == credentials) {
            // Back to what is in use.
            (self.next, self.refused) = (None, None);
            return;
        }
        self.refused = None;
        let mut round = self.round(client, credentials);
        if is_proven {
            self.next = Some(round);
            self.refused = Some("a new credential is tried, and the one before stays in use until then".to_owned());
        } else {
            self.beat(&mut round);
            (self.current, self.next) = (Some(round), None);
        }
    }

    /// Begins all watches anew with the same client, from a list on.
    fn begin(&mut self) {
        let Some(old) = self.current.take() else { return };
        let mut round = self.round(old.client, old.credentials);
        round.is_proven = old.is_proven;
        self.beat(&mut round);
        self.current = Some(round);
    }

    fn round(&mut self, client: Client, credentials: Option<Credentials>) -> Round {
        self.rounds += 1;
        let teller = Teller::new(Origin::Link(self.name.clone()), self.rounds, self.told.clone());
        let teller = teller.with_linkerds(self.is_linkerds);
        let mut tasks = JoinSet::new();
        for watched in Watched::PEER {
            tasks.spawn(watch::follow(client.clone(), watched, teller.clone(), self.there.contains(&watched)));
        }
        let id = self.rounds;
        Round { id, client, credentials, tasks, listed: BTreeSet::new(), is_proven: false, kept: Some(Kept::default()) }
    }

    /// Has the API server asked again and again whether it answers.
    fn beat(&self, round: &mut Round) {
        let teller = Teller::new(Origin::Link(self.name.clone()), round.id, self.told.clone());
        round.tasks.spawn(watch::listen(round.client.clone(), teller, HEARTBEAT, PATIENCE));
    }

    /// Takes note of news and says whether they count.
    pub(super) fn sort(&mut self, round: u64, watched: Option<Watched>, news: News, now: Instant) -> Sorted {
        if self.next.as_ref().is_some_and(|next| next.id == round) {
            return self.try_out(watched, news, now);
        }
        if self.current.as_ref().is_none_or(|current| current.id != round) {
            return Sorted::Left;
        }
        self.hear(watched, &news, now);
        Sorted::Taken(vec![(watched, news)])
    }

    /// News of a round whose credential is tried: once all is listed, it is the one.
    fn try_out(&mut self, watched: Option<Watched>, news: News, now: Instant) -> Sorted {
        let link = &self.name;
        let Some(next) = &mut self.next else { return Sorted::Left };
        if let News::Failed(reason) = news {
            if self.refused.as_ref() != Some(&reason) {
                warn!(%link, reason, "new credential is of no use so far; the one before stays in use");
                self.refused = Some(reason);
            }
            return Sorted::Left;
        }
        if let (News::Listed(_) | News::Absent, Some(watched)) = (&news, watched) {
            next.listed.insert(watched);
        }
        let (Some(watched), Some(kept)) = (watched, &mut next.kept) else { return Sorted::Left };
        kept.push(watched, news);
        if kept.is_too_much() {
            (next.tasks, next.kept) = (JoinSet::new(), None);
            warn!(%link, "with the new credential there are more objects than any peer should have; the one before stays");
            self.refused = Some("with it the peer has more objects than any should".to_owned());
            return Sorted::Left;
        }
        if next.listed.len() < Watched::PEER.len() {
            return Sorted::Left;
        }
        info!(%link, "new credential in use");
        let Some(mut next) = self.next.take() else { return Sorted::Left };
        let kept = next.kept.take().unwrap_or_default().into_news();
        next.listed.clear();
        self.beat(&mut next);
        (self.current, self.refused, self.has_failed, self.failure) = (Some(next), None, false, None);
        for (watched, news) in &kept {
            self.hear(*watched, news, now);
        }
        Sorted::Taken(kept)
    }

    /// What news say of the peer itself.
    fn hear(&mut self, watched: Option<Watched>, news: &News, now: Instant) {
        let link = self.name.clone();
        match (news, watched) {
            (News::Listed(_), Some(watched)) => drop(self.there.insert(watched)),
            (News::Absent, Some(watched)) => drop(self.there.remove(&watched)),
            _ => {}
        }
        if let Some(watched) = watched
            && self.is_well(watched, news)
            && self.problems.remove(&watched).is_some()
        {
            info!(%link, ?watched, "watch goes on");
        }
        match (news, watched) {
            // One kind of object that can't be watched is not a peer that can't be reached: that watch tries on.
            (News::Failed(reason), Some(watched)) => {
                if self.problems.insert(watched, reason.clone()).as_ref() != Some(reason) {
                    warn!(%link, ?watched, reason, "watch failed; what is known stays");
                }
            }
            (News::Failed(reason), None) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    warn!(%link, reason, "peer doesn't answer; what is known stays");
                }
                self.failure = Some(reason.clone());
                self.lease.failed(now);
            }
            (News::Answers(round_trip), _) => {
                self.alive(now);
                self.round_trip = Some(*round_trip);
                self.failure = None;
                let was_lost = self.lease.awaits_list() && self.has_listed() && !self.is_blind();
                if std::mem::take(&mut self.has_failed) || was_lost {
                    info!(%link, "peer answers");
                    self.begin();
                }
            }
            _ => self.alive(now),
        }
    }

    /// Whether news show that a kind of object is watched again.
    fn is_well(&self, watched: Watched, news: &News) -> bool {
        match news {
            News::Listed(_) | News::Absent | News::Watching => true,
            // Those of a list that may yet fail show nothing.
            News::Change(..) => self.current.as_ref().is_some_and(|round| round.listed.contains(&watched)),
            News::Version(_) | News::Node(..) | News::Failed(_) | News::Minor(_) | News::Answers(_) => false,
        }
    }

    /// That it has more objects than are held.
    pub(super) fn overflow(&mut self) {
        let reason = "the peer has more objects than any should: the rest is left out";
        if self.overflow.replace(reason).is_none() {
            warn!(link = %self.name, reason, "peer brings in too much");
        }
    }

    /// That it has few enough again: what was left out is heard by beginning anew.
    pub(super) fn relieve(&mut self) {
        if self.overflow.take().is_some() {
            info!(link = %self.name, "peer brings in less again; it is listed anew");
            self.begin();
        }
    }

    /// A sign of life. It renews the lease as long as changes of endpoints would be heard of, and count.
    fn alive(&mut self, now: Instant) {
        if !self.is_blind() {
            self.lease.heard(now);
        }
        self.heard = Some(Timestamp::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    #[tokio::test]
    async fn a_peer_that_answers_and_doesn_t_show_its_endpoints_is_lost_after_its_lease() {
        for (hidden, is_lost) in [(Watched::Services, true), (Watched::Slices, true), (Watched::Exports, false)] {
            let (mut peer, start) = peer();
            let at = |seconds: u64| start + Duration::from_secs(seconds);
            hear(&mut peer, Some(hidden), News::Failed("403".to_owned()), at(10));
            for seconds in (10..60).step_by(5) {
                hear(&mut peer, None, News::Answers(Duration::ZERO), at(seconds));
                // What is listed as none again and again is no sign of the others.
                if hidden != Watched::Exports {
                    hear(&mut peer, Some(Watched::Exports), News::Absent, at(seconds));
                }
            }
            let standing = peer.lease.standing(at(60));
            assert_eq!(standing != Standing::Fresh, is_lost, "{hidden:?}");
            // Shown again, it is listed again, and fresh.
            hear(&mut peer, Some(hidden), News::Watching, at(61));
            assert!(peer.problems.is_empty());
            let before = peer.rounds;
            hear(&mut peer, None, News::Answers(Duration::ZERO), at(62));
            assert_eq!(peer.rounds > before, is_lost, "{hidden:?}");
            list(&mut peer, at(63));
            hear(&mut peer, None, News::Answers(Duration::ZERO), at(69));
            assert_eq!(peer.lease.standing(at(69)), Standing::Fresh, "{hidden:?}");
        }
    }

    #[tokio::test]
    async fn a_peer_whose_link_was_never_understood_is_lost_after_its_lease_and_fresh_once_it_is_understood() {
        let (mut peer, start) = peer();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        peer.is_held = true;
        let terms = Terms::default();
        let mut seen = Vec::new();
        for seconds in (0..4000).step_by(5) {
            hear(&mut peer, None, News::Answers(Duration::ZERO), at(seconds));
            list(&mut peer, at(seconds));
            let standing = peer.lease.standing(at(seconds));
            if seen.last().map(|(_, last)| *last) != Some(standing) {
                seen.push((seconds, standing));
            }
        }
        let lost = terms.lease.as_secs();
        let times = [0, lost, lost + terms.stale.as_secs(), lost + terms.removed.as_secs()];
        let standings = [Standing::Fresh, Standing::Lost { silent: false }, Standing::Stale, Standing::Removed];
        assert_eq!(seen, times.into_iter().zip(standings).collect::<Vec<_>>());
        assert_eq!(peer.rounds, 1);
        // What was heard of it meanwhile is not told from what was missed: it is listed anew.
        peer.is_held = false;
        hear(&mut peer, None, News::Answers(Duration::ZERO), at(4000));
        assert_eq!(peer.rounds, 2);
        list(&mut peer, at(4001));
        hear(&mut peer, None, News::Answers(Duration::ZERO), at(4005));
        assert_eq!(peer.lease.standing(at(4005)), Standing::Fresh);
    }

    #[tokio::test]
    async fn a_watch_that_fails_for_a_moment_takes_nothing_from_the_lease_of_a_quiet_peer() {
        let (mut peer, start) = peer();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for seconds in (5..200).step_by(5) {
            hear(&mut peer, Some(Watched::Slices), News::Failed("500".to_owned()), at(seconds));
            hear(&mut peer, Some(Watched::Slices), News::Watching, at(seconds + 1));
            hear(&mut peer, None, News::Answers(Duration::ZERO), at(seconds + 2));
            assert_eq!(peer.lease.standing(at(seconds + 2)), Standing::Fresh);
        }
        assert_eq!(peer.rounds, 1);
    }

    #[tokio::test]
    async fn a_list_that_never_ends_is_no_sign_that_it_is_watched() {
        let (mut peer, start) = peer();
        peer.begin();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for seconds in 1..60 {
            hear(&mut peer, Some(Watched::Slices), change("a"), at(seconds));
            hear(&mut peer, Some(Watched::Slices), News::Failed("page 2: 500".to_owned()), at(seconds));
        }
        assert_ne!(peer.lease.standing(at(60)), Standing::Fresh);
    }

    #[tokio::test]
    async fn a_credential_that_brings_too_much_is_given_up_and_the_one_before_stays() {
        let (mut peer, now) = peer();
        let credentials = Credentials::new(b"new".to_vec());
        peer.connect(silent(), Some(credentials.clone()));
        let tried = peer.rounds;
        for number in 0..=OBJECTS {
            let sorted = peer.sort(tried, Some(Watched::Slices), change(&number.to_string()), now);
            assert!(matches!(sorted, Sorted::Left));
        }
        let next = peer.next.as_ref().unwrap();
        assert!(next.kept.is_none() && next.tasks.is_empty());
        assert!(peer.uses(&credentials), "and is not tried again and again");
        assert!(peer.refused.as_ref().unwrap().contains("more objects"));
        assert!(matches!(peer.sort(1, None, News::Answers(Duration::ZERO), now), Sorted::Taken(_)));
    }

    /// One that was listed, over a connection on which nothing comes by itself.
    fn peer() -> (PeerTask, Instant) {
        let (told, _) = mpsc::unbounded_channel();
        let mut peer = PeerTask::new(LinkName("east".to_owned()), Terms::default(), told);
        peer.connect(silent(), None);
        let now = Instant::now();
        list(&mut peer, now);
        (peer, now)
    }

    fn silent() -> Client {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, kube::Error>>()
        });
        Client::new(service, "default")
    }

    fn list(peer: &mut PeerTask, now: Instant) {
        for watched in Watched::PEER {
            hear(peer, Some(watched), News::Listed(BTreeSet::new()), now);
        }
    }

    /// As the controller does.
    fn hear(peer: &mut PeerTask, watched: Option<Watched>, news: News, now: Instant) {
        let is_list = matches!(news, News::Listed(_) | News::Absent);
        assert!(matches!(peer.sort(peer.rounds, watched, news, now), Sorted::Taken(_)));
        if let Some(watched) = watched.filter(|_| is_list) {
            peer.listed(watched, now);
        }
    }

    fn change(name: &str) -> News {
        let name = ObjectName { namespace: "shop".to_owned(), name: name.to_owned() };
        let origin = Origin::Link(LinkName("east".to_owned()));
        let change = watch::removal(Watched::Slices, &origin, name.clone()).unwrap();
        News::Change(name, None, Box::new(change))
    }
}
