//! What the tables should hold: which endpoints serve each frontend, in which order, with which shares.
//!
//! Everything is decided here and nothing is written: policy becomes tiers and weights, which the kernel draws from
//! without knowing why. The same model always gives the same result.

mod kept;
mod limits;
mod merge;
mod ramp;
mod share;
mod tiers;

use crate::{
    model::{ClusterName, Model, Path, Place, Protocol, Service, ServiceKind, ServicePort, ServiceRef},
    tables::{Desired, DesiredGroup, DesiredService},
};
pub use kept::Kept;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    iter,
    net::IpAddr,
    time::Duration,
};
use tombolo_ebpf::abi::{self, FrontendKey};

/// What follows from the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// What the tables should hold.
    pub desired: Desired,
    /// What people should know about each service, in their words; services without problems are left out.
    pub problems: BTreeMap<ServiceRef, Vec<String>>,
    /// The frontends of each service, those of services that have none left out.
    frontends: BTreeMap<ServiceRef, Vec<FrontendKey>>,
    /// The frontends that ServiceImports leave to their derived Services.
    yielded: BTreeMap<ServiceRef, Vec<FrontendKey>>,
    /// Whether services claim frontends that others have.
    is_contested: bool,
}

/// What health found out about clusters and can't be said by a verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The part of its weight, in per cent, that a cluster has while it comes back; clusters that have all are left out.
    pub ramps: BTreeMap<ClusterName, u8>,
    /// Paths that are down of clusters that are not: their endpoints come last.
    pub paths_out: BTreeSet<(ClusterName, Path)>,
}

/// Resolves everything known into tables.
///
/// Only services that are federated, did not opt out and have addresses are translated. `pods` (cgroup id → a value of
/// [`abi::exempt`]) and `pod_level` ([`abi::Config::pod_level`]) are passed through, because what is known of pods
/// by their UIDs becomes a cgroup at the edge only.
pub fn resolve(
    model: &Model,
    place: &Place,
    conditions: &Conditions,
    pods: &BTreeMap<u64, u32>,
    pod_level: u32,
) -> Resolved {
    let mut resolved = Resolved::default();
    let mut owners: BTreeMap<FrontendKey, &ServiceRef> = BTreeMap::new();
    let mut yielded: BTreeSet<FrontendKey> = BTreeSet::new();
    // In the order of names, Services before ServiceImports: the first to claim a frontend has it.
    for (name, service) in &model.services {
        let (frontends, mut problems) = outcome(model, place, conditions, name, service);
        for (key, desired) in frontends {
            match owners.entry(key) {
                Entry::Vacant(vacant) => {
                    vacant.insert(name);
                    resolved.desired.services.insert(key, desired);
                    resolved.frontends.entry(name.clone()).or_default().push(key);
                    continue;
                }
                Entry::Occupied(owner) if is_derived(model, owner.get(), name) => {
                    let is_first = yielded.insert(key);
                    resolved.yielded.entry(name.clone()).or_default().push(key);
                    resolved.is_contested |= !is_first;
                }
                Entry::Occupied(owner) => {
                    note(&mut problems, format!("{} belongs to {}", frontend(&key), object(owner.get())));
                    resolved.is_contested = true;
                }
            }
        }
        if !problems.is_empty() {
            resolved.problems.insert(name.clone(), problems);
        }
    }
    resolved.desired.pods = pods.clone();
    resolved.desired.pod_level = pod_level;
    resolved
}

/// The frontends of one service, none if it isn't to be translated, and what people should know about it.
fn outcome(
    model: &Model,
    place: &Place,
    conditions: &Conditions,
    name: &ServiceRef,
    service: &Service,
) -> (BTreeMap<FrontendKey, DesiredService>, Vec<String>) {
    let mut problems = service.problems.clone();
    if !service.federated || service.opted_out {
        return (BTreeMap::new(), problems);
    }
    for problem in model.slices_of(name).flat_map(|slice| &slice.problems) {
        note(&mut problems, problem.clone());
    }
    let frontends = resolve_service(model, place, conditions, name, service, &mut problems);
    (frontends, problems)
}

/// The frontends of one service, whether or not another one claims them too.
fn resolve_service(
    model: &Model,
    place: &Place,
    conditions: &Conditions,
    name: &ServiceRef,
    service: &Service,
    problems: &mut Vec<String>,
) -> BTreeMap<FrontendKey, DesiredService> {
    let addresses: BTreeSet<IpAddr> = service.addresses.iter().map(IpAddr::to_canonical).collect();
    let mut frontends = BTreeMap::new();
    for port in &service.ports {
        let mut endpoints = merge::endpoints(model, place, name, service, port);
        endpoints.iter_mut().for_each(|endpoint| endpoint.heed(&conditions.paths_out));
        for is_ipv4 in [true, false] {
            let keys: Vec<FrontendKey> = addresses
                .iter()
                .filter(|address| address.is_ipv4() == is_ipv4)
                .map(|address| key_of(*address, port))
                .filter(|key| !frontends.contains_key(key))
                .collect();
            if keys.is_empty() {
                continue;
            }
            let same_family: Vec<_> = endpoints.iter().filter(|it| it.is_ipv4() == is_ipv4).copied().collect();
            let draining = tiers::draining(&same_family);
            let tiers = tiers::arrange(same_family, &service.traffic, place, problems);
            let tiers = ramp::apply(tiers, &conditions.ramps);
            let desired = DesiredService {
                name: name.object.clone(),
                affinity_seconds: service.affinity.map(whole_seconds),
                exclusive: service.exclusive,
                no_abort: !service.abort,
                tiers: limits::fit(tiers, problems),
                draining,
            };
            let copies = iter::repeat_n(desired, keys.len());
            frontends.extend(keys.into_iter().zip(copies));
        }
    }
    frontends
}

/// Whether `name` is a ServiceImport whose frontends its derived Service serves, as the MCS API has it: no conflict, as
/// long as the import has no endpoints of its own that would be lost.
fn is_derived(model: &Model, owner: &ServiceRef, name: &ServiceRef) -> bool {
    owner.kind == ServiceKind::Service
        && name.kind == ServiceKind::ServiceImport
        && owner.object.namespace == name.object.namespace
        && model.slices_of(name).next().is_none()
}

/// The API counts in whole seconds; what lies between is rounded up, so that no session ends early.
fn whole_seconds(timeout: Duration) -> u32 {
    let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

fn key_of(address: IpAddr, port: &ServicePort) -> FrontendKey {
    let proto = match port.protocol {
        Protocol::Tcp => abi::TCP,
        Protocol::Udp => abi::UDP,
    };
    FrontendKey { addr: mapped(address), port: port.port.to_be_bytes(), proto, pad: 0 }
}

/// An address as the tables have it: IPv4 as an IPv4-mapped IPv6 address.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn frontend(key: &FrontendKey) -> String {
    let address = IpAddr::from(key.addr).to_canonical();
    let protocol = if key.proto == abi::UDP { "UDP" } else { "TCP" };
    format!("{}/{protocol}", std::net::SocketAddr::new(address, u16::from_be_bytes(key.port)))
}

fn object(name: &ServiceRef) -> String {
    match name.kind {
        ServiceKind::Service => format!("Service {name}"),
        ServiceKind::ServiceImport => format!("ServiceImport {name}"),
    }
}

/// Adds a problem that is not known yet: ports and families often share one.
fn note(problems: &mut Vec<String>, problem: String) {
    if !problems.contains(&problem) {
        problems.push(problem);
    }
}
