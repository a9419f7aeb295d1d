//! The gateway by which other clusters come in that have no flat path to here: Services of type LoadBalancer or NodePort without a
//! selector, one port for each exported one, and slices that lead each port to the pods of its service.
//!
//! kube-proxy and the cloud's load balancer are the gateway; nothing of ours is on the way. Whoever imports doesn't say whether its
//! link is flat, so every exported Service gets its ports. Importers learn them from the Services themselves ([`published`]).

pub mod allocate;
pub mod published;
#[cfg(test)]
mod tests;
mod ways;

use super::{
    conventions,
    import::Problem,
    names,
    plan::{self, Kind, Step},
    render,
    slices::{Content, Marks, Wanted, pack},
    source::{Claim, Endpoint, ExportedPort, Gateway, GatewayPort, Port, Reach, Service, SlicePort, Transport},
    world::{ImportKey, ImportKind, World},
};
use crate::model::{ClusterName, ObjectName, Path, PeerState};
use allocate::{Allocations, allocate};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What all Services of a gateway are called after, and how the allocation of their ports is known.
const BASE: &str = "tombolo-gateway";
/// Most nodes whose addresses are published: enough for some to be there, and few enough to be dialled by everybody.
const MAX_NODES: usize = 16;

/// How others come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The namespace of the gateway's Services.
    pub namespace: String,
    /// Their type.
    pub exposure: Exposure,
    /// Annotations for them, by which clouds are told what load balancer it should be.
    pub annotations: BTreeMap<String, String>,
    /// Addresses or host names to be published instead of what is found: the load balancer's, or the nodes'.
    pub addresses: BTreeSet<String>,
}

/// The type of a gateway's Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// `LoadBalancer`.
    LoadBalancer,
    /// `NodePort`.
    NodePort,
}

/// The allocation of all ports, among the things that are written.
pub fn root(config: &Config) -> ImportKey {
    let object = ObjectName { namespace: config.namespace.clone(), name: BASE.to_owned() };
    ImportKey { kind: ImportKind::Gateway, object }
}

/// The writes that bring a part of the gateway to what it should be: all its Services if `key` is [`root`], else one's slices.
pub(super) fn steps(world: &World, key: &ImportKey, now: &str) -> (BTreeSet<Problem>, Vec<Step>) {
    let config = world.own.gateway.as_ref();
    let now = now.parse().unwrap_or(Timestamp::UNIX_EPOCH).as_second();
    match config {
        Some(config) if root(config) == *key => services(world, config, now),
        Some(config) if config.namespace == key.object.namespace => (BTreeSet::new(), slices(world, key)),
        _ => (BTreeSet::new(), removal(world, key)),
    }
}

/// All ports of all Services.
fn services(world: &World, config: &Config, now: i64) -> (BTreeSet<Problem>, Vec<Step>) {
    if !world.own.namespaces.contains(&config.namespace) {
        return (BTreeSet::from([Problem::NoGatewayNamespace(config.namespace.clone())]), Vec::new());
    }
    let (mut there, mut taken) = (Allocations::new(), BTreeSet::new());
    for (name, service) in world.own.cluster.services.iter().filter(|(name, _)| name.namespace == config.namespace) {
        match &service.gateway {
            Some(gateway) => drop(there.insert(name.name.clone(), gateway.claims.clone())),
            None => drop(taken.insert(name.name.clone())),
        }
    }
    let allocated = allocate(&there, &exported(world), &taken, BASE, now);
    let mut steps = Vec::new();
    for (name, claims) in &allocated.ports {
        let name = ObjectName { namespace: config.namespace.clone(), name: name.clone() };
        let known = world.own.cluster.services.get(&name);
        let addresses = addresses(world, config, known.and_then(|known| known.gateway.as_deref()));
        let body = render_service(config, &name, claims, &addresses);
        let is_signed = known.is_some_and(|known| plan::is_signed(known, &body));
        let has_ports = known.is_some_and(|known| has_ports(known, claims));
        let is_claimed = known.and_then(|known| known.gateway.as_ref()).is_some_and(|known| known.claims == *claims);
        if !is_signed || !has_ports || !is_claimed {
            if is_signed && !has_ports {
                steps.push(Step::SetPorts(name.clone(), body["spec"]["ports"].clone()));
            }
            steps.push(Step::Put(Kind::Service, name, body));
        }
    }
    for name in there.keys().filter(|name| !allocated.ports.contains_key(*name)) {
        let name = ObjectName { namespace: config.namespace.clone(), name: name.clone() };
        let uid = world.own.cluster.services.get(&name).map(|known| known.uid.clone());
        steps.push(Step::Delete(Kind::Service, name, uid));
    }
    let mut problems = BTreeSet::new();
    if !allocated.left_out.is_empty() {
        problems.insert(Problem::GatewayFull(allocated.left_out.len()));
    }
    (problems, steps)
}

