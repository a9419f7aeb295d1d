//! Names, addresses and folders of the clusters: all fixed, so that every run finds what another one started.
//!
//! | cluster | API server | nodes | pods | Services |
//! |---|---|---|---|---|
//! | west | 10.89.0.1:26000 | 10.89.0.11… | 10.128.0.0/16 | 10.96.0.0/16 |
//! | east | 10.89.0.1:26010 | 10.89.0.21… | 10.129.0.0/16 | 10.97.0.0/16 |
//! | north | 10.89.0.1:26020 | 10.89.0.31… | 10.130.0.0/16 | 10.98.0.0/16 |
//!
//! The third byte of a pod's address is its node's number. No range is in two clusters, so pods of all of them reach
//! each other by their own addresses.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};

/// What this machine's link to the nodes, their namespaces and their cgroups are called, or begin with.
pub(crate) const NAME: &str = "tombolo-kube";
/// This machine's address on the network of the nodes.
pub(crate) const MACHINE: &str = "10.89.0.1";
/// Most nodes that a cluster has.
pub(crate) const MAX_NODES: u8 = 9;

/// All clusters.
pub(crate) const CLUSTERS: [Cluster; 3] =
    [Cluster { name: "west", index: 0 }, Cluster { name: "east", index: 1 }, Cluster { name: "north", index: 2 }];

/// Everything that runs, or has run and was not taken down, is written down here: process ids, certificates, logs, the
/// files of etcd and of the nodes. Root's, whoever calls.
pub(crate) fn state() -> &'static Path {
    Path::new("/var/lib/tombolo-kube")
}

/// A cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Its name, and its id in the ClusterSet.
    pub(crate) name: &'static str,
    /// Its place in [`CLUSTERS`].
    index: u8,
}

impl Cluster {
    /// The cluster called `name`.
    pub(crate) fn named(name: &str) -> anyhow::Result<Self> {
        let found = CLUSTERS.into_iter().find(|cluster| cluster.name == name);
        found.with_context(|| format!("no cluster is called {name}: there are {}", CLUSTERS.map(|c| c.name).join(", ")))
    }

    /// Where its state lies.
    pub(crate) fn folder(&self) -> PathBuf {
        state().join(self.name)
    }

    /// Where its keys and certificates lie.
    pub(crate) fn pki(&self) -> PathBuf {
        self.folder().join("pki")
    }

    /// The kubeconfig of one of its users; people take `admin`.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder().join(format!("{user}.kubeconfig"))
    }

    /// The port of its API server on [`MACHINE`]; etcd and the controllers listen on loopback, at the ports behind it.
    pub(crate) fn port(&self) -> u16 {
        26000 + 10 * u16::from(self.index)
    }

    /// Its API server's URL.
    pub(crate) fn server(&self) -> String {
        format!("https://{MACHINE}:{}", self.port())
    }

    /// The range of its ClusterIPs.
    pub(crate) fn services(&self) -> String {
        format!("10.{}.0.0/16", 96 + self.index)
    }

    /// The ClusterIP of the Service `kubernetes`.
    pub(crate) fn api_service(&self) -> String {
        format!("10.{}.0.1", 96 + self.index)
    }

    /// The ClusterIP of its DNS.
    pub(crate) fn dns_service(&self) -> String {
        format!("10.{}.0.10", 96 + self.index)
    }

    /// The range of its pods.
    pub(crate) fn pods(&self) -> String {
        format!("10.{}.0.0/16", 128 + self.index)
    }

    /// Its first `count` nodes.
    pub(crate) fn nodes(self, count: u8) -> impl Iterator<Item = Node> {
        (1..=count).map(move |number| Node { cluster: self, number })
    }

    /// Its nodes that have a folder: those that run, and those that ran.
    pub(crate) fn known_nodes(self) -> Vec<Node> {
        self.nodes(MAX_NODES).filter(|node| node.folder().exists()).collect()
    }
}

/// A node of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its cluster.
    pub(crate) cluster: Cluster,
    /// 1 to [`MAX_NODES`].
    number: u8,
}

