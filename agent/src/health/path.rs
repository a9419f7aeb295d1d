//! The health of one path to one cluster: signs of life, doubt, evidence, and the slow way back.

use super::{
    Held,
    canaries::{CANARIES, Canaries, Canary, Works},
    rtt::{Loss, MOST_TIMEOUT, Rtt},
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How often a path is asked while it works and nobody else uses it.
pub(super) const WELL: Duration = Duration::from_secs(1);
/// How often while it is in doubt.
pub(super) const DOUBT: Duration = Duration::from_millis(60);
/// How long it is asked so often; after that nothing seems to be decided by it.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often once nothing can be decided: everything is dark.
const HELD: Duration = Duration::from_millis(500);
/// How much longer than others a path may be dark after everything was.
const LENIENT: Duration = Duration::from_secs(2);
/// How often while it is down.
const DOWN: Duration = Duration::from_millis(500);
/// How often canaries that never answered are asked, once they were asked often.
const RARELY: Duration = Duration::from_secs(10);
/// How many rounds they are asked before that.
const OFTEN: u32 = 15;
/// With how little a chance a lossy path may be taken for a dead one, each time it comes into doubt.
const CHANCE: f64 = 1e-8;
/// The least and most probes that have to fail for it.
const EVIDENCE: (u32, u32) = (4, 36);
/// How many probes of a path are under way at most.
const IN_FLIGHT: u32 = 36;
/// How many good rounds in a row, over how long, bring a path back.
pub(super) const GOOD_ROUNDS: u32 = 5;
/// See [`GOOD_ROUNDS`]; doubled for each further time that it went down within [`FLAPS`].
pub(super) const HYSTERESIS: Duration = Duration::from_secs(2);
/// The longest that a flapping path is kept down although it answers.
pub(super) const MOST_HYSTERESIS: Duration = Duration::from_secs(60);
/// How long a time of going down is held against a path.
pub(super) const FLAPS: Duration = Duration::from_secs(60);

/// Whether the path is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Up,
    Down(Recovery),
}

/// How far a path that is down has come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Recovery {
    /// The first answer since the last round without one, and the good rounds since.
    good: Option<(Instant, u32)>,
    /// Whether this round was answered; none before the first.
    answered: Option<bool>,
}

/// One path to one cluster.
#[derive(Clone, Debug)]
pub(super) struct PathHealth {
    /// Index in `CLUSTERS`.
    pub(super) index: u32,
    pub(super) canaries: Canaries,
    pub(super) state: State,
    /// Since when it has been in doubt, which a sign of life ends.
    pub(super) doubt: Option<Instant>,
    /// What failed earlier is no evidence.
    evidence_from: Option<Instant>,
    /// Not to be taken for dark before.
    lenient_until: Option<Instant>,
    /// It looks dark, and nobody can say that this isn't our own fault.
    pub(super) held: Option<Held>,
    pub(super) rtt: Rtt,
    pub(super) loss: Loss,
    /// Since when it has been known.
    since: Instant,
    /// Whether a probe of ours was ever answered, if only by an RST.
    answered_us: bool,
    /// The last time that anything was heard over it.
    pub(super) last_sign: Option<Instant>,
    /// Until when it was dark, or seemed to be, the last time that it was.
    dark_until: Option<Instant>,
    /// When it was last seen whether the kernel heard anything.
    pub(super) looked: Option<Instant>,
    /// When the next round is due.
    pub(super) due: Instant,
    pub(super) in_flight: u32,
    /// When it went down lately.
    downs: VecDeque<Instant>,
    /// How often it went down or came back.
    pub(super) flips: u64,
    /// When it last did.
    pub(super) changed: Option<Instant>,
    rounds: u32,
    last_round: Option<Instant>,
    /// Rounds since a canary that doesn't count yet was asked first.
    unheard: u32,
    asked_unheard: Option<Instant>,
}

