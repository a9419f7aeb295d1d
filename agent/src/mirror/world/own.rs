//! What is known of the own cluster.

use super::{Cluster, ImportKey};
use crate::{
    mirror::{
        gateway,
        slices::Placed,
        source::{Family, Import, McsVersions, Service},
    },
    model::{ClusterName, ObjectName},
};
use ipnet::IpNet;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Which addresses are this cluster's own, and so nobody else's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// Its pods'.
    pub pod_ranges: Vec<IpNet>,
    /// Its Services'.
    pub service_ranges: Vec<IpNet>,
    /// Its nodes' and its API servers'.
    pub hosts: BTreeSet<IpAddr>,
    /// Those of its nodes that are ready.
    pub ready_nodes: BTreeSet<IpAddr>,
}

impl OwnAddresses {
    /// What a node says of the cluster's addresses.
    pub(in crate::mirror) fn of_node(node: &Value) -> Self {
        let list = |field: &Value| field.as_array().cloned().unwrap_or_default();
        let given = list(&node["status"]["addresses"]);
        let address = |it: &Value| it["address"].as_str()?.parse::<IpAddr>().ok();
        let is_ready =
            list(&node["status"]["conditions"]).iter().any(|it| it["type"] == "Ready" && it["status"] == "True");
        let inside = given.iter().filter(|it| is_ready && it["type"] == "InternalIP");
        Self {
            hosts: given.iter().filter_map(address).collect(),
            ready_nodes: inside.filter_map(address).collect(),
            pod_ranges: list(&node["spec"]["podCIDRs"]).iter().filter_map(|it| it.as_str()?.parse().ok()).collect(),
            service_ranges: Vec::new(),
        }
    }
}

/// The own cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its id.
    pub name: ClusterName,
    /// Its namespaces that aren't about to go.
    pub namespaces: BTreeSet<String>,
    /// Its objects.
    pub cluster: Cluster,
    /// Its ServiceImports.
    pub imports: BTreeMap<ObjectName, Import>,
    /// The slices that this mirror wrote.
    pub placed: BTreeMap<ImportKey, BTreeMap<String, Placed>>,
    /// Its addresses.
    pub addresses: OwnAddresses,
    /// The gateway that it has for others, if any.
    pub gateway: Option<gateway::Config>,
    pub(super) key_by_placed: BTreeMap<ObjectName, ImportKey>,
    /// Whether its API server knows `PreferSameZone` and `PreferSameNode`: from Kubernetes 1.34 on.
    pub knows_same_node: bool,
    /// The versions of the MCS API that its API server has.
    pub versions: McsVersions,
    /// How many Services have each ClusterIP; two for the blink of an eye at most.
    cluster_ips: BTreeMap<IpAddr, u32>,
    /// How many Services have each family.
    families: BTreeMap<Family, u32>,
}

impl Own {
    /// Nothing but its id.
    pub(super) fn new(name: ClusterName) -> Self {
        Self {
            name,
            namespaces: BTreeSet::new(),
            cluster: Cluster::default(),
            imports: BTreeMap::new(),
            placed: BTreeMap::new(),
            addresses: OwnAddresses::default(),
            gateway: None,
            key_by_placed: BTreeMap::new(),
            knows_same_node: true,
            versions: McsVersions::default(),
            cluster_ips: BTreeMap::new(),
            families: BTreeMap::new(),
        }
    }

    /// The families that Services of this cluster have.
    pub fn families(&self) -> BTreeSet<Family> {
        self.families.keys().copied().collect()
    }

    /// Whether a Service of this cluster has this address.
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        self.cluster_ips.contains_key(&address)
    }

    /// Whether one of this cluster's API servers has this address: an endpoint of `default/kubernetes`.
    pub fn is_api_server(&self, address: IpAddr) -> bool {
        let name = ObjectName { namespace: "default".to_owned(), name: "kubernetes".to_owned() };
        let slices = self.cluster.slices.get(&name).into_iter().flat_map(BTreeMap::values);
        slices.flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.address == address)
    }

    /// A Service is another one now.
    pub(super) fn count(&mut self, old: Option<&Service>, new: Option<&Service>) {
        replace(&mut self.cluster_ips, old.map(|it| &it.addresses), new.map(|it| &it.addresses));
        replace(&mut self.families, old.map(|it| &it.families), new.map(|it| &it.families));
    }
}

fn replace<K: Ord + Copy>(counts: &mut BTreeMap<K, u32>, old: Option<&Vec<K>>, new: Option<&Vec<K>>) {
    for key in new.into_iter().flatten() {
        *counts.entry(*key).or_default() += 1;
    }
    for key in old.into_iter().flatten() {
        if let Some(count) = counts.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(key);
            }
        }
    }
}
