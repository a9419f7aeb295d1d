//! Three clusters of two nodes each, on one machine: west, east and north.
//!
//! A node is a network namespace with an agent, a pod a namespace with addresses of its own behind its node; the
//! nodes of all clusters meet on one bridge, the fabric, and have routes to each other's pods. [`crate::addresses`] has
//! the plan. Private pods have addresses that only their own cluster's nodes and gateway can reach.
//!
//! Cgroups are as a kubelet makes them: `<node>/kubepods/burstable/pod<uid>/<container>`, for agents too.
//!
//! What a cluster's API server would say lies in a folder of manifests per cluster; [`Clusters::publish`] brings them
//! up to date with the pods and the [`Mirroring`].

pub(crate) mod agent;
mod caller;
mod client;
mod netem;
mod outage;
mod pod;

pub use agent::Agent;
pub use caller::{Caller, Calls};
pub use client::{Client, Load};
pub use netem::Impairment;
pub use pod::Pod;

use crate::{
    addresses::{self, Dual, Network},
    cgroup::Cgroup,
    cleanup, kube_proxy,
    manifests::{self, Condition, Endpoints, Folder, Origin, Service, Source},
    netns::Netns,
    nft,
};
use anyhow::{Context, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::{Path, PathBuf},
};

/// The clusters' names, in the order of their numbers.
pub const NAMES: [&str; 3] = ["west", "east", "north"];
/// Nodes of each cluster.
const NODES: u8 = 2;
/// The port on the gateway that stands for `analytics`.
pub const GATEWAY_PORT: u16 = 31_001;
const BRIDGE: &str = "br0";

/// What the pods are called that [`Clusters::start_kube_proxy_client`] makes.
pub const KUBE_PROXY_CLIENT: &str = "kube-proxy-client";

/// Numbers of the ClusterIPs: see [`addresses::service`].
const SERVICES: [(&str, u8); 6] = [
    ("frontend", 10),
    ("api", 11),
    ("analytics", 12),
    ("frontend-federated", 20),
    ("api-of-another", 21),
    ("analytics-of-another", 22),
];

/// All clusters and what joins them.
#[derive(Debug)]
pub struct Clusters {
    // In the order in which they are dropped: clients before pods, the fabric last.
    clusters: Vec<Cluster>,
    gateway: Netns,
    fabric: Netns,
    programs: Programs,
    /// What the mirror makes of it all.
    pub mirroring: Mirroring,
    /// Clusters that nothing reaches and nothing leaves.
    dark: BTreeSet<&'static str>,
}

/// The programs that run in the clusters.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This crate's.
    pub lab: PathBuf,
    /// The agent, if there is to be one on each node.
    pub agent: Option<PathBuf>,
    /// Further flags of every agent.
    pub agent_flags: Vec<String>,
}

/// How the mirror of each cluster treats the federated service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirroring {
    /// Annotations on `frontend-federated`, in every cluster.
    pub annotations: BTreeMap<String, String>,
    /// Clusters that have withdrawn their services from the others.
    pub withdrawn: BTreeSet<String>,
    /// Where the others reach east's gateway, if not where it has always been.
    pub gateway: Option<Dual>,
}

/// One cluster.
#[derive(Debug)]
pub struct Cluster {
    name: &'static str,
    number: u8,
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    folder: Folder,
    started: u32,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    agent: Option<Agent>,
    netns: Netns,
    cgroup: Cgroup,
    last_address: u8,
}