impl PathHealth {
    pub(super) fn new(index: u32, down: bool, now: Instant) -> Self {
        Self {
            index,
            canaries: Canaries::default(),
            state: if down { State::Down(Recovery::default()) } else { State::Up },
            doubt: None,
            evidence_from: None,
            lenient_until: None,
            held: None,
            rtt: Rtt::default(),
            loss: Loss::default(),
            since: now,
            answered_us: false,
            last_sign: None,
            dark_until: None,
            looked: None,
            due: now,
            in_flight: 0,
            downs: VecDeque::new(),
            flips: 0,
            changed: None,
            rounds: 0,
            last_round: None,
            unheard: 0,
            asked_unheard: None,
        }
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.state, State::Down(_))
    }

    /// Whether it works, as far as is known.
    pub(super) fn works(&self) -> Works {
        match (self.is_down(), self.doubt) {
            (true, _) => Works::No,
            (false, Some(_)) => Works::Perhaps,
            (false, None) => Works::Yes,
        }
    }

    /// Whether an answer has come since it went down, so that it may be used again soon.
    pub(super) fn is_returning(&self) -> bool {
        matches!(&self.state, State::Down(recovery) if recovery.good.is_some())
    }

    /// Whether its canaries are on other nodes, so that their answers prove that we are connected.
    pub(super) fn leaves_the_node(&self) -> bool {
        self.canaries.all().iter().any(|canary| !canary.candidate.local)
    }

    /// Whether anything was heard at or after `since`.
    pub(super) fn signed_since(&self, since: Instant) -> bool {
        self.last_sign.is_some_and(|sign| sign >= since)
    }

    /// Whether others were heard while somebody waited who began at `began`: his silence is his own.
    pub(super) fn worked_since(&self, began: Instant) -> bool {
        self.signed_since(began) && self.dark_until.is_none_or(|until| until < began)
    }

    /// Whether anything ever was.
    pub(super) fn ever_heard(&self) -> bool {
        self.last_sign.is_some()
    }

    /// Whether the last round was long enough ago to ask out of turn.
    pub(super) fn may_be_asked_again(&self, now: Instant) -> bool {
        self.last_round.is_none_or(|last| now.saturating_duration_since(last) >= DOUBT)
    }

    /// How long a probe is waited for.
    pub(super) fn patience(&self) -> Duration {
        self.rtt.timeout().unwrap_or(MOST_TIMEOUT)
    }

    /// Something was heard over the path at `at`.
    pub(super) fn sign(&mut self, at: Instant) {
        if self.last_sign.is_some_and(|last| last >= at) {
            return;
        }
        self.last_sign = Some(at);
        let failed = |canary: &Canary| !canary.failed.is_empty();
        if self.is_down() || self.canaries.regular().iter().all(failed) {
            self.dark_until = Some(at);
        }
        self.canaries.forget_until(at);
        if self.doubt.is_some_and(|since| at >= since) {
            self.doubt = None;
            self.held = None;
            self.lenient_until = None;
        }
        if let State::Down(recovery) = &mut self.state
            && self.changed.is_none_or(|changed| at > changed)
        {
            recovery.answered = Some(true);
            recovery.good.get_or_insert((at, 0));
        }
    }

    /// A connect over the path was not answered, says the kernel: asks the canaries, unless something was heard
    /// since that connect was begun.
    pub(super) fn suspect(&mut self, now: Instant) {
        if self.begun(now).is_none_or(|begun| !self.signed_since(begun)) {
            self.doubt(now);
        }
    }

    /// When a connect was begun, at the latest, that turns out to be unanswered now.
    pub(super) fn begun(&self, now: Instant) -> Option<Instant> {
        now.checked_sub(self.patience() * 4 / 5)
    }

    /// Asks often from now on.
    pub(super) fn doubt(&mut self, now: Instant) {
        if self.state == State::Up && self.doubt.is_none() && self.leaves_the_node() {
            self.doubt = Some(now);
            self.due = self.due.min(now);
        }
    }

    /// A canary answered after `rtt`, with a connection or (`opened` false) an RST.
    pub(super) fn answered(&mut self, backend: u32, generation: u32, opened: bool, rtt: Duration, now: Instant) {
        self.answered_us = true;
        let was_back = self.is_returning() || !self.is_down();
        let failed = self.canaries.answered(backend, generation, opened);
        // What failed in an outage was not lost by chance.
        if was_back {
            self.loss.note(failed.min(3));
        }
        self.rtt.note(rtt);
        if self.leaves_the_node() {
            self.sign(now);
        }
    }

    /// A probe of a canary was not answered.
    pub(super) fn failed(&mut self, backend: u32, generation: u32, started: Instant, now: Instant) {
        let is_recent = self.evidence_from.is_none_or(|from| started >= from);
        let is_evidence = self.state == State::Up && is_recent && !self.signed_since(started);
        self.canaries.failed(backend, generation, started, is_evidence);
        let counts = |key: (u32, u32)| {
            let mut known = self.canaries.all().iter();
            known.any(|canary| (canary.candidate.backend, canary.candidate.generation) == key && canary.counts)
        };
        if is_evidence && counts((backend, generation)) {
            self.doubt(now);
        }
    }

    /// Whether so many canaries failed that it can't be by chance. Those that never answered count too if `lost`: the
    /// cluster's API is gone as well. But not if this node's pods have heard the path and we haven't, for then it is closed to
    /// us; nor those of UDP, whose firewalls may drop what is no UDP.
    pub(super) fn is_dark(&self, lost: bool, now: Instant) -> bool {
        let lost = lost && (self.answered_us || !self.signed_since(self.since));
        if self.doubt.is_none() && !lost || self.lenient_until.is_some_and(|until| now < until) {
            return false;
        }
        let counts = |canary: &&Canary| canary.counts || lost && !canary.candidate.udp;
        let counting = || self.canaries.regular().iter().filter(counts);
        let (least, most) = EVIDENCE;
        let failed: usize = counting().map(|canary| canary.failed.len()).sum();
        let twice = counting().filter(|canary| canary.failed.len() >= 2).count();
        let needed = usize::try_from(self.loss.needed(CHANCE, least, most)).unwrap_or(usize::MAX);
        let asked = counting().count();
        asked > 0
            && counting().all(|canary| !canary.failed.is_empty())
            && twice >= asked.min(2)
            && failed >= needed.min(MOST_EVIDENCE)
    }

    /// Starts the evidence afresh: what failed until now may have been for another reason.
    pub(super) fn doubt_anew(&mut self, now: Instant) {
        self.canaries.forget();
        self.evidence_from = Some(now);
        if self.doubt.is_some() {
            self.doubt = Some(now);
            self.held = None;
            self.due = self.due.min(now);
        }
    }

    /// Others are heard again, so this one may be, too, in a moment: not all routes come back at once.
    pub(super) fn release(&mut self, now: Instant) {
        self.doubt_anew(now);
        self.lenient_until = Some(now + LENIENT);
    }

    /// Takes the path out of use.
    pub(super) fn go_down(&mut self, now: Instant) {
        self.state = State::Down(Recovery::default());
        self.doubt = None;
        self.held = None;
        self.canaries.forget();
        self.downs.push_back(now);
        self.flip(now);
        self.due = now + DOWN;
    }

    fn flip(&mut self, now: Instant) {
        self.flips += 1;
        self.changed = Some(now);
    }

    /// How long it has to answer before it is used again: longer for one that went down often.
    pub(super) fn hysteresis(&self, now: Instant) -> Duration {
        let recent = self.downs.iter().filter(|down| now.saturating_duration_since(**down) < FLAPS).count();
        let doublings = u32::try_from(recent.saturating_sub(1)).unwrap_or(u32::MAX).min(8);
        (HYSTERESIS * 2_u32.pow(doublings)).min(MOST_HYSTERESIS)
    }

    /// Begins the round that is due: the canaries to be asked, as positions in [`Canaries::all`]. `asked` says that
    /// another path wants to know whether we are connected at all.
    pub(super) fn round(&mut self, asked: bool, now: Instant) -> Vec<usize> {
        if let State::Down(recovery) = &mut self.state {
            match recovery.answered.replace(false) {
                Some(true) => recovery.good = recovery.good.map(|(since, rounds)| (since, rounds + 1)),
                Some(false) => recovery.good = None,
                None => {}
            }
            let good = recovery.good;
            let is_back = |(since, rounds): (Instant, u32)| {
                rounds >= GOOD_ROUNDS && now.saturating_duration_since(since) >= self.hysteresis(now)
            };
            if good.is_some_and(is_back) {
                self.state = State::Up;
                self.flip(now);
            }
        }
        self.downs.retain(|down| now.saturating_duration_since(*down) < FLAPS * 2);
        let everybody = 0..self.canaries.all().len();
        let regular = 0..everybody.end.min(CANARIES);
        self.rounds = self.rounds.wrapping_add(1);
        self.last_round = Some(now);
        let (every, chosen): (Duration, Vec<usize>) = if self.is_down() {
            (DOWN.max(self.patience() + DOUBT), everybody.collect())
        } else if let Some(since) = self.doubt {
            let is_slow = self.held.is_some() || now.saturating_duration_since(since) >= PATIENCE;
            (if is_slow { HELD } else { DOUBT }, everybody.collect())
        } else if asked {
            (WELL, regular.collect())
        } else {
            (WELL, self.well(now))
        };
        self.due = now + every;
        if self.in_flight >= IN_FLIGHT { Vec::new() } else { chosen }
    }

    /// While all is well one canary a round is asked, unless somebody else's success tells as much, and those that
    /// have to answer before they count.
    fn well(&mut self, now: Instant) -> Vec<usize> {
        let regular = self.canaries.regular();
        let mut chosen: Vec<usize> = Vec::new();
        let counting: Vec<usize> = (0..regular.len()).filter(|&at| regular[at].counts).collect();
        let is_known = self.last_sign.is_some_and(|sign| now.saturating_duration_since(sign) < WELL * 9 / 10);
        if !is_known && !counting.is_empty() {
            let turn = usize::try_from(self.rounds).unwrap_or(0) % counting.len();
            chosen.push(counting[turn]);
        }
        if counting.len() == regular.len() {
            self.unheard = 0;
        } else {
            let rarely = |last: Instant| now.saturating_duration_since(last) >= RARELY;
            if self.unheard < OFTEN || self.asked_unheard.is_none_or(rarely) {
                chosen.extend((0..regular.len()).filter(|&at| !regular[at].counts));
                self.unheard += 1;
                self.asked_unheard = Some(now);
            }
        }
        chosen
    }
}

/// Evidence is bounded by what canaries remember.
const MOST_EVIDENCE: usize = 36;
