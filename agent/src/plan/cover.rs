//! The prefixes that programs compare addresses with first: widened before a frontend needs it, narrowed when nothing
//! is left that does.

use super::layout::Layout;
use crate::{
    prefixes::{Cover, cover},
    tables::{Installed, Step, to_ranges},
};
use std::collections::BTreeSet;
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
        Some(to_ranges(cover(all_frontends), cover(self.installed.backend_addresses().chain(self.new_backends()))))
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
            let backends = cover(self.backends_left().chain(self.new_backends()));
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

    /// The addresses of the backends that this plan doesn't clear.
    fn backends_left(&self) -> impl Iterator<Item = [u8; 16]> {
        let stays = |index: u32| self.cleared.binary_search(&index).is_err();
        let any_stays = move |key: &BackendKey| self.installed.holders(key).any(stays);
        let led = self.installed.backend_of().iter();
        let led = led.filter(move |(key, index)| stays(**index) || any_stays(key)).map(|(key, _)| key);
        led.chain(self.installed.astray().iter().filter(move |key| any_stays(key))).map(|key| key.addr)
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
