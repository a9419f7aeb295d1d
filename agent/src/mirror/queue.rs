//! Imports that wait to be looked at: each once, the one that waits longest first, so that what changes all the time doesn't
//! keep others from their turn.

use super::world::ImportKey;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

/// The first wait before what could not be written is tried again, and the longest.
const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(30);

/// Imports that wait, that are being written, and that are tried again later.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: VecDeque<ImportKey>,
    waiting: BTreeSet<ImportKey>,
    /// Being written, and whether to look again afterwards.
    in_flight: BTreeMap<ImportKey, bool>,
    retries: BTreeMap<ImportKey, Retry>,
}

/// When what could not be written is tried again.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    /// How often it was tried.
    tries: u32,
    /// Whether only a part could not be written: the rest doesn't wait for it.
    is_partial: bool,
}

impl Queue {
    /// Has an import looked at; one that failed as a whole not before its time.
    pub(super) fn push(&mut self, key: ImportKey) {
        if let Some(again) = self.in_flight.get_mut(&key) {
            *again = true;
        } else if self.retries.get(&key).is_none_or(|retry| retry.is_partial) && self.waiting.insert(key.clone()) {
            self.order.push_back(key);
        }
    }

    /// The next one that isn't being written, and is `ready`; the others stay where they are.
    pub(super) fn pop(&mut self, now: Instant, ready: impl Fn(&ImportKey) -> bool) -> Option<ImportKey> {
        let due = self.retries.keys().filter(|key| self.is_due(key, now));
        if let Some(key) = due.filter(|key| !self.in_flight.contains_key(*key)).find(|key| ready(key)).cloned() {
            // News may have come meanwhile: it is one turn, or two would write it at once.
            if self.waiting.remove(&key) {
                self.order.retain(|waiting| *waiting != key);
            }
            return Some(key);
        }
        let place = self.order.iter().position(ready)?;
        let key = self.order.remove(place)?;
        self.waiting.remove(&key);
        Some(key)
    }

    /// Whether all that could not be written of it is to be tried again.
    pub(super) fn is_due(&self, key: &ImportKey, now: Instant) -> bool {
        self.retries.get(key).is_some_and(|retry| retry.at <= now)
    }

    /// It is being written.
    pub(super) fn begin(&mut self, key: ImportKey) {
        self.in_flight.insert(key, false);
    }

    /// It is as it should be: nothing was to be written.
    pub(super) fn settled(&mut self, key: &ImportKey) {
        self.retries.remove(key);
    }

    /// It was written.
    pub(super) fn done(&mut self, key: ImportKey) {
        self.retries.remove(&key);
        if self.in_flight.remove(&key) == Some(true) {
            self.push(key);
        }
    }

    /// It could not be written; how often that was so before.
    pub(super) fn failed(&mut self, key: ImportKey, now: Instant) -> u32 {
        self.in_flight.remove(&key);
        self.retry(key, now, false)
    }

    /// Parts of it could not be written, and the others were; how often that was so before. Those parts wait for their time.
    pub(super) fn partial(&mut self, key: ImportKey, now: Instant) -> u32 {
        let waits = self.retries.get(&key).filter(|retry| retry.is_partial && retry.at > now).map(|retry| retry.tries);
        let again = self.in_flight.remove(&key) == Some(true);
        let tries = waits.unwrap_or_else(|| self.retry(key.clone(), now, true));
        if again {
            self.push(key);
        }
        tries
    }

    fn retry(&mut self, key: ImportKey, now: Instant, is_partial: bool) -> u32 {
        let tries = self.retries.get(&key).map_or(0, |retry| retry.tries);
        let wait = (FIRST * 2_u32.pow(tries.min(10))).min(LAST);
        self.retries.insert(key, Retry { at: now + wait, tries: tries + 1, is_partial });
        tries
    }

    /// When something is due to be tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        let retries = self.retries.iter().filter(|(key, _)| !self.in_flight.contains_key(*key));
        retries.map(|(_, retry)| retry.at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mirror::world::ImportKind, model::ObjectName};

    #[test]
    fn each_waits_once_and_the_one_that_waits_longest_is_next() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["b", "a", "b", "c"] {
            queue.push(key(name));
        }
        let any = |_: &ImportKey| true;
        assert_eq!(queue.pop(now, any), Some(key("b")));
        queue.push(key("b"));
        assert_eq!([queue.pop(now, any), queue.pop(now, any)], [Some(key("a")), Some(key("c"))]);
        assert_eq!([queue.pop(now, any), queue.pop(now, any)], [Some(key("b")), None]);
    }

    #[test]
    fn what_is_not_ready_keeps_its_place_and_lets_others_pass() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["a", "b", "c"] {
            queue.push(key(name));
        }
        assert_eq!(queue.pop(now, |it| *it != key("a")), Some(key("b")));
        assert_eq!(queue.pop(now, |_| true), Some(key("a")));
    }

    #[test]
    fn what_changes_while_it_is_written_is_looked_at_again_afterwards() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.begin(key("a"));
        queue.push(key("a"));
        assert_eq!(queue.pop(now, |_| true), None);
        queue.done(key("a"));
        assert_eq!(queue.pop(now, |_| true), Some(key("a")));
        queue.begin(key("a"));
        queue.done(key("a"));
        assert_eq!(queue.pop(now, |_| true), None);
    }

    #[test]
    fn what_failed_waits_longer_each_time_and_news_of_it_don_t_change_that() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let mut now = start;
        for wait in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            queue.begin(key("a"));
            queue.failed(key("a"), now);
            queue.push(key("a"));
            let wait = Duration::from_millis(wait);
            assert_eq!(queue.due(), Some(now + wait));
            assert_eq!(queue.pop(now + wait - Duration::from_millis(1), |_| true), None);
            now += wait;
            assert_eq!(queue.pop(now, |_| true), Some(key("a")));
        }
        queue.settled(&key("a"));
        assert_eq!((queue.due(), queue.pop(now, |_| true)), (None, None));
    }

    #[test]
    fn what_failed_in_part_waits_and_news_of_the_rest_don_t() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let any = |_: &ImportKey| true;
        queue.begin(key("a"));
        queue.push(key("a"));
        queue.partial(key("a"), start);
        assert_eq!(queue.pop(start, any), Some(key("a")), "news that came meanwhile");
        for turn in 1..100 {
            let now = start + Duration::from_millis(turn);
            assert!(!queue.is_due(&key("a"), now));
            queue.begin(key("a"));
            queue.partial(key("a"), now);
            queue.push(key("a"));
            assert_eq!(queue.pop(now, any), Some(key("a")));
        }
        // What is refused again and again waits as long as ever.
        assert_eq!(queue.due(), Some(start + FIRST));
        assert!(queue.is_due(&key("a"), start + FIRST));
        assert_eq!(queue.pop(start + FIRST, any), Some(key("a")));
        queue.begin(key("a"));
        queue.partial(key("a"), start + FIRST);
        assert_eq!(queue.due(), Some(start + FIRST + 2 * FIRST));
    }

    #[test]
    fn what_is_due_and_waits_as_well_is_written_once() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.begin(key("a"));
        queue.partial(key("a"), start);
        queue.push(key("a"));
        assert_eq!(queue.pop(start + FIRST, |_| true), Some(key("a")));
        queue.begin(key("a"));
        assert_eq!(queue.pop(start + FIRST, |_| true), None);
    }

    fn key(name: &str) -> ImportKey {
        let object = ObjectName { namespace: "shop".to_owned(), name: name.to_owned() };
        ImportKey { kind: ImportKind::Named, object }
    }
}
