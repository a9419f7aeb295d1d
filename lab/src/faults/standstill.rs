//! How long this process could not run. What callers beside it failed to do meanwhile says nothing of whom they called.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often it is looked whether time went on without us.
const LOOK: Duration = Duration::from_millis(20);

/// Watches until it is ended.
pub(super) struct Standstill {
    ended: Arc<AtomicBool>,
    watch: JoinHandle<Duration>,
}

impl Standstill {
    pub(super) fn watch() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let watch = thread::spawn({
            let ended = ended.clone();
            move || {
                let mut longest = Duration::ZERO;
                while !ended.load(Ordering::Relaxed) {
                    let before = Instant::now();
                    thread::sleep(LOOK);
                    longest = longest.max(before.elapsed().saturating_sub(LOOK));
                }
                longest
            }
        });
        Self { ended, watch }
    }

    /// The longest time without us.
    pub(super) fn end(self) -> Duration {
        self.ended.store(true, Ordering::Relaxed);
        self.watch.join().expect("it only looks at the clock")
    }
}
