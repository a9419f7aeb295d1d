//! When it is time to look at the folder, judged by what the kernel tells about it.
//!
//! A file that somebody is writing is not read before it is closed; a file that somebody keeps open without writing is.
//! Time is an argument, so all of it can be tried without waiting.

use notify::{
    Event, EventKind,
    event::{AccessKind, AccessMode, ModifyKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    time::{Duration, Instant},
};

/// Quiet time after which a burst of changes is taken to be over.
const QUIET: Duration = Duration::from_millis(50);
/// Longest wait for quiet, so that a stream of changes is followed.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a file counts as being written after the last write to it, if it isn't closed.
const WRITER_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Settle {
    /// The first and the last change since the last look.
    burst: Option<(Instant, Instant)>,
    /// Files that were written to and not closed, with the time of the last write.
    writing: BTreeMap<OsString, Instant>,
}

/// Whether `event` says that something changed. Most don't: our own reading of a file is among them.
pub(super) fn concerns(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

impl Settle {
    /// Takes in that something happened; an error of the watch, given as none, may hide anything.
    pub(super) fn note(&mut self, event: Option<&Event>, now: Instant) {
        self.burst = Some((self.burst.map_or(now, |(first, _)| first), now));
        let Some(event) = event.filter(|event| !event.need_rescan()) else {
            return self.writing.clear();
        };
        for name in event.paths.iter().filter_map(|path| path.file_name()) {
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => drop(self.writing.insert(name.to_owned(), now)),
                // Of a file that is only looked at with other rights, or touched.
                EventKind::Modify(ModifyKind::Metadata(_)) => {}
                // Closed, or another file has taken its place.
                _ => drop(self.writing.remove(name)),
            }
        }
    }

    /// When to look, if anything happened.
    pub(super) fn due(&self) -> Option<Instant> {
        let quiet = self.burst.map(|(first, last)| (last + QUIET).min(first + PATIENCE));
        let given_up = self.writing.values().min().map(|written| *written + WRITER_PATIENCE);
        quiet.into_iter().chain(given_up).min()
    }

    /// Begins a look: the files that are to be left for now.
    pub(super) fn look(&mut self, now: Instant) -> BTreeSet<OsString> {
        self.burst = None;
        self.writing.retain(|_, written| now < *written + WRITER_PATIENCE);
        self.writing.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, DataChange, Flag, MetadataKind, RenameMode};
    use std::path::Path;

    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const MOVED_IN: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));

    #[test]
    fn nothing_is_due_before_anything_happened() {
        assert_eq!(Settle::default().due(), None);
    }

    #[test]
    fn a_look_waits_for_quiet_but_not_for_ever() {
        let start = Instant::now();
        let mut settle = Settle::default();
        settle.note(Some(&event(MOVED_IN, "a.yaml")), start);
        assert_eq!(settle.due(), Some(start + QUIET));
        settle.note(Some(&event(MOVED_IN, "b.yaml")), start + QUIET / 2);
        assert_eq!(settle.due(), Some(start + QUIET / 2 + QUIET));
        settle.note(Some(&event(MOVED_IN, "c.yaml")), start + PATIENCE - QUIET / 5);
        assert_eq!(settle.due(), Some(start + PATIENCE));
        assert!(settle.look(start + PATIENCE).is_empty());
        assert_eq!(settle.due(), None);
    }

    #[test]
    fn a_file_that_is_being_written_is_left_until_it_is_closed() {
        let start = Instant::now();
        let mut settle = Settle::default();
        settle.note(Some(&event(WRITTEN, "a.yaml")), start);
        settle.note(Some(&event(MOVED_IN, "b.yaml")), start);
        assert_eq!(settle.look(start + QUIET), BTreeSet::from(["a.yaml".into()]));
        settle.note(Some(&event(CLOSED, "a.yaml")), start + QUIET * 4);
        assert_eq!(settle.due(), Some(start + QUIET * 5));
        assert!(settle.look(start + QUIET * 5).is_empty());
    }

    #[test]
    fn a_file_that_somebody_keeps_open_is_read_after_a_while() {
        let start = Instant::now();
        let mut settle = Settle::default();
        settle.note(Some(&event(WRITTEN, "a.yaml")), start);
        assert!(!settle.look(start + QUIET).is_empty());
        assert_eq!(settle.due(), Some(start + WRITER_PATIENCE));
        assert!(settle.look(start + WRITER_PATIENCE).is_empty());
        assert_eq!(settle.due(), None);
    }

    #[test]
    fn a_file_that_took_the_place_of_one_being_written_is_read() {
        let start = Instant::now();
        let mut settle = Settle::default();
        settle.note(Some(&event(WRITTEN, "a.yaml")), start);
        settle.note(Some(&event(MOVED_IN, "a.yaml")), start);
        assert!(settle.look(start + QUIET).is_empty());
    }

    #[test]
    fn lost_events_make_everything_readable() {
        let start = Instant::now();
        let mut settle = Settle::default();
        settle.note(Some(&event(WRITTEN, "a.yaml")), start);
        settle.note(Some(&Event::new(EventKind::Other).set_flag(Flag::Rescan)), start);
        assert_eq!(settle.due(), Some(start + QUIET));
        assert!(settle.look(start + QUIET).is_empty());
        settle.note(None, start + QUIET);
        assert_eq!(settle.due(), Some(start + QUIET * 2));
    }

    #[test]
    fn our_own_reading_concerns_nobody() {
        assert!(!concerns(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "a.yaml")));
        assert!(!concerns(&event(EventKind::Access(AccessKind::Close(AccessMode::Read)), "a.yaml")));
        assert!(concerns(&event(CLOSED, "a.yaml")));
        assert!(concerns(&event(EventKind::Create(CreateKind::File), "a.yaml")));
        assert!(concerns(&event(EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)), "a.yaml")));
    }

    fn event(kind: EventKind, name: &str) -> Event {
        Event::new(kind).add_path(Path::new("/manifests").join(name))
    }
}
