//! Programs onto the cgroup's hooks, by links that are pinned; only links that an agent pinned are ever touched.

use super::{
    bpf::open_pin,
    cgroup, foreign,
    pins::{Pins, unpin},
};
use anyhow::{Context, anyhow, bail};
use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramError,
        links::{FdLink, PinnedLink},
    },
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};
use tracing::{info, warn};

/// The hooks, named as the kernel names them.
pub const HOOKS: [&str; 8] =
    ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];

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
    /// a first start, and an earlier agent's programs stay. Those are then exchanged without a moment in between.
    pub(super) fn bring_about(&mut self, ebpf: &mut Ebpf, cgroup: &Path, pins: &Pins) -> anyhow::Result<usize> {
        let id = cgroup::id(cgroup)?;
        let is_ours = |hook: &str| self.0.get(hook).is_some_and(|(link, _)| link_cgroup(link).is_ok_and(|of| of == id));
        let missing: Vec<&'static str> = HOOKS.into_iter().filter(|hook| !is_ours(hook)).collect();
        if missing.is_empty() {
            return Ok(0);
        }
        let mut earlier = Vec::new();
        let mut none = Vec::new();
        for &hook in &missing {
            let is_there = is_attached_to(id, &pins.link(hook))?;
            if is_there { earlier.push(hook) } else { none.push(hook) }
        }
        let mut links = create_all(ebpf, &none, cgroup, pins)?;
        for hook in earlier {
            let pin = pins.link(hook);
            exchange(program(ebpf, hook)?, &pin)
                .with_context(|| format!("exchange the program behind {}", pin.display()))?;
            links.push((hook, open(&pin)?, How::Adopted));
        }
        self.0.extend(links.into_iter().map(|(hook, link, how)| (hook, (link, how))));
        info!(cgroup = %cgroup.display(), id, hooks = missing.len(), adopted = missing.len() - none.len(), "hooks attached");
        Ok(missing.len())
    }
}

/// Loads all programs; returns how many instructions the verifier processed for each (Linux 5.16, else none).
pub(super) fn load(ebpf: &mut Ebpf) -> anyhow::Result<Vec<(String, u32)>> {
    let mut verified = Vec::new();
    for hook in HOOKS {
        let program = program(ebpf, hook)?;
        program.load().with_context(|| format!("load {hook}"))?;
        let count = program.info().ok().and_then(|info| info.verified_instruction_count());
        verified.extend(count.map(|count| (hook.to_owned(), count)));
    }
    Ok(verified)
}

/// Whether a link is pinned at `pin` that is attached to the cgroup with this id.
fn is_attached_to(cgroup: u64, pin: &Path) -> anyhow::Result<bool> {
    if !pin.exists() {
        return Ok(false);
    }
    let attached_to = link_cgroup(&open(pin)?).with_context(|| pin.display().to_string())?;
    if attached_to != cgroup {
        // The cgroup was removed (id 0), or the agent was told another one.
        warn!(pin = %pin.display(), attached_to, cgroup, "pinned link is attached elsewhere, attaching anew");
    }
    Ok(attached_to == cgroup)
}

/// Makes a link for each of `hooks` and pins it in place of an earlier one: all of them, or none.
fn create_all(
    ebpf: &mut Ebpf,
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
        let link = create(program(ebpf, hook)?, &dir).map_err(|error| explain(error, operation(hook)))?;
        links.push((hook, link));
    }
    let pinned = pin_all(links, pins);
    if pinned.is_err() {
        for hook in hooks {
            unpin(&pins.new_link(hook))?;
        }
    }
    let pinned = pinned?;
    for (hook, ..) in &pinned {
        let (from, to) = (pins.new_link(hook), pins.link(hook));
        fs::rename(&from, &to).with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
    }
    Ok(pinned)
}

fn create(program: &mut CgroupSockAddr, cgroup: &File) -> anyhow::Result<FdLink> {
    // A link is always one of several; AllowMultiple gets EINVAL.
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(program.take_link(id)?.try_into()?)
}

fn pin_all(links: Vec<(&'static str, FdLink)>, pins: &Pins) -> anyhow::Result<Vec<(&'static str, OwnedFd, How)>> {
    let mut pinned = Vec::new();
    for (hook, link) in links {
        let pin = pins.new_link(hook);
        // Left behind if an agent was ended just here.
        unpin(&pin)?;
        link.pin(&pin).with_context(|| format!("pin {}", pin.display()))?;
        pinned.push((hook, open(&pin)?, How::Fresh));
    }
    Ok(pinned)
}

/// Exchanges the program behind an earlier agent's link.
fn exchange(program: &mut CgroupSockAddr, pin: &Path) -> anyhow::Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = match program.attach_to_link(link.try_into()?) {
        Ok(id) => id,
        Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOLINK) => {
            bail!("its cgroup is just being removed")
        }
        Err(error) => return Err(error.into()),
    };
    // The pin keeps the link; this descriptor of it may go.
    drop(program.take_link(id)?);
    Ok(())
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
    for hook in HOOKS {
        let pin = pins.link(hook);
        if pin.exists() {
            let cgroup = link_cgroup(&open(&pin)?).with_context(|| pin.display().to_string())?;
            attached.extend((cgroup != 0).then_some((hook, cgroup)));
        }
    }
    Ok(attached)
}

/// The cgroup that a link is attached to, by its id; 0 if that cgroup is gone.
fn link_cgroup(link: &OwnedFd) -> anyhow::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))
        .context("read what a link is attached to")?;
    let id = info.lines().find_map(|line| line.strip_prefix("cgroup_id:")).context("it is not a link to a cgroup")?;
    id.trim().parse().with_context(|| format!("understand the cgroup id {id:?}"))
}

fn program<'a>(ebpf: &'a mut Ebpf, hook: &str) -> anyhow::Result<&'a mut CgroupSockAddr> {
    let program = ebpf.program_mut(hook).with_context(|| format!("program {hook} is not in the object"))?;
    program.try_into().with_context(|| format!("program {hook} is of another kind"))
}
