//! What is known of one cluster's objects, a peer's or the own one's, in types of our own.

use crate::model::{ClusterName, ObjectName};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

/// A link's name in this cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(pub String);

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose objects these are. The own cluster comes first wherever order matters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// This cluster's.
    Own,
    /// Those of the peer behind a link.
    Link(LinkName),
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// The API's `IPv4`.
    V4,
    /// The API's `IPv6`.
    V6,
}

impl Family {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family of an address as it is written: an IPv4-mapped one is of IPv6.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A transport protocol. SCTP passes through to kube-proxy, the agent leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// The API's `TCP`.
    Tcp,
    /// The API's `UDP`.
    Udp,
    /// The API's `SCTP`.
    Sctp,
}

impl Transport {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// What a Service is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// A ClusterIP; NodePort and LoadBalancer have one too.
    ClusterIp,
    /// The names of its endpoints only.
    Headless,
    /// A name elsewhere.
    ExternalName,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name; empty if the only port has none.
    pub name: String,
    /// What clients dial.
    pub port: u16,
    /// Its protocol.
    pub protocol: Transport,
    /// What it is spoken in, if that is said.
    pub app_protocol: Option<String>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// What it is reached by.
    pub reach: Reach,
    /// Whether it selects pods, so that the built-in controller writes its slices.
    pub selects: bool,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its ClusterIPs.
    pub addresses: Vec<IpAddr>,
    /// Its IP families, the first one first.
    pub families: Vec<Family>,
    /// The timeout of ClientIP affinity in seconds, if it has that.
    pub affinity_seconds: Option<i32>,
    /// `Cluster` or `Local`, as it is written.
    pub internal_traffic_policy: Option<String>,
    /// As it is written.
    pub traffic_distribution: Option<String>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Its UID.
    pub uid: String,
    /// Whether a ServiceImport owns it.
    pub is_derived: bool,
    /// What it leads to, if it is a gateway's.
    pub gateway: Option<Box<Gateway>>,
    /// How many values were left out that no API server takes.
    pub left_out: u32,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePort {
    /// Its name, as the Service's port has it.
    pub name: String,
    /// The number on the endpoints.
    pub port: u16,
    /// Its protocol.
    pub protocol: Transport,
    /// What it is spoken in, if that is said.
    pub app_protocol: Option<String>,
}

/// An endpoint of a slice. Conditions that were left out are as the API text says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// As it was written, so that an IPv4-mapped address can be told from an IPv4 one.
    pub address: IpAddr,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// Its zone.
    pub zone: Option<String>,
    /// Its node; kept for the own cluster's only.
    pub node: Option<String>,
    /// Its hostname in a headless Service.
    pub hostname: Option<String>,
    /// Zones whose clients should use it.
    pub hints: Vec<String>,
}

impl Endpoint {
    /// Of two that say something of one address, the greater one is used.
    pub fn usefulness(&self) -> (bool, bool, bool) {
        (self.ready, self.serving, !self.terminating)
    }
}

/// A slice that a cluster's own controller wrote, about its own pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service of the same namespace that it belongs to.
    pub service: String,
    /// The family of its endpoints.
    pub family: Family,
    /// Its ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints, without those below.
    pub endpoints: Vec<Endpoint>,
    /// How many endpoints had an address that is none of the slice's family, or none at all.
    pub malformed: u32,
    /// How many values were left out that no API server takes.
    pub left_out: u32,
}

/// A ServiceExport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceExport {
    /// Labels for the ServiceImport.
    pub labels: BTreeMap<String, String>,
    /// Annotations for the ServiceImport.
    pub annotations: BTreeMap<String, String>,
    /// When it was made, in seconds since 1970: the oldest decides.
    pub created: i64,
    /// What the own cluster's says.
    pub status: Option<Told>,
    /// How many values were left out that no API server takes.
    pub left_out: u32,
}

/// What a status says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Status, reason and message by type.
    pub conditions: BTreeMap<String, [String; 3]>,
    /// Since when each condition's status is as it is, as RFC 3339.
    pub since: BTreeMap<String, String>,
    /// The clusters of a ServiceImport.
    pub clusters: BTreeSet<String>,
}

impl Told {
    /// Whether it says all of this, whatever else it says: others may have conditions of their own there.
    pub fn says(&self, wanted: &Self) -> bool {
        let has = |ours: &BTreeMap<_, _>, theirs: &BTreeMap<_, _>| {
            theirs.iter().all(|(kind, said): (&String, &String)| ours.get(kind) == Some(said))
        };
        let conditions = wanted.conditions.iter().all(|(kind, said)| self.conditions.get(kind) == Some(said));
        conditions && has(&self.since, &wanted.since) && self.clusters == wanted.clusters
    }
}

/// A version of the MCS API. They have the same fields, and an API server that has both shows each object in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum McsVersion {
    /// The one that is stored.
    #[default]
    V1Beta1,
    /// All that older API servers have.
    V1Alpha1,
}

impl McsVersion {
    /// As the API spells it, without its group.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1Beta1 => "v1beta1",
            Self::V1Alpha1 => "v1alpha1",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::V1Beta1 => Self::V1Alpha1,
            Self::V1Alpha1 => Self::V1Beta1,
        }
    }
}

/// The versions in which an API server was found to have the kinds of the MCS API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct McsVersions {
    /// ServiceImports.
    pub imports: McsVersion,
    /// ServiceExports.
    pub exports: McsVersion,
}