/// Every port that peers may ask for. Clients of a headless Service want to know pods apart, which a gateway can't give them.
fn exported(world: &World) -> BTreeSet<ExportedPort> {
    let cluster = &world.own.cluster;
    let services = cluster
        .services
        .iter()
        .filter(|(name, service)| service.reach == Reach::ClusterIp && conventions::is_exported(name, cluster));
    let ports = services.flat_map(|(name, service)| service.ports.iter().map(move |port| (name, port)));
    ports
        .filter(|(_, port)| port.protocol != Transport::Sctp)
        .map(|(name, port)| ExportedPort { service: name.clone(), port: port.port, protocol: port.protocol })
        .collect()
}

/// What is published besides the status: nothing for a load balancer unless somebody said otherwise.
///
/// That no node is ready any more is rather a control plane that doesn't hear them: what was published stays.
fn addresses(world: &World, config: &Config, known: Option<&Gateway>) -> BTreeSet<String> {
    let nodes = &world.own.addresses.ready_nodes;
    match config.exposure {
        _ if !config.addresses.is_empty() => config.addresses.clone(),
        Exposure::LoadBalancer => BTreeSet::new(),
        Exposure::NodePort if nodes.is_empty() => {
            known.into_iter().flat_map(|known| &known.addresses).map(ToString::to_string).collect()
        }
        Exposure::NodePort => nodes.iter().take(MAX_NODES).map(ToString::to_string).collect(),
    }
}

fn render_service(
    config: &Config,
    name: &ObjectName,
    claims: &BTreeMap<GatewayPort, Claim>,
    addresses: &BTreeSet<String>,
) -> Value {
    let mut annotations = config.annotations.clone();
    annotations.insert(names::GATEWAY_PORTS.to_owned(), published::render_claims(claims));
    if !addresses.is_empty() {
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        annotations.insert(names::GATEWAY_ADDRESSES.to_owned(), addresses.join(","));
    }
    let ports: Vec<Value> = claims
        .keys()
        .map(|port| json!({"name": published::port_name(*port), "port": port.number, "protocol": port.protocol.name()}))
        .collect();
    let labels = BTreeMap::from([(names::MANAGED, names::MIRROR), (names::IMPORT_KIND, ImportKind::Gateway.name())]);
    render::signed(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "namespace": name.namespace, "name": name.name, "labels": labels, "annotations": annotations,
        },
        "spec": {
            "type": match config.exposure {
                Exposure::LoadBalancer => "LoadBalancer",
                Exposure::NodePort => "NodePort",
            },
            "ipFamilyPolicy": "PreferDualStack",
            // Whichever node is dialled, pods may be on any.
            "externalTrafficPolicy": "Cluster",
            "ports": ports,
        },
    }))
}

/// Whether nobody changed what a Service says of its ports.
fn has_ports(there: &Service, claims: &BTreeMap<GatewayPort, Claim>) -> bool {
    let port = |port: &GatewayPort| Port {
        name: published::port_name(*port),
        port: port.number,
        protocol: port.protocol,
        app_protocol: None,
    };
    let wished: BTreeSet<Port> = claims.keys().map(port).collect();
    there.ports.iter().cloned().collect::<BTreeSet<_>>() == wished
}