impl Clusters {
    /// Makes the namespaces, cgroups and routes, an agent on each node (not yet ready) and a pod `client` in each
    /// cluster; no other pods and no manifests.
    pub fn build(programs: Programs) -> Result<Self> {
        let run = cleanup::folder()?;
        let fabric = Netns::named("fabric")?;
        fabric.bridge(BRIDGE)?;
        let gateway = Netns::named("east-gateway")?;
        gateway.forward()?;
        plug(&gateway, addresses::gateway(2), &fabric, "east-gateway")?;

        let mut clusters = Vec::new();
        for (name, number) in NAMES.into_iter().zip(1..) {
            let nodes: Result<Vec<Node>> = (1..=NODES).map(|node| Node::new(name, number, node, &fabric)).collect();
            let folder = Folder::new(run.join("manifests").join(name))?;
            clusters.push(Cluster { name, number, pods: Vec::new(), nodes: nodes?, folder, started: 0 });
        }
        let mut all =
            Self { clusters, gateway, fabric, programs, mirroring: Mirroring::default(), dark: BTreeSet::new() };
        all.join_nodes()?;
        for name in NAMES {
            all.start_client_pod(name)?;
        }
        all.publish()?;
        if all.programs.agent.is_some() {
            for cluster in &mut all.clusters {
                for node in &mut cluster.nodes {
                    node.agent = Some(Agent::new(&all.programs, cluster.name, node, &cluster.folder, &run)?);
                }
            }
        }
        Ok(all)
    }

    /// Starts an agent, not yet ready, on the node of the client of `cluster` alone: for clusters built without agents.
    pub fn start_client_agent(&mut self, cluster: &str, program: PathBuf) -> Result<()> {
        let programs = Programs { agent: Some(program), ..self.programs.clone() };
        let cluster = self.cluster_mut(cluster);
        let name = cluster.client().node().to_owned();
        let node = cluster.nodes.iter_mut().find(|each| each.name == name).expect("pods are on nodes");
        node.agent = Some(Agent::new(&programs, cluster.name, node, &cluster.folder, &cleanup::folder()?)?);
        Ok(())
    }

