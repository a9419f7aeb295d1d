//! Distance and loss between a cluster and all others, by the kernel's netem (`sch_netem`; the guests of `cargo xtask` have
//! it, many cloud kernels do not).
//!
//! Nodes of one cluster are on the fabric too, so they are as far from each other as from those of other clusters.

use super::Clusters;
use crate::netns::Netns;
use anyhow::{Context, Result, ensure};
use std::{process::Command, time::Duration};

/// How often a neighbour is asked for its address: by all, and by itself.
const SOLICIT: [&str; 2] = ["mcast_solicit", "ucast_solicit"];
/// More than get lost in a row.
const SOLICITATIONS: u32 = 100;

/// What happens to packets between a cluster and the fabric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// The round trip takes so much longer, half of it each way.
    pub rtt: Duration,
    /// Of 100 packets to the cluster so many get lost, at random. None of those that come from it.
    pub lost_percent: u8,
}

impl Clusters {
    /// Has packets to and from the nodes of `cluster` impaired, in place of what was there before.
    ///
    /// Neighbours find each other all the same, as they would where routers stand between clusters: what asks for an address
    /// may get lost too, but is asked again until there is an answer.
    pub fn impair(&self, cluster: &str, impairment: Impairment) -> Result<()> {
        for node in self.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            for key in
                ["ipv4", "ipv6"].into_iter().flat_map(|ip| SOLICIT.map(|way| format!("net.{ip}.neigh.eth0.{way}")))
            {
                node.netns.sysctl(&key, SOLICITATIONS)?;
            }
        }
        let there = Impairment { rtt: impairment.rtt / 2, ..impairment };
        let back = Impairment { lost_percent: 0, ..there };
        for node in self.cluster(cluster).nodes() {
            set(&self.fabric, node.name(), there)?;
            set(node.netns(), "eth0", back)?;
        }
        Ok(())
    }
}

/// Sets what happens to packets that leave `netns` by `link`.
fn set(netns: &Netns, link: &str, one_way: Impairment) -> Result<()> {
    let mut command = Command::new("tc");
    command.args(words(link, one_way));
    let output = netns.run(|| command.output())?.context("run tc")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "tc could not impair {link} of {}: {} (does this kernel have sch_netem?)",
        netns.label(),
        complaint.trim()
    );
    Ok(())
}

/// What `tc` takes. Its `rtt` is the delay one way.
fn words(link: &str, one_way: Impairment) -> Vec<String> {
    let delay = format!("{}us", one_way.rtt.as_micros());
    let loss = format!("{}%", one_way.lost_percent);
    // Packets that are on their way at a time: more than any load here has.
    let words = ["qdisc", "replace", "dev", link, "root", "netem", "limit", "100000", "delay", &delay, "loss", &loss];
    words.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tc_is_told_the_delay_in_microseconds_and_the_loss_in_per_cent() {
        let words = words("east-1", Impairment { rtt: Duration::from_micros(500), lost_percent: 30 }).join(" ");
        assert_eq!(words, "qdisc replace dev east-1 root netem limit 100000 delay 500us loss 30%");
    }
}
