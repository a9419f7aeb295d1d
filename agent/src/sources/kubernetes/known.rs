//! What all watches together have told: the one set of objects that the model is to hold.
//!
//! Pure: it is fed with what watches tell, in whatever order that comes, and returns changes. Nothing is told before
//! everything was listed, because half a list looks like a small cluster. An error takes nothing away, and a list that is
//! read again shows what was deleted meanwhile.
//!
//! Of Services that aren't federated it keeps what is needed should they be joined later; the model never sees them. A
//! federated one is told of only once the slices of its local members are known.

use super::{
    holders::{Bits, Holders},
    news::{Failure, News, Object, Reading, Watch},
    rounds::{Names, Rounds},
};
use crate::{
    model::{Change, ObjectName, Service, ServiceRef},
    sources::{Origin, Problem, joined::Joined, key::Key},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

/// Without these nothing is known well enough to act on it.
const REQUIRED: [Watch; 3] = [Watch::Services, Watch::Mirrored, Watch::Pods];
/// Without these some services lack something, which is left as it was.
const OPTIONAL: [Watch; 2] = [Watch::Imports, Watch::Fallback];

/// Everything that watches told.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Whether all Services are translated, so that all slices are watched at once.
    all_services: bool,
    states: BTreeMap<Watch, State>,
    holders: Holders,
    /// What is wrong with objects.
    problems: BTreeMap<Key, Wrong>,
    /// What was told and not looked at as a whole yet.
    told: BTreeMap<Key, Change>,
    joined: Joined,
    rounds: Rounds,
    /// The Services with local endpoints for each federated one.
    locals: BTreeMap<ServiceRef, BTreeSet<ObjectName>>,
    /// All of them, as long as none of that has changed.
    names: Option<Names>,
    /// Federated ones that wait for the slices of their local members.
    waiting: BTreeMap<ServiceRef, Service>,
    /// Federated ones that were handed on.
    delivered: BTreeSet<ServiceRef>,
    /// What is to be handed on.
    out: BTreeMap<Key, Change>,
}

/// What is wrong with an object.
#[derive(Debug)]
struct Wrong {
    reason: String,
    /// Whether it can't be used at all.
    is_bad: bool,
}

/// How a watch stands.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// When it last listed everything.
    pub(super) listed: Option<Instant>,
    /// When it last told anything.
    pub(super) heard: Option<Instant>,
    /// Why it doesn't go on.
    pub(super) failure: Option<Failure>,
}

impl State {
    /// Whether nothing is to be waited for: everything was listed, or there is no such thing.
    fn is_settled(&self) -> bool {
        self.listed.is_some() || self.failure == Some(Failure::Absent)
    }
}

impl Known {
    /// Knows nothing yet.
    pub(super) fn new(all_services: bool) -> Self {
        Self { all_services, ..Self::default() }
    }

    /// Takes in what a watch tells.
    pub(super) fn take(&mut self, watch: Watch, news: News, now: Instant) {
        let Some(bit) = self.bit(watch) else { return };
        let state = self.states.entry(watch).or_default();
        match &news {
            News::Failed(failure) => state.failure = Some(failure.clone()),
            News::Resumed => state.failure = None,
            // It is only about to ask.
            News::Listing => {}
            News::There(_) | News::Gone(_) | News::Listed => {
                state.failure = None;
                state.heard = Some(now);
            }
        }
        match news {
            News::Listing => self.holders.begin(bit),
            News::There(object) => self.put(object, bit),
            News::Gone(key) => self.release(key, bit),
            News::Listed => {
                state.listed = Some(now);
                let gone = self.holders.end(bit);
                self.forget(gone);
                if let Watch::Local { round, part } = watch {
                    self.rounds.listed(round, part);
                    self.turn_over();
                }
            }
            News::Failed(_) | News::Resumed => {}
        }
    }

