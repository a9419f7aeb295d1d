//! What has to be applied where so that one cluster imports from another: data only.
//!
//! The exporting cluster's half makes an account that may read what is exported and nothing else. The importing cluster's half holds the
//! Link, a Secret with a kubeconfig of that account, and the right of the mirror to read this one Secret.

use super::{
    credentials::KEY,
    object::{GROUP, VERSION},
};
use ipnet::IpNet;
use serde_json::{Value, json};

/// The service account of the mirror, as `deploy/mirror/rbac.yaml` has it.
const MIRROR_ACCOUNT: &str = "tombolo-mirror";

/// The exporting cluster's half.
#[derive(Clone, Debug)]
pub struct PeerHalf<'a> {
    /// The namespace that the account is in.
    pub namespace: &'a str,
    /// The account's name. One for each importing cluster can be taken away from each.
    pub account: &'a str,
}

/// What a peer's account may do: as much as [`Watched::PEER`](crate::mirror::watch) needs.
pub const PEER_RULES: [(&str, &str); 4] = [
    ("", "services"),
    ("discovery.k8s.io", "endpointslices"),
    ("multicluster.x-k8s.io", "serviceexports"),
    ("about.k8s.io", "clusterproperties"),
];
/// And how.
pub const PEER_VERBS: [&str; 3] = ["get", "list", "watch"];

impl PeerHalf<'_> {
    /// The Secret that the cluster puts the account's token into.
    pub fn token_secret(&self) -> String {
        format!("{}-token", self.account)
    }

    /// The objects, in the order in which they have to be applied.
    pub fn objects(&self) -> Vec<Value> {
        let (namespace, account) = (self.namespace, self.account);
        let rules: Vec<Value> = PEER_RULES
            .iter()
            .map(|(group, resource)| json!({"apiGroups": [group], "resources": [resource], "verbs": PEER_VERBS}))
            .collect();
        vec![
            // With the label that `deploy/namespace.yaml` has: who applies both would otherwise take it away again.
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
            }}),
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": namespace},
                "automountServiceAccountToken": false,
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": "tombolo-peer"}, "rules": rules,
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": account},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tombolo-peer"},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
            }),
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
                "metadata": {
                    "name": self.token_secret(), "namespace": namespace,
                    "annotations": {"kubernetes.io/service-account.name": account},
                },
            }),
        ]
    }
}

/// The importing cluster's half.
#[derive(Clone, Debug)]
pub struct OwnHalf<'a> {
    /// The namespace of Links.
    pub namespace: &'a str,
    /// The link's name.
    pub name: &'a str,
    /// The peer's id, where it is another one than the name.
    pub cluster: Option<&'a str>,
    /// Whether only the peer's gateways can be reached.
    pub is_gateway: bool,
    /// Where its pods may be.
    pub pod_ranges: &'a [IpNet],
    /// Where its gateways may be.
    pub gateway_ranges: &'a [IpNet],
    /// What the Secret holds.
    pub kubeconfig: &'a str,
}

impl OwnHalf<'_> {
    /// The objects, in the order in which they have to be applied.
    pub fn objects(&self) -> Vec<Value> {
        let (namespace, secret) = (self.namespace, format!("tombolo-link-{}", self.name));
        let ranges = |ranges: &[IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut spec = json!({
            "credentials": {"secretName": secret, "key": KEY},
            "mode": if self.is_gateway { "Gateway" } else { "Flat" },
        });
        if let Some(cluster) = self.cluster {
            spec["cluster"] = json!(cluster);
        }
        for (field, ranges) in [("podRanges", ranges(self.pod_ranges)), ("gatewayRanges", ranges(self.gateway_ranges))]
        {
            if !ranges.is_empty() {
                spec[field] = json!(ranges);
            }
        }
        let rbac = "rbac.authorization.k8s.io";
        vec![
            json!({
                "apiVersion": format!("{rbac}/v1"), "kind": "Role",
                "metadata": {"name": secret, "namespace": namespace},
                "rules": [
                    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret], "verbs": ["list", "watch"]},
                ],
            }),
            json!({
                "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
                "metadata": {"name": secret, "namespace": namespace},
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": secret},
                "subjects": [{"kind": "ServiceAccount", "name": MIRROR_ACCOUNT, "namespace": namespace}],
            }),
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": {"name": secret, "namespace": namespace},
                "stringData": {KEY: self.kubeconfig},
            }),
            json!({
                "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "Link",
                "metadata": {"name": self.name, "namespace": namespace}, "spec": spec,
            }),
        ]
    }
}

/// The smallest range that holds all of these, by family.
///
/// Nodes' ranges are cut from the cluster's, so that is never wider than the cluster's own, unless it has several.
pub fn covering(ranges: &[IpNet]) -> Vec<IpNet> {
    let mut covering: Vec<IpNet> = Vec::new();
    for range in ranges {
        let range = range.trunc();
        let same = covering.iter_mut().find(|known| known.addr().is_ipv4() == range.addr().is_ipv4());
        match same {
            None => covering.push(range),
            Some(known) => {
                while !known.contains(&range) {
                    let Some(wider) = known.supernet() else { break };
                    *known = wider;
                }
            }
        }
    }
    covering
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::links::object::{LinkObject, link, secret};
    use crate::model::ObjectName;

    #[test]
    fn what_is_printed_is_the_link_that_the_mirror_reads() {
        let pod_ranges = ["10.108.0.0/14".parse().unwrap()];
        let half = OwnHalf {
            namespace: "tombolo-system",
            name: "east",
            cluster: Some("east-1"),
            is_gateway: false,
            pod_ranges: &pod_ranges,
            gateway_ranges: &[],
            kubeconfig: "k",
        };
        let objects = half.objects();
        let object: LinkObject = serde_json::from_value(objects.last().unwrap().clone()).unwrap();
        let name = ObjectName { namespace: "tombolo-system".to_owned(), name: "east".to_owned() };
        let (_, read) = link(&object, &name).unwrap();
        assert_eq!((read.cluster.0.as_str(), &read.pod_ranges[..]), ("east-1", &pod_ranges[..]));
        let key = secret(&object, &name).unwrap();
        let held = objects.iter().find(|object| object["kind"] == "Secret").unwrap();
        assert_eq!(held["metadata"]["name"], key.secret.name.as_str());
        assert_eq!(held["stringData"][&key.key], "k");
        let role = objects.iter().find(|object| object["kind"] == "Role").unwrap();
        assert_eq!(role["rules"][0]["resourceNames"], json!([key.secret.name]));
    }

    #[test]
    fn nodes_ranges_are_covered_by_the_smallest_one() {
        let ranges = |given: &[&str]| given.iter().map(|range| range.parse().unwrap()).collect::<Vec<IpNet>>();
        for (nodes, covered) in [
            (&["10.108.0.0/24"][..], &["10.108.0.0/24"][..]),
            (&["10.108.0.0/24", "10.108.1.0/24"], &["10.108.0.0/23"]),
            (&["10.108.0.0/24", "10.108.5.0/24", "10.108.2.0/24"], &["10.108.0.0/21"]),
            (
                &["10.108.0.0/24", "fd00:108::/64", "10.111.0.0/24", "fd00:108:0:1::/64"],
                &["10.108.0.0/14", "fd00:108::/63"],
            ),
            (&[], &[]),
        ] {
            assert_eq!(covering(&ranges(nodes)), ranges(covered), "{nodes:?}");
        }
    }
}
