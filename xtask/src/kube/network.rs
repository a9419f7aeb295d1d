//! The network between this machine and the nodes: a bridge in a namespace of its own, so that neither this machine's
//! packet filter nor its bridges have a say in it, and a flat route to every node's pods on every node and here.

use super::layout::{MACHINE, NAME, Node};
use crate::process::output;
use anyhow::Context;
use std::{path::Path, process::Command};

/// The bridge, and the other end of this machine's link; both lie in the namespace [`NAME`].
const BRIDGE: &str = "bridge";
pub(super) const MACHINE_END: &str = "machine";
/// A node's link.
const NODE_END: &str = "eth0";

/// Makes the bridge and this machine's link to it, unless they are there.
pub(crate) fn create() -> anyhow::Result<()> {
    if Path::new("/sys/class/net").join(NAME).exists() {
        return Ok(());
    }
    remove()?;
    ip(&["netns", "add", NAME])?;
    ip(&["-n", NAME, "link", "set", "lo", "up"])?;
    ip(&["-n", NAME, "link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["-n", NAME, "link", "set", BRIDGE, "up"])?;
    ip(&["link", "add", NAME, "type", "veth", "peer", "name", MACHINE_END, "netns", NAME])?;
    ip(&["-n", NAME, "link", "set", MACHINE_END, "master", BRIDGE, "up"])?;
    ip(&["address", "add", &format!("{MACHINE}/24"), "dev", NAME])?;
    ip(&["link", "set", NAME, "up"])
}

/// Removes the bridge, and with this machine's link its routes.
pub(crate) fn remove() -> anyhow::Result<()> {
    remove_netns(NAME)?;
    // The link went with the namespace of its other end, but not before the kernel got round to it.
    if Path::new("/sys/class/net").join(NAME).exists() {
        let removed = ip(&["link", "del", NAME]);
        if Path::new("/sys/class/net").join(NAME).exists() {
            removed?;
        }
    }
    Ok(())
}

/// Makes a node's namespace anew, with its link to the bridge.
pub(crate) fn add(node: &Node) -> anyhow::Result<()> {
    let (netns, name) = (node.netns(), node.name());
    remove_node(node)?;
    ip(&["netns", "add", &netns])?;
    ip(&["-n", &netns, "link", "set", "lo", "up"])?;
    ip(&["-n", &netns, "link", "add", NODE_END, "type", "veth", "peer", "name", &name, "netns", NAME])?;
    ip(&["-n", NAME, "link", "set", &name, "master", BRIDGE, "up"])?;
    ip(&["-n", &netns, "address", "add", &format!("{}/24", node.address()), "dev", NODE_END])?;
    ip(&["-n", &netns, "link", "set", NODE_END, "up"])?;
    ip(&["-n", &netns, "route", "add", "default", "via", MACHINE])
}

/// Removes a node's namespace, its link with it.
pub(crate) fn remove_node(node: &Node) -> anyhow::Result<()> {
    remove_netns(&node.netns())
}

/// Tells this machine and all of `nodes` the way to each other's pods.
pub(crate) fn route(nodes: &[Node]) -> anyhow::Result<()> {
    for node in nodes {
        ip(&["route", "replace", &node.pods(), "via", &node.address(), "dev", NAME])?;
        for other in nodes.iter().filter(|other| *other != node) {
            ip(&["-n", &other.netns(), "route", "replace", &node.pods(), "via", &node.address()])?;
        }
    }
    Ok(())
}

fn remove_netns(name: &str) -> anyhow::Result<()> {
    if Path::new("/run/netns").join(name).exists() {
        ip(&["netns", "del", name]).with_context(|| format!("remove the network namespace {name}"))?;
    }
    Ok(())
}

/// Runs the program `ip`.
pub(super) fn ip(args: &[&str]) -> anyhow::Result<()> {
    output(Command::new("ip").args(args)).map(drop)
}
