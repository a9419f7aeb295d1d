//! Which is newer of what a write brought back and what a watch tells of the same object.
//!
//! Either may come first: a watch that lags tells of versions from before a write, and the answer to a write may be read after
//! the watch told what somebody else wrote since.

use super::watch::Watched;
use crate::model::ObjectName;
use std::collections::{BTreeMap, BTreeSet};

type Key = (Watched, ObjectName);

/// What is known of the versions of own objects that are written.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// Versions that were written: what watches tell of older ones is not so any more.
    written: BTreeMap<Key, u64>,
    /// Objects that are being written, and what watches told of them since that began.
    in_flight: BTreeMap<Key, Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    version: Option<u64>,
    /// Whether it was gone once.
    is_gone: bool,
}

impl Versions {
    /// These objects are being written.
    pub(super) fn begin(&mut self, objects: impl Iterator<Item = Key>) {
        self.in_flight.extend(objects.map(|key| (key, Seen::default())));
    }

    /// A watch tells of an object in this version, or that it is gone; whether it was written since.
    pub(super) fn is_old(&mut self, watched: Watched, name: ObjectName, version: Option<u64>, is_gone: bool) -> bool {
        let key = (watched, name);
        if let Some(seen) = self.in_flight.get_mut(&key) {
            seen.version = seen.version.max(version);
            seen.is_gone |= is_gone;
        }
        let Some(written) = self.written.get(&key) else { return false };
        let is_old = version.is_some_and(|version| version < *written);
        if !is_old {
            self.written.remove(&key);
        }
        is_old
    }

    /// A list lacks an object.
    pub(super) fn is_missing(&mut self, watched: Watched, name: ObjectName) {
        let key = (watched, name);
        self.written.remove(&key);
        if let Some(seen) = self.in_flight.get_mut(&key) {
            seen.is_gone = true;
        }
    }

    /// A write brought this version back, or that the object is gone; whether nothing newer is known.
    pub(super) fn is_newest(&mut self, watched: Watched, name: ObjectName, version: Option<u64>) -> bool {
        let key = (watched, name);
        let seen = self.in_flight.get(&key).copied().unwrap_or_default();
        let Some(version) = version else {
            self.written.remove(&key);
            // Whatever a watch told after it was gone is of another one.
            return !seen.is_gone;
        };
        if seen.version.is_some_and(|seen| seen > version) {
            return false;
        }
        self.written.insert(key, version);
        true
    }

    /// These objects are not being written any more.
    pub(super) fn end(&mut self, objects: &BTreeSet<Key>) {
        self.in_flight.retain(|key, _| !objects.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_watch_tells_of_older_versions_is_not_so_any_more() {
        let mut versions = Versions::default();
        versions.begin([key()].into_iter());
        assert!(versions.is_newest(key().0, key().1, Some(7)));
        versions.end(&BTreeSet::from([key()]));
        let mut told = |version| versions.is_old(key().0, key().1, version, false);
        assert_eq!([told(Some(5)), told(Some(6)), told(Some(7)), told(Some(5))], [true, true, false, false]);
    }

    #[test]
    fn what_a_write_brought_back_is_not_so_if_a_watch_told_of_a_newer_version_meanwhile() {
        for (told, brought, is_newest) in [
            (vec![(Some(5), false)], Some(7), true),
            (vec![(Some(7), false)], Some(7), true),
            (vec![(Some(9), false)], Some(7), false),
            (vec![(Some(7), false), (Some(8), true)], Some(7), false),
            // Deleted: what was told before is older, what was told after it was gone is newer.
            (vec![(Some(5), false)], None, true),
            (vec![(Some(8), true), (Some(9), false)], None, false),
        ] {
            let mut versions = Versions::default();
            versions.begin([key()].into_iter());
            for (version, is_gone) in &told {
                versions.is_old(key().0, key().1, *version, *is_gone);
            }
            assert_eq!(versions.is_newest(key().0, key().1, brought), is_newest, "{told:?} {brought:?}");
            // What was told before the write began says nothing of the next one.
            versions.end(&BTreeSet::from([key()]));
            versions.begin([key()].into_iter());
            assert!(versions.is_newest(key().0, key().1, brought.map(|version| version + 1)));
        }
    }

    fn key() -> Key {
        (Watched::Slices, ObjectName { namespace: "shop".to_owned(), name: "a".to_owned() })
    }
}
