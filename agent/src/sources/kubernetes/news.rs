//! What watches tell.

use crate::{model::Change, sources::key::Key};

/// A watch at the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watch {
    /// All Services.
    Services,
    /// All ServiceImports.
    Imports,
    /// EndpointSlices from other clusters; with `--all-services` all there are.
    Mirrored,
    /// EndpointSlices that only the agent may use.
    Fallback,
    /// The node's pods.
    Pods,
    /// EndpointSlices of Services with endpoints in this cluster. The names are in the watch's selector, so each set of
    /// names is a round of its own, and a long one is watched in parts.
    Local {
        /// Counts the rounds.
        round: u32,
        /// Below [`PARTS`].
        part: u8,
    },
}

/// Watches that one round has at most.
pub(super) const PARTS: u8 = 4;

/// One thing that a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A full list begins, whatever was told before.
    Listing,
    /// An object was listed or written.
    There(Object),
    /// An object was deleted, or the watch's selector no longer fits it.
    Gone(Key),
    /// The list is complete: what it lacked is gone.
    Listed,
    /// It could not go on. What it told stays.
    Failed(Failure),
    /// It goes on after a failure.
    Resumed,
}

/// An object as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// Which one.
    pub(super) key: Key,
    /// `metadata.resourceVersion`, by which two watches' words for one object are put in order; 0 if that is no number.
    pub(super) version: u64,
    /// What is in it.
    pub(super) reading: Reading,
}

/// What is in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// It is for us.
    Taken(Box<Change>),
    /// It isn't.
    Left,
    /// It can't be used, and this is why.
    Bad(String),
}

/// Why a watch can't go on for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody answered, or somebody who can't serve just now.
    Unreachable(String),
    /// The history that the watch was to go on from is gone: it lists again.
    Expired,
    /// The API server has answered that it won't.
    Refused(String),
    /// The API server doesn't have this kind of object.
    Absent,
}

impl Watch {
    /// What people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Services => "Services",
            Self::Imports => "ServiceImports",
            Self::Mirrored => "EndpointSlices of other clusters",
            Self::Fallback => "EndpointSlices for fallback",
            Self::Pods => "Pods of this node",
            Self::Local { .. } => "EndpointSlices of local members",
        }
    }
}
