//! Turns API objects into what the mirror knows. Pure, and forgiving where a peer wrote nonsense: that part is left out.

use super::{
    gateway::published,
    names,
    slices::{Content, Marks, Placed},
    source::{
        Endpoint, Family, Import, ImportSpec, Port, Reach, Service, ServiceExport, Slice, SlicePort, Told, Transport,
    },
    values::{self, Left},
    world::{ImportKey, ImportKind},
};
use crate::model::{ClusterName, ObjectName, Path, PeerState};
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr};

/// A slice, by who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The cluster's own controller, about its own pods.
    FirstHand(Slice),
    /// This mirror, for an import.
    Ours(ImportKey, Placed),
    /// A mirror, about other clusters: passing that on would go round in circles.
    Elsewhere,
}

/// A multicluster.x-k8s.io ServiceExport, in v1alpha1 and v1beta1, which don't differ.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ExportObject {
    /// The object's metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is asked for besides.
    #[serde(default)]
    pub spec: Option<ExportSpec>,
    /// What is said of it.
    #[serde(default)]
    pub status: Option<Value>,
}

/// A multicluster.x-k8s.io ServiceImport, in v1alpha1 and v1beta1, which don't differ.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ImportObject {
    /// The object's metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it is.
    #[serde(default)]
    pub spec: Option<ImportObjectSpec>,
    /// What is said of it.
    #[serde(default)]
    pub status: Option<Value>,
}

/// The spec of a ServiceImport, whose ports are Services' without what only those have.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImportObjectSpec {
    /// `ClusterSetIP` or `Headless`.
    pub r#type: Option<String>,
    /// What clients dial.
    pub ports: Option<Vec<core::ServicePort>>,
    /// Addresses.
    pub ips: Option<Vec<String>>,
    /// Their families.
    pub ip_families: Option<Vec<String>>,
    /// `ClientIP` or `None`.
    pub session_affinity: Option<String>,
    /// How long that lasts.
    pub session_affinity_config: Option<core::SessionAffinityConfig>,
    /// As of a Service.
    pub internal_traffic_policy: Option<String>,
    /// As of a Service.
    pub traffic_distribution: Option<String>,
}

/// The spec of a ServiceExport.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportSpec {
    /// Labels for the ServiceImport.
    #[serde(default)]
    pub exported_labels: Option<BTreeMap<String, String>>,
    /// Annotations for the ServiceImport.
    #[serde(default)]
    pub exported_annotations: Option<BTreeMap<String, String>>,
}

/// An object's name; none if it has none, which no API server lets pass.
pub fn name(meta: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}

/// When an object was made, in seconds since 1970; what doesn't say so is the youngest.
pub fn created(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second())
}

/// A Service.
pub fn service(object: core::Service) -> Service {
    let meta = object.metadata;
    let spec = object.spec.unwrap_or_default();
    let gateway = published::read(&meta, &spec, object.status.as_ref());
    let reach = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) => Reach::ExternalName,
        (_, Some("None")) => Reach::Headless,
        _ => Reach::ClusterIp,
    };
    let ips = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
    let created = created(&meta);
    let mut left = Left::default();
    let labels = left.labels(meta.labels.unwrap_or_default());
    let annotations = left.annotations(meta.annotations.unwrap_or_default());
    let ports = spec.ports.unwrap_or_default().into_iter().filter_map(|port| service_port(port, &mut left)).collect();
    let affinity = affinity(spec.session_affinity.as_deref(), spec.session_affinity_config);
    let is_policy = |policy: &String| ["Cluster", "Local"].contains(&policy.as_str());
    let is_distribution = |wish: &String| DISTRIBUTIONS.contains(&wish.as_str());
    Service {
        created,
        uid: meta.uid.unwrap_or_default(),
        is_derived: meta.owner_references.iter().flatten().any(|owner| owner.kind == "ServiceImport"),
        labels,
        annotations,
        reach,
        selects: spec.selector.is_some_and(|selector| !selector.is_empty()),
        ports,
        addresses: ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        families: spec.ip_families.unwrap_or_default().iter().filter_map(|name| family(name)).collect(),
        affinity_seconds: left.keep(affinity, |seconds| (1..=values::MAX_AFFINITY).contains(seconds)),
        internal_traffic_policy: left.keep(spec.internal_traffic_policy, is_policy),
        traffic_distribution: left.keep(spec.traffic_distribution.filter(|wish| !wish.is_empty()), is_distribution),
        gateway,
        left_out: left.0,
    }
}

