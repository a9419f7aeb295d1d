//! Proof that the hooks act on sockets here: a socket dials an address that exists in our tables alone.
//!
//! "Attached" is no proof. The programs may sit on a cgroup that no pod is in (a container's own view of the
//! hierarchy), or another program may have rewritten the address first.
//!
//! A UDP connect() sends nothing, so a hook that doesn't act does no harm: the socket is then routed like any
//! other, and its own address tells.

use super::cgroup;
use crate::{
    model::{ClusterName, ObjectName, Path as Reach},
    tables::{DesiredGroup, DesiredService, Member},
};
use anyhow::{Context, bail, ensure};
use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    process::{self, Command, Stdio},
};
use tombolo_ebpf::abi::{FrontendKey, UDP};

/// The port dialled and sent to: discard (RFC 863). Nothing is ever sent.
pub const PORT: u16 = 9;

/// Services of the probe, each with one backend: one for each family.
pub const SERVICES: u32 = 2;

/// What is dialled, and the backend behind it: the IPv4 dummy address (RFC 7600) and one of the discard-only prefix
/// (RFC 6666), which no network uses.
pub const ADDRESSES: [(IpAddr, IpAddr); SERVICES as usize] = [
    (IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), IpAddr::V4(Ipv4Addr::LOCALHOST)),
    (IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8)), IpAddr::V6(Ipv6Addr::LOCALHOST)),
];

/// The services behind the addresses dialled, as the tables should hold them.
pub fn services(own: &ClusterName) -> impl Iterator<Item = (FrontendKey, DesiredService)> {
    ADDRESSES.into_iter().map(|(dialled, backend)| {
        let member = Member {
            addr: bytes(backend),
            port: PORT.to_be_bytes(),
            path: Reach::Pod,
            cluster: own.clone(),
            weight: 1,
        };
        let service = DesiredService {
            name: ObjectName { namespace: "tombolo".to_owned(), name: "probe".to_owned() },
            affinity_seconds: None,
            exclusive: false,
            no_abort: false,
            draining: Vec::new(),
            tiers: vec![vec![DesiredGroup { cluster: own.clone(), weight: 1, members: vec![member] }]],
        };
        (FrontendKey { addr: bytes(dialled), port: PORT.to_be_bytes(), proto: UDP, pad: 0 }, service)
    })
}

/// Whether a frontend with this address is ours.
pub fn is_probe(addr: [u8; 16]) -> bool {
    ADDRESSES.iter().any(|(dialled, _)| bytes(*dialled) == addr)
}

fn bytes(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}

/// Name of the hidden subcommand that makes the sockets in a process of its own.
pub const SUBCOMMAND: &str = "probe-socket";
/// What that process waits for.
const GO: &[u8] = b"dial\n";
/// What the cgroups of such processes are called, before the agent's process id.
const LEAF: &str = "tombolo-probe-";

/// Dials from a socket that belongs to `cgroup`: ours if we are in it, else that of a process that is put there.
///
/// The second way costs some milliseconds, so it is not for every few seconds: [`is_cheap`] tells.
pub fn run(cgroup: &Path) -> anyhow::Result<()> {
    if cgroup::covers_us(cgroup)? { dial() } else { dial_from(cgroup) }
}

/// Whether [`run`] needs no further process.
pub fn is_cheap(cgroup: &Path) -> bool {
    cgroup::covers_us(cgroup).unwrap_or(false)
}

/// Dials all addresses from this process.
pub fn dial() -> anyhow::Result<()> {
    for (dialled, backend) in ADDRESSES {
        let any: IpAddr = if dialled.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = match UdpSocket::bind((any, 0)) {
            // A node without IPv6 has no such sockets to be translated.
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) && dialled.is_ipv6() => continue,
            socket => socket.with_context(|| format!("open a socket to dial {dialled}"))?,
        };
        match socket.connect((dialled, PORT)) {
            // No such route: it was not translated, or the loopback device has no IPv6 address.
            Err(e) if dialled.is_ipv6() && !has_ipv6_loopback() => {
                tracing::debug!(error = %e, "no IPv6 loopback address, IPv6 hooks not probed");
                continue;
            }
            connected => connected.with_context(|| untranslated(dialled))?,
        }
        let own = socket.local_addr().context("read the probe socket's address")?;
        ensure!(own.ip() == backend, untranslated(dialled));
        let peer = socket.peer_addr().context("read the probe socket's peer")?;
        ensure!(
            peer != SocketAddr::new(backend, PORT),
            "a probe socket dialled {dialled} and was sent to its backend, but its peer reads {peer}: getpeername isn't translated"
        );
        ensure!(peer == SocketAddr::new(dialled, PORT), "{}; it was sent to {peer}", untranslated(dialled));
    }
    Ok(())
}

fn untranslated(dialled: IpAddr) -> String {
    format!(
        "a probe socket dialled {dialled} and was not translated: the hooks are attached to a cgroup that this socket isn't \
         in, or another program comes first (`bpftool cgroup tree` lists them)"
    )
}

fn has_ipv6_loopback() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Starts ourselves once more, puts that process into a cgroup below `cgroup`, and lets it dial.
fn dial_from(cgroup: &Path) -> anyhow::Result<()> {
    remove_left_overs(cgroup)?;
    let leaf = cgroup.join(format!("{LEAF}{}", process::id()));
    match fs::create_dir(&leaf) {
        // Of an agent with the same process id in another namespace of these.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.with_context(|| format!("create {} to probe from", leaf.display()))?,
    }
    let result = dial_in(&leaf);
    fs::remove_dir(&leaf).with_context(|| format!("remove {}", leaf.display()))?;
    result
}

/// Removes the cgroups of agents that were ended while they probed.
fn remove_left_overs(cgroup: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(cgroup).with_context(|| format!("list cgroup {}", cgroup.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list cgroup {}", cgroup.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(LEAF)
            && let Err(error) = fs::remove_dir(&path)
        {
            // Another agent is just using it.
            tracing::debug!(%error, path = %path.display(), "cgroup of a probe not removed");
        }
    }
    Ok(())
}

fn dial_in(leaf: &Path) -> anyhow::Result<()> {
    let mut child = Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start a process to probe from")?;
    let moved = fs::write(leaf.join("cgroup.procs"), child.id().to_string());
    // The child waits for this line, so that its sockets are made where it is now. Without it, it ends.
    let stdin = child.stdin.take();
    let told = match (&moved, stdin) {
        (Ok(()), Some(mut stdin)) => stdin.write_all(GO),
        _ => Ok(()),
    };
    let output = child.wait_with_output().context("wait for the probing process")?;
    moved.with_context(|| format!("move a process into {}", leaf.display()))?;
    told.context("tell the probing process to go on")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        bail!("{}", if said.is_empty() { "the probing process failed" } else { said.trim_start_matches("error: ") });
    }
    Ok(())
}

/// What the hidden subcommand does: waits for a line, then dials.
pub fn dial_when_told() -> anyhow::Result<()> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("wait to be told")?;
    ensure!(line.as_bytes() == GO, "this is for the agent alone, which tells it when to dial");
    dial()
}
