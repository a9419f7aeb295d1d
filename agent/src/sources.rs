//! Where knowledge comes from: sources watch something, turn what they find into [`Change`]s and say when they have
//! delivered everything once.
//!
//! A source decides nothing about traffic, and it never takes an unreachable origin for an empty one: what it can't read
//! it leaves as it was, and says so as a [`Problem`].

#[cfg(test)]
mod conventions;
pub mod documents;
pub mod joined;
mod key;
pub mod kubernetes;
pub mod manifests;
pub mod objects;

use crate::model::Change;
use std::{fmt, path::PathBuf};

/// What a source tells the loop behind it, in this order: the first full list as `Changes`, `Synced`, then whatever
/// changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Objects that were written or are gone. Those of one event belong together: they were found by one look.
    Changes(Vec<Change>),
    /// Everything there was has been delivered, as far as it could be read. If that is all of it, what is missing from now on
    /// is gone; else this is said again once it is all.
    Synced {
        /// Whether it is all of it.
        complete: bool,
    },
    /// This node's pods have all been delivered, and will be as they come: one that was not is unknown.
    PodsKnown,
    /// The zone that the node is in.
    Zone(Option<String>),
    /// All that is wrong now. It replaces what was said before; an empty list says that all is well again.
    Problems(Vec<Problem>),
}

/// Something in a source that can't be used as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it was found.
    pub origin: Origin,
    /// What is wrong and what holds instead, as a sentence without a full stop.
    pub reason: String,
}

/// Where a problem was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A manifest, with the line that is to be looked at, counted from 1; none if it concerns the whole file or folder.
    File(PathBuf, Option<usize>),
    /// An object of an API server, as `kind namespace/name`.
    Object(String),
    /// A watch at an API server, by what is watched.
    Watch(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.reason)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Object(text) | Self::Watch(text) => f.write_str(text),
        }
    }
}
