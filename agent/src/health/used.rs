//! What this node's tables really use, cluster by cluster: all that is ever probed or judged.

use super::{by_index::ByIndex, gateways::cluster_of};
use crate::{
    model::{ClusterName, Model, Path, Place},
    tables::{Installed, cluster_name},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};
use tombolo_ebpf::abi;

/// The clusters that the tables use, and the backends that are asked for them: those of TCP, and where a path of a cluster has
/// none, those of UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// By index in [`abi::map::CLUSTERS`]; index 0 is the agent's own cluster.
    pub clusters: BTreeMap<u32, UsedCluster>,
    /// By index in [`abi::map::BACKENDS`].
    pub backends: ByIndex<UsedBackend>,
}

/// An entry of [`abi::map::CLUSTERS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedCluster {
    /// Its id in the ClusterSet.
    pub name: ClusterName,
    /// The name that it has in the tables.
    pub table_name: ClusterName,
    /// Whether the tables have it down: an agent that takes over goes on from there.
    pub down: bool,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedBackend {
    /// Its generation, which tells it from others that had the index before.
    pub generation: u32,
    /// Where its packets go.
    pub address: SocketAddr,
    /// Index in [`abi::map::CLUSTERS`].
    pub cluster: u32,
    /// How it is reached.
    pub path: Path,
    /// Whether it is one of UDP: a TCP connect to its port is answered with an RST if the pod lives. It is a canary and
    /// nothing else, for nobody else tells whether it answers.
    pub udp: bool,
    /// Whether it is on this node, so that its answers say nothing about the network.
    pub local: bool,
    /// Whether the tables have it dead.
    pub dead: bool,
    /// Whether a service still leads to it. One that none leads to is asked after only if it is dead, for the
    /// connections that it still has.
    pub serves: bool,
}

impl Used {
    /// Reads off what `installed` uses. `local` are the addresses of this node's pods ([`local_addresses`]).
    ///
    /// One walk over the backends: some milliseconds for the largest tables.
    pub fn of(installed: &Installed, local: &BTreeSet<IpAddr>) -> Self {
        let cluster = |(&index, entry): (&u32, &abi::Cluster)| {
            let table_name = cluster_name(entry);
            let name = cluster_of(&table_name);
            (index, UsedCluster { name, table_name, down: entry.verdict == abi::verdict::DEAD })
        };
        let clusters: BTreeMap<u32, UsedCluster> = installed.clusters().iter().map(cluster).collect();
        let serves = |index: u32| installed.backend_users(index) > 0;
        let known = || installed.backends().filter(|(_, backend)| clusters.contains_key(&backend.cluster));
        let of_tcp = known().filter(|(index, backend)| backend.proto == abi::TCP && serves(*index));
        let of_tcp: BTreeSet<(u32, u8)> = of_tcp.map(|(_, backend)| (backend.cluster, backend.path)).collect();
        let is_used = |(index, backend): &(u32, &abi::Backend)| match backend.proto {
            abi::TCP => serves(*index) || backend.verdict == abi::verdict::DEAD,
            // Loopback has the agent's own probe of its hooks, which answers whatever the network does.
            _ => {
                let is_loopback = IpAddr::from(backend.addr).to_canonical().is_loopback();
                serves(*index) && !is_loopback && !of_tcp.contains(&(backend.cluster, backend.path))
            }
        };
        let used = |(index, backend): (u32, &abi::Backend)| {
            let address = IpAddr::from(backend.addr).to_canonical();
            let used = UsedBackend {
                generation: backend.generation,
                address: SocketAddr::new(address, u16::from_be_bytes(backend.port)),
                cluster: backend.cluster,
                path: if backend.path == abi::path::GATEWAY { Path::Gateway } else { Path::Pod },
                udp: backend.proto == abi::UDP,
                local: local.contains(&address),
                dead: backend.verdict == abi::verdict::DEAD,
                serves: serves(index),
            };
            (index, used)
        };
        // Room for all at once: grown bit by bit it would take twice as much for a moment.
        let mut backends = Vec::with_capacity(installed.backends_len());
        backends.extend(known().filter(is_used).map(used));
        Self { clusters, backends: ByIndex::from(backends) }
    }
}

