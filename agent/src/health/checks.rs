//! Backends that failed for somebody: asked until it is clear whether they are dead, and then until they are back.

use super::{by_index::ByIndex, used::UsedBackend};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How far probes of one backend are apart until it is clear.
pub(super) const SPACING: Duration = Duration::from_millis(60);
/// With how little a chance a backend may be taken for dead because its answers were lost.
pub(super) const CHANCE: f64 = 1e-5;
/// The least and most probes without an answer that make a backend dead.
pub(super) const SILENT: (u32, u32) = (3, 12);
/// The same for one that never accepted a probe, because pods' connects were lost: much less, for there are many connects.
pub(super) const EXAMPLE_CHANCE: f64 = 1e-7;
/// The least and most connects, all that there were, that have to be unanswered for one that never accepted a probe of ours.
pub(super) const UNANSWERED: (u32, u32) = (3, 24);
/// For how long such a one is dead at first; doubled each time. It may be closed to us, and then no probe will find it alive.
const HOLD: Duration = Duration::from_secs(120);
/// The longest that it is.
const MOST_HOLD: Duration = Duration::from_secs(1920);
/// How often it is asked while it can't be told whether it or its path is at fault.
const UNCLEAR: Duration = Duration::from_millis(250);
/// How many probes go out while it is unclear; what the kernel has ejected comes back by itself.
const MOST_ASKED: u32 = 40;
/// The first wait before a dead backend is asked again; doubled each time.
pub(super) const BACK_OFF: Duration = Duration::from_millis(500);
/// The longest wait.
pub(super) const MOST_BACK_OFF: Duration = Duration::from_secs(30);
/// How many answers in a row bring a dead backend back.
const GOOD: u32 = 2;
/// How long a backend that is back is remembered: if it dies again, the waits go on from where they were.
const MEMORY: Duration = Duration::from_secs(60);
/// How many backends are asked after at most; the kernel's own ejection has to do for the others.
pub(super) const MOST_CHECKS: usize = 4096;
/// Probes of backends under way at most, in all and for one cluster.
pub(super) const IN_FLIGHT: usize = 64;
/// See [`IN_FLIGHT`].
pub(super) const IN_FLIGHT_PER_CLUSTER: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is not clear yet.
    Asking,
    Dead,
    /// It answered, or refused, which the kernel's ejection does for.
    Back {
        at: Instant,
    },
}

/// What is known of one backend.
#[derive(Clone, Debug)]
pub(super) struct Check {
    pub(super) backend: UsedBackend,
    state: State,
    /// Since when it has been asked.
    pub(super) since: Instant,
    asked: u32,
    silent: u32,
    /// Connects of pods that were not answered, without one in between that was.
    unanswered: u32,
    /// It is dead by others' example: it never accepted a probe itself.
    by_example: bool,
    hold: Duration,
    /// Its path was not fit for asking when it was asked last.
    was_unfit: bool,
    /// Answers in a row.
    good: u32,
    due: Instant,
    back_off: Duration,
    in_flight: u32,
}

/// What a probe of a backend said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Open,
    Refused,
    /// Nothing, while others were heard.
    Nothing,
}

/// All backends that are asked after, by index.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    by_index: BTreeMap<u32, Check>,
    in_flight: BTreeMap<u32, usize>,
}

impl Check {
    fn new(backend: UsedBackend, now: Instant) -> Self {
        Self {
            backend,
            state: State::Asking,
            since: now,
            asked: 0,
            silent: 0,
            unanswered: 0,
            by_example: false,
            hold: HOLD,
            was_unfit: false,
            good: 0,
            due: now,
            back_off: BACK_OFF / 2,
            in_flight: 0,
        }
    }

    fn ask(&mut self, now: Instant) {
        (self.state, self.since, self.due) = (State::Asking, now, now);
        (self.asked, self.silent, self.unanswered, self.good) = (0, 0, 0, 0);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    pub(super) fn is_asking(&self) -> bool {
        self.state == State::Asking
    }
}

impl Checks {
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Check)> {
        self.by_index.iter().map(|(index, check)| (*index, check))
    }