/// What a Service's `trafficDistribution` can say.
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];

fn affinity(kind: Option<&str>, config: Option<core::SessionAffinityConfig>) -> Option<i32> {
    let timeout = config.and_then(|config| config.client_ip?.timeout_seconds);
    // The API's default of three hours.
    (kind == Some("ClientIP")).then(|| timeout.unwrap_or(10_800))
}

fn service_port(port: core::ServicePort, left: &mut Left) -> Option<Port> {
    let name = left.keep(Some(port.name.unwrap_or_default()), |name| values::is_port_name(name))?;
    Some(Port {
        name,
        port: number(port.port)?,
        protocol: transport(port.protocol.as_deref())?,
        app_protocol: left.keep(port.app_protocol, |name| values::is_qualified(name)),
    })
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

fn transport(name: Option<&str>) -> Option<Transport> {
    match name {
        None | Some("" | "TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some("SCTP") => Some(Transport::Sctp),
        Some(_) => None,
    }
}

fn family(name: &str) -> Option<Family> {
    match name {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

/// A slice; none if it belongs to nobody or holds names instead of addresses.
pub fn slice(object: discovery::EndpointSlice) -> Option<Written> {
    let meta = &object.metadata;
    let label = |name: &str| meta.labels.as_ref()?.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let managed_by = label(names::MANAGED_BY);
    let family = family(&object.address_type)?;
    if managed_by == Some(names::MIRROR) {
        let placed = ours(meta, family, object.ports.unwrap_or_default(), object.endpoints);
        return Some(placed.map_or(Written::Elsewhere, |(key, placed)| Written::Ours(key, placed)));
    }
    let is_built_in = managed_by == Some(names::SLICE_CONTROLLER);
    let is_of_others = !is_built_in
        && [names::SOURCE_CLUSTER, names::IMPORT_NAME, names::LINKERD_CLUSTER, names::FALLBACK_FOR]
            .iter()
            .any(|name| label(name).is_some());
    if is_of_others {
        return Some(Written::Elsewhere);
    }
    let service = label(names::SERVICE_NAME)?.to_owned();
    let mut left = Left::default();
    let (endpoints, malformed) = endpoints(object.endpoints, family, &mut left);
    let ports = ports(object.ports.unwrap_or_default(), &mut left);
    Some(Written::FirstHand(Slice { service, family, ports, endpoints, malformed, left_out: left.0 }))
}

/// A slice of ours. None if its labels don't say of what any more: then somebody changed it.
fn ours(
    meta: &ObjectMeta,
    family: Family,
    ports_given: Vec<discovery::EndpointPort>,
    given: Vec<discovery::Endpoint>,
) -> Option<(ImportKey, Placed)> {
    let label = |name: &str| meta.labels.as_ref()?.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let kind = ImportKind::named(label(names::IMPORT_KIND)?)?;
    // A gateway's are no import, and of no other cluster.
    let (name, cluster) = match kind {
        ImportKind::Gateway => (names::SERVICE_NAME, ""),
        _ => (names::IMPORT_NAME, label(names::SOURCE_CLUSTER)?),
    };
    let object = ObjectName { namespace: meta.namespace.clone()?, name: label(name)?.to_owned() };
    let mut left = Left::default();
    let content = Content {
        cluster: ClusterName(cluster.to_owned()),
        path: if label(names::PATH) == Some("gateway") { Path::Gateway } else { Path::Pod },
        family,
        ports: ports(ports_given, &mut left),
        is_fallback: label(names::FALLBACK_FOR).is_some(),
    };
    let peer = match label(names::PEER_STATE) {
        Some("lost") => PeerState::Lost,
        Some("stale") => PeerState::Stale,
        _ => PeerState::Fresh,
    };
    let weight = meta.annotations.as_ref().and_then(|all| all.get(names::WEIGHT)?.parse().ok()).unwrap_or(1);
    let owner = label(names::SERVICE_NAME).or(label(names::FALLBACK_FOR)).map(str::to_owned);
    let (endpoints, malformed) = endpoints(given, family, &mut left);
    let is_whole = malformed == 0 && left.0 == 0;
    Some((ImportKey { kind, object }, Placed { content, marks: Marks { peer, weight }, owner, endpoints, is_whole }))
}

fn ports(given: Vec<discovery::EndpointPort>, left: &mut Left) -> Vec<SlicePort> {
    let mut ports: Vec<_> = given
        .into_iter()
        .filter_map(|port| {
            let name = left.keep(Some(port.name.unwrap_or_default()), |name| values::is_port_name(name))?;
            Some(SlicePort {
                name,
                port: number(port.port?)?,
                protocol: transport(port.protocol.as_deref())?,
                app_protocol: left.keep(port.app_protocol, |name| values::is_qualified(name)),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn endpoints(given: Vec<discovery::Endpoint>, family: Family, left: &mut Left) -> (Vec<Endpoint>, u32) {
    let mut malformed = 0;
    let mut taken = Vec::with_capacity(given.len());
    for given in given {
        // By the API text only the first address means anything.
        let address = given.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
        let Some(address) = address.filter(|address| Family::of(*address) == family) else {
            malformed += 1;
            continue;
        };
        let conditions = given.conditions.unwrap_or_default();
        let terminating = conditions.terminating.unwrap_or(false);
        let ready = conditions.ready.unwrap_or(true);
        let hints = given.hints.and_then(|hints| hints.for_zones).unwrap_or_default();
        taken.push(Endpoint {
            address,
            ready,
            // Who leaves it out means what `ready` says.
            serving: conditions.serving.unwrap_or(ready),
            terminating,
            zone: left.keep(given.zone.filter(|zone| !zone.is_empty()), |zone| values::is_label_value(zone)),
            node: given.node_name.filter(|node| !node.is_empty()),
            hostname: left
                .keep(given.hostname.filter(|hostname| !hostname.is_empty()), |name| values::is_host_name(name)),
            hints: hints.into_iter().map(|zone| zone.name).collect(),
        });
    }
    (taken, malformed)
}

/// A ServiceExport. What its status says matters in the own cluster only, where it is ours to write.
pub fn export(object: ExportObject, is_own: bool) -> ServiceExport {
    let spec = object.spec.unwrap_or_default();
    let mut left = Left::default();
    let labels = left.labels(spec.exported_labels.unwrap_or_default());
    let annotations = left.annotations(spec.exported_annotations.unwrap_or_default());
    ServiceExport {
        labels: left.within_size(labels),
        annotations: left.within_size(annotations),
        created: created(&object.metadata),
        status: object.status.filter(|_| is_own).map(|status| told(&status)),
        left_out: left.0,
    }
}

/// What a status says.
pub fn told(status: &Value) -> Told {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |field: &str| status.get(field).and_then(Value::as_array).into_iter().flatten();
    Told {
        conditions: list("conditions")
            .map(|it| (text(it, "type"), [text(it, "status"), text(it, "reason"), text(it, "message")]))
            .collect(),
        since: list("conditions").map(|it| (text(it, "type"), text(it, "lastTransitionTime"))).collect(),
        clusters: list("clusters").map(|it| text(it, "cluster")).collect(),
    }
}

/// A ServiceImport of the own cluster.
pub fn import(object: ImportObject) -> Import {
    let meta = object.metadata;
    let spec = object.spec.unwrap_or_default();
    let labels = meta.labels.unwrap_or_default();
    let (ports, mut left) = (spec.ports.unwrap_or_default(), Left::default());
    Import {
        uid: meta.uid.unwrap_or_default(),
        is_ours: labels.get(names::MANAGED).is_some_and(|by| by == names::MIRROR),
        labels,
        annotations: meta.annotations.unwrap_or_default(),
        spec: ImportSpec {
            is_headless: spec.r#type.as_deref() == Some("Headless"),
            ports: ports.into_iter().filter_map(|port| service_port(port, &mut left)).collect(),
            ips: spec.ips.unwrap_or_default(),
            families: spec.ip_families.unwrap_or_default().iter().filter_map(|name| family(name)).collect(),
            affinity_seconds: affinity(spec.session_affinity.as_deref(), spec.session_affinity_config),
            internal_traffic_policy: spec.internal_traffic_policy,
            traffic_distribution: spec.traffic_distribution,
        },
        status: object.status.as_ref().map(told),
    }
}