/// The addresses of endpoints on this node, as far as slices name the nodes.
pub fn local_addresses(model: &Model, place: &Place) -> BTreeSet<IpAddr> {
    let endpoints = model.slices.values().flat_map(|slice| &slice.endpoints);
    let local = endpoints.filter(|endpoint| endpoint.node.as_deref() == Some(place.node.as_str()));
    local.map(|endpoint| endpoint.address.to_canonical()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ObjectName,
        plan::plan,
        tables::{Capacity, Desired, DesiredGroup, DesiredService, Member, Step},
    };
    use tombolo_ebpf::abi::{BackendKey, FrontendKey, TCP, UDP};

    const CAPACITY: Capacity =
        Capacity { frontends: 64, services: 128, slots: 512, backends: 128, members: 512, pods: 8 };

    fn mapped(last: u8) -> [u8; 16] {
        std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets()
    }

    /// A service of east, by two pods and a gateway, over either protocol.
    fn desired() -> Desired {
        desired_over(&[TCP, UDP])
    }

    fn desired_over(protocols: &[u8]) -> Desired {
        let member = |last: u8, path: Path| {
            let cluster = ClusterName("east".to_owned());
            Member { addr: mapped(last), port: [0x1f, 0x90], path, cluster, weight: 1 }
        };
        let group =
            |members: Vec<Member>| vec![DesiredGroup { cluster: ClusterName("east".to_owned()), weight: 1, members }];
        let service = |proto: u8| {
            let service = DesiredService {
                name: ObjectName { namespace: "shop".to_owned(), name: format!("api-{proto}") },
                affinity_seconds: None,
                exclusive: false,
                no_abort: false,
                tiers: vec![
                    group(vec![member(1, Path::Pod), member(2, Path::Pod)]),
                    group(vec![member(9, Path::Gateway)]),
                ],
                draining: Vec::new(),
            };
            (FrontendKey { addr: mapped(200), port: [0, 80], proto, pad: 0 }, service)
        };
        Desired { services: protocols.iter().copied().map(service).collect(), ..Desired::default() }
    }

    #[test]
    fn where_a_path_has_udp_only_its_backends_are_asked_but_for_our_own_probe() {
        let own = ClusterName("west".to_owned());
        let mut tables = desired_over(&[UDP]);
        tables.services.extend(crate::datapath::probe::services(&own));
        let mut installed = Installed::default();
        let plan = plan(&tables, &installed, &CAPACITY, &own, true);
        plan.steps.iter().for_each(|step| installed.apply(step));
        let used = Used::of(&installed, &BTreeSet::new());
        let found: BTreeSet<(String, bool)> =
            used.backends.values().map(|used| (used.address.to_string(), used.udp)).collect();
        let expected = [1, 2, 9].map(|last| (format!("10.0.0.{last}:8080"), true));
        assert_eq!(found, expected.into());
    }

    #[test]
    fn what_is_used_is_read_off_the_tables_and_verdicts_come_back_into_them() {
        let own = ClusterName("west".to_owned());
        let mut tables = desired();
        super::super::gateways::set_apart(&mut tables, &own);
        let mut installed = Installed::default();
        let plan = plan(&tables, &installed, &CAPACITY, &own, true);
        assert_eq!(plan.refused, []);
        plan.steps.iter().for_each(|step| installed.apply(step));

        let local = [IpAddr::from([10, 0, 0, 2])].into();
        let used = Used::of(&installed, &local);
        let names: BTreeSet<(&str, &str)> =
            used.clusters.values().map(|used| (used.name.0.as_str(), used.table_name.0.as_str())).collect();
        assert_eq!(names, [("west", "west"), ("east", "east"), ("east", "east/gateway")].into());
        let found: BTreeSet<(String, Path, bool)> =
            used.backends.values().map(|used| (used.address.to_string(), used.path, used.local)).collect();
        let expected = [
            ("10.0.0.1:8080".to_owned(), Path::Pod, false),
            ("10.0.0.2:8080".to_owned(), Path::Pod, true),
            ("10.0.0.9:8080".to_owned(), Path::Gateway, false),
        ];
        assert_eq!(found, expected.into(), "of TCP only");

        // East's flat path is down and one backend dead: a write each.
        let judged = |down| super::super::Judged { down, own: false, syn_timeout: None };
        let clusters = [("east", true), ("east/gateway", false)];
        let dead = BackendKey { addr: mapped(9), port: [0x1f, 0x90], proto: TCP, pad: 0 };
        let changed = super::super::Changed {
            clusters: clusters.map(|(name, down)| (ClusterName(name.to_owned()), judged(down))).into(),
            dead: [dead].into(),
            ..Default::default()
        };
        let verdicts = changed.verdicts(None);
        let steps = installed.verdict_steps(&verdicts);
        steps.iter().for_each(|step| installed.apply(step));
        assert_eq!(installed.verdict_steps(&verdicts), [], "once is enough");
        let backends = steps.iter().filter(|step| matches!(step, Step::PutBackend(..))).count();
        let keepalive_too = steps.iter().filter(|step| matches!(step, Step::PutCluster(..))).count();
        assert_eq!((backends, keepalive_too), (1, 2));
        let used = Used::of(&installed, &local);
        assert_eq!(used.clusters.values().filter(|used| used.down).count(), 1);
        assert_eq!(used.backends.values().filter(|used| used.dead).count(), 1);

        // It came back: nothing gets better before the tables are ready for it.
        let back = super::super::Changed {
            clusters: clusters.map(|(name, _)| (ClusterName(name.to_owned()), judged(false))).into(),
            ..Default::default()
        };
        let first = installed.verdict_steps(&back.worse_than(&changed).verdicts(None));
        assert_eq!(first, []);
        assert_eq!(installed.verdict_steps(&back.verdicts(None)).len(), 2);

        // While it is dead its service goes away: it is still asked after, and once it answers it drains.
        let gone = Desired { services: [].into(), ..desired() };
        let connected = installed.dead().clone();
        installed.set_busy(connected);
        let plan = crate::plan::plan(&gone, &installed, &CAPACITY, &own, true);
        plan.steps.iter().for_each(|step| installed.apply(step));
        let used = Used::of(&installed, &local);
        let left: Vec<(bool, bool)> = used.backends.values().map(|used| (used.dead, used.serves)).collect();
        assert_eq!(left, [(true, false)], "the dead one only");
        let index = *used.backends.keys().next().unwrap();
        assert_eq!(installed.verdict_steps(&changed.verdicts(None)), []);
        let steps = installed.verdict_steps(&back.verdicts(None));
        steps.iter().for_each(|step| installed.apply(step));
        assert_eq!(installed.backend(index).unwrap().verdict, abi::verdict::DRAINING);
        assert_eq!(Used::of(&installed, &local).backends, ByIndex::default());
    }
}
