//! Which of a peer's exports its quota lets in: the first ones in the order of names.
//!
//! Where that ends is kept, and moved by what changes: to find it anew with each change would cost a peer over its quota
//! a look at all of its exports each time, and everybody the wait for it.

use super::Exporter;
use crate::{
    mirror::{conventions::Export, source::Origin},
    model::ObjectName,
};
use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
};

/// See the module. For one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Admitted {
    /// All of its exports.
    total: usize,
    /// Those of the exporters up to the last one that is let in.
    within: usize,
    /// None if no exporter is let in.
    last: Option<ObjectName>,
}

/// What each exporter exports, none of them nothing.
type Exports = BTreeMap<Exporter, Vec<Export>>;

impl Admitted {
    /// How many exports there are, let in or not.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Whether an exporter is let in.
    pub(super) fn lets_in(&self, object: &ObjectName) -> bool {
        self.last.as_ref().is_some_and(|last| object <= last)
    }

    /// Takes in that an exporter has `new` exports instead of `old`, as `exports` say already. Returns the exporters that are
    /// let in now and weren't before, or the other way round.
    pub(super) fn change(
        &mut self,
        (origin, object): &Exporter,
        (old, new): (usize, usize),
        exports: &Exports,
        quota: usize,
    ) -> Vec<ObjectName> {
        self.total = self.total + new - old;
        if self.lets_in(object) {
            self.within = self.within + new - old;
        }
        if new == 0 && self.last.as_ref() == Some(object) {
            self.last = up_to(exports, origin, object).next().map(|(last, _)| last.clone());
        }
        self.settle(origin, exports, quota)
    }

    /// Finds out where the end is now, after whatever changed. Returns those that it has passed.
    pub(super) fn settle(&mut self, origin: &Origin, exports: &Exports, quota: usize) -> Vec<ObjectName> {
        let mut moved = Vec::new();
        while self.within > quota
            && let Some(last) = self.last.take()
        {
            let mut up_to = up_to(exports, origin, &last);
            self.within -= up_to.next().map_or(0, |(_, count)| count);
            self.last = up_to.next().map(|(before, _)| before.clone());
            moved.push(last);
        }
        while self.within < self.total {
            let start = match &self.last {
                Some(last) => Excluded((origin.clone(), last.clone())),
                None => Included(first(origin)),
            };
            let next = exports.range((start, Unbounded)).next().filter(|((other, _), _)| other == origin);
            let Some(((_, object), _)) = next.filter(|(_, all)| self.within + all.len() <= quota) else { break };
            self.within += next.map_or(0, |(_, all)| all.len());
            self.last = Some(object.clone());
            moved.push(object.clone());
        }
        moved
    }
}

/// A cluster's exporters and how much they export, from this one down to the first.
fn up_to<'a>(
    exports: &'a Exports,
    origin: &Origin,
    object: &ObjectName,
) -> impl Iterator<Item = (&'a ObjectName, usize)> + use<'a> {
    let range = (Included(first(origin)), Included((origin.clone(), object.clone())));
    exports.range(range).rev().map(|((_, object), all)| (object, all.len()))
}

/// Comes before all exporters of a cluster.
pub(super) fn first(origin: &Origin) -> Exporter {
    (origin.clone(), ObjectName { namespace: String::new(), name: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mirror::{
            conventions::Convention,
            source::LinkName,
            world::{ImportKey, ImportKind},
        },
        model::Path,
    };
    use proptest::prelude::*;

    proptest! {
        /// Whatever the way there: those are let in that come first and are as many as the quota lets in, and whoever is so
        /// otherwise than before was named.
        #[test]
        fn the_end_is_where_a_count_from_the_first_one_finds_it(
            steps in proptest::collection::vec((0..3_u8, 0..12_u8, 0..4_usize, 0..10_usize), 0..60)
        ) {
            let mut exports = Exports::new();
            let mut admitted = [Admitted::default(), Admitted::default()];
            let mut quota = [4, 4];
            for (what, name, count, new_quota) in steps {
                let link = usize::from(name % 2);
                let origin = Origin::Link(LinkName(format!("link-{link}")));
                let before = let_in(&exports, &origin, quota[link]);
                let moved = if what == 0 {
                    quota[link] = new_quota;
                    admitted[link].settle(&origin, &exports, new_quota)
                } else {
                    let exporter = (origin.clone(), object(name));
                    let old = if count == 0 {
                        exports.remove(&exporter)
                    } else {
                        exports.insert(exporter.clone(), vec![export(name); count])
                    };
                    admitted[link].change(&exporter, (old.map_or(0, |it| it.len()), count), &exports, quota[link])
                };
                let now = let_in(&exports, &origin, quota[link]);
                for exporter in exports.keys().filter(|(of, _)| *of == origin) {
                    prop_assert_eq!(admitted[link].lets_in(&exporter.1), now.contains(&exporter.1));
                    let is_other = before.contains(&exporter.1) != now.contains(&exporter.1);
                    prop_assert!(!is_other || moved.contains(&exporter.1) || exporter.1 == object(name), "{:?}", exporter);
                }
                let last = now.last();
                prop_assert_eq!(admitted[link].last.as_ref(), last, "the same exports are let in the same way");
            }
        }
    }

    fn let_in(exports: &Exports, origin: &Origin, quota: usize) -> Vec<ObjectName> {
        let mut sum = 0;
        let of_it = exports.iter().filter(|((of, _), _)| of == origin);
        let within = of_it.take_while(|(_, all)| {
            sum += all.len();
            sum <= quota
        });
        within.map(|((_, object), _)| object.clone()).collect()
    }

    fn object(name: u8) -> ObjectName {
        ObjectName { namespace: "shop".to_owned(), name: format!("service-{name:02}") }
    }

    fn export(name: u8) -> Export {
        let import = ImportKey { kind: ImportKind::Named, object: object(name) };
        Export { import, convention: Convention::LinkerdFlat, path: Path::Pod }
    }
}
