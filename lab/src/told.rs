//! What a caller tells of its attempts, read and kept beside whatever else goes on.

use crate::{
    caller::{Attempt, End},
    report::Report,
};
use anyhow::{Context, Result};
use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

/// All that a caller has told so far; at most about 0.1 s old.
#[derive(Debug)]
pub(crate) struct Telling {
    told: Arc<Mutex<Told>>,
    reader: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Told {
    attempts: Vec<Attempt>,
    sum: Report,
}

impl Telling {
    /// Begins to read.
    pub(crate) fn read(from: impl Read + Send + 'static) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let reader = thread::spawn({
            let told = told.clone();
            move || {
                for line in BufReader::new(from).lines() {
                    let line = line.context("read what a caller tells")?;
                    let attempt = serde_json::from_str(&line).context("understand what a caller tells")?;
                    guard(&told).add(attempt);
                }
                Ok(())
            }
        });
        Self { told, reader: Some(reader) }
    }

    /// Sums of it.
    pub(crate) fn sum(&self) -> Report {
        guard(&self.told).sum.clone()
    }

    /// The attempts that ended at `from` or later and before `to`, by [`crate::report::now`].
    pub(crate) fn attempts(&self, from: Duration, to: Duration) -> Vec<Attempt> {
        let told = guard(&self.told);
        let ended_then = |attempt: &&Attempt| (from..to).contains(&attempt.ended());
        told.attempts.iter().filter(ended_then).cloned().collect()
    }

    /// All attempts told of since the last time, in the order in which they ended.
    pub(crate) fn take(&self) -> Vec<Attempt> {
        std::mem::take(&mut guard(&self.told).attempts)
    }

    /// Waits for the last of it, which comes when the caller ends.
    pub(crate) fn end(&mut self) -> Result<()> {
        match self.reader.take() {
            Some(reader) => reader.join().expect("the reader does not panic"),
            None => Ok(()),
        }
    }
}

impl Told {
    fn add(&mut self, attempt: Attempt) {
        if attempt.end != End::Unfinished {
            self.sum.requests += u64::from(!attempt.retry);
        }
        match &attempt.end {
            End::Answered(cluster) | End::OtherPeer(cluster) => {
                *self.sum.by_cluster.entry(cluster.clone()).or_default() += 1;
            }
            End::Failed(_) => self.sum.failed += u64::from(!attempt.retry),
            End::Unfinished => {}
        }
        self.attempts.push(attempt);
    }
}

fn guard(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().expect("an attempt is added without panic")
}
