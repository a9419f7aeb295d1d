//! The prefixes that programs compare addresses with first: widened before a frontend needs it, narrowed when nothing
//! is left that does.

use super::layout::Layout;
use crate::{
    prefixes::{Cover, cover, cover_ordered, span},
    tables::{Installed, Step, to_ranges},
};
use std::{collections::BTreeSet, ops::RangeInclusive};
use tombolo_ebpf::abi::{BackendKey, Config, FrontendKey, Ranges};

/// What a plan asks of the prefixes.
pub(super) struct Needs<'a> {
    installed: &'a Installed,
    layouts: &'a [Layout],
    dropped: &'a [FrontendKey],
    cleared: &'a [u32],
}

impl<'a> Needs<'a> {
    pub(super) fn of(
        installed: &'a Installed,
        layouts: &'a [Layout],
        dropped: &'a [FrontendKey],
        cleared: &'a [u32],
    ) -> Self {
        Self { installed, layouts, dropped, cleared }
    }

    /// The prefixes to switch to before any frontend is flipped, none if those in force will do.
    pub(super) fn widening(&self) -> Option<Ranges> {
        let active = self.installed.ranges();
        let frontends = Cover { v4: active.frontends4, v6: active.frontends6 };
        let backends = Cover { v4: active.backends4, v6: active.backends6 };
        let new_frontends = self.layouts.iter().map(|layout| layout.service.key.addr);
        let will_do = new_frontends.clone().all(|addr| frontends.contains(addr))
            && self.new_backends().all(|addr| backends.contains(addr))
            && (!self.installed.config_suspect() || self.covers_installed(&frontends, &backends));
        if will_do {
            return None;
        }
        let all_frontends = self.installed.frontends().keys().map(|key| key.addr).chain(new_frontends);
        Some(to_ranges(cover(all_frontends), self.cover_backends(&[])))
    }

    /// The prefixes to switch to at the end from those in force then; none if nothing left that they were for.
    ///
    /// Where something left there was a grace period, so the prefixes that are not in force are free to be written.
    pub(super) fn narrowing(&self, config: &Config) -> Option<Ranges> {
        let frontends_left = self.installed.config_suspect() || !self.dropped.is_empty();
        let [first, second] = &config.ranges;
        let active = if config.active == 0 { first } else { second };
        let mut narrow = *active;
        if frontends_left {
            let dropped: BTreeSet<&FrontendKey> = self.dropped.iter().collect();
            let stay = self.installed.frontends().keys().filter(|key| !dropped.contains(key));
            let new = self.layouts.iter().map(|layout| &layout.service.key);
            let frontends = cover(stay.chain(new).map(|key| key.addr));
            (narrow.frontends4, narrow.frontends6) = (frontends.v4, frontends.v6);
        }
        if !self.cleared.is_empty() {
            let backends = self.cover_backends(self.cleared);
            (narrow.backends4, narrow.backends6) = (backends.v4, backends.v6);
        }
        (narrow != *active).then_some(narrow)
    }

    fn covers_installed(&self, frontends: &Cover, backends: &Cover) -> bool {
        self.installed.frontends().keys().all(|key| frontends.contains(key.addr))
            && self.installed.backend_addresses().all(|addr| backends.contains(addr))
    }

    /// The addresses behind frontends that this plan writes.
    fn new_backends(&self) -> impl Iterator<Item = [u8; 16]> {
        self.layouts.iter().flat_map(|layout| &layout.addresses).copied()
    }

    /// The prefixes that cover all backends but those that are `cleared`.
    fn cover_backends(&self, cleared: &[u32]) -> Cover {
        let mut new: Vec<[u8; 16]> = self.new_backends().collect();
        new.sort_unstable();
        cover_ordered(|range| join(self.backends_left(range.clone(), cleared), span(&new, range)))
    }

    /// The first and the last address of a range among those of the backends but these.
    fn backends_left(&self, range: RangeInclusive<[u8; 16]>, cleared: &[u32]) -> Option<([u8; 16], [u8; 16])> {
        let key = |addr, rest: u8| BackendKey { addr, port: [rest; 2], proto: rest, pad: rest };
        let range = key(*range.start(), 0)..=key(*range.end(), u8::MAX);
        let stays = |index: u32| cleared.binary_search(&index).is_err();
        let any_stays = |key: &BackendKey| self.installed.holders(key).any(stays);
        let led = self.installed.backend_of().range(range.clone());
        let mut led =
            led.filter(|(key, index)| cleared.is_empty() || stays(**index) || any_stays(key)).map(|(key, _)| key.addr);
        let astray = self.installed.astray().range(range);
        let mut astray = astray.filter(|key| cleared.is_empty() || any_stays(key)).map(|key| key.addr);
        join(ends(&mut led), ends(&mut astray))
    }
}

/// The first and the last.
fn ends(ordered: &mut impl DoubleEndedIterator<Item = [u8; 16]>) -> Option<([u8; 16], [u8; 16])> {
    let first = ordered.next()?;
    Some((first, ordered.next_back().unwrap_or(first)))
}

/// The first and the last of both.
fn join(one: Option<([u8; 16], [u8; 16])>, other: Option<([u8; 16], [u8; 16])>) -> Option<([u8; 16], [u8; 16])> {
    match (one, other) {
        (Some(one), Some(other)) => Some((one.0.min(other.0), one.1.max(other.1))),
        (one, other) => one.or(other),
    }
}

/// Writes the prefixes that are not in force and switches to them.
pub(super) fn switch(config: &mut Config, ranges: Ranges, steps: &mut Vec<Step>) {
    let [first, second] = &mut config.ranges;
    *(if config.active == 0 { second } else { first }) = ranges;
    steps.push(Step::PutConfig(Box::new(*config)));
    config.active = u32::from(config.active == 0);
    steps.push(Step::PutConfig(Box::new(*config)));
}
