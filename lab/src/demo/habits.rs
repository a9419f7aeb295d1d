//! Callers of all habits that go on while a cluster dies and comes back: what each does, and what they amount to.

use crate::{
    attempts::{Figures, ms_after},
    caller::{Attempt, End, Kind},
};
use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, time::Duration};

/// What an HTTP client waits for an answer.
const HTTP_PATIENCE: Duration = Duration::from_secs(5);
/// What a resolver waits (c-ares; others wait longer).
const UDP_PATIENCE: Duration = Duration::from_secs(2);

/// Kinds of callers: requests a second, connections, patience.
pub(crate) const LOAD: [(Kind, u32, u32, Duration); 6] = [
    (Kind::NewConnections, 200, 1, HTTP_PATIENCE),
    (Kind::KeepAlive, 60, 12, HTTP_PATIENCE),
    (Kind::Stream, 60, 12, HTTP_PATIENCE),
    (Kind::WaitingStream, 12, 12, HTTP_PATIENCE),
    (Kind::ConnectedUdp, 60, 12, UDP_PATIENCE),
    (Kind::UnconnectedUdp, 60, 12, UDP_PATIENCE),
];

/// Whose connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Tombolo's.
    Tombolo,
    /// Those that kube-proxy's rules translate.
    KubeProxy,
}

/// Figures by kind of caller.
pub(crate) type ByKind = BTreeMap<String, Figures>;

/// What the attempts of each kind amount to, seen from `event`: all together, and by kind.
pub(crate) fn figures(event: Duration, attempts: impl Fn(Kind) -> Vec<Attempt>) -> (Figures, ByKind) {
    let by_kind = LOAD.map(|(kind, ..)| (kind, attempts(kind)));
    let all = Figures::of(by_kind.iter().flat_map(|(_, attempts)| attempts), event);
    (all, by_kind.into_iter().map(|(kind, attempts)| (kind.to_string(), Figures::of(&attempts, event))).collect())
}

/// What goes into the JSON beside what every scene has. The seconds are those of the connections that are made anew for
/// each request: the others keep theirs.
pub(crate) fn fields((all, by_kind): &(Figures, ByKind)) -> Map<String, Value> {
    let fields = json!({
        "requests": all.requests,
        "failed": all.failed,
        "failed_with_retry": all.failed_with_retry,
        "unfinished": all.unfinished,
        "longest_connect_ms": all.longest_connect_ms,
        "last_failure_ms": all.last_failure_ms,
        "last_failed_attempt_ms": all.last_failed_attempt_ms,
        "by_cluster": all.by_cluster,
        "shares": by_kind.get(&Kind::NewConnections.to_string()).map(|figures| &figures.seconds),
        "kinds": by_kind,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => unreachable!("it was made as an object"),
    }
}

/// Them in a line.
pub(crate) fn in_words(who: &str, figures: &Figures) -> String {
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} ms"));
    format!(
        "{who}: {} of {} failed, {} with one retry; last failing connect began at {}, longest took {}",
        figures.failed,
        figures.requests,
        figures.failed_with_retry,
        ms(figures.last_failure_ms),
        ms(figures.longest_connect_ms)
    )
}

/// Fails if a request failed in spite of its retry.
pub(crate) fn check_retries(figures: &Figures) -> Result<()> {
    let failures: Vec<_> =
        figures.failures.iter().map(|failure| format!("{:.0} ms: {}", failure.began_ms, failure.error)).collect();
    ensure!(
        figures.failed_with_retry == 0,
        "{} of {} requests failed in spite of a retry; the first failures: {}",
        figures.failed_with_retry,
        figures.requests,
        failures.join("; ")
    );
    Ok(())
}

/// Fails unless `cluster`, which was lost at `lost`, answered before, and nothing that began after `dark`, when all of it was
/// gone.
pub(crate) fn check_silence(attempts: &[Attempt], cluster: &str, lost: Duration, dark: Duration) -> Result<()> {
    let is_its = |attempt: &&Attempt| matches!(&attempt.end, End::Answered(by) if by == cluster);
    ensure!(attempts.iter().any(|attempt| is_its(&attempt)), "{cluster} had not answered before it was lost");
    if let Some(late) = attempts.iter().filter(is_its).find(|attempt| attempt.began > dark) {
        bail!("{cluster} answered a request that began {} ms after it was lost", ms_after(lost, late.began));
    }
    Ok(())
}

/// What part of the answers came from `cluster`; 0 if there were none at all.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2⁵³")]
pub(crate) fn part(cluster: &str, figures: &Figures) -> f64 {
    let all: u64 = figures.by_cluster.values().sum();
    let some = figures.by_cluster.get(cluster).copied().unwrap_or(0);
    if all == 0 { 0.0 } else { some as f64 / all as f64 }
}