    pub(super) fn is_dead(&self, index: u32) -> bool {
        self.by_index.get(&index).is_some_and(Check::is_dead)
    }

    /// Goes on with what is still used, and takes over what the tables have dead.
    pub(super) fn renew(&mut self, used: &ByIndex<UsedBackend>, now: Instant) {
        self.by_index.retain(|index, check| {
            let stays = used.get(index).filter(|used| used.generation == check.backend.generation);
            if let Some(used) = stays {
                check.backend = *used;
            }
            stays.is_some()
        });
        for (&index, backend) in used.iter().filter(|(_, backend)| backend.dead) {
            // Why it is dead isn't known any more.
            let known = Check { state: State::Dead, back_off: BACK_OFF, by_example: true, ..Check::new(*backend, now) };
            let new = || known;
            self.by_index.entry(index).or_insert_with(new);
        }
    }

    /// A connect to it failed: it is asked at once.
    pub(super) fn suspect(&mut self, index: u32, backend: UsedBackend, now: Instant) {
        let has_room = self.by_index.len() < MOST_CHECKS;
        match self.by_index.get_mut(&index) {
            Some(check) => {
                if let State::Back { at } = check.state {
                    // If it dies again soon, the waits go on from where they were.
                    if now.saturating_duration_since(at) >= MEMORY {
                        (check.back_off, check.hold) = (BACK_OFF / 2, HOLD);
                    }
                    check.ask(now);
                }
            }
            None if has_room => {
                self.by_index.insert(index, Check::new(backend, now));
            }
            None => {}
        }
    }

    /// A connect to it was not answered although its path works.
    pub(super) fn unanswered(&mut self, index: u32) {
        if let Some(check) = self.by_index.get_mut(&index) {
            check.unanswered = check.unanswered.saturating_add(1);
        }
    }

    /// Somebody got through to it.
    pub(super) fn got_through(&mut self, index: u32, generation: u32, now: Instant) {
        let check = self.by_index.get_mut(&index).filter(|check| check.backend.generation == generation);
        if let Some(check) = check {
            match check.state {
                // That is more than can be known of one that may be closed to us.
                State::Dead if check.by_example => check.state = State::Back { at: now },
                State::Dead => check.due = now,
                State::Asking => check.state = State::Back { at: now },
                State::Back { .. } => {}
            }
        }
    }

    /// Those to be asked now. `may_ask` says whether the path is fit for finding out whether a backend is dead. One that is
    /// dead is asked in any case, since nobody else may ever be heard on its path; and at once when the path is fit again.
    pub(super) fn due(&mut self, now: Instant, may_ask: impl Fn(&UsedBackend) -> bool) -> Vec<(u32, u32)> {
        for check in self.by_index.values_mut().filter(|check| check.state == State::Dead) {
            if check.by_example && now.saturating_duration_since(check.since) >= check.hold {
                check.hold = (check.hold * 2).min(MOST_HOLD);
                check.state = State::Back { at: now };
            } else if check.was_unfit && may_ask(&check.backend) {
                (check.was_unfit, check.back_off, check.due) = (false, BACK_OFF, now);
            }
        }
        self.by_index.retain(|_, check| match check.state {
            State::Back { at } => now.saturating_duration_since(at) < MEMORY,
            State::Asking => check.asked < MOST_ASKED || check.in_flight > 0,
            State::Dead => true,
        });
        let mut due: Vec<(Instant, u32)> = self
            .by_index
            .iter()
            .filter(|(_, check)| !matches!(check.state, State::Back { .. }) && check.due <= now)
            .filter(|(_, check)| check.is_dead() || may_ask(&check.backend))
            .map(|(index, check)| (check.due, *index))
            .collect();
        due.sort_unstable();
        let mut free = IN_FLIGHT.saturating_sub(self.in_flight.values().sum());
        let mut chosen = Vec::new();
        for (_, index) in due {
            let check = self.by_index.get_mut(&index).expect("taken from there");
            let of_cluster = self.in_flight.entry(check.backend.cluster).or_default();
            if free == 0 || *of_cluster >= IN_FLIGHT_PER_CLUSTER {
                continue;
            }
            free -= 1;
            *of_cluster += 1;
            check.in_flight += 1;
            check.asked = check.asked.saturating_add(1);
            check.was_unfit = !may_ask(&check.backend);
            check.due = now
                + match check.state {
                    State::Dead => check.back_off,
                    _ if check.asked < SILENT.0 => SPACING,
                    _ if check.asked < SILENT.1 => SPACING * 2,
                    _ => UNCLEAR,
                };
            chosen.push((index, check.backend.generation));
        }
        chosen
    }

