//! Programs onto the cgroup's hooks, by links that are pinned; only links that an agent pinned are ever touched.

use super::{
    bpf::{self, open_pin},
    cgroup, foreign,
    pins::{Pins, unpin},
};
use anyhow::{Context, anyhow, bail};
use aya::{
    Ebpf,
    programs::{Program, ProgramFd},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};
use tracing::{info, warn};

/// The hooks that are always attached, named as the kernel names them.
pub const HOOKS: [&str; 9] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "sock_ops",
];
/// The hook that is attached only while there may be connected UDP sockets that have lost their backend.
pub const EGRESS: &str = "egress";

/// One hook in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The hook.
    pub hook: &'static str,
    /// How it came to be.
    pub how: How,
}

/// How a hook came to be in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// A new link.
    Fresh,
    /// An earlier agent's link, its program exchanged for ours.
    Adopted,
}

/// The links with our programs, by hook. Kept open, so that they outlive their pins.
#[derive(Debug, Default)]
pub(super) struct Links(BTreeMap<&'static str, (OwnedFd, How)>);

impl Links {
    /// The hooks in place, in the order of [`HOOKS`].
    pub(super) fn attached(&self) -> Vec<Attached> {
        let how = |hook: &'static str| Some(Attached { hook, how: self.0.get(hook)?.1 });
        HOOKS.into_iter().filter_map(how).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &OwnedFd)> {
        self.0.iter().map(|(hook, (link, _))| (*hook, link))
    }

    /// Sees to it that our programs are on all hooks of `cgroup`, by links that are pinned. Returns on how many they
    /// were not.
    ///
    /// New links are made before anything else changes. So if one is refused, all is as it was: no hook is left attached on
    /// a first start, and an earlier agent's programs stay. Those are then exchanged without a moment in between, whatever
    /// layout their maps have.
    pub(super) fn bring_about(&mut self, ebpf: &Ebpf, cgroup: &Path, pins: &Pins) -> anyhow::Result<usize> {
        let id = cgroup::id(cgroup)?;
        let is_ours = |hook: &str| self.0.get(hook).is_some_and(|(link, _)| link_cgroup(link).is_ok_and(|of| of == id));
        // `sock_ops` first: nothing is sent to a backend before somebody watches what becomes of it.
        let missing: Vec<&'static str> = HOOKS.into_iter().rev().filter(|hook| !is_ours(hook)).collect();
        if missing.is_empty() {
            return Ok(0);
        }
        let mut earlier = Vec::new();
        let mut none = Vec::new();
        for &hook in &missing {
            match find_attached(id, hook, pins)? {
                Some(pin) => earlier.push((hook, pin)),
                None => none.push(hook),
            }
        }
        let mut links = create_all(ebpf, &none, cgroup, pins)?;
        for (hook, pin) in earlier {
            links.push((hook, adopt(ebpf, hook, &pin, pins)?, How::Adopted));
        }
        self.0.extend(links.into_iter().map(|(hook, link, how)| (hook, (link, how))));
        info!(cgroup = %cgroup.display(), id, hooks = missing.len(), adopted = missing.len() - none.len(), "hooks attached");
        Ok(missing.len())
    }
}

/// Loads all programs; returns how many instructions the verifier processed for each (Linux 5.16, else none).
pub(super) fn load(ebpf: &mut Ebpf) -> anyhow::Result<Vec<(String, u32)>> {
    let mut verified = Vec::new();
    for hook in HOOKS.into_iter().chain([EGRESS]) {
        let program = ebpf.program_mut(hook).with_context(|| format!("program {hook} is not in the object"))?;
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            _ => bail!("program {hook} is of another kind"),
        };
        loaded.with_context(|| format!("load {hook}"))?;
        let count = program.info().ok().and_then(|info| info.verified_instruction_count());
        verified.extend(count.map(|count| (hook.to_owned(), count)));
    }
    Ok(verified)
}

/// Where a link of this hook is pinned that is attached to the cgroup with this id: by an agent of our layout, or of
/// another one.
pub(super) fn find_attached(cgroup: u64, hook: &str, pins: &Pins) -> anyhow::Result<Option<PathBuf>> {
    for pin in pins.earlier_links(hook)? {
        if is_attached_to(cgroup, &pin)? {
            return Ok(Some(pin));
        }
    }
    Ok(None)
}

/// Whether the link pinned at `pin` is attached to the cgroup with this id.
fn is_attached_to(cgroup: u64, pin: &Path) -> anyhow::Result<bool> {
    let attached_to = link_cgroup(&open(pin)?).with_context(|| pin.display().to_string())?;
    if attached_to != cgroup {
        // The cgroup was removed (id 0), or the agent was told another one.
        warn!(pin = %pin.display(), attached_to, cgroup, "pinned link is attached elsewhere, attaching anew");
    }
    Ok(attached_to == cgroup)
}

