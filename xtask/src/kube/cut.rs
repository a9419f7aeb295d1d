//! Clusters that can't be reached: what is sent there and what comes from there gets lost on the network between the nodes, and
//! nobody is told.
//!
//! Neighbours still find each other (ARP), as they would where routers stand between clusters: else the senders' own nodes would
//! answer "unreachable" after a while, and give the outage away.

use super::{
    layout::{CLUSTERS, Cluster, MAX_NODES, NAME},
    network::{self, MACHINE_END, ip},
    running_nodes,
};
use crate::process::{find, text};
use anyhow::{Context, bail};
use std::{
    io::Write,
    process::{Command, Stdio},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The cluster that can't be reached
    #[arg(value_parser = Cluster::named)]
    cluster: Cluster,
    /// Who can't reach it: pods of this cluster, and those pods only that have no way but their address, for its nodes still
    /// answer; without it nobody reaches anything of it, its API server neither, and nobody hears of that
    #[arg(long, value_name = "CLUSTER", value_parser = Cluster::named)]
    from: Option<Cluster>,
}

/// Cuts it off.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    match args.from {
        None => nft(&darkness(&args.cluster)),
        Some(from) if from == args.cluster => bail!("a cluster reaches its own pods"),
        Some(from) => no_route(&from, &args.cluster),
    }
}

/// Has all clusters reach each other again.
pub(crate) fn heal() -> anyhow::Result<()> {
    // Adding first makes sure that there is something to delete.
    let rules = CLUSTERS.map(|cluster| format!("add table {0}\ndelete table {0}\n", table(&cluster)));
    nft(&rules.concat())?;
    network::route(&running_nodes()?)
}

/// The rules by which a cluster vanishes.
fn darkness(cluster: &Cluster) -> String {
    let nodes: Vec<String> = cluster.nodes(MAX_NODES).map(|node| format!("\"{}\"", node.name())).collect();
    let (table, nodes, port) = (table(cluster), nodes.join(", "), cluster.port());
    format!(
        "add table {table}
        delete table {table}
        table {table} {{
            chain forward {{
                type filter hook forward priority 0
                iifname {{ {nodes} }} meta protocol {{ ip, ip6 }} drop
                oifname {{ {nodes} }} meta protocol {{ ip, ip6 }} drop
                oifname \"{MACHINE_END}\" tcp dport {port} drop
                iifname \"{MACHINE_END}\" tcp sport {port} drop
            }}
        }}"
    )
}

fn table(cluster: &Cluster) -> String {
    format!("bridge dark-{}", cluster.name)
}

/// Has no node of `from` know the way to the pods of `to`; nodes still reach nodes.
fn no_route(from: &Cluster, to: &Cluster) -> anyhow::Result<()> {
    let running = running_nodes()?;
    for node in running.iter().filter(|node| node.cluster == *from) {
        for other in running.iter().filter(|node| node.cluster == *to) {
            ip(&["-n", &node.netns(), "route", "replace", "unreachable", &other.pods()])?;
        }
    }
    Ok(())
}

/// Gives rules to the namespace of the bridge.
fn nft(rules: &str) -> anyhow::Result<()> {
    let program = find("nft").context("nft is missing: cargo xtask setup installs it (Debian package nftables)")?;
    let mut command = Command::new("ip");
    command.args(["netns", "exec", NAME]).arg(program).args(["-f", "-"]);
    let started = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = started.with_context(|| format!("run {}", text(&command)))?;
    let mut input = child.stdin.take().expect("it is piped");
    // nft wants a line's end after the last rule.
    let written = input.write_all(format!("{rules}\n").as_bytes());
    drop(input);
    let done = child.wait_with_output().context("wait for nft")?;
    if !done.status.success() {
        bail!("nft refused the rules: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    written.context("hand rules to nft")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_vanishes_with_all_its_nodes_and_its_api_server_and_no_other() {
        let east = Cluster::named("east").unwrap();
        let rules = darkness(&east);
        for cluster in CLUSTERS {
            let nodes = cluster.nodes(MAX_NODES).all(|node| rules.contains(&format!("\"{}\"", node.name())));
            let server = rules.contains(&format!("dport {} ", cluster.port()));
            assert_eq!((nodes, server), (cluster == east, cluster == east), "{}", cluster.name);
        }
    }
}
