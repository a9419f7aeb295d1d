//! Where the sockets of a pod really go: getpeername() shows what was dialled, `/proc/net/tcp` where the kernel sends it.

use super::{
    kubectl::{Kubectl, eventually},
    workloads::{NAMESPACE, container},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

/// A pod that dials once, some time after it was started, and then says what sockets it has.
pub(super) struct Caller {
    pub(super) name: &'static str,
    /// Names of containers beside the one that dials.
    pub(super) beside: &'static [&'static str],
    pub(super) annotations: &'static [(&'static str, &'static str)],
    /// In seconds.
    pub(super) dials_after: u32,
}

/// Has all of these dial `target` on this node, and returns where their sockets went, by the callers' names.
pub(super) fn dial(
    kubectl: &Kubectl,
    node: &str,
    callers: &[Caller],
    target: SocketAddr,
) -> Result<BTreeMap<&'static str, SocketAddrV4>> {
    let names: Vec<&str> = callers.iter().map(|caller| caller.name).collect();
    let remove = || -> Result<()> {
        let words = ["--namespace", NAMESPACE, "delete", "pod", "--ignore-not-found", "--now"];
        kubectl.run(&[&words[..], &names].concat()).map(drop)
    };
    remove()?;
    kubectl.apply(&callers.iter().map(|caller| pod(caller, node, target)).collect::<Vec<_>>())?;
    let found = callers.iter().map(|caller| Ok((caller.name, went(kubectl, caller.name, target)?)));
    let found = found.collect::<Result<_>>();
    remove()?;
    found
}

/// Where the socket of a caller went that dialled `target`.
fn went(kubectl: &Kubectl, name: &str, target: SocketAddr) -> Result<SocketAddrV4> {
    let log = eventually(&format!("{name} in {}", kubectl.name), || {
        let log = kubectl.run(&["--namespace", NAMESPACE, "logs", name, "--container", "caller"])?;
        ensure!(log.contains("\nend\n"), "it says {log:?}");
        Ok(log)
    })?;
    let remotes: Vec<SocketAddrV4> = log.lines().filter_map(remote).collect();
    match remotes[..] {
        [one] => Ok(one),
        _ => bail!("{name} dialled {target} and has {} sockets: {log}", remotes.len()),
    }
}

fn pod(caller: &Caller, node: &str, target: SocketAddr) -> Value {
    let script = format!(
        "sleep {}\nsleep 5 | nc {} {} >/dev/null &\nsleep 2\ncat /proc/net/tcp\necho end\nexec sleep 600",
        caller.dials_after,
        target.ip(),
        target.port()
    );
    let beside = caller.beside.iter().map(|name| container(name, &["/bin/sleep", "600"]));
    let containers: Vec<Value> = beside.chain([container("caller", &["/bin/sh", "-c", &script])]).collect();
    let annotations: BTreeMap<_, _> = caller.annotations.iter().copied().collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": caller.name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {
            "nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": containers,
        },
    })
}

/// Whom a socket is connected to, by its line in `/proc/net/tcp` (proc(5)): hexadecimal, the address as a number of the
/// machine's. None for headings, and for sockets that listen.
fn remote(line: &str) -> Option<SocketAddrV4> {
    let (address, port) = line.split_whitespace().nth(2)?.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (port != 0).then(|| SocketAddrV4::new(Ipv4Addr::from(address.to_ne_bytes()), port))
}

/// The only IPv4 address that a frontend here can have.
pub(super) fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => None.with_context(|| format!("{address} is no IPv4 address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_s_line_says_where_it_goes() {
        let line = "   1: 0201800A:8C3E 0A00600A:0050 01 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let expected = if cfg!(target_endian = "little") { "10.96.0.10:80" } else { "10.0.96.10:80" };
        assert_eq!(remote(line), expected.parse().ok());
        for other in ["  sl  local_address rem_address   st tx_queue", "", "   0: 00000000:1F90 00000000:0000 0A 0:0"] {
            assert_eq!(remote(other), None, "{other}");
        }
    }
}