/// Makes a link for each of `hooks` and pins it in place of an earlier one: all of them, or none.
pub(super) fn create_all(
    ebpf: &Ebpf,
    hooks: &[&'static str],
    cgroup: &Path,
    pins: &Pins,
) -> anyhow::Result<Vec<(&'static str, OwnedFd, How)>> {
    let dir = File::open(cgroup).with_context(|| format!("open cgroup {}", cgroup.display()))?;
    let operation = |hook: &str| format!("attach {hook} to cgroup {}", cgroup.display());
    for hook in hooks {
        if let Some(obstacle) = foreign::obstacle(cgroup, hook)? {
            return Err(anyhow!(obstacle).context(operation(hook)));
        }
    }
    // A link that isn't pinned yet goes with its descriptor.
    let mut links = Vec::new();
    for &hook in hooks {
        let link = bpf::create_link(program(ebpf, hook)?.as_fd(), dir.as_fd(), foreign::attach_type(hook)?);
        links.push((hook, link.map_err(|error| explain(error.into(), operation(hook)))?, How::Fresh));
    }
    let pinned = links.iter().try_for_each(|(hook, link, _)| pin_beside(hook, link, pins));
    if pinned.is_err() {
        for hook in hooks {
            unpin(&pins.new_link(hook))?;
        }
    }
    pinned?;
    hooks.iter().try_for_each(|hook| put_in_place(hook, pins))?;
    Ok(links)
}

/// Pins a link where it waits to take the place of an earlier one.
fn pin_beside(hook: &str, link: &OwnedFd, pins: &Pins) -> anyhow::Result<()> {
    let pin = pins.new_link(hook);
    // Left behind if an agent was ended just here.
    unpin(&pin)?;
    bpf::pin(link.as_fd(), &pin).with_context(|| format!("pin {}", pin.display()))
}

fn put_in_place(hook: &str, pins: &Pins) -> anyhow::Result<()> {
    let (from, to) = (pins.new_link(hook), pins.link(hook));
    fs::rename(&from, &to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
}

/// Takes over an earlier agent's link: its program is exchanged for ours, and it is pinned where ours are.
pub(super) fn adopt(ebpf: &Ebpf, hook: &str, pin: &Path, pins: &Pins) -> anyhow::Result<OwnedFd> {
    let link = exchange(program(ebpf, hook)?, pin)
        .with_context(|| format!("exchange the program behind {}", pin.display()))?;
    take_pin(hook, &link, pin, pins)?;
    Ok(link)
}

/// Exchanges the program behind an earlier agent's link.
fn exchange(program: &ProgramFd, pin: &Path) -> anyhow::Result<OwnedFd> {
    let link = open(pin)?;
    match bpf::update_link(link.as_fd(), program.as_fd()) {
        Ok(()) => Ok(link),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => bail!("its cgroup is just being removed"),
        Err(error) => Err(error.into()),
    }
}

/// Sees to it that a link that was found at `pin` is pinned in the folder of our layout, and only there.
fn take_pin(hook: &str, link: &OwnedFd, pin: &Path, pins: &Pins) -> anyhow::Result<()> {
    if pin == pins.link(hook) {
        return Ok(());
    }
    pin_beside(hook, link, pins)?;
    put_in_place(hook, pins)?;
    unpin(pin)
}

/// Adds to a failed attachment what a person can do about it, if nothing was to be seen beforehand.
fn explain(error: anyhow::Error, operation: String) -> anyhow::Error {
    let errno = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    if errno == Some(libc::EPERM) {
        return error.context(format!(
            "{operation}: a program on a cgroup above, which is not to be seen from here, holds this hook for itself (it was \
             attached without BPF_F_ALLOW_MULTI); `bpftool cgroup tree` on the node shows whose it is"
        ));
    }
    error.context(operation)
}

fn open(pin: &Path) -> anyhow::Result<OwnedFd> {
    open_pin(pin).with_context(|| format!("open {}", pin.display()))
}

/// Which cgroup each pinned link is attached to, by hook and as its id. Those whose cgroup is gone are left out.
pub fn attached_by_pins(pins: &Pins) -> anyhow::Result<BTreeMap<&'static str, u64>> {
    let mut attached = BTreeMap::new();
    for hook in HOOKS.into_iter().chain([EGRESS]) {
        let pin = pins.link(hook);
        if pin.exists() {
            let cgroup = link_cgroup(&open(&pin)?).with_context(|| pin.display().to_string())?;
            attached.extend((cgroup != 0).then_some((hook, cgroup)));
        }
    }
    Ok(attached)
}

/// The cgroup that a link is attached to, by its id; 0 if that cgroup is gone.
pub(super) fn link_cgroup(link: &OwnedFd) -> anyhow::Result<u64> {
    bpf::link_field(link.as_fd(), "cgroup_id").context("it is not a link to a cgroup")
}

fn program<'a>(ebpf: &'a Ebpf, hook: &str) -> anyhow::Result<&'a ProgramFd> {
    let program = ebpf.program(hook).with_context(|| format!("program {hook} is not in the object"))?;
    program.fd().with_context(|| format!("program {hook} is not loaded"))
}
