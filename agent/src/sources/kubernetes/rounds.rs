//! The watches of local members' slices: one set of names after the other.
//!
//! Names are in a watch's selector, which can't be changed while it runs. So each set is a round of its own; the round
//! before goes on until the next one has listed everything, and only then what the next one lacks is gone.

use super::{
    holders::{Bits, Holders},
    news::PARTS,
};
use crate::{model::ObjectName, sources::key::Key};
use std::{collections::BTreeSet, sync::Arc};

/// Names of Services whose built-in slices are wanted.
pub(super) type Names = Arc<BTreeSet<ObjectName>>;

/// What rounds that were given up hold, until the next one has listed.
const LEFT_OVER: Bits = 1 << 5;
/// Where the parts' bits begin: two rounds run at most, and take turns.
const TURNS: [u32; 2] = [6, 6 + PARTS as u32];

/// The round that has listed, and the one that is listing.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    begun: u32,
    current: Option<Round>,
    next: Option<Round>,
}

#[derive(Debug)]
struct Round {
    number: u32,
    turn: usize,
    names: Names,
    /// The parts that have not listed yet.
    unlisted: Bits,
}

impl Round {
    fn bits(&self) -> Bits {
        ((1 << PARTS) - 1) << TURNS[self.turn]
    }
}

impl Rounds {
    /// Begins a round in so many parts; one that is still listing is given up. Returns its number.
    pub(super) fn begin(&mut self, names: Names, parts: u8, holders: &mut Holders) -> u32 {
        if let Some(given_up) = self.next.take() {
            holders.hand_over(given_up.bits(), LEFT_OVER);
        }
        self.begun += 1;
        let turn = self.current.as_ref().map_or(0, |current| 1 - current.turn);
        let unlisted = (1 << parts.min(PARTS)) - 1;
        self.next = Some(Round { number: self.begun, turn, names, unlisted });
        self.begun
    }

    /// The bit of a part; none if its round is over.
    pub(super) fn bit(&self, round: u32, part: u8) -> Option<Bits> {
        let found = self.current.iter().chain(&self.next).find(|it| it.number == round)?;
        Some(1 << (TURNS[found.turn] + u32::from(part)))
    }

    /// All bits that a round may have.
    pub(super) fn all_bits() -> Bits {
        LEFT_OVER | (((1 << (2 * PARTS)) - 1) << TURNS[0])
    }

    /// A part has listed.
    pub(super) fn listed(&mut self, round: u32, part: u8) {
        if let Some(next) = self.next.as_mut().filter(|next| next.number == round) {
            next.unlisted &= !(1 << part);
        }
    }

    /// Ends the current round if the next one has listed. Returns what nobody holds any more.
    pub(super) fn turn_over(&mut self, holders: &mut Holders) -> Vec<Key> {
        if self.next.as_ref().is_none_or(|next| next.unlisted != 0) {
            return Vec::new();
        }
        let over = self.current.take().map_or(0, |current| current.bits());
        self.current = self.next.take();
        holders.clear(over | LEFT_OVER)
    }

    /// The names whose slices are known.
    pub(super) fn covered(&self) -> Option<&Names> {
        self.current.as_ref().map(|current| &current.names)
    }

    /// The names whose slices are known or will be, once the round that is listing has come to its end.
    pub(super) fn newest(&self) -> Option<&Names> {
        self.next.as_ref().or(self.current.as_ref()).map(|round| &round.names)
    }

    /// Whether this round is still needed.
    pub(super) fn is_running(&self, round: u32) -> bool {
        self.current.iter().chain(&self.next).any(|it| it.number == round)
    }
}
