//! A map by index that takes little more memory than what is in it: it is made at once and changes little.

use std::ops::Index;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByIndex<T> {
    /// In the order of indexes, each once.
    entries: Vec<(u32, T)>,
}

impl<T> Default for ByIndex<T> {
    /// Nothing is in it.
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> ByIndex<T> {
    /// What is at an index.
    pub fn get(&self, index: &u32) -> Option<&T> {
        Some(&self.entries[self.find(*index).ok()?].1)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, index: &u32) -> Option<&mut T> {
        let at = self.find(*index).ok()?;
        Some(&mut self.entries[at].1)
    }

    /// Puts something at an index; returns what was there.
    pub fn insert(&mut self, index: u32, entry: T) -> Option<T> {
        match self.find(index) {
            Ok(at) => Some(std::mem::replace(&mut self.entries[at].1, entry)),
            Err(at) => {
                self.entries.insert(at, (index, entry));
                None
            }
        }
    }

    /// Keeps those of which `stays` says so.
    pub fn retain(&mut self, mut stays: impl FnMut(&u32, &mut T) -> bool) {
        self.entries.retain_mut(|(index, entry)| stays(index, entry));
    }

    /// All there is, in the order of indexes.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&u32, &T)> {
        self.entries.iter().map(|(index, entry)| (index, entry))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (&u32, &mut T)> {
        self.entries.iter_mut().map(|(index, entry)| (&*index, entry))
    }

    /// The indexes, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &u32> {
        self.iter().map(|(index, _)| index)
    }

    /// What is there, in the order of indexes.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.iter().map(|(_, entry)| entry)
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.iter_mut().map(|(_, entry)| entry)
    }

    fn find(&self, index: u32) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&index, |(index, _)| *index)
    }
}

impl<T> Index<&u32> for ByIndex<T> {
    type Output = T;

    fn index(&self, index: &u32) -> &T {
        self.get(index).expect("there is something at the index")
    }
}

impl<T> From<Vec<(u32, T)>> for ByIndex<T> {
    /// Of several at one index the last is taken.
    fn from(mut entries: Vec<(u32, T)>) -> Self {
        if !entries.is_sorted_by(|one, next| one.0 < next.0) {
            entries.reverse();
            entries.sort_by_key(|(index, _)| *index);
            entries.dedup_by_key(|(index, _)| *index);
        }
        entries.shrink_to_fit();
        Self { entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map(first in prop::collection::vec((0..20u32, any::<u8>()), 0..20), then in prop::collection::vec((0..20u32, any::<u8>()), 0..20)) {
            let (mut map, mut expected): (ByIndex<u8>, BTreeMap<u32, u8>) =
                (first.clone().into(), first.into_iter().collect());
            for (index, value) in then {
                prop_assert_eq!(map.insert(index, value), expected.insert(index, value));
                map.retain(|index, value| *index != u32::from(*value % 20));
                expected.retain(|index, value| *index != u32::from(*value % 20));
            }
            prop_assert!(map.iter().eq(expected.iter()), "{:?} instead of {:?}", map, expected);
            prop_assert!((0..20).all(|index| map.get(&index) == expected.get(&index)));
        }
    }
}
