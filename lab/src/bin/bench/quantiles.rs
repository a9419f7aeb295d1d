//! What is quoted of a metric over many runs.

use serde::Serialize;
use std::fmt::{self, Display};

/// Nearest ranks: each is a value that was seen. All zero of no values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    /// How many values there were.
    pub(crate) count: usize,
    /// Half of them are no greater.
    pub(crate) p50: f64,
    /// 99 of 100 are no greater; of fewer than 100 values the greatest.
    pub(crate) p99: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Quantiles {
    /// Of `values`, in any order.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { count: sorted.len(), p50: at(50), p99: at(99), max: at(100) }
    }
}

impl Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 => write!(f, "-"),
            _ => write!(f, "{:.0}, {:.0}, {:.0}", self.p50, self.p99, self.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let hundred = Quantiles::of((1..=100).rev().map(f64::from));
        assert_eq!(hundred, Quantiles { count: 100, p50: 50.0, p99: 99.0, max: 100.0 });
        let fifty = Quantiles::of((1..=50).map(f64::from));
        assert_eq!((fifty.p50, fifty.p99, fifty.max), (25.0, 50.0, 50.0));
        assert_eq!(Quantiles::of([]), Quantiles::default());
        assert_eq!(Quantiles::of([]).to_string(), "-");
    }
}
