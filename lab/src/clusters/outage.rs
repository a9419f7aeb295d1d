//! Clusters that go dark: what their nodes and gateways send and what is sent to them vanishes on the fabric, without a
//! reset and without an ICMP message.
//!
//! Neighbours still find each other (ARP, neighbour discovery), as they would where routers stand between clusters:
//! else the senders' own nodes would answer "unreachable" after a while, and give the outage away.

use super::Clusters;
use crate::nft;
use anyhow::Result;

impl Clusters {
    /// Has `cluster` go dark.
    pub fn black_out(&mut self, cluster: &str) -> Result<()> {
        let nodes = self.cluster(cluster).nodes().iter().map(|node| node.name().to_owned());
        let links: Vec<String> =
            nodes.chain([format!("{cluster}-gateway")]).map(|link| format!("\"{link}\"")).collect();
        let links = links.join(", ");
        let rules = format!(
            "table bridge {table} {{
                chain forward {{
                    type filter hook forward priority 0
                    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
                    iifname {{ {links} }} meta protocol {{ ip, ip6 }} drop
                    oifname {{ {links} }} meta protocol {{ ip, ip6 }} drop
                }}
            }}",
            table = table(cluster)
        );
        self.dark.insert(self.cluster(cluster).name());
        nft::apply(&self.fabric, &rules)
    }

    /// Has `cluster` be there again; fine if it wasn't dark.
    pub fn light_up(&mut self, cluster: &str) -> Result<()> {
        if self.dark.remove(cluster) {
            nft::remove_table(&self.fabric, &format!("bridge {}", table(cluster)))?;
        }
        Ok(())
    }

    /// Whether `cluster` is dark.
    pub fn is_dark(&self, cluster: &str) -> bool {
        self.dark.contains(cluster)
    }
}

fn table(cluster: &str) -> String {
    format!("dark-{cluster}")
}
