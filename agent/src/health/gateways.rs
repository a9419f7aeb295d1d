//! What health asks of the desired tables: verdicts of their own for gateways.

use crate::{
    model::{ClusterName, Path},
    tables::{Desired, DesiredGroup, DesiredService, Member},
};
use std::collections::BTreeSet;
use tombolo_ebpf::abi::{MAX_GROUPS, MAX_TIER_GROUPS};

/// Ends the name that the gateway of a cluster has in the tables, if the cluster has a flat path too. No id of a cluster
/// has a slash in it.
const GATEWAY: &str = "/gateway";
/// The longest name that the tables take.
const LONGEST: usize = 64;

/// Gives a cluster that has a flat path and a gateway a second entry in `CLUSTERS` for the gateway, `<cluster>/gateway`.
///
/// So one write takes the flat path out of every service and leaves the gateway in, programs don't suspect the gateway
/// with the pods, and what each path was last heard is known apart. A cluster that is reached one way only, or whose name
/// leaves no room, keeps its one entry.
pub fn set_apart(desired: &mut Desired, own: &ClusterName) {
    let both = both_paths(desired, own);
    if !both.is_empty() {
        desired.services.values_mut().for_each(|service| split(service, &both));
    }
}

/// The cluster that an entry of the tables is of.
pub(super) fn cluster_of(table_name: &ClusterName) -> ClusterName {
    ClusterName(table_name.0.strip_suffix(GATEWAY).unwrap_or(&table_name.0).to_owned())
}

/// The clusters that are to have two entries.
fn both_paths(desired: &Desired, own: &ClusterName) -> BTreeSet<ClusterName> {
    let members = || {
        let services = desired.services.values();
        services.flat_map(|service| {
            let groups = service.tiers.iter().flatten();
            groups.flat_map(|group| &group.members).chain(&service.draining)
        })
    };
    let with = |path: Path| -> BTreeSet<&ClusterName> {
        members().filter(|member| member.path == path).map(|member| &member.cluster).collect()
    };
    let gateways = with(Path::Gateway);
    if gateways.is_empty() {
        return BTreeSet::new();
    }
    let has_room = |name: &&&ClusterName| name.0.len() + GATEWAY.len() <= LONGEST;
    let both = with(Path::Pod);
    both.intersection(&gateways).filter(|name| **name != own).filter(has_room).map(|name| (*name).clone()).collect()
}

fn split(service: &mut DesiredService, both: &BTreeSet<ClusterName>) {
    let rename = |member: &mut Member| {
        if member.path == Path::Gateway && both.contains(&member.cluster) {
            member.cluster.0.push_str(GATEWAY);
        }
    };
    service.draining.iter_mut().for_each(rename);
    let mut groups: usize = service.tiers.iter().map(Vec::len).sum();
    for tier in &mut service.tiers {
        let mut at = 0;
        while at < tier.len() {
            let group = &mut tier[at];
            let is_split = both.contains(&group.cluster);
            group.members.iter_mut().for_each(rename);
            group.members.sort_unstable();
            at += 1;
            if !is_split {
                continue;
            }
            let (flat, gateway): (Vec<Member>, Vec<Member>) =
                group.members.iter().cloned().partition(|member| member.path == Path::Pod);
            if flat.is_empty() {
                group.cluster.0.push_str(GATEWAY);
            } else if !gateway.is_empty() && tier.len() < MAX_TIER_GROUPS && groups < MAX_GROUPS {
                let group = &mut tier[at - 1];
                let (first, second) = shares(group.weight, weight_of(&flat), weight_of(&gateway));
                let name = ClusterName(format!("{}{GATEWAY}", group.cluster));
                (group.members, group.weight) = (flat, first);
                tier.insert(at, DesiredGroup { cluster: name, weight: second, members: gateway });
                groups += 1;
                at += 1;
            }
        }
    }
}

fn weight_of(members: &[Member]) -> u64 {
    members.iter().map(|member| u64::from(member.weight)).sum()
}

/// Parts `weight` in the proportion of two numbers, none of which is 0; both parts are at least 1.
fn shares(weight: u32, first: u64, second: u64) -> (u32, u32) {
    let part = u128::from(weight) * u128::from(first) / (u128::from(first) + u128::from(second));
    let part = u32::try_from(part).unwrap_or(weight).clamp(1, weight.saturating_sub(1).max(1));
    (part, weight.saturating_sub(part).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use tombolo_ebpf::abi::{FrontendKey, TCP};

    fn cluster(name: &str) -> ClusterName {
        ClusterName(name.to_owned())
    }

    fn group(name: &str, weight: u32, paths: &[Path]) -> DesiredGroup {
        let member = |(number, &path): (u8, &Path)| {
            let addr = std::net::Ipv4Addr::new(10, 0, 0, number).to_ipv6_mapped().octets();
            Member { addr, port: [0, 80], path, cluster: cluster(name), weight: 1 }
        };
        DesiredGroup { cluster: cluster(name), weight, members: (0..).zip(paths).map(member).collect() }
    }

    fn desired(tiers: Vec<Vec<DesiredGroup>>) -> Desired {
        let name = ObjectName { namespace: "shop".to_owned(), name: "api".to_owned() };
        let service = DesiredService {
            name,
            affinity_seconds: None,
            exclusive: false,
            no_abort: false,
            tiers,
            draining: Vec::new(),
        };
        let key = FrontendKey { addr: [1; 16], port: [0, 80], proto: TCP, pad: 0 };
        Desired { services: [(key, service)].into(), ..Desired::default() }
    }

    fn groups(desired: &Desired) -> Vec<Vec<(String, u32, usize)>> {
        let tiers = desired.services.values().flat_map(|service| &service.tiers);
        let group = |group: &DesiredGroup| (group.cluster.0.clone(), group.weight, group.members.len());
        tiers.map(|tier| tier.iter().map(group).collect()).collect()
    }

    #[test]
    fn a_gateway_has_an_entry_of_its_own_if_its_cluster_has_a_flat_path_too() {
        use Path::{Gateway, Pod};
        let mut tables = desired(vec![
            vec![group("west", 2, &[Pod, Gateway]), group("east", 3, &[Pod; 3]), group("north", 1, &[Gateway])],
            vec![group("east", 7, &[Gateway])],
            vec![group("east", 4, &[Pod, Pod, Pod, Gateway])],
        ]);
        set_apart(&mut tables, &cluster("west"));
        let expected = [
            vec![("west".to_owned(), 2, 2), ("east".to_owned(), 3, 3), ("north".to_owned(), 1, 1)],
            vec![("east/gateway".to_owned(), 7, 1)],
            vec![("east".to_owned(), 3, 3), ("east/gateway".to_owned(), 1, 1)],
        ];
        assert_eq!(groups(&tables), expected);
        let members = tables.services.values().flat_map(|service| &service.tiers).flatten();
        assert!(members.clone().all(|group| group.members.iter().all(|member| member.cluster == group.cluster)));
        assert_eq!(cluster_of(&cluster("east/gateway")), cluster("east"));
        assert_eq!(cluster_of(&cluster("north")), cluster("north"));
    }

    #[test]
    fn a_cluster_whose_name_leaves_no_room_keeps_its_one_entry() {
        let long = "c".repeat(60);
        let tiers = vec![vec![group(&long, 1, &[Path::Pod])], vec![group(&long, 1, &[Path::Gateway])]];
        let mut tables = desired(tiers.clone());
        set_apart(&mut tables, &cluster("west"));
        assert_eq!(tables, desired(tiers));
    }
}