    /// Gives every node and the gateway routes to the pods on all the others, and to private pods only inside a
    /// cluster.
    fn join_nodes(&self) -> Result<()> {
        for to in &self.clusters {
            for behind in &to.nodes {
                let via = addresses::node(to.number, behind.number).both();
                let route = |netns: &Netns, network| -> Result<()> {
                    for (range, via) in addresses::pods(network, to.number, behind.number).into_iter().zip(via) {
                        netns.route_via(range, via)?;
                    }
                    Ok(())
                };
                route(&self.gateway, Network::Flat)?;
                if to.name == "east" {
                    route(&self.gateway, Network::Private)?;
                }
                for from in &self.clusters {
                    for node in from.nodes.iter().filter(|node| node.name != behind.name) {
                        route(&node.netns, Network::Flat)?;
                        if from.name == to.name {
                            route(&node.netns, Network::Private)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// All clusters.
    pub fn iter(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.iter()
    }

    /// The cluster called `name`.
    pub fn cluster(&self, name: &str) -> &Cluster {
        self.clusters.iter().find(|cluster| cluster.name == name).expect("clusters are named by constants")
    }

    /// The cluster called `name`.
    pub fn cluster_mut(&mut self, name: &str) -> &mut Cluster {
        self.clusters.iter_mut().find(|cluster| cluster.name == name).expect("clusters are named by constants")
    }

    /// All agents.
    pub fn agents(&mut self) -> impl Iterator<Item = &mut Agent> {
        self.clusters.iter_mut().flat_map(|cluster| &mut cluster.nodes).filter_map(|node| node.agent.as_mut())
    }

    /// What all nodes meet on. Its links are named after the nodes, `east-1`, and after gateways, `east-gateway`.
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// East's gateway.
    pub fn gateway(&self) -> &Netns {
        &self.gateway
    }

    /// Starts a pod of `app` on the node of `cluster` that has fewest, with a server that is listening when this
    /// returns. It is in no manifest before the next [`Self::publish`]. Returns its name.
    pub fn start_pod(&mut self, cluster: &str, app: &str, network: Network) -> Result<String> {
        let names = self.start_pods(&[(cluster, app, network, 1)])?;
        Ok(names.into_iter().next().expect("one was asked for"))
    }

    /// Starts pods side by side: cluster, app, network, and how many. Returns their names.
    pub fn start_pods(&mut self, wanted: &[(&str, &str, Network, usize)]) -> Result<Vec<String>> {
        let mut started = Vec::new();
        for &(cluster, app, network, count) in wanted {
            for _ in 0..count {
                let program = self.programs.lab.clone();
                let cluster = self.cluster_mut(cluster);
                let mut pod = cluster.add_pod(app, network)?;
                pod.serve(&program)?;
                started.push(pod.name().to_owned());
                cluster.pods.push(pod);
            }
        }
        for cluster in &mut self.clusters {
            for pod in &mut cluster.pods {
                pod.wait_until_ready()?;
            }
        }
        Ok(started)
    }

    fn start_client_pod(&mut self, cluster: &str) -> Result<()> {
        let cluster = self.cluster_mut(cluster);
        let pod = cluster.add_pod("client", Network::Flat)?;
        cluster.pods.push(pod);
        Ok(())
    }

    /// Starts to ask `targets` from the client pod of `cluster`.
    pub fn load(&self, cluster: &str, load: &Load) -> Result<Client> {
        Client::start(&self.programs.lab, self.cluster(cluster), load)
    }

    /// Starts to call a service from a pod of `cluster`: the client, or the one that [`Self::start_kube_proxy_client`]
    /// made.
    pub fn call(&self, cluster: &str, pod: &str, label: String, calls: &Calls) -> Result<Caller> {
        let pod =
            self.cluster(cluster).pods_of(pod).next().with_context(|| format!("{cluster} has no pod of {pod}"))?;
        Caller::start(&self.programs.lab, pod, label, calls)
    }

    /// Gives `cluster` a client that Tombolo has nothing to do with, for its cgroup is outside of the pods', and whose
    /// connections to `service`, federated, go by the rules of a kube-proxy instead. They are those of the moment.
    pub fn start_kube_proxy_client(&mut self, cluster: &str, service: &str) -> Result<()> {
        let of = service.strip_suffix("-federated").context("kube-proxy's client calls a federated service")?;
        let ready = |pod: &&Pod| pod.condition == Condition::Ready;
        let pods: Vec<Dual> =
            self.clusters.iter().flat_map(|each| each.pods_of(of)).filter(ready).map(Pod::addresses).collect();
        let rules = kube_proxy::rules(service, self.service_addresses(cluster, service), &pods);
        let cluster = self.cluster_mut(cluster);
        if cluster.pods_of(KUBE_PROXY_CLIENT).next().is_none() {
            let pod = cluster.add_pod(KUBE_PROXY_CLIENT, Network::Flat)?;
            cluster.pods.push(pod);
        }
        cluster.pods_of(KUBE_PROXY_CLIENT).try_for_each(|pod| nft::apply(pod.netns(), &rules))
    }

    /// The ClusterIPs of a service as `cluster` has it, and so its clients dial it. The name of a service mirrored from
    /// another cluster is `<service>-<cluster>`.
    pub fn service_addresses(&self, cluster: &str, service: &str) -> Dual {
        let of_another = service.split_once('-').filter(|(_, from)| NAMES.contains(from));
        let known = of_another.map_or_else(|| service.to_owned(), |(name, _)| format!("{name}-of-another"));
        let number = SERVICES.iter().find(|(name, _)| *name == known).expect("services are named by constants").1;
        addresses::service(self.cluster(cluster).number, number)
    }

    /// Brings every cluster's manifests, and the gateway, up to date.
    pub fn publish(&self) -> Result<()> {
        for cluster in &self.clusters {
            self.publish_to(cluster.name)?;
        }
        self.open_gateway()
    }

    /// Brings the manifests of one cluster up to date.
    pub fn publish_to(&self, cluster: &str) -> Result<()> {
        let cluster = self.cluster(cluster);
        let name = cluster.name;
        let service = |name: &str, origin| Service {
            name: name.to_owned(),
            addresses: self.service_addresses(cluster.name, name),
            origin,
            annotations: BTreeMap::new(),
        };
        let mut services = vec![service("frontend", Origin::Local), service("api", Origin::Local)];
        let mut slices = vec![cluster.built_in("frontend"), cluster.built_in("api")];

        let members = self.clusters.iter().filter(|member| member.name != name);
        let members: Vec<_> = members.filter(|member| !self.mirroring.withdrawn.contains(member.name)).collect();
        let federated = Origin::Federated {
            service: "frontend".to_owned(),
            members: members.iter().map(|member| member.name.to_owned()).collect(),
        };
        let annotations = self.mirroring.annotations.clone();
        services.push(Service { annotations, ..service("frontend-federated", federated) });
        slices.extend(members.iter().map(|member| member.mirrored("frontend", "frontend-federated")));

        let mirrored = |from: &str, service: &str, gateway| Origin::Mirrored {
            cluster: from.to_owned(),
            service: service.to_owned(),
            gateway,
        };
        match name {
            "west" => {
                services.push(service("api-east", mirrored("east", "api", false)));
                slices.push(self.cluster("east").mirrored("api", "api-east"));
            }
            "east" => {
                services.push(service("analytics", Origin::Local));
                slices.push(cluster.built_in("analytics"));
                services.push(service("api-west", mirrored("west", "api", false)));
                slices.push(self.cluster("west").mirrored("api", "api-west"));
            }
            _ => {
                services.push(service("analytics-east", mirrored("east", "analytics", true)));
                slices.push(Endpoints {
                    service: "analytics-east".to_owned(),
                    source: mirror("east", "analytics", true),
                    port: GATEWAY_PORT,
                    endpoints: vec![manifests::Endpoint {
                        addresses: self.mirroring.gateway.unwrap_or(addresses::gateway(2)),
                        condition: Condition::Ready,
                        zone: None,
                        pod: None,
                    }],
                });
            }
        }
        cluster.folder.write(&services, &slices).with_context(|| format!("write the manifests of {name}"))
    }

    /// Has east's gateway forward a port to the pods of `analytics`, as kube-proxy does it for a node port.
    fn open_gateway(&self) -> Result<()> {
        let pods: Vec<Dual> = self.cluster("east").pods_of("analytics").map(Pod::addresses).collect();
        let mut rules = "flush ruleset\n".to_owned();
        if !pods.is_empty() {
            for (family, side) in [("ip", 0), ("ip6", 1)] {
                let pods = pods.iter().enumerate().map(|(n, pod)| format!("{n} : {}", pod.both()[side]));
                let pods: Vec<String> = pods.collect();
                let (count, map) = (pods.len(), pods.join(", "));
                writeln!(
                    rules,
                    "table {family} gateway {{
                        chain in {{
                            type nat hook prerouting priority dstnat;
                            meta l4proto {{ tcp, udp }} th dport {GATEWAY_PORT} \
                                dnat to numgen random mod {count} map {{ {map} }} : {port}
                        }}
                        chain out {{
                            type nat hook postrouting priority srcnat;
                            masquerade
                        }}
                    }}",
                    port = manifests::POD_PORT
                )?;
            }
        }
        nft::apply(&self.gateway, &rules)
    }
}

impl Cluster {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The folder of its manifests.
    pub fn manifests(&self) -> &Path {
        self.folder.path()
    }

    /// Its pods, the client included.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Its pods, the client included.
    pub fn pods_mut(&mut self) -> &mut [Pod] {
        &mut self.pods
    }

    /// The pods of `app`.
    pub fn pods_of(&self, app: &str) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| pod.app() == app)
    }

    /// The pod called `name`.
    pub fn pod_mut(&mut self, name: &str) -> Result<&mut Pod> {
        self.pods.iter_mut().find(|pod| pod.name() == name).with_context(|| format!("there is no pod {name}"))
    }

    /// Removes a pod that has ended, or ends it.
    pub fn remove_pod(&mut self, name: &str) {
        self.pods.retain(|pod| pod.name() != name);
    }

    /// Removes the pods whose server has ended.
    pub fn remove_ended_pods(&mut self) -> Result<()> {
        let mut kept = Vec::new();
        for mut pod in self.pods.drain(..) {
            if !pod.has_ended()? {
                kept.push(pod);
            }
        }
        self.pods = kept;
        Ok(())
    }

    /// The pod that clients run in.
    pub fn client(&self) -> &Pod {
        self.pods_of("client").next().expect("every cluster has a client")
    }

    /// The agent of the node that the client is on.
    pub fn client_agent(&mut self) -> Result<&mut Agent> {
        let node = self.client().node().to_owned();
        let node = self.nodes.iter_mut().find(|each| each.name == node).expect("pods are on nodes");
        node.agent.as_mut().context("the clusters were built without agents")
    }

    fn add_pod(&mut self, app: &str, network: Network) -> Result<Pod> {
        let crowd = |node: &Node| self.pods.iter().filter(|pod| pod.node() == node.name && pod.app() == app).count();
        let node = self.nodes.iter().map(crowd).enumerate().min_by_key(|&(_, crowd)| crowd).map(|(at, _)| at);
        let node = &mut self.nodes[node.expect("every cluster has nodes")];
        self.started += 1;
        node.last_address += 1;
        ensure!(node.last_address < 255, "{} has no address left for a pod", node.name);
        let addresses = addresses::pod(network, self.number, node.number, node.last_address);
        let gateway = addresses::pod(network, self.number, node.number, 1);
        let cgroup = match app {
            KUBE_PROXY_CLIENT => node.outside(app),
            _ => node.container(&pod::uid(self.started), app),
        };
        Pod::new(self.name, app, self.started, (node, cgroup?), addresses, gateway)
    }

    fn built_in(&self, service: &str) -> Endpoints {
        self.endpoints(service, service, Source::BuiltIn)
    }

    /// This cluster's endpoints of `service`, as the mirror of another cluster writes them for `there`.
    fn mirrored(&self, service: &str, there: &str) -> Endpoints {
        self.endpoints(service, there, mirror(self.name, service, false))
    }

    fn endpoints(&self, app: &str, service: &str, source: Source) -> Endpoints {
        let local = source == Source::BuiltIn;
        let endpoints = self.pods_of(app).map(|pod| manifests::Endpoint {
            addresses: pod.addresses(),
            condition: pod.condition,
            zone: Some(pod.zone().to_owned()),
            pod: local.then(|| (pod.node().to_owned(), pod.name().to_owned())),
        });
        Endpoints { service: service.to_owned(), source, port: manifests::POD_PORT, endpoints: endpoints.collect() }
    }
}

impl Node {
    fn new(cluster: &str, cluster_number: u8, number: u8, fabric: &Netns) -> Result<Self> {
        let name = format!("{cluster}-{number}");
        let netns = Netns::named(&name)?;
        netns.forward()?;
        plug(&netns, addresses::node(cluster_number, number), fabric, &name)?;
        let cgroup = Cgroup::new(&name)?;
        Ok(Self { name, number, agent: None, netns, cgroup, last_address: 1 })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The zone it is in.
    pub fn zone(&self) -> String {
        let (cluster, _) = self.name.split_once('-').expect("node names are made of two parts");
        format!("{cluster}-{}", char::from(b'a' + self.number - 1))
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its agent, if there is one.
    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// A cgroup for a process of the node itself, outside of all pods'.
    fn outside(&self, name: &str) -> Result<Cgroup> {
        self.cgroup.child(&format!("system.slice/{name}"))
    }

    /// A cgroup for a container of a new pod, named as a kubelet names them.
    fn container(&self, uid: &str, container: &str) -> Result<Cgroup> {
        self.cgroup.child(&format!("kubepods/burstable/pod{uid}/{container}"))
    }
}

fn mirror(cluster: &str, service: &str, gateway: bool) -> Source {
    Source::Mirror { cluster: cluster.to_owned(), service: service.to_owned(), gateway }
}

/// Joins `netns` to the fabric, by a link that has its name there.
fn plug(netns: &Netns, host: Dual, fabric: &Netns, name: &str) -> Result<()> {
    netns.veth("eth0", fabric, name)?;
    fabric.bridge_port(name, BRIDGE)?;
    for address in addresses::on_fabric(host) {
        netns.address("eth0", address)?;
    }
    Ok(())
}
