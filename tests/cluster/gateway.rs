//! A gateway between two API servers: the mirror of east keeps it, the mirror of west finds it and follows it.

use super::{
    followed::{Followed, PATIENCE},
    objects::{NAMESPACE, ground, patch, put, put_built_in},
    pair::spawn,
    server::Server,
};
use anyhow::Context;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tombolo::{
    mirror::{
        controller::{PeerConfig, Setup},
        gateway::{Config, Exposure},
        lease::Terms,
        links,
        source::{Link, LinkName},
    },
    model::{ClusterName, Path},
};

const SYSTEM: &str = "tombolo-system";
const GATEWAY: &str = "tombolo-gateway-tcp-0";

#[tokio::test]
async fn what_is_not_flat_leads_through_the_nodes_of_the_peer() -> anyhow::Result<()> {
    let Some((east_server, west_server)) = servers().await? else { return Ok(()) };
    let (east, west) = (east_server.client(0, "admin").await?, west_server.client(0, "admin").await?);
    node(&east, "node-1", "203.0.113.21", true).await?;
    node(&east, "node-2", "203.0.113.22", true).await?;
    let exporting = keep_gateway(&east, Exposure::NodePort);
    let importing = import(&west, &east, |link| link.is_flat = false);

    // Exported through the gateway: by the addresses of all nodes that are ready, at the port that the API server chose.
    put_analytics(&east, "true").await?;
    let port = node_port(&east).await?;
    let at = |addresses: &[&str]| addresses.iter().map(|it| format!("{it}:{port} ready")).collect::<Vec<_>>();
    both(&west, &at(&["203.0.113.21", "203.0.113.22"]), &[]).await?;
    // Its pods are where the port leads, in the exporting cluster.
    let there = endpoints(&east, SYSTEM, "kubernetes.io/service-name", GATEWAY).await?;
    assert_eq!(there, ["10.0.0.1:8080 ready"]);

    // A node that isn't ready is left out, and one whose address changes is followed.
    node(&east, "node-2", "203.0.113.22", false).await?;
    both(&west, &at(&["203.0.113.21"]), &[]).await?;
    node(&east, "node-1", "203.0.113.31", true).await?;
    both(&west, &at(&["203.0.113.31"]), &[]).await?;

    // Without a ready pod nobody is sent there.
    let slice = |ready: bool| json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]});
    patch::<EndpointSlice>(&east, "analytics-1", slice(false)).await?;
    both(&west, &[format!("203.0.113.31:{port} unready")], &[]).await?;
    patch::<EndpointSlice>(&east, "analytics-1", slice(true)).await?;
    both(&west, &at(&["203.0.113.31"]), &[]).await?;

    // Flat by its label, which this link can't do: the gateway still leads there. Then exported no more: all of it goes.
    label(&east, json!("remote-discovery")).await?;
    until("the flat mirror", || async {
        let service = api::<Service>(&west, NAMESPACE).get("analytics-east").await?;
        Ok(service.metadata.labels.unwrap_or_default().contains_key("multicluster.linkerd.io/remote-discovery"))
    })
    .await?;
    both(&west, &at(&["203.0.113.31"]), &[]).await?;
    label(&east, json!(null)).await?;
    until("gone", || async { Ok(api::<Service>(&west, NAMESPACE).get_opt("analytics-east").await?.is_none()) }).await?;
    until("leads nowhere", || async {
        Ok(endpoints(&east, SYSTEM, "kubernetes.io/service-name", GATEWAY).await?.is_empty())
    })
    .await?;

    // Another leader finds the same allocation, and what is exported again is at the same port.
    exporting.abort();
    let exporting = keep_gateway(&east, Exposure::NodePort);
    label(&east, json!("true")).await?;
    both(&west, &at(&["203.0.113.31"]), &[]).await?;
    assert_eq!(node_port(&east).await?, port);

    // A flat link that names the gateway has it as a fallback, where the agent alone finds it.
    importing.abort();
    label(&east, json!("remote-discovery")).await?;
    let importing = import(&west, &east, |link| link.gateway_ranges = vec!["203.0.113.0/24".parse().expect("a range")]);
    both(&west, &["10.0.0.1:8080 ready".to_owned()], &[format!("203.0.113.31:{port} unready")]).await?;
    let mut followed = Followed::start(&west_server, 0, "admin").await?;
    followed.until("the fallback", |it| it.model.slices.values().any(|slice| slice.fallback)).await?;
    let known: BTreeSet<_> = followed.model.slices.values().map(|it| (it.path, it.fallback)).collect();
    assert_eq!(known, BTreeSet::from([(Path::Pod, false), (Path::Gateway, true)]));
    assert_eq!(followed.problems, []);

    // What lies outside the link's ranges doesn't come in.
    node(&east, "node-1", "198.51.100.1", true).await?;
    both(&west, &["10.0.0.1:8080 ready".to_owned()], &[]).await?;
    importing.abort();
    exporting.abort();
    Ok(())
}

