//! What callers saw of an outage, and what is quoted of many.

use crate::quantiles::Quantiles;
use lab::{
    attempts::{Figures, ms, ms_after},
    caller::{Attempt, End},
};
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// One outage. Times are after the loss, or after the return, in milliseconds.
#[derive(Serialize)]
pub(super) struct Run {
    pub(super) victim: &'static str,
    pub(super) outage_ms: u64,
    pub(super) tombolo: Seen,
    /// None if nobody went that way.
    pub(super) kube_proxy: Option<Seen>,
    /// When the agent beside the callers changed its mind, and what it says of the cluster at the end of the outage.
    pub(super) marked: Option<Marked>,
    /// When the first answer came from the cluster after it was back.
    pub(super) first_answer_ms: Option<f64>,
    /// When the stretch of time began in which it had its share again.
    pub(super) full_share_ms: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct Marked {
    pub(super) after_ms: f64,
    pub(super) cluster: Value,
}

/// What callers of one way saw of an outage.
#[derive(Serialize)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) failed_with_retry: u64,
    /// When the last connect that failed began; 0 if none failed.
    pub(super) last_failure_ms: f64,
    /// The longest connect that failed; 0 if none failed.
    pub(super) longest_failed_connect_ms: f64,
    pub(super) longest_connect_ms: f64,
    /// Flows that send: those that failed, and the longest that one of them waited for its end after it had sent.
    pub(super) sending_lost: u64,
    pub(super) longest_sending_ms: f64,
    /// Flows that wait for what the server sends: those that failed, and how long after the loss the last one did.
    pub(super) waiting_lost: u64,
    pub(super) last_waiting_ms: f64,
    /// Flows that had nothing to send or to wait for, and failed when they were used again; none if the outage is longer
    /// than what they are to survive.
    pub(super) idle_lost: Option<u64>,
    /// Those that there were.
    pub(super) idle: Option<u64>,
}

/// What the callers of one way told.
pub(super) struct Told {
    pub(super) connects: Vec<Attempt>,
    pub(super) sending: Vec<Attempt>,
    pub(super) waiting: Vec<Attempt>,
    pub(super) idle: Option<Vec<Attempt>>,
}

impl Seen {
    /// Of what ended after `lost`.
    pub(super) fn of(told: &Told, lost: Duration) -> Self {
        let connects: Vec<_> = told.connects.iter().filter(|attempt| attempt.ended() >= lost).collect();
        let figures = Figures::of(connects.iter().copied(), lost);
        let failed = connects.iter().filter_map(|attempt| attempt.connect.filter(|connect| !connect.done));
        let broken = |attempts: &[Attempt]| -> Vec<Attempt> {
            let is_broken = |attempt: &&Attempt| {
                attempt.ended() >= lost && attempt.connect.is_none() && matches!(attempt.end, End::Failed(_))
            };
            attempts.iter().filter(is_broken).cloned().collect()
        };
        let (sending, waiting) = (broken(&told.sending), broken(&told.waiting));
        let was_open = |attempt: &&Attempt| attempt.ended() >= lost && attempt.connect.is_none();
        Self {
            requests: figures.requests,
            failed: figures.failed,
            failed_with_retry: figures.failed_with_retry,
            last_failure_ms: figures.last_failure_ms.unwrap_or(0.0).max(0.0),
            longest_failed_connect_ms: failed.map(|connect| ms(connect.took)).fold(0.0, f64::max),
            longest_connect_ms: figures.longest_connect_ms.unwrap_or(0.0),
            sending_lost: sending.len() as u64,
            longest_sending_ms: sending.iter().map(|message| ms(message.took)).fold(0.0, f64::max),
            waiting_lost: waiting.len() as u64,
            last_waiting_ms: waiting.iter().map(|wait| ms_after(lost, wait.ended())).fold(0.0, f64::max),
            idle_lost: told.idle.as_ref().map(|idle| broken(idle).len() as u64),
            idle: told.idle.as_ref().map(|idle| idle.iter().filter(was_open).count() as u64),
        }
    }
}