/// The slices of one Service: each exported Service's endpoints, as its own slices have them.
fn slices(world: &World, key: &ImportKey) -> Vec<Step> {
    let cluster = &world.own.cluster;
    let gateway = cluster.services.get(&key.object).and_then(|service| service.gateway.as_deref());
    let mut wanted = Wanted::new();
    let claims = gateway.into_iter().flat_map(|gateway| &gateway.claims);
    let mut ports_by_service: BTreeMap<&ObjectName, Vec<(GatewayPort, &ExportedPort)>> = BTreeMap::new();
    for (port, claim) in claims.filter(|(_, claim)| claim.released.is_none()) {
        ports_by_service.entry(&claim.target.service).or_default().push((*port, &claim.target));
    }
    for (name, ports) in ports_by_service {
        let Some(service) = cluster.services.get(name) else { continue };
        for slice in cluster.slices.get(name).into_iter().flat_map(BTreeMap::values) {
            let target = |(port, exported): &(GatewayPort, &ExportedPort)| {
                let is_it = |own: &&Port| (own.port, own.protocol) == (exported.port, exported.protocol);
                let own = service.ports.iter().find(is_it)?;
                let target = slice.ports.iter().find(|it| it.name == own.name && it.protocol == own.protocol)?;
                Some(SlicePort {
                    name: published::port_name(*port),
                    port: target.port,
                    protocol: target.protocol,
                    app_protocol: None,
                })
            };
            let mut resolved: Vec<SlicePort> = ports.iter().filter_map(target).collect();
            if resolved.is_empty() || slice.endpoints.is_empty() {
                continue;
            }
            resolved.sort();
            let content = Content {
                // Its own cluster, which needs no name here: these slices are of use to nobody else.
                cluster: ClusterName(String::new()),
                path: Path::Pod,
                family: slice.family,
                ports: resolved,
                is_fallback: false,
            };
            let marks = Marks { peer: PeerState::Fresh, weight: 1 };
            let (_, endpoints) = wanted.entry(content).or_insert_with(|| (marks, BTreeMap::new()));
            for endpoint in &slice.endpoints {
                add(endpoints, endpoint);
            }
        }
    }
    let empty = BTreeMap::new();
    let packed = pack(key, Some(&key.object.name), &wanted, world.own.placed.get(key).unwrap_or(&empty));
    let slice_name = |name: &String| ObjectName { namespace: key.object.namespace.clone(), name: name.clone() };
    let put = packed.put.iter().map(|(name, placed)| {
        let body = render::slice(key, name, placed);
        Step::Put(Kind::Slice, slice_name(name), body)
    });
    let delete = packed.delete.iter().map(|name| Step::Delete(Kind::Slice, slice_name(name), None));
    // A namespace that is about to go takes nothing new.
    let is_there = world.own.namespaces.contains(&key.object.namespace);
    put.filter(|_| is_there).chain(delete).collect()
}

/// Adds an endpoint; of one that is in two slices for a moment the better one.
fn add(endpoints: &mut BTreeMap<IpAddr, Endpoint>, endpoint: &Endpoint) {
    let known = endpoints.get(&endpoint.address);
    if known.is_none_or(|known| known.usefulness() < endpoint.usefulness()) {
        let endpoint = Endpoint { hints: Vec::new(), hostname: None, ..endpoint.clone() };
        endpoints.insert(endpoint.address, endpoint);
    }
}

/// There is no gateway, or it is elsewhere: what is left of one goes.
fn removal(world: &World, key: &ImportKey) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(service) = world.own.cluster.services.get(&key.object).filter(|service| service.gateway.is_some()) {
        steps.push(Step::Delete(Kind::Service, key.object.clone(), Some(service.uid.clone())));
    }
    for name in world.own.placed.get(key).into_iter().flat_map(BTreeMap::keys) {
        let name = ObjectName { namespace: key.object.namespace.clone(), name: name.clone() };
        steps.push(Step::Delete(Kind::Slice, name, None));
    }
    steps
}
