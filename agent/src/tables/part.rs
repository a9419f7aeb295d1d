//! The tables in parts, to be compared one at a time.

use super::Maps;

/// A part of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// [`Maps::frontends`].
    Frontends,
    /// [`Maps::services`], those that frontends lead to.
    Services,
    /// [`Maps::slots`].
    Slots,
    /// [`Maps::backends`].
    Backends,
    /// [`Maps::backend_of`].
    Addresses,
    /// [`Maps::members`].
    Members,
    /// What is small.
    Others,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Frontends, Self::Services, Self::Slots, Self::Backends, Self::Addresses, Self::Members, Self::Others];
}

impl Maps {
    /// Whether a part of them is what is `known`. Entries of services that are known to be free may hold anything.
    pub fn agree(&self, known: &Self, part: Part) -> bool {
        match part {
            Part::Frontends => self.frontends == known.frontends,
            Part::Services => known.services.iter().all(|(index, service)| self.services.get(index) == Some(service)),
            Part::Slots => self.slots == known.slots,
            Part::Backends => self.backends == known.backends,
            Part::Addresses => self.backend_of == known.backend_of,
            Part::Members => self.members == known.members,
            Part::Others => {
                let others = |maps: &Self| (maps.clusters.clone(), maps.names.clone(), maps.pods.clone(), maps.config);
                others(self) == others(known)
            }
        }
    }
}