impl Node {
    /// What its cluster calls it: `west-1`.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.cluster.name, self.number)
    }

    /// Where its state lies.
    pub(crate) fn folder(&self) -> PathBuf {
        self.cluster.folder().join("nodes").join(self.name())
    }

    /// Its network namespace's name.
    pub(crate) fn netns(&self) -> String {
        format!("{NAME}-{}", self.name())
    }

    /// Its cgroup below each hierarchy's mount point.
    pub(crate) fn cgroup(&self) -> PathBuf {
        Path::new(NAME).join(self.name())
    }

    /// Its address.
    pub(crate) fn address(&self) -> String {
        format!("10.89.0.{}", 10 * (self.cluster.index + 1) + self.number)
    }

    /// The range of its pods.
    pub(crate) fn pods(&self) -> String {
        format!("10.{}.{}.0/24", 128 + self.cluster.index, self.number)
    }

    /// Its zone, which nodes of the same number share across clusters: `zone-a` for the first.
    pub(crate) fn zone(&self) -> String {
        format!("zone-{}", char::from(b'a' + self.number - 1))
    }
}

/// How many nodes each cluster is to have, by [`CLUSTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts(pub(crate) [u8; 3]);

impl Counts {
    /// Every cluster with its count.
    pub(crate) fn of_clusters(self) -> impl Iterator<Item = (Cluster, u8)> {
        CLUSTERS.into_iter().zip(self.0)
    }

    /// Every node.
    pub(crate) fn nodes(self) -> impl Iterator<Item = Node> {
        self.of_clusters().flat_map(|(cluster, count)| cluster.nodes(count))
    }
}

/// As many as scenes need.
impl Default for Counts {
    fn default() -> Self {
        Self([2, 2, 1])
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = self.of_clusters().map(|(cluster, count)| format!("{}={count}", cluster.name));
        f.write_str(&counts.collect::<Vec<_>>().join(","))
    }
}

impl std::str::FromStr for Counts {
    type Err = anyhow::Error;

    /// `2` for all clusters, or `west=2,north=0`, where clusters that aren't named get one node.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let count = |text: &str| match text.parse::<u8>() {
            Ok(count) if count <= MAX_NODES => Ok(count),
            _ => bail!("{text} is not a number of nodes: 0 to {MAX_NODES}"),
        };
        if !text.contains('=') {
            return Ok(Self([count(text)?; 3]));
        }
        let mut counts = [1; 3];
        for part in text.split(',') {
            let (name, number) = part.split_once('=').with_context(|| format!("{part} is not CLUSTER=COUNT"))?;
            counts[usize::from(Cluster::named(name)?.index)] = count(number)?;
        }
        Ok(Self(counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_address_port_or_range_is_given_twice() {
        let mut seen = BTreeSet::new();
        for cluster in CLUSTERS {
            for what in [cluster.services(), cluster.pods(), cluster.server()] {
                assert!(seen.insert(what.clone()), "{what}");
            }
            for node in cluster.nodes(MAX_NODES) {
                for what in [node.name(), node.address(), node.pods()] {
                    assert!(seen.insert(what.clone()), "{what}");
                }
            }
        }
        assert!(!seen.contains(MACHINE));
    }

    #[test]
    fn addresses_lie_in_their_cluster_s_ranges() {
        let east = Cluster::named("east").unwrap();
        assert_eq!((east.services().as_str(), east.pods().as_str()), ("10.97.0.0/16", "10.129.0.0/16"));
        assert_eq!((east.api_service().as_str(), east.dns_service().as_str()), ("10.97.0.1", "10.97.0.10"));
        let node = east.nodes(2).last().unwrap();
        let facts = (node.name(), node.address(), node.pods(), node.zone());
        assert_eq!(facts, ("east-2".into(), "10.89.0.22".into(), "10.129.2.0/24".into(), "zone-b".into()));
    }

    #[test]
    fn the_longest_link_name_fits_the_kernel() {
        // IFNAMSIZ is 16 with the zero byte.
        assert!(NAME.len() < 16);
        assert!(CLUSTERS.iter().all(|cluster| cluster.nodes(MAX_NODES).all(|node| node.name().len() < 16)));
    }

    #[test]
    fn counts_are_one_number_or_one_a_cluster() {
        assert_eq!("0".parse::<Counts>().unwrap(), Counts([0; 3]));
        assert_eq!("west=3,north=0".parse::<Counts>().unwrap(), Counts([3, 1, 0]));
        let written = Counts::default().to_string();
        assert_eq!(
            (written.as_str(), written.parse::<Counts>().unwrap()),
            ("west=2,east=2,north=1", Counts::default())
        );
        for bad in ["", "10", "-1", "south=1", "west=", "west=1,2"] {
            assert!(bad.parse::<Counts>().is_err(), "{bad:?}");
        }
    }
}
