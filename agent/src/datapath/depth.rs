//! How deep the cgroup hierarchy that is mounted here lies in the machine's.
//!
//! Programs count cgroups from the machine's root, and that is not to be seen on nodes that are containers themselves, such
//! as kind's. There a program is asked: attached for a moment to our own cgroup, it tells which cgroups we are in.

use super::{bpf, cgroup, foreign::attach_type};
use anyhow::{Context, bail};
use aya::{Ebpf, maps::Array, programs::Program};
use std::{
    fs::File,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd,
};
use tombolo_ebpf::abi::{MAX_DEPTH, map};

const PROGRAM: &str = "depth";
const HOOK: &str = "connect4";

/// How many cgroups lie above the one that is mounted as the root here.
///
/// # Errors
///
/// The program can't be attached to our own cgroup, or doesn't find it.
pub(super) fn of_mount(ebpf: &mut Ebpf) -> anyhow::Result<u32> {
    let mount = cgroup::mount()?;
    if !cgroup::is_namespaced(&mount) {
        return Ok(0);
    }
    let own = cgroup::own(&mount)?;
    let Some(Program::CgroupSockAddr(program)) = ebpf.program_mut(PROGRAM) else {
        bail!("program {PROGRAM} is not in the object");
    };
    program.load().with_context(|| format!("load {PROGRAM}"))?;
    let dir = File::open(&own).with_context(|| format!("open cgroup {}", own.display()))?;
    let program = program.fd().with_context(|| format!("program {PROGRAM} is not loaded"))?;
    let link = bpf::create_link(program.as_fd(), dir.as_fd(), attach_type(HOOK)?);
    let link = link.with_context(|| format!("attach {PROGRAM} to cgroup {}", own.display()))?;
    // A UDP connect() sends nothing.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("open a socket")?;
    socket.connect((Ipv4Addr::LOCALHOST, super::probe::PORT)).context("dial from our own cgroup")?;
    drop(link);
    let ancestors = ebpf.map(map::ANCESTORS).with_context(|| format!("map {} is not in the object", map::ANCESTORS))?;
    let ancestors = Array::<_, u64>::try_from(ancestors).context("read our cgroup's ancestors")?;
    let id = cgroup::id(&own)?;
    for level in 0..MAX_DEPTH {
        if ancestors.get(&level, 0).context("read our cgroup's ancestors")? == id {
            let below = cgroup::level_below_mount(&own)?;
            return level.checked_sub(below).context("our cgroup lies less deep than its name says");
        }
    }
    bail!("{} lies deeper than {MAX_DEPTH} cgroups", own.display())
}
