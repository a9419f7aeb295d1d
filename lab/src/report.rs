//! What a client saw: counts by cluster and pod, failures, times.

use crate::server::Answer;
use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// Failures that are kept with their text; further ones are only counted.
const FAILURES_KEPT: usize = 20;

/// What a load generator has seen since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When it started, by [`now`].
    pub started: Duration,
    /// When this report was written, by [`now`].
    pub at: Duration,
    /// Requests that have ended, failed ones included.
    pub requests: u64,
    /// Requests without a proper answer.
    pub failed: u64,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// Answers by cluster.
    pub by_cluster: BTreeMap<String, u64>,
    /// Answers by pod.
    pub by_pod: BTreeMap<String, Pod>,
    /// The addresses that the servers saw the requests come from.
    pub seen_as: BTreeSet<IpAddr>,
    /// Sockets whose peer's address wasn't the one that was dialled.
    pub other_peer: u64,
    /// Time that connects took, in microseconds: the median, the 99th percentile, the longest.
    pub connect_us: [u64; 3],
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// When it began, by [`now`].
    pub began: Duration,
    /// Why.
    pub error: String,
}

/// What one pod answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// Its cluster.
    pub cluster: String,
    /// How many requests.
    pub answers: u64,
    /// When the first of them began, by [`now`].
    pub first: Duration,
    /// When the last of them began.
    pub last: Duration,
}

impl Report {
    /// Counts an answer to a request that began at `began`.
    pub fn count(&mut self, answer: &Answer, began: Duration) {
        self.requests += 1;
        self.seen_as.insert(answer.client.ip());
        *self.by_cluster.entry(answer.cluster.clone()).or_default() += 1;
        let fresh = || Pod { cluster: answer.cluster.clone(), answers: 0, first: began, last: began };
        let pod = self.by_pod.entry(answer.pod.clone()).or_insert_with(fresh);
        pod.answers += 1;
        pod.first = pod.first.min(began);
        pod.last = pod.last.max(began);
    }

    /// Counts a request that began at `began` and failed.
    pub fn count_failure(&mut self, began: Duration, error: String) {
        self.requests += 1;
        self.failed += 1;
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(Failure { began, error });
        }
    }

    /// What happened after `earlier`, a report of the same client. Connect times and the addresses seen can't be told
    /// apart and stay those of the whole time.
    pub fn since(&self, earlier: &Report) -> Report {
        let mut part = self.clone();
        part.started = earlier.at;
        part.requests -= earlier.requests;
        part.failed -= earlier.failed;
        part.other_peer -= earlier.other_peer;
        part.failures.drain(..earlier.failures.len());
        for (cluster, answers) in &earlier.by_cluster {
            part.by_cluster.entry(cluster.clone()).and_modify(|total| *total -= answers);
        }
        for (name, pod) in &earlier.by_pod {
            part.by_pod.entry(name.clone()).and_modify(|total| total.answers -= pod.answers);
        }
        part.by_cluster.retain(|_, answers| *answers > 0);
        part.by_pod.retain(|_, pod| pod.answers > 0);
        part
    }

    /// Adds what another client saw.
    pub fn add(&mut self, other: &Report) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.other_peer += other.other_peer;
        self.failures.extend_from_slice(&other.failures);
        self.seen_as.extend(&other.seen_as);
        self.at = self.at.max(other.at);
        for (cluster, answers) in &other.by_cluster {
            *self.by_cluster.entry(cluster.clone()).or_default() += answers;
        }
        for (name, pod) in &other.by_pod {
            let fresh = || Pod { answers: 0, ..pod.clone() };
            let total = self.by_pod.entry(name.clone()).or_insert_with(fresh);
            total.answers += pod.answers;
            total.first = total.first.min(pod.first);
            total.last = total.last.max(pod.last);
        }
        for (mine, others) in self.connect_us.iter_mut().zip(other.connect_us) {
            *mine = (*mine).max(others);
        }
    }

    /// Answers, without failures.
    pub fn answered(&self) -> u64 {
        self.requests - self.failed
    }
}

/// The time since the machine booted. All processes read the same clock, and nobody sets it.
pub fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the monotonic clock")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_parts_of_a_report_make_the_whole() {
        let at = Duration::from_millis;
        let mut whole = Report::default();
        whole.count(&answer("west", "w1"), at(1));
        whole.count_failure(at(2), "refused".to_owned());
        let early = whole.clone();
        whole.count(&answer("east", "e1"), at(3));
        whole.count(&answer("west", "w1"), at(4));

        let late = whole.since(&early);
        assert_eq!((late.requests, late.failed, late.answered()), (2, 0, 2));
        assert_eq!(late.by_cluster, BTreeMap::from([("east".to_owned(), 1), ("west".to_owned(), 1)]));

        let mut sum = early.clone();
        sum.add(&late);
        assert_eq!(sum, whole);
    }

    #[test]
    fn a_pod_that_was_silent_is_not_in_the_later_part() {
        let mut report = Report::default();
        report.count(&answer("west", "w1"), Duration::ZERO);
        let early = report.clone();
        report.count(&answer("east", "e1"), Duration::ZERO);
        assert_eq!(report.since(&early).by_pod.keys().collect::<Vec<_>>(), ["e1"]);
    }

    #[test]
    fn failures_beyond_the_first_are_counted_only() {
        let mut report = Report::default();
        for _ in 0..2 * FAILURES_KEPT {
            report.count_failure(Duration::ZERO, "refused".to_owned());
        }
        assert_eq!((report.failed, report.failures.len()), (2 * FAILURES_KEPT as u64, FAILURES_KEPT));
    }

    fn answer(cluster: &str, pod: &str) -> Answer {
        let client = "10.61.1.2:4000".parse().unwrap();
        Answer { cluster: cluster.to_owned(), pod: pod.to_owned(), client }
    }
}