#[tokio::test]
async fn a_load_balancer_is_followed_wherever_it_is_put() -> anyhow::Result<()> {
    let Some((east_server, west_server)) = servers().await? else { return Ok(()) };
    let (east, west) = (east_server.client(0, "admin").await?, west_server.client(0, "admin").await?);
    let exporting = keep_gateway(&east, Exposure::LoadBalancer);
    let importing = import(&west, &east, |link| link.is_flat = false);
    put_analytics(&east, "true").await?;
    let mut port = None;
    until("the gateway's Service", || async { Ok(gateway(&east).await?.is_some()) }).await?;
    for (ip, mode) in [("198.51.100.20", "VIP"), ("198.51.100.21", "VIP")] {
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": mode}]}}});
        let services = api::<Service>(&east, SYSTEM);
        services.patch_status(GATEWAY, &PatchParams::default(), &Patch::Merge(status)).await?;
        let service = gateway(&east).await?.context("it is there")?;
        let number = service.spec.and_then(|spec| Some(spec.ports?.first()?.port)).context("a port")?;
        assert_eq!(*port.get_or_insert(number), number, "the port stays");
        both(&west, &[format!("{ip}:{number} ready")], &[]).await?;
    }
    // A Service that somebody deletes comes back with the same ports, and is nowhere until it has an address again.
    api::<Service>(&east, SYSTEM).delete(GATEWAY, &Default::default()).await?;
    both(&west, &[], &[]).await?;
    until("the gateway's Service again", || async {
        let ports = gateway(&east).await?.and_then(|service| service.spec?.ports).unwrap_or_default();
        Ok(ports.first().map(|first| first.port) == port)
    })
    .await?;
    importing.abort();
    exporting.abort();
    Ok(())
}

/// East, and west with an API server of its own; none, which was said, without their programs.
async fn servers() -> anyhow::Result<Option<(Server, Server)>> {
    let Some(east) = Server::start().await? else { return Ok(None) };
    let Some(west) = Server::start().await? else { return Ok(None) };
    for server in [&east, &west] {
        let client = server.client(0, "admin").await?;
        ground(&client).await?;
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": SYSTEM}}))?;
        Api::all(client).create(&PostParams::default(), &namespace).await?;
    }
    Ok(Some((east, west)))
}

/// Runs the mirror of east, which links to nobody.
fn keep_gateway(east: &Client, exposure: Exposure) -> JoinHandle<anyhow::Result<()>> {
    let config =
        Config { namespace: SYSTEM.to_owned(), exposure, annotations: BTreeMap::new(), addresses: BTreeSet::new() };
    let cluster = ClusterName("east".to_owned());
    spawn(Setup { cluster, own: east.clone(), peers: Vec::new(), gateway: Some(config), terms: Terms::default() })
}

/// Runs the mirror of west, which links to east.
fn import(west: &Client, east: &Client, change: impl FnOnce(&mut Link)) -> JoinHandle<anyhow::Result<()>> {
    let mut link = links::plain(ClusterName("east".to_owned()), 0);
    change(&mut link);
    let peer = PeerConfig { name: LinkName("east".to_owned()), link, client: east.clone() };
    let cluster = ClusterName("west".to_owned());
    spawn(Setup { cluster, own: west.clone(), peers: vec![peer], gateway: None, terms: Terms::default() })
}

async fn put_analytics(client: &Client, exported: &str) -> anyhow::Result<()> {
    let meta = json!({"name": "analytics", "labels": {"mirror.linkerd.io/exported": exported}});
    let spec = json!({"selector": {"app": "analytics"}, "ports": [{"port": 80}]});
    put::<Service>(client, json!({"metadata": meta, "spec": spec})).await?;
    put_built_in(client, "analytics-1", "analytics", "10.0.0.1").await
}

async fn label(client: &Client, exported: Value) -> anyhow::Result<()> {
    let labels = json!({"metadata": {"labels": {"mirror.linkerd.io/exported": exported}}});
    patch::<Service>(client, "analytics", labels).await
}

/// What a kubelet says of a node.
async fn node(client: &Client, name: &str, address: &str, is_ready: bool) -> anyhow::Result<()> {
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}],
    }});
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

fn api<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    Api::namespaced(client.clone(), namespace)
}

async fn gateway(east: &Client) -> anyhow::Result<Option<Service>> {
    Ok(api::<Service>(east, SYSTEM).get_opt(GATEWAY).await?)
}

/// The node port of the gateway's only port.
async fn node_port(east: &Client) -> anyhow::Result<i32> {
    until("a node port", || async { Ok(gateway(east).await?.is_some()) }).await?;
    let ports = gateway(east).await?.and_then(|service| service.spec?.ports).context("it has ports")?;
    anyhow::ensure!(ports.len() == 1, "{ports:?}");
    ports[0].node_port.context("a node port")
}

/// Waits until west's mirror of analytics has these endpoints for everybody, and these for agents.
async fn both(west: &Client, all: &[String], agents: &[String]) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let for_all = endpoints(west, NAMESPACE, "kubernetes.io/service-name", "analytics-east").await?;
        let for_agents = endpoints(west, NAMESPACE, "tombolo.io/fallback-for", "analytics-east").await?;
        if for_all == all && for_agents == agents {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "{for_all:?} {for_agents:?} instead of {all:?} {agents:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The endpoints of the slices with a label, as `address:port ready`, in order.
async fn endpoints(client: &Client, namespace: &str, label: &str, value: &str) -> anyhow::Result<Vec<String>> {
    let params = ListParams::default().labels(&format!("{label}={value}"));
    let mut found = Vec::new();
    for slice in api::<EndpointSlice>(client, namespace).list(&params).await? {
        let port = slice.ports.iter().flatten().find_map(|port| port.port).context("a port")?;
        for endpoint in slice.endpoints {
            let is_ready = endpoint.conditions.is_some_and(|conditions| conditions.ready == Some(true));
            found.push(format!("{}:{port} {}", endpoint.addresses[0], if is_ready { "ready" } else { "unready" }));
        }
    }
    found.sort();
    Ok(found)
}

async fn until<F: Future<Output = anyhow::Result<bool>>>(what: &str, holds: impl Fn() -> F) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await? {
        anyhow::ensure!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
