//! Figures as they are printed.

use serde_json::{Value, json};
use std::time::Duration;

/// How times are spread.
pub(crate) fn spread(mut times: Vec<Duration>) -> Value {
    times.sort();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place"
        )]
        let place = (times.len() as f64 * share) as usize;
        times.get(place.min(times.len().saturating_sub(1))).map(|time| milliseconds(*time))
    };
    json!({"count": times.len(), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "worst_ms": at(1.0)})
}

/// To a tenth.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