    /// When the next is due; none while no probe may be sent before another one ends.
    pub(super) fn next(&self, may_ask: impl Fn(&UsedBackend) -> bool) -> Option<Instant> {
        let is_free = |cluster: u32| self.in_flight.get(&cluster).is_none_or(|count| *count < IN_FLIGHT_PER_CLUSTER);
        if self.in_flight.values().sum::<usize>() >= IN_FLIGHT {
            return None;
        }
        let waiting = self.by_index.values().filter(|check| !matches!(check.state, State::Back { .. }));
        let asked = |check: &&Check| is_free(check.backend.cluster) && (check.is_dead() || may_ask(&check.backend));
        waiting.filter(asked).map(|check| check.due).min()
    }

    /// A probe has ended, whatever it said.
    pub(super) fn ended(&mut self, cluster: u32, index: u32, generation: u32) {
        if let Some(count) = self.in_flight.get_mut(&cluster) {
            *count = count.saturating_sub(1);
        }
        let check = self.by_index.get_mut(&index).filter(|check| check.backend.generation == generation);
        if let Some(check) = check {
            check.in_flight = check.in_flight.saturating_sub(1);
        }
    }

    /// Takes in what a probe said.
    pub(super) fn said(&mut self, index: u32, generation: u32, said: Said, now: Instant) {
        let check = self.by_index.get_mut(&index).filter(|check| check.backend.generation == generation);
        let Some(check) = check else {
            return;
        };
        match (check.state, said) {
            (State::Asking, Said::Open | Said::Refused) => check.state = State::Back { at: now },
            (State::Asking, Said::Nothing) => check.silent += 1,
            (State::Dead, Said::Open) => {
                check.good += 1;
                check.by_example = false;
                check.due = now + SPACING;
                if check.good >= GOOD {
                    check.state = State::Back { at: now };
                }
            }
            (State::Dead, Said::Refused | Said::Nothing) => {
                check.good = 0;
                check.back_off = (check.back_off * 2).min(MOST_BACK_OFF);
                check.due = now + check.back_off;
            }
            (State::Back { .. }, _) => {}
        }
    }

    /// Judges what has been asked enough; `needed` is how many silent probes that is, and how many unanswered connects of
    /// pods, 0 for one that once accepted a probe.
    pub(super) fn judge(&mut self, now: Instant, needed: impl Fn(u32, &UsedBackend) -> (u32, u32)) {
        for (index, check) in self.by_index.iter_mut().filter(|(_, check)| check.state == State::Asking) {
            let (silent, unanswered) = needed(*index, &check.backend);
            if check.silent >= silent && check.unanswered >= unanswered {
                check.by_example = unanswered > 0;
                check.since = now;
                check.back_off = (check.back_off * 2).min(MOST_BACK_OFF);
                check.state = State::Dead;
                check.good = 0;
                check.due = now + check.back_off;
            }
        }
    }

    /// Forgets what isn't clear yet of the path of `cluster` that `is_concerned`: it is not the backends' fault.
    pub(super) fn drop_unclear(&mut self, is_concerned: impl Fn(&UsedBackend) -> bool) {
        self.by_index.retain(|_, check| check.state != State::Asking || !is_concerned(&check.backend));
    }
}
