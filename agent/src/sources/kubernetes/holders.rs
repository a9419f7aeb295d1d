//! Which watches hold which objects.
//!
//! One slice may be seen by several watches, each at its own pace, and by each of them no longer. It is there as long as
//! one watch holds it, and the newest word of it holds.

use crate::sources::key::Key;
use std::collections::BTreeMap;

/// A set of watches, one bit each.
pub(super) type Bits = u16;

/// Who holds what.
#[derive(Debug, Default)]
pub(super) struct Holders {
    held: BTreeMap<Key, Held>,
}

#[derive(Debug, Default)]
struct Held {
    by: Bits,
    /// Those that have told of it in the list that they are reading.
    seen: Bits,
    /// The version that holds; 0 if any is newer.
    version: u64,
    /// Those that told this version. The others are behind, and will come to it.
    told: Bits,
}

impl Held {
    fn let_go(&mut self, watches: Bits) {
        self.by &= !watches;
        self.told &= !watches;
    }
}

impl Holders {
    /// A watch begins a full list.
    pub(super) fn begin(&mut self, watch: Bits) {
        for held in self.held.values_mut().filter(|held| held.by & watch != 0) {
            held.seen &= !watch;
        }
    }

    /// A watch tells of an object; whether that holds. It doesn't if another watch has told something newer.
    ///
    /// A watch that tells something older than what it told itself is right: the cluster was restored from a backup, and
    /// counts versions anew.
    pub(super) fn hold(&mut self, key: Key, watch: Bits, version: u64) -> bool {
        let held = self.held.entry(key).or_default();
        held.by |= watch;
        held.seen |= watch;
        let is_behind = version != 0 && version < held.version;
        if is_behind && held.told != 0 && held.told & watch == 0 {
            return false;
        }
        held.told = if version == held.version { held.told | watch } else { watch };
        held.version = version;
        true
    }

    /// A watch holds an object no longer; whether nobody does.
    pub(super) fn release(&mut self, key: &Key, watch: Bits) -> bool {
        let Some(held) = self.held.get_mut(key) else { return true };
        held.let_go(watch);
        let is_free = held.by == 0;
        if is_free {
            self.held.remove(key);
        }
        is_free
    }

    /// A watch has come to the end of its list: what it held and didn't find there it holds no longer. Returns what
    /// nobody holds any more.
    pub(super) fn end(&mut self, watch: Bits) -> Vec<Key> {
        self.remove(|held| if held.seen & watch == 0 { watch } else { 0 })
    }

    /// These watches have ended. Returns what nobody holds any more.
    pub(super) fn clear(&mut self, watches: Bits) -> Vec<Key> {
        self.remove(|_| watches)
    }

    /// What these watches hold is held by another one from now on.
    pub(super) fn hand_over(&mut self, watches: Bits, to: Bits) {
        for held in self.held.values_mut().filter(|held| held.by & watches != 0) {
            held.by = held.by & !watches | to;
            if held.told & watches != 0 {
                held.told = held.told & !watches | to;
            }
        }
    }

    /// How many objects these watches hold.
    pub(super) fn count(&self, watches: Bits) -> usize {
        self.held.values().filter(|held| held.by & watches != 0).count()
    }

    fn remove(&mut self, watches: impl Fn(&Held) -> Bits) -> Vec<Key> {
        let freed = self.held.extract_if(.., |_, held| {
            let before = held.by;
            held.let_go(watches(held));
            before != 0 && held.by == 0
        });
        freed.map(|(key, _)| key).collect()
    }
}