    /// What is new since this was called last; nothing before everything was listed.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        self.digest();
        if self.synced().is_none() { Vec::new() } else { std::mem::take(&mut self.out).into_values().collect() }
    }

    /// Whether everything was listed, if nothing is to be waited for: false if some of it can't be.
    pub(super) fn synced(&self) -> Option<bool> {
        let is_settled = |watch: &Watch| self.states.get(watch).is_some_and(State::is_settled);
        let is_refused =
            |watch: &Watch| matches!(self.states.get(watch), Some(State { failure: Some(Failure::Refused(_)), .. }));
        if !REQUIRED.iter().all(is_settled) || self.rounds.covered().is_none() && !self.all_services {
            return None;
        }
        if OPTIONAL.iter().all(is_settled) {
            return Some(true);
        }
        OPTIONAL.iter().all(|watch| is_settled(watch) || is_refused(watch)).then_some(false)
    }

    /// The Services whose built-in slices are to be watched by another round than those that run, if so.
    pub(super) fn new_round(&mut self) -> Option<Names> {
        self.digest();
        let is_known = [Watch::Services, Watch::Mirrored]
            .iter()
            .all(|watch| self.states.get(watch).is_some_and(|state| state.listed.is_some()));
        if self.all_services || !is_known {
            return None;
        }
        let newest = self.rounds.newest();
        let names = self.names.get_or_insert_with(|| {
            let names: BTreeSet<&ObjectName> = self.locals.values().flatten().collect();
            match newest {
                Some(newest) if newest.iter().eq(names.iter().copied()) => Arc::clone(newest),
                _ => Arc::new(names.into_iter().cloned().collect()),
            }
        });
        let is_watched = newest.is_some_and(|newest| Arc::ptr_eq(newest, names) || newest == names);
        (!is_watched).then(|| Arc::clone(names))
    }

    /// Begins a round of so many parts and returns its number.
    pub(super) fn begin_round(&mut self, names: Names, parts: u8) -> u32 {
        let number = self.rounds.begin(names, parts, &mut self.holders);
        self.turn_over();
        number
    }

    /// Whether a round's watches are still needed.
    pub(super) fn is_running(&self, round: u32) -> bool {
        self.rounds.is_running(round)
    }

    /// All that is wrong now.
    pub(super) fn problems(&self) -> Vec<Problem> {
        // An API server that is gone is so for all watches: that is one problem.
        let mut names_by_reason: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (watch, state) in &self.states {
            let (Some(Failure::Unreachable(reason)) | Some(Failure::Refused(reason))) = &state.failure else {
                continue;
            };
            let stays = if state.listed.is_some() { "; what was listed before stays" } else { "" };
            names_by_reason.entry(format!("{reason}{stays}")).or_default().insert(watch.name());
        }
        let watches = names_by_reason.into_iter().map(|(reason, names)| {
            let names: Vec<_> = names.into_iter().collect();
            Problem { origin: Origin::Watch(names.join(", ")), reason }
        });
        // Odd annotations of Services that aren't federated are nobody's concern.
        let concerns_us = |key: &Key, wrong: &Wrong| match key {
            Key::Service(name) => wrong.is_bad || self.locals.contains_key(name),
            Key::Slice(_) | Key::Pod(_) => true,
        };
        let objects = self.problems.iter().filter(|(key, wrong)| concerns_us(key, wrong));
        let objects = objects
            .map(|(key, wrong)| Problem { origin: Origin::Object(key.to_string()), reason: wrong.reason.clone() });
        let mut problems: Vec<_> = watches.chain(objects).collect();
        problems.sort();
        problems.dedup();
        problems
    }

    /// How the watches stand, those of a round as one, with how many objects they hold.
    pub(super) fn states(&self) -> Vec<(&'static str, State, usize)> {
        let watches = REQUIRED.into_iter().chain(OPTIONAL);
        let single = watches.filter_map(|watch| {
            let state = self.states.get(&watch).cloned().unwrap_or_default();
            Some((watch.name(), state, self.holders.count(self.bit(watch)?)))
        });
        let parts = || self.states.iter().filter(|(watch, _)| matches!(watch, Watch::Local { .. }));
        let local = State {
            listed: parts().filter_map(|(_, state)| state.listed).min(),
            heard: parts().filter_map(|(_, state)| state.heard).max(),
            failure: parts().find_map(|(_, state)| state.failure.clone()),
        };
        let name = Watch::Local { round: 0, part: 0 }.name();
        let has_locals = parts().next().is_some();
        single.chain(has_locals.then(|| (name, local, self.holders.count(Rounds::all_bits())))).collect()
    }

    fn bit(&self, watch: Watch) -> Option<Bits> {
        match watch {
            Watch::Services => Some(1),
            Watch::Imports => Some(1 << 1),
            Watch::Mirrored => Some(1 << 2),
            Watch::Fallback => Some(1 << 3),
            Watch::Pods => Some(1 << 4),
            Watch::Local { round, part } => self.rounds.bit(round, part),
        }
    }

    fn put(&mut self, object: Object, bit: Bits) {
        let Object { key, version, reading } = object;
        if reading == Reading::Left {
            return self.release(key, bit);
        }
        if !self.holders.hold(key.clone(), bit, version) {
            return;
        }
        match reading {
            Reading::Left => {}
            Reading::Taken(change) => {
                match problems(&change) {
                    Some(reason) => drop(self.problems.insert(key.clone(), Wrong { reason, is_bad: false })),
                    None => drop(self.problems.remove(&key)),
                }
                self.told.insert(key, *change);
            }
            Reading::Bad(reason) => {
                let reason = format!("{reason}; its last good state stays, if it had one");
                self.problems.insert(key, Wrong { reason, is_bad: true });
            }
        }
    }

    fn release(&mut self, key: Key, bit: Bits) {
        if self.holders.release(&key, bit) {
            self.forget([key]);
        }
    }

    fn forget(&mut self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            self.problems.remove(&key);
            self.told.insert(key.clone(), key.gone());
        }
    }

    fn turn_over(&mut self) {
        let gone = self.rounds.turn_over(&mut self.holders);
        self.forget(gone);
        let rounds = &self.rounds;
        self.states.retain(|watch, _| match watch {
            Watch::Local { round, .. } => rounds.is_running(*round),
            _ => true,
        });
    }

    /// Looks at what was told as a whole.
    fn digest(&mut self) {
        let told = std::mem::take(&mut self.told).into_values().collect();
        for change in self.joined.pass(told) {
            match change {
                Change::Service(name, Some(service)) if service.federated => {
                    let locals = if self.all_services { BTreeSet::new() } else { locals(&name, &service) };
                    if self.locals.get(&name) != Some(&locals) {
                        self.names = None;
                        self.locals.insert(name.clone(), locals);
                    }
                    self.waiting.insert(name, service);
                }
                Change::Service(name, _) => {
                    if self.locals.remove(&name).is_some() {
                        self.names = None;
                    }
                    self.waiting.remove(&name);
                    if self.delivered.remove(&name) {
                        self.out.insert(Key::Service(name.clone()), Change::Service(name, None));
                    }
                }
                other => drop(self.out.insert(Key::of(&other), other)),
            }
        }
        let (locals, covered) = (&self.locals, self.rounds.covered());
        let is_covered = |name: &ServiceRef| {
            let mut names = locals.get(name).into_iter().flatten();
            names.all(|local| covered.is_some_and(|covered| covered.contains(local)))
        };
        for (name, service) in self.waiting.extract_if(.., |name, _| is_covered(name)) {
            self.delivered.insert(name.clone());
            self.out.insert(Key::Service(name.clone()), Change::Service(name, Some(service)));
        }
    }
}

/// The Services whose built-in slices are endpoints of this one.
///
/// What a mirror made has none but its local member's. A Service that pods are selected for has its own.
fn locals(name: &ServiceRef, service: &Service) -> BTreeSet<ObjectName> {
    if service.opted_out {
        return BTreeSet::new();
    }
    let namespace = &name.object.namespace;
    let member = service.local_member.as_ref();
    let member = member.map(|member| ObjectName { namespace: namespace.clone(), name: member.clone() });
    let itself = (!service.exclusive).then(|| name.object.clone());
    member.into_iter().chain(itself).collect()
}

/// What is wrong with an object that can be used nevertheless. Of slices it is told with the services they belong to.
fn problems(change: &Change) -> Option<String> {
    match change {
        Change::Service(_, Some(service)) if !service.problems.is_empty() => Some(service.problems.join("; ")),
        _ => None,
    }
}
