//! Follows the folder: by inotify, and by a look every few seconds as a net.

use super::{Loaded, ManifestSource, settle::Settle};
use crate::sources::{Event, Origin, Problem};
use anyhow::Context;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::spawn_blocking,
    time::sleep_until,
};
use tracing::{info, warn};

/// The net for what inotify doesn't see: links to files elsewhere, network file systems, a folder that was replaced.
const RESCAN: Duration = Duration::from_secs(5);
/// Without inotify the net is all there is.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(1);
/// How often it is looked for a folder that isn't there, which costs next to nothing.
const RESCAN_MISSING: Duration = Duration::from_millis(100);
/// Events of inotify that may wait. If there are more, the look that follows finds what they told.
const WAITING: usize = 4096;

impl ManifestSource {
    /// Delivers what the folder holds, says that this was all, and follows it until nobody listens any more.
    ///
    /// # Errors
    ///
    /// The folder can't be listed at the start. Later that is a problem, and what was delivered stays.
    pub async fn run(self, changes: mpsc::Sender<Event>) -> anyhow::Result<()> {
        let mut watch = Watch::new(&self.dir);
        let mut settle = Settle::default();
        let mut teller = Teller { changes, problems: Vec::new(), read: Vec::new(), synced: None };

        watch.renew(&self.dir);
        let (mut source, loaded) = load(self, BTreeSet::new()).await?;
        let mut listening = teller.tell(loaded?).await;
        while listening {
            let rescan = Instant::now() + watch.rescan(&source.dir);
            let due = loop {
                let due = settle.due().map_or(rescan, |due| due.min(rescan));
                tokio::select! {
                    // What the kernel has told is noted before a look, or the look would not know what is being written.
                    biased;
                    () = teller.changes.closed() => return Ok(()),
                    Some(event) = watch.events.recv() => settle.note(event.as_ref(), Instant::now()),
                    () = sleep_until(due.into()) => break due,
                }
            };
            watch.renew(&source.dir);
            let loaded;
            (source, loaded) = load(source, settle.look(due)).await?;
            listening = match loaded {
                Ok(loaded) => teller.tell(loaded).await,
                Err(error) => teller.tell_unreadable(&source.dir, &error).await,
            };
        }
        Ok(())
    }
}

/// Reads and parses where that holds up nobody.
async fn load(
    mut source: ManifestSource,
    busy: BTreeSet<OsString>,
) -> anyhow::Result<(ManifestSource, anyhow::Result<Loaded>)> {
    let look = move || {
        let loaded = source.load_except(&busy);
        (source, loaded)
    };
    spawn_blocking(look).await.context("read manifests")
}

/// Tells the loop behind what is new, and the log what is newly wrong.
struct Teller {
    changes: mpsc::Sender<Event>,
    /// As told last.
    problems: Vec<Problem>,
    /// As the last look that succeeded found them.
    read: Vec<Problem>,
    /// Whether everything was delivered, as told last; none before the first look.
    synced: Option<bool>,
}

impl Teller {
    /// Whether anybody still listens.
    async fn tell(&mut self, loaded: Loaded) -> bool {
        let changed = loaded.changes.is_empty() || self.changes.send(Event::Changes(loaded.changes)).await.is_ok();
        self.read.clone_from(&loaded.problems);
        changed && self.tell_problems(loaded.problems).await && self.tell_synced(loaded.complete).await
    }

    /// Once at the start, and once more when what could not be read then can be.
    async fn tell_synced(&mut self, complete: bool) -> bool {
        if self.synced.is_some_and(|told| told || !complete) {
            return true;
        }
        self.synced = Some(complete);
        self.changes.send(Event::Synced { complete }).await.is_ok()
    }

    async fn tell_unreadable(&mut self, dir: &Path, error: &anyhow::Error) -> bool {
        let reason = format!("{error:#}; what was read before stays");
        let unreadable = Problem { origin: Origin::File(dir.to_owned(), None), reason };
        let problems = std::iter::once(unreadable).chain(self.read.iter().cloned()).collect();
        self.tell_problems(problems).await
    }

    async fn tell_problems(&mut self, problems: Vec<Problem>) -> bool {
        if problems == self.problems {
            return true;
        }
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!(origin = %problem.origin, reason = %problem.reason, "manifest problem");
        }
        self.problems.clone_from(&problems);
        self.changes.send(Event::Problems(problems)).await.is_ok()
    }
}

/// The watch on the folder.
struct Watch {
    /// What happened; none for an error of the watch itself.
    events: mpsc::Receiver<Option<notify::Event>>,
    /// None if there is no inotify to be had.
    watcher: Option<RecommendedWatcher>,
    /// The folder that is watched, by device and inode: its name may come to mean another one.
    watched: Option<(u64, u64)>,
    /// The last error, so that it is logged once.
    error: Option<String>,
}

impl Watch {
    fn new(dir: &Path) -> Self {
        let (sender, events) = mpsc::channel(WAITING);
        let tell = move |event: notify::Result<notify::Event>| {
            let event = event.ok();
            if event.as_ref().is_some_and(|event| !super::settle::concerns(event)) {
                return;
            }
            match sender.try_send(event) {
                Ok(()) => {}
                // Full: a look is due anyhow. Closed: nobody follows any more.
                Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {}
            }
        };
        let (watcher, error) = match notify::recommended_watcher(tell) {
            Ok(watcher) => (Some(watcher), None),
            Err(error) => (None, Some(error.to_string())),
        };
        if let Some(error) = &error {
            warn!(dir = %dir.display(), error, "no inotify, looking every second");
        }
        Self { events, watcher, watched: None, error }
    }

    /// How long until the next look, if nothing is told before.
    fn rescan(&self, dir: &Path) -> Duration {
        match self.watched {
            Some(_) => RESCAN,
            None if dir.exists() => RESCAN_UNWATCHED,
            None => RESCAN_MISSING,
        }
    }

    /// Watches the folder that `dir` is now, if it isn't watched yet.
    fn renew(&mut self, dir: &Path) {
        let Some(watcher) = &mut self.watcher else { return };
        let now = fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if now == self.watched {
            return;
        }
        if self.watched.take().is_some() {
            match watcher.unwatch(dir) {
                Ok(()) => {}
                // The kernel ended it when the folder went.
                Err(error) => info!(dir = %dir.display(), %error, "the folder was replaced"),
            }
        }
        if now.is_some() {
            match watcher.watch(dir, RecursiveMode::NonRecursive) {
                Ok(()) => (self.watched, self.error) = (now, None),
                Err(error) => {
                    let error = Some(error.to_string());
                    if self.error != error {
                        warn!(dir = %dir.display(), error, "no inotify, looking every second");
                        self.error = error;
                    }
                }
            }
        }
    }
}
