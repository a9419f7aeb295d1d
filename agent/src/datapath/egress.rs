//! The hook that has connected UDP sockets reopen whose backend is gone or dead.
//!
//! Every packet that leaves a pod runs it, so unlike the others it is attached only while it is needed. When that is, the
//! caller knows. A missing link is no fault: traffic flows without it.

use super::{
    EGRESS,
    attach::{self, Attached, How},
    bpf::{self, open_pin},
    cgroup,
    pins::{Pins, unpin},
};
use anyhow::Context;
use aya::Ebpf;
use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};
use tracing::info;

/// The link, while there is one.
#[derive(Debug, Default)]
pub(super) struct Egress(Option<(OwnedFd, How)>);

impl Egress {
    /// The hook, if it is in place.
    pub(super) fn attached(&self) -> Option<Attached> {
        self.0.as_ref().map(|(_, how)| Attached { hook: EGRESS, how: *how })
    }

    /// The link with its hook.
    pub(super) fn link(&self) -> Option<(&'static str, &OwnedFd)> {
        self.0.as_ref().map(|(link, _)| (EGRESS, link))
    }

    /// Puts our program behind the link of an earlier agent that had it attached to `cgroup`; one that is attached elsewhere
    /// is removed.
    pub(super) fn take_over(&mut self, ebpf: &Ebpf, cgroup: &Path, pins: &Pins) -> anyhow::Result<()> {
        if self.0.is_none() {
            // Left behind if an agent was ended while it attached: what was lost then is noticed once more when the backend
            // is cleared.
            unpin(&pins.new_link(EGRESS))?;
            match attach::find_attached(cgroup::id(cgroup)?, EGRESS, pins)? {
                Some(pin) => self.0 = Some((attach::adopt(ebpf, EGRESS, &pin, pins)?, How::Adopted)),
                None => pins.earlier_links(EGRESS)?.iter().try_for_each(|pin| unpin(pin))?,
            }
        }
        Ok(())
    }

    /// Sees to it that our program is on the hook of `cgroup`, by a link that is pinned.
    ///
    /// # Errors
    ///
    /// Somebody else holds the hook for himself, or there is no such cgroup.
    pub(super) fn attach(&mut self, ebpf: &Ebpf, cgroup: &Path, pins: &Pins) -> anyhow::Result<()> {
        let id = cgroup::id(cgroup)?;
        if self.0.as_ref().is_some_and(|(link, _)| attach::link_cgroup(link).is_ok_and(|of| of == id)) {
            return Ok(());
        }
        self.0 = attach::create_all(ebpf, &[EGRESS], cgroup, pins)?.pop().map(|(_, link, how)| (link, how));
        info!(cgroup = %cgroup.display(), id, "hook for connected UDP sockets attached");
        Ok(())
    }

    /// Takes it off the hook. It is fine if it isn't attached.
    pub(super) fn detach(&mut self, pins: &Pins) -> anyhow::Result<()> {
        let pin = pins.link(EGRESS);
        let link = match self.0.take() {
            Some((link, _)) => Some(link),
            None if pin.exists() => Some(open_pin(&pin).with_context(|| format!("open {}", pin.display()))?),
            None => None,
        };
        unpin(&pin)?;
        let Some(link) = link else { return Ok(()) };
        bpf::detach(link.as_fd()).context("detach the hook for connected UDP sockets")?;
        info!("hook for connected UDP sockets detached");
        Ok(())
    }
}
