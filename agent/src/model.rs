//! What is known: Services, their endpoints and this node's pods, in types of our own.
//!
//! Sources turn API objects into these types once and hand them over as [`Change`]s; everything behind the model works
//! on these types alone. Whether an endpoint is *used* is decided in `resolve`, not here.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc, time::Duration};

/// A cluster's id in the ClusterSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(pub String);

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A namespaced object's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a slice can belong to. Where both claim one frontend, the Service has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    /// A core/v1 Service.
    Service,
    /// A multicluster.x-k8s.io ServiceImport with addresses of its own.
    ServiceImport,
}

/// A Service or a ServiceImport.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef {
    /// Which of the two.
    pub kind: ServiceKind,
    /// Its name.
    pub object: ObjectName,
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object)
    }
}

/// A transport protocol that is translated. SCTP is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// The API's `TCP`.
    Tcp,
    /// The API's `UDP`.
    Udp,
}

/// A Service or ServiceImport, as far as it concerns the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its ClusterIPs, of both families; empty for a headless one.
    pub addresses: Vec<IpAddr>,
    /// Its ports, without those of protocols that are not translated.
    pub ports: Vec<ServicePort>,
    /// ClientIP affinity, with its timeout.
    pub affinity: Option<Duration>,
    /// Whether it is federated: only these are translated.
    pub federated: bool,
    /// Whether it asked to be left alone.
    pub opted_out: bool,
    /// Whether nobody else would serve it: without endpoints a connect is refused at once.
    pub exclusive: bool,
    /// Whether connections to what is known dead are aborted.
    pub abort: bool,
    /// The Service of the same namespace whose built-in slices are this one's local endpoints, if not its own.
    pub local_member: Option<String>,
    /// How connections are spread.
    pub traffic: Traffic,
    /// What is wrong with its annotations, in a person's words; the defaults hold for these.
    pub problems: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Its name, empty if the only port has none: what the ports of slices are matched by.
    pub name: String,
    /// What clients dial.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// How a service's connections are spread over its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Which endpoints come first.
    pub order: Order,
    /// Per cent of the connections for each cluster named; the rest goes to the other clusters by endpoints. If every
    /// cluster with endpoints is named, the numbers are relative weights.
    pub weights: BTreeMap<ClusterName, u32>,
    /// How many ready local endpoints carry the whole load, for `LocalFirst`; otherwise it is judged by their share.
    pub local_minimum: Option<u32>,
}

/// Which endpoints come first; the others follow when these are out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// All ready endpoints alike.
    #[default]
    Spread,
    /// The own cluster's; as they become too few, a proportional part goes to the others.
    LocalFirst,
    /// The own zone's, then the own cluster's.
    ZoneFirst,
    /// These clusters one after the other, then the rest.
    Clusters(Vec<ClusterName>),
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Whose endpoints these are.
    pub owner: ServiceRef,
    /// The cluster they are in: label `multicluster.kubernetes.io/source-cluster`, else none, which means the own one.
    pub source_cluster: Option<ClusterName>,
    /// Whether the built-in controller wrote it, so that it speaks for the own cluster first hand.
    pub built_in: bool,
    /// Pods, or a gateway in front of them.
    pub path: Path,
    /// Whether only the agent may use it, when nothing better is left (label `tombolo.io/fallback-for`).
    pub fallback: bool,
    /// What whoever wrote it says of its cluster (label `tombolo.io/peer-state`).
    pub peer: PeerState,
    /// How many pods one of its endpoints stands for: 1, or more behind a gateway (annotation `tombolo.io/weight`).
    pub weight: u32,
    /// Port names and numbers, the same for all its endpoints.
    pub ports: Vec<ServicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// What is wrong with its labels, in a person's words; the defaults hold for these.
    pub problems: Vec<String>,
}

/// What a mirror says of a peer. It speaks of the peer's API; whether pods answer is another matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerState {
    /// Its API is heard.
    #[default]
    Fresh,
    /// Its API is not heard. Endpoints stay as their conditions say: whether the cluster is gone is for health to find
    /// out, and this is a reason to look.
    Lost,
    /// Its API has not been heard for so long that addresses may be others' by now: last tier only.
    Stale,
}

/// How an endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// By the pod's own address.
    Pod,
    /// By the address of its cluster's gateway.
    Gateway,
}

/// An address in a slice. Conditions that the API leaves out are as the API text says: ready and serving true,
/// terminating false.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// The zone it is in.
    pub zone: Option<Arc<str>>,
    /// The node it is on; unknown for other clusters.
    pub node: Option<Arc<str>>,
}

/// A pod of this node, as far as it concerns the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: ObjectName,
    /// Whether it has a mesh proxy.
    pub meshed: bool,
    /// Whether it asked to be left alone.
    pub opted_out: bool,
}

/// Where this agent stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its node.
    pub node: String,
    /// Its zone.
    pub zone: Option<String>,
}

/// One object was written, or is gone (`None`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service or ServiceImport.
    Service(ServiceRef, Option<Service>),
    /// An EndpointSlice.
    Slice(ObjectName, Option<Slice>),
    /// A pod of this node, by its UID.
    Pod(String, Option<Pod>),
}

/// Everything known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Services and ServiceImports.
    pub services: BTreeMap<ServiceRef, Service>,
    /// EndpointSlices.
    pub slices: BTreeMap<ObjectName, Slice>,
    /// Names of the slices of each Service, in order: few, mostly one.
    pub slices_by_service: BTreeMap<ServiceRef, Vec<ObjectName>>,
    /// This node's pods, by UID.
    pub pods: BTreeMap<String, Pod>,
}

impl Model {
    /// Takes `change` in; whether it changed anything.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Service(name, Some(service)) => {
                let old = self.services.insert(name.clone(), service);
                old.as_ref() != self.services.get(&name)
            }
            Change::Service(name, None) => self.services.remove(&name).is_some(),
            Change::Slice(name, slice) => self.apply_slice(name, slice),
            Change::Pod(uid, Some(pod)) => {
                let old = self.pods.insert(uid.clone(), pod);
                old.as_ref() != self.pods.get(&uid)
            }
            Change::Pod(uid, None) => self.pods.remove(&uid).is_some(),
        }
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Option<Slice>) -> bool {
        if self.slices.get(&name) == slice.as_ref() {
            return false;
        }
        if let Some(old) = self.slices.remove(&name)
            && let Some(names) = self.slices_by_service.get_mut(&old.owner)
        {
            names.retain(|other| *other != name);
            if names.is_empty() {
                self.slices_by_service.remove(&old.owner);
            }
        }
        if let Some(slice) = slice {
            let names = self.slices_by_service.entry(slice.owner.clone()).or_default();
            if let Err(at) = names.binary_search(&name) {
                names.reserve_exact(1);
                names.insert(at, name.clone());
            }
            self.slices.insert(name, slice);
        }
        true
    }

    /// What is said of each cluster that has slices: the worst of what they say.
    pub fn peer_states(&self) -> BTreeMap<&ClusterName, PeerState> {
        let mut states = BTreeMap::new();
        for slice in self.slices.values() {
            if let Some(cluster) = &slice.source_cluster {
                let state: &mut PeerState = states.entry(cluster).or_default();
                *state = slice.peer.max(*state);
            }
        }
        states
    }

    /// The slices that belong to `service`, by name.
    pub fn slices_of(&self, service: &ServiceRef) -> impl Iterator<Item = &Slice> {
        self.slices_by_service.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }
}
