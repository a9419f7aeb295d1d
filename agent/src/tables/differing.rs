//! Which frontends have to be looked at again.

use std::collections::BTreeSet;
use tombolo_ebpf::abi::FrontendKey;

/// Frontends for which something may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Differing {
    /// Any.
    All,
    /// At most these.
    Only(BTreeSet<FrontendKey>),
}

impl Default for Differing {
    /// Nothing has changed.
    fn default() -> Self {
        Self::Only(BTreeSet::new())
    }
}

impl Differing {
    /// Adds what `other` has.
    pub fn join(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Only(known), Self::Only(more)) => known.extend(more),
            _ => *self = Self::All,
        }
    }

    /// Adds frontends.
    pub fn extend(&mut self, frontends: impl IntoIterator<Item = FrontendKey>) {
        if let Self::Only(known) = self {
            known.extend(frontends);
        }
    }

    /// These, none if any may have changed.
    pub fn frontends(&self) -> Option<&BTreeSet<FrontendKey>> {
        match self {
            Self::All => None,
            Self::Only(frontends) => Some(frontends),
        }
    }
}
