//! Whether counts are what chance makes of the shares expected.

use super::FRONTENDS;
use crate::clusters::NAMES;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;

/// A right datapath is called wrong once in a million times: 4.753 standard deviations of a normal distribution.
const DEVIATIONS: f64 = 4.753;

/// Fails unless `counts` are likely if each request draws by `expected`, shares relative to each other. Whoever
/// is not in `expected` must not be in `counts`.
pub(crate) fn check(who: &str, counts: &BTreeMap<String, u64>, expected: &BTreeMap<String, f64>) -> Result<()> {
    let unexpected: Vec<_> = counts.keys().filter(|name| !expected.contains_key(*name)).collect();
    ensure!(unexpected.is_empty(), "{who}: nobody expected answers from {unexpected:?}: {counts:?}");
    let total: u64 = counts.values().sum();
    ensure!(total > 0, "{who}: no answers");
    let whole: f64 = expected.values().sum();
    let mut distance = 0.0;
    for (name, share) in expected {
        let wanted = as_float(total) * share / whole;
        let seen = as_float(counts.get(name).copied().unwrap_or_default());
        distance += (seen - wanted).powi(2) / wanted;
    }
    let limit = limit(expected.len() - 1);
    ensure!(
        distance <= limit,
        "{who}: shares are off (chi-square {distance:.1}, at most {limit:.1}): {}, expected {}",
        percent(counts.iter().map(|(name, &count)| (name, as_float(count)))),
        percent(expected.iter().map(|(name, &share)| (name, share)))
    );
    Ok(())
}

/// Whether two sets of shares, each relative to its own sum, are the same to a thousandth.
pub(crate) fn same(one: &BTreeMap<String, f64>, other: &BTreeMap<String, f64>) -> bool {
    let part =
        |shares: &BTreeMap<String, f64>, name: &str| shares.get(name).unwrap_or(&0.0) / shares.values().sum::<f64>();
    one.keys().chain(other.keys()).all(|name| (part(one, name) - part(other, name)).abs() < 0.001)
}

/// `west 33 %, east 50 %, …`.
pub(crate) fn percent<'a>(shares: impl Iterator<Item = (&'a String, f64)>) -> String {
    let shares: Vec<_> = shares.collect();
    let whole: f64 = shares.iter().map(|(_, share)| share).sum();
    let words = shares.iter().map(|(name, share)| format!("{name} {:.1} %", 100.0 * share / whole));
    words.collect::<Vec<_>>().join(", ")
}

/// Shares by name.
pub(crate) fn shares<const N: usize>(shares: [(&str, f64); N]) -> BTreeMap<String, f64> {
    shares.into_iter().map(|(name, share)| (name.to_owned(), share)).collect()
}

/// Of `frontend-federated`, when nothing but the number of endpoints matters.
pub(crate) fn by_endpoint() -> BTreeMap<String, f64> {
    let float = |count: usize| as_float(count as u64);
    NAMES.into_iter().zip(FRONTENDS).map(|(name, count)| (name.to_owned(), float(count))).collect()
}

/// What chi-square with so many degrees of freedom stays below but once in a million, by the approximation of Wilson
/// and Hilferty: 15 % too much with one degree of freedom, less with more.
fn limit(freedom: usize) -> f64 {
    if freedom == 0 {
        // Nothing is left to chance.
        return 1e-9;
    }
    let freedom = as_float(freedom as u64);
    let spread = 2.0 / (9.0 * freedom);
    freedom * (1.0 - spread + DEVIATIONS * spread.sqrt()).powi(3)
}

/// Counts of requests are far below 2⁵³.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_that_of_the_tables() {
        // 1e-6 quantiles of the chi-square distribution.
        for (freedom, exact) in [(1, 23.93), (2, 27.63), (5, 35.89), (10, 46.86)] {
            let limit = limit(freedom);
            assert!((exact..exact * 1.16).contains(&limit), "{freedom}: {limit} instead of {exact}");
        }
    }

    #[test]
    fn likely_counts_pass_and_unlikely_ones_do_not() {
        let expected = shares([("west", 2.0), ("east", 3.0), ("north", 1.0)]);
        let counts = |west, east, north| {
            let counts = [("west", west), ("east", east), ("north", north)];
            counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect::<BTreeMap<String, u64>>()
        };
        check("it", &counts(350, 480, 170), &expected).unwrap();
        for off in [counts(333, 333, 333), counts(500, 500, 0), counts(0, 0, 0)] {
            check("it", &off, &expected).unwrap_err();
        }
    }

    #[test]
    fn shares_are_the_same_in_whatever_unit() {
        assert!(same(&shares([("west", 2.0), ("east", 3.0)]), &shares([("west", 0.4), ("east", 0.6)])));
        assert!(!same(&shares([("west", 2.0)]), &shares([("west", 0.4), ("east", 0.6)])));
        assert!(same(&shares([("west", 2.0), ("east", 0.0)]), &shares([("west", 0.4)])));
    }

    #[test]
    fn an_answer_from_somebody_else_is_an_error() {
        let counts = BTreeMap::from([("east".to_owned(), 1000), ("west".to_owned(), 1)]);
        let error = check("it", &counts, &shares([("east", 1.0)])).unwrap_err();
        assert!(error.to_string().contains("west"), "{error}");
    }
}