/// The spec of a ServiceImport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportSpec {
    /// Whether it is of type Headless.
    pub is_headless: bool,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its addresses, as they are written.
    pub ips: Vec<String>,
    /// Their families, in the order of the addresses.
    pub families: Vec<Family>,
    /// The timeout of ClientIP affinity in seconds, if it has that.
    pub affinity_seconds: Option<i32>,
    /// As it is written.
    pub internal_traffic_policy: Option<String>,
    /// As it is written.
    pub traffic_distribution: Option<String>,
}

/// A ServiceImport of the own cluster, as far as it is there already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Its UID, by which it owns the derived Service.
    pub uid: String,
    /// Whether the mirror made it.
    pub is_ours: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// What it is.
    pub spec: ImportSpec,
    /// What its status says.
    pub status: Option<Told>,
}

/// How a service asks to be exported to whom by which labels (Linkerd's Link).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selectors {
    /// Through the gateway.
    pub gateway: Selector,
    /// Directly.
    pub flat: Selector,
    /// As a member of a federated Service.
    pub federated: Selector,
}

/// A label selector. An empty one matches nothing, as in Linkerd's Links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Labels that have to have one of these values.
    pub is_in: Vec<(String, BTreeSet<String>)>,
    /// Labels that must not have one of these values.
    pub is_not_in: Vec<(String, BTreeSet<String>)>,
    /// Labels that have to be there.
    pub exists: Vec<String>,
    /// Labels that must not be there.
    pub is_absent: Vec<String>,
}

impl Selector {
    /// One label with one value.
    pub fn label(name: &str, value: &str) -> Self {
        Self { is_in: vec![(name.to_owned(), BTreeSet::from([value.to_owned()]))], ..Self::default() }
    }

    /// Whether it selects what has these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let is_empty = *self == Self::default();
        !is_empty
            && self.is_in.iter().all(|(name, values)| labels.get(name).is_some_and(|value| values.contains(value)))
            && self.is_not_in.iter().all(|(name, values)| labels.get(name).is_none_or(|value| !values.contains(value)))
            && self.exists.iter().all(|name| labels.contains_key(name))
            && self.is_absent.iter().all(|name| !labels.contains_key(name))
    }
}

/// How much is understood of what defines a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Understood {
    /// All of it.
    Whole,
    /// Which cluster it leads to, and not what may come in: so nothing does, and what is there stays as long as if the peer
    /// were not heard.
    Cluster,
    /// Not even that. What no other link's is may be its.
    Nothing,
}

/// A link: what this cluster imports from another one, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The peer's id in the ClusterSet.
    pub cluster: ClusterName,
    /// How much of this is so; the rest is but a guess.
    pub understood: Understood,
    /// What mirror Services are called after; the cluster's id unless a Linkerd Link says otherwise.
    pub suffix: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Which Services are exported over it by Linkerd's conventions.
    pub selectors: Selectors,
    /// Labels and annotations that mirror Services don't get, `prefix/*` for all with a prefix.
    pub excluded_labels: Vec<String>,
    /// As above.
    pub excluded_annotations: Vec<String>,
    /// Whether Linkerd's service-mirror makes the Services of Linkerd's conventions: then only their slices are written.
    pub is_linkerds: bool,
    /// Whether the peer's pods can be reached by their addresses; else its gateway is the only way.
    pub is_flat: bool,
    /// Where the peer's pods may be; anywhere that isn't refused for another reason if that isn't declared.
    pub pod_ranges: Vec<IpNet>,
    /// Where the peer's gateways may be; as above. A flat link that declares them has the gateways to fall back on.
    pub gateway_ranges: Vec<IpNet>,
    /// How much the peer may bring in.
    pub quota: Quota,
}

/// How much a peer may bring in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Exports, each by each convention counted.
    pub exports: usize,
    /// Endpoints of one export.
    pub endpoints: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self { exports: 10_000, endpoints: 10_000 }
    }
}

/// A port of an exported Service, as its clients dial it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportedPort {
    /// The Service.
    pub service: ObjectName,
    /// Its port.
    pub port: u16,
    /// The port's protocol.
    pub protocol: Transport,
}

/// A port of a gateway's Service, by which it is named there too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayPort {
    /// Its protocol.
    pub protocol: Transport,
    /// Its number in the Service.
    pub number: u16,
}

/// What a port of a gateway's Service is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where it leads.
    pub target: ExportedPort,
    /// Since when it leads nowhere, in seconds since 1970: nobody else gets it for a while.
    pub released: Option<i64>,
}

/// One Service of a gateway, as its cluster publishes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// What each of its ports is for.
    pub claims: BTreeMap<GatewayPort, Claim>,
    /// The number by which each of its ports is dialled from outside.
    pub outside: BTreeMap<GatewayPort, u16>,
    /// Where it is dialled.
    pub addresses: BTreeSet<IpAddr>,
    /// Names of more addresses, as load balancers of some clouds have them.
    pub hosts: BTreeSet<String>,
}

impl Gateway {
    /// The number that leads to `target` from outside, if any does.
    pub fn leads_to(&self, target: &ExportedPort) -> Option<u16> {
        let mut claims = self.claims.iter();
        let (port, _) = claims.find(|(_, claim)| claim.target == *target && claim.released.is_none())?;
        self.outside.get(port).copied()
    }
}
