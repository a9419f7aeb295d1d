//! What the attempts of callers amount to, seen from an event: a cluster was lost, or came back.

use crate::caller::{Attempt, End};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// Failures that are kept with their text.
const FAILURES_KEPT: usize = 5;

/// What a stretch of time brought. Times are in milliseconds, and those "after the event" negative before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Requests that were answered or failed.
    pub requests: u64,
    /// Those whose first attempt failed: what a client sees that doesn't retry.
    pub failed: u64,
    /// Those whose retry failed too.
    pub failed_with_retry: u64,
    /// Attempts that had not ended when their caller was asked, or was told to end.
    pub unfinished: u64,
    /// The longest connect, failed ones included; none without connects.
    pub longest_connect_ms: Option<f64>,
    /// When the last connect that failed began, after the event; none if none failed.
    pub last_failure_ms: Option<f64>,
    /// When the last attempt that failed began, connected or not.
    pub last_failed_attempt_ms: Option<f64>,
    /// The longest attempt, failed and unfinished ones included: for a stream that waits, the longest silence.
    pub longest_attempt_ms: Option<f64>,
    /// Answers on sockets that showed another peer than was dialled.
    pub other_peer: u64,
    /// Answers by cluster.
    pub by_cluster: BTreeMap<String, u64>,
    /// What each second brought.
    pub seconds: Vec<Second>,
    /// The first failures.
    pub failures: Vec<Failure>,
}

/// Attempts that began in one second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Second {
    /// Which one: 0 begins with the event.
    pub second: i64,
    /// Answers.
    pub answers: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// The part of the answers that each cluster gave, 0 to 1.
    pub shares: BTreeMap<String, f64>,
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// When it began, after the event.
    pub began_ms: f64,
    /// Why.
    pub error: String,
}

impl Figures {
    /// Of `attempts`, in any order, seen from `event` (by [`crate::report::now`]).
    pub fn of<'a>(attempts: impl IntoIterator<Item = &'a Attempt>, event: Duration) -> Self {
        let mut figures = Self::default();
        let mut seconds = BTreeMap::<i64, (u64, BTreeMap<String, u64>)>::new();
        for attempt in attempts {
            let began = ms_after(event, attempt.began);
            let (failed, answers) = seconds.entry(second(event, attempt.began)).or_default();
            match &attempt.end {
                End::Answered(cluster) | End::OtherPeer(cluster) => {
                    *answers.entry(cluster.clone()).or_default() += 1;
                    *figures.by_cluster.entry(cluster.clone()).or_default() += 1;
                    figures.other_peer += u64::from(matches!(attempt.end, End::OtherPeer(_)));
                }
                End::Failed(error) => {
                    *failed += 1;
                    figures.fail(attempt, began, error);
                }
                End::Unfinished => figures.unfinished += 1,
            }
            figures.requests += u64::from(!attempt.retry && attempt.end != End::Unfinished);
            latest(&mut figures.longest_attempt_ms, ms(attempt.took));
            if let Some(connect) = attempt.connect {
                latest(&mut figures.longest_connect_ms, ms(connect.took));
            }
        }
        figures.failures.sort_by(|one, other| one.began_ms.total_cmp(&other.began_ms));
        figures.failures.truncate(FAILURES_KEPT);
        figures.seconds =
            seconds.into_iter().map(|(second, (failed, answers))| Second::of(second, failed, &answers)).collect();
        figures
    }

    fn fail(&mut self, attempt: &Attempt, began: f64, error: &str) {
        if attempt.retry {
            self.failed_with_retry += 1;
        } else {
            self.failed += 1;
        }
        latest(&mut self.last_failed_attempt_ms, began);
        if attempt.connect.is_some_and(|connect| !connect.done) {
            latest(&mut self.last_failure_ms, began);
        }
        self.failures.push(Failure { began_ms: began, error: error.to_owned() });
    }
}

impl Second {
    fn of(second: i64, failed: u64, by_cluster: &BTreeMap<String, u64>) -> Self {
        let answers = by_cluster.values().sum();
        let shares = by_cluster.iter().map(|(name, &count)| (name.clone(), rounded(float(count) / float(answers), 3)));
        Self { second, answers, failed, shares: shares.collect() }
    }
}

/// Milliseconds from `event` to `then`, negative if that was before; to a thousandth.
pub fn ms_after(event: Duration, then: Duration) -> f64 {
    if then >= event { ms(then - event) } else { -ms(event - then) }
}

/// Milliseconds, to a thousandth.
pub fn ms(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1000.0, 3)
}

fn rounded(number: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (number * scale).round() / scale
}

fn second(event: Duration, then: Duration) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "seconds since boot fit by far")]
    let second = ((then.as_secs_f64() - event.as_secs_f64()).floor()) as i64;
    second
}

fn latest(most: &mut Option<f64>, value: f64) {
    *most = Some(most.map_or(value, |most| most.max(value)));
}

/// Counts of requests are far below 2⁵³.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Connect;

    #[test]
    fn a_retry_is_no_request_and_its_failure_is_counted_apart() {
        let attempts = [
            attempt(900, answered("east")),
            attempt(1000, failed()),
            Attempt { retry: true, ..attempt(1400, answered("west")) },
            attempt(1100, failed()),
            Attempt { retry: true, ..attempt(1500, failed()) },
            attempt(1600, End::Unfinished),
        ];
        let figures = Figures::of(&attempts, at(1000));
        assert_eq!((figures.requests, figures.failed, figures.failed_with_retry), (3, 2, 1));
        assert_eq!(figures.unfinished, 1);
        assert_eq!(figures.last_failed_attempt_ms, Some(500.0));
    }

    #[test]
    fn the_last_failure_is_that_of_a_connect_and_counted_from_when_it_began() {
        let connect = |took, done| Some(Connect { took: at(took), done });
        let attempts = [
            Attempt { connect: connect(400, false), ..attempt(1250, failed()) },
            Attempt { connect: connect(2, true), ..attempt(1900, failed()) },
            Attempt { connect: connect(3, true), ..attempt(2000, answered("west")) },
        ];
        let figures = Figures::of(&attempts, at(1000));
        assert_eq!(figures.last_failure_ms, Some(250.0));
        assert_eq!(figures.last_failed_attempt_ms, Some(900.0));
        assert_eq!(figures.longest_connect_ms, Some(400.0));
        assert_eq!(Figures::of(&[], at(0)).last_failure_ms, None);
    }

    #[test]
    fn seconds_are_counted_from_the_event_and_backwards_before_it() {
        let attempts = [
            attempt(999, answered("east")),
            attempt(1000, answered("west")),
            attempt(1999, answered("east")),
            attempt(2000, failed()),
        ];
        let seconds = Figures::of(&attempts, at(1000)).seconds;
        let counts: Vec<_> = seconds.iter().map(|second| (second.second, second.answers, second.failed)).collect();
        assert_eq!(counts, [(-1, 1, 0), (0, 2, 0), (1, 0, 1)]);
        assert_eq!(seconds[1].shares, BTreeMap::from([("east".to_owned(), 0.5), ("west".to_owned(), 0.5)]));
    }

    fn attempt(began: u64, end: End) -> Attempt {
        Attempt { retry: false, began: at(began), connect: None, took: at(1), pod: None, end }
    }

    fn answered(cluster: &str) -> End {
        End::Answered(cluster.to_owned())
    }

    fn failed() -> End {
        End::Failed("connect: timed out".to_owned())
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
}
