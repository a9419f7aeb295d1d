//! Samples of one contender, and what is quoted of them.

use serde::Serialize;

/// Nanoseconds per run of a program, one value per chunk of runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

/// What is quoted, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Quoted {
    /// Half of the samples are below it.
    pub(crate) median: f64,
    /// A tenth of the samples are below it: what the machine can do when it isn't disturbed.
    pub(crate) p10: f64,
}

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, ns: f64) {
        self.0.push(ns);
    }

    /// The quantiles; zero without samples.
    pub(crate) fn quoted(&self) -> Quoted {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |tenths: usize| sorted.get(sorted.len() * tenths / 10).copied().unwrap_or(0.0);
        Quoted { median: at(5), p10: at(1) }
    }
}

impl Quoted {
    /// What is left above the cost of an empty program.
    pub(crate) fn net_of(self, floor: Self) -> Self {
        Self { median: self.median - floor.median, p10: self.p10 - floor.p10 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_tenth_are_taken_from_the_sorted_samples() {
        let mut samples = Samples::default();
        for ns in [5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0, 10.0] {
            samples.push(ns);
        }
        assert_eq!(samples.quoted(), Quoted { median: 6.0, p10: 2.0 });
    }
}
