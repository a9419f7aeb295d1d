//! What makes an object the same one: in another file, or told by another watch.

use crate::model::{Change, ObjectName, ServiceKind, ServiceRef};
use std::fmt;

/// Names an object that sources deliver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Service(ServiceRef),
    Slice(ObjectName),
    /// By its UID: a pod of the same name may be another one.
    Pod(String),
}

impl Key {
    /// What a change is about.
    pub(super) fn of(change: &Change) -> Self {
        match change {
            Change::Service(name, _) => Self::Service(name.clone()),
            Change::Slice(name, _) => Self::Slice(name.clone()),
            Change::Pod(uid, _) => Self::Pod(uid.clone()),
        }
    }

    /// Says that the object is not there, or not any more.
    pub(super) fn gone(self) -> Change {
        match self {
            Self::Service(name) => Change::Service(name, None),
            Self::Slice(name) => Change::Slice(name, None),
            Self::Pod(uid) => Change::Pod(uid, None),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => match name.kind {
                ServiceKind::Service => write!(f, "Service {name}"),
                ServiceKind::ServiceImport => write!(f, "ServiceImport {name}"),
            },
            Self::Slice(name) => write!(f, "EndpointSlice {name}"),
            Self::Pod(uid) => write!(f, "Pod with UID {uid}"),
        }
    }
}
