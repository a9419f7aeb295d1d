//! Whether counts agree with shares, by Pearson's χ².

use std::{collections::BTreeMap, fmt::Debug};

/// Fails if counts are as far from `shares` as happens by chance in less than one of 10⁹ runs, or if something was drawn
/// that has no share. Returns χ² and what it had to stay below.
///
/// The bound is Laurent and Massart's, P(χ² ≥ k + 2√(kt) + 2t) ≤ e⁻ᵗ, which needs no table.
pub(crate) fn assert_shares<K: Ord + Debug>(counts: &BTreeMap<K, usize>, shares: &BTreeMap<K, f64>) -> (f64, f64) {
    let total: usize = counts.values().sum();
    let sum: f64 = shares.values().sum();
    let strangers: Vec<_> = counts.iter().filter(|(key, _)| !shares.contains_key(key)).collect();
    assert!(strangers.is_empty(), "drawn without a share: {strangers:?}");
    let mut chi = 0.0;
    for (key, share) in shares {
        let expected = share / sum * total as f64;
        assert!(expected >= 5.0, "too few draws to tell: {expected} expected of {key:?}");
        let count = counts.get(key).copied().unwrap_or(0) as f64;
        chi += (count - expected).powi(2) / expected;
    }
    let freedom = shares.len().saturating_sub(1) as f64;
    let odds = 1e9_f64.ln();
    let bound = freedom + 2.0 * (freedom * odds).sqrt() + 2.0 * odds;
    assert!(chi < bound, "χ² is {chi:.1}, at most {bound:.1} is chance: {counts:?} against {shares:?}");
    (chi, bound)
}