impl Run {
    /// For people.
    pub(super) fn line(&self) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        let seen = |seen: &Seen| {
            let idle = seen.idle_lost.map_or_else(|| "-".to_owned(), |lost| lost.to_string());
            format!(
                "last failure {:>5.0} ms, longest {:>5.0} ms, failed {:>3} of {:>4}, with retry {:>3}; \
                 flows: {} sending in {:.0} ms, {} waiting in {:.0} ms, {idle} idle",
                seen.last_failure_ms,
                seen.longest_failed_connect_ms,
                seen.failed,
                seen.requests,
                seen.failed_with_retry,
                seen.sending_lost,
                seen.longest_sending_ms,
                seen.waiting_lost,
                seen.last_waiting_ms,
            )
        };
        let theirs = self.kube_proxy.as_ref().map(|theirs| format!(" | kube-proxy: {}", seen(theirs)));
        format!(
            "{:<6} {:>2} s {}{} | marked {}, back {}, full {} ms",
            self.victim,
            self.outage_ms / 1000,
            seen(&self.tombolo),
            theirs.unwrap_or_default(),
            ms(self.marked.as_ref().map(|marked| marked.after_ms)),
            ms(self.first_answer_ms),
            ms(self.full_share_ms),
        )
    }
}

/// Each metric over the runs; those of the cluster's return too, if asked for. When flows end is taken of the runs in which
/// some did.
pub(super) fn over<'a>(
    runs: &'a [Run],
    side: impl Fn(&'a Run) -> Option<&'a Seen>,
    returns: bool,
) -> BTreeMap<&'static str, Quantiles> {
    let of =
        |metric: &dyn Fn(&Seen) -> Option<f64>| Quantiles::of(runs.iter().filter_map(|run| side(run).and_then(metric)));
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2⁵³")]
    let mut metrics = BTreeMap::from([
        ("last_failure_ms", of(&|seen| Some(seen.last_failure_ms))),
        ("longest_failed_connect_ms", of(&|seen| Some(seen.longest_failed_connect_ms))),
        ("longest_connect_ms", of(&|seen| Some(seen.longest_connect_ms))),
        ("failed", of(&|seen| Some(seen.failed as f64))),
        ("failed_with_retry", of(&|seen| Some(seen.failed_with_retry as f64))),
        ("sending_lost", of(&|seen| Some(seen.sending_lost as f64))),
        ("longest_sending_ms", of(&|seen| (seen.sending_lost > 0).then_some(seen.longest_sending_ms))),
        ("waiting_lost", of(&|seen| Some(seen.waiting_lost as f64))),
        ("last_waiting_ms", of(&|seen| (seen.waiting_lost > 0).then_some(seen.last_waiting_ms))),
        ("idle_lost", of(&|seen| seen.idle_lost.map(|lost| lost as f64))),
    ]);
    if returns {
        let marked = runs.iter().filter_map(|run| Some(run.marked.as_ref()?.after_ms));
        metrics.insert("marked_ms", Quantiles::of(marked));
        metrics.insert("first_answer_ms", Quantiles::of(runs.iter().filter_map(|run| run.first_answer_ms)));
        metrics.insert("full_share_ms", Quantiles::of(runs.iter().filter_map(|run| run.full_share_ms)));
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::caller::Connect;

    #[test]
    fn a_flow_is_lost_if_it_had_been_open_and_fails_after_the_loss() {
        let on_open = |began: u64, took: u64, end: End| Attempt {
            retry: false,
            began: at(began),
            connect: None,
            took: at(took),
            pod: None,
            end,
        };
        let (failed, answered) = (|| End::Failed("timed out".to_owned()), || End::Answered("west".to_owned()));
        let anew = Attempt { connect: Some(Connect { took: at(400), done: false }), ..on_open(1100, 400, failed()) };
        let told = Told {
            connects: vec![anew.clone(), on_open(100, 10, failed())],
            sending: vec![on_open(1200, 900, failed()), on_open(1200, 800, failed()), anew.clone()],
            waiting: vec![on_open(900, 15_100, failed()), on_open(800, 100, failed())],
            idle: Some(vec![anew, on_open(9_000, 1, failed()), on_open(9_000, 1, answered())]),
        };
        let seen = Seen::of(&told, at(1000));
        assert_eq!((seen.requests, seen.failed, seen.last_failure_ms), (1, 1, 100.0));
        assert_eq!((seen.sending_lost, seen.longest_sending_ms), (2, 900.0));
        assert_eq!((seen.waiting_lost, seen.last_waiting_ms), (1, 15_000.0));
        assert_eq!((seen.idle_lost, seen.idle), (Some(1), Some(2)));
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
}
