//! Free indexes of a kernel array, as runs.

use std::collections::BTreeMap;

/// The free indexes of an array, whatever its size: callers say where it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Free {
    /// First index of each run → the index after its last. Runs neither overlap nor touch.
    runs: BTreeMap<u32, u32>,
}

impl Free {
    /// All indexes are free.
    pub(crate) fn all() -> Self {
        Self { runs: BTreeMap::from([(0, u32::MAX)]) }
    }

    /// The smallest index at or above `from` where `len` free indexes below `limit` begin.
    pub(crate) fn find(&self, from: u32, len: u32, limit: u32) -> Option<u32> {
        let inside = self.runs.range(..from).next_back().map(|(_, &end)| (from, end));
        let after = self.runs.range(from..).map(|(&first, &end)| (first, end));
        inside
            .into_iter()
            .chain(after)
            .take_while(|&(first, _)| first < limit)
            .find(|&(first, end)| end.min(limit).checked_sub(first).is_some_and(|room| room >= len))
            .map(|(first, _)| first)
    }

    /// Marks `len` indexes from `first` on as used, those of them that were free.
    pub(crate) fn take(&mut self, first: u32, len: u32) {
        if len == 0 {
            return;
        }
        let end = first.saturating_add(len);
        while let Some((run, run_end)) = self.overlapping(first, end) {
            self.runs.remove(&run);
            if run < first {
                self.runs.insert(run, first);
            }
            if end < run_end {
                self.runs.insert(end, run_end);
            }
        }
    }

    /// Marks `len` indexes from `first` on as free, those of them that were used.
    pub(crate) fn give(&mut self, first: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (mut first, mut end) = (first, first.saturating_add(len));
        // One further on each side, to merge with runs that only touch.
        while let Some((run, run_end)) = self.overlapping(first.saturating_sub(1), end.saturating_add(1)) {
            self.runs.remove(&run);
            (first, end) = (first.min(run), end.max(run_end));
        }
        self.runs.insert(first, end);
    }

    /// How many indexes below `limit` are free.
    pub(crate) fn count(&self, limit: u32) -> u32 {
        self.runs.range(..limit).map(|(&first, &end)| end.min(limit) - first).sum()
    }

    /// A run that has an index in `first..end`.
    fn overlapping(&self, first: u32, end: u32) -> Option<(u32, u32)> {
        let (&run, &run_end) = self.runs.range(..end).next_back()?;
        (run_end > first).then_some((run, run_end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const LIMIT: u32 = 40;

    proptest! {
        #[test]
        fn runs_behave_like_a_plain_set_of_free_indexes(
            operations in prop::collection::vec((any::<bool>(), 0..LIMIT, 0..8u32), 0..60),
            (from, len) in (0..LIMIT, 1..10u32),
        ) {
            let mut free = Free::all();
            let mut set: BTreeSet<u32> = (0..LIMIT + 10).collect();
            for (take, first, len) in operations {
                for index in first..first + len {
                    if take { set.remove(&index); } else { set.insert(index); }
                }
                if take { free.take(first, len) } else { free.give(first, len) }
            }
            let expected = (from..LIMIT).find(|&first| (first..first + len).all(|i| i < LIMIT && set.contains(&i)));
            prop_assert_eq!(free.find(from, len, LIMIT), expected);
            prop_assert_eq!(free.count(LIMIT) as usize, set.range(..LIMIT).count());
            let ends: Vec<(u32, u32)> = free.runs.into_iter().collect();
            prop_assert!(ends.iter().all(|(first, end)| first < end));
            prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "runs touch: {:?}", ends);
        }
    }
}
