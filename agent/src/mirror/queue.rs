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
    /// When what could not be written is tried again, and how often it was.
    retries: BTreeMap<ImportKey, (Instant, u32)>,
}

impl Queue {
    /// Has an import looked at; one that failed not before its time.
    pub(super) fn push(&mut self, key: ImportKey) {
        if let Some(again) = self.in_flight.get_mut(&key) {
            *again = true;
        } else if !self.retries.contains_key(&key) && self.waiting.insert(key.clone()) {
            self.order.push_back(key);
        }
    }

    /// The next one that isn't being written, and is `ready`; the others stay where they are.
    pub(super) fn pop(&mut self, now: Instant, ready: impl Fn(&ImportKey) -> bool) -> Option<ImportKey> {
        let is_due = |(_, (at, _)): &(&ImportKey, &(Instant, u32))| *at <= now;
        let due = self.retries.iter().filter(is_due).map(|(key, _)| key);
        if let Some(key) = due.filter(|key| !self.in_flight.contains_key(*key)).find(|key| ready(key)).cloned() {
            return Some(key);
        }
        let place = self.order.iter().position(ready)?;
        let key = self.order.remove(place)?;
        self.waiting.remove(&key);
        Some(key)
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
        let tries = self.retries.get(&key).map_or(0, |(_, tries)| *tries);
        let wait = (FIRST * 2_u32.pow(tries.min(10))).min(LAST);
        self.retries.insert(key, (now + wait, tries + 1));
        tries
    }

    /// When something is due to be tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        let retries = self.retries.iter().filter(|(key, _)| !self.in_flight.contains_key(*key));
        retries.map(|(_, (at, _))| *at).min()
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

    fn key(name: &str) -> ImportKey {
        let object = ObjectName { namespace: "shop".to_owned(), name: name.to_owned() };
        ImportKey { kind: ImportKind::Named, object }
    }
}
