//! `tombolo mirror`: brings the peers' endpoints in.

use crate::{
    mirror::{
        controller::{self, PeerConfig, Setup},
        gateway::{self, Exposure},
        leader,
        lease::Terms,
        links::{self, book::Book},
        serve::{View, serve},
        source::LinkName,
        validate,
    },
    model::ClusterName,
    sources::{
        kubernetes::{cluster_id, connect},
        objects::cluster_name,
    },
    telemetry,
};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use std::{net::SocketAddr, path::PathBuf, pin::pin, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::info;

/// Run the mirror.
#[derive(Args)]
pub(super) struct MirrorArgs {
    /// This cluster's id in the ClusterSet; without it, what the ClusterProperty cluster.clusterset.k8s.io says.
    #[arg(long, env = "TOMBOLO_CLUSTER", value_name = "NAME", value_parser = cluster_name)]
    cluster: Option<ClusterName>,
    /// The kubeconfig of this cluster; without it, that of the pod that this runs in.
    #[arg(long, env = "TOMBOLO_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// For development: a peer, by its id in the ClusterSet, and the kubeconfig that reaches it, beside those that Link objects
    /// name.
    #[arg(long, env = "TOMBOLO_LINK", value_name = "NAME=KUBECONFIG", value_delimiter = ',', value_parser = link)]
    link: Vec<(ClusterName, PathBuf)>,
    /// Where a peer's pods may be that was given by --link; without it anywhere that isn't refused for another reason.
    #[arg(long, env = "TOMBOLO_POD_RANGES", value_name = "NAME=RANGE", value_delimiter = ',', value_parser = named_range)]
    pod_ranges: Vec<(ClusterName, IpNet)>,
    /// A peer that was given by --link and whose pods can't be reached from here: its gateway leads to them.
    #[arg(long, env = "TOMBOLO_GATEWAY_ONLY", value_name = "NAME", value_delimiter = ',', value_parser = cluster_name)]
    gateway_only: Vec<ClusterName>,
    /// Where the gateway of a peer may be that was given by --link. The agents fall back on it when the peer's pods are out of reach.
    #[arg(long, env = "TOMBOLO_GATEWAY_RANGES", value_name = "NAME=RANGE", value_delimiter = ',', value_parser = named_range)]
    gateway_ranges: Vec<(ClusterName, IpNet)>,
    /// Keep a gateway for peers that can't reach this cluster's pods: Services of this type, with a port for each exported one.
    #[arg(long, env = "TOMBOLO_GATEWAY", value_name = "TYPE", value_enum)]
    gateway: Option<GatewayType>,
    /// An annotation for the gateway's Services, by which clouds are told what load balancer it should be.
    #[arg(long, env = "TOMBOLO_GATEWAY_ANNOTATION", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = annotation, requires = "gateway")]
    gateway_annotation: Vec<(String, String)>,
    /// An address or a host name that peers are to dial instead of the load balancer's or the nodes'.
    #[arg(long, env = "TOMBOLO_GATEWAY_ADDRESS", value_name = "ADDRESS", value_delimiter = ',', requires = "gateway")]
    gateway_address: Vec<String>,
    /// The namespace of Link objects, of the Secrets that they name, and of the gateway.
    #[arg(long, env = "TOMBOLO_NAMESPACE", value_name = "NAMESPACE", default_value = "tombolo-system")]
    namespace: String,
    /// The namespace of Linkerd's Links, where Linkerd runs.
    #[arg(long, env = "TOMBOLO_LINKERD_NAMESPACE", value_name = "NAMESPACE", default_value = "linkerd-multicluster")]
    linkerd_namespace: String,
    /// Where metrics are served (/metrics), and whether it is ready (/readyz); nowhere without it.
    #[arg(long, env = "TOMBOLO_METRICS", value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// The Lease by which one of several mirrors leads.
    #[arg(long, env = "TOMBOLO_LEASE", value_name = "NAMESPACE/NAME", default_value = "tombolo-system/tombolo-mirror")]
    lease: String,
    /// A peer that wasn't heard for so long is lost, in seconds.
    #[arg(long, env = "TOMBOLO_PEER_LEASE", value_name = "SECONDS", default_value_t = 40, value_parser = clap::value_parser!(u32).range(10..=3600))]
    peer_lease: u32,
    /// The endpoints of a peer that was lost for so long are removed, in seconds.
    #[arg(long, env = "TOMBOLO_STALE_AFTER", value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(60..=7 * 86_400))]
    stale_after: u32,
}

fn link(text: &str) -> Result<(ClusterName, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("is not of the form name=kubeconfig")?;
    Ok((cluster_name(name)?, PathBuf::from(file)))
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GatewayType {
    /// Addresses of the cloud's load balancer.
    LoadBalancer,
    /// Addresses of nodes.
    NodePort,
}

fn annotation(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("is not of the form name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn named_range(text: &str) -> Result<(ClusterName, IpNet), String> {
    let (name, range) = text.split_once('=').ok_or("is not of the form name=address/length")?;
    Ok((cluster_name(name)?, validate::range(range)?))
}

pub(super) fn run(args: MirrorArgs) -> anyhow::Result<()> {
    telemetry::init()?;
    let (namespace, name) = args.lease.split_once('/').context("--lease is not of the form namespace/name")?;
    let removed = Duration::from_secs(args.stale_after.into());
    let lease = Duration::from_secs(args.peer_lease.into());
    let terms = Terms { lease, removed, stale: removed / 6, ..Terms::default() };
    let flags = args.link.iter().map(|(cluster, _)| LinkName(cluster.0.clone())).collect();
    let gateway = args.gateway.map(|exposure| gateway::Config {
        namespace: args.namespace.clone(),
        exposure: match exposure {
            GatewayType::LoadBalancer => Exposure::LoadBalancer,
            GatewayType::NodePort => Exposure::NodePort,
        },
        annotations: args.gateway_annotation.iter().cloned().collect(),
        addresses: args.gateway_address.iter().cloned().collect(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("start the runtime")?.block_on(async {
        let own = connect(args.kubeconfig.as_deref()).await?;
        let name_here = match args.cluster {
            Some(cluster) => cluster,
            None => cluster_id(&own).await?,
        };
        let book = Book::new(name_here.clone(), terms, flags);
        let mut peers = Vec::new();
        for (created, (cluster, kubeconfig)) in (0..).zip(&args.link) {
            if *cluster == name_here || peers.iter().any(|peer: &PeerConfig| peer.link.cluster == *cluster) {
                bail!("--link {cluster}: a cluster is linked once, and not with itself");
            }
            // The order in which they are given stands for their age.
            let mut link = links::plain(cluster.clone(), created);
            let of = |ranges: &[(ClusterName, IpNet)]| {
                ranges.iter().filter(|(name, _)| name == cluster).map(|(_, range)| *range).collect()
            };
            link.pod_ranges = of(&args.pod_ranges);
            link.gateway_ranges = of(&args.gateway_ranges);
            link.is_flat = !args.gateway_only.contains(cluster);
            let client = connect(Some(kubeconfig)).await.with_context(|| format!("link {cluster}"))?;
            peers.push(PeerConfig { name: LinkName(cluster.0.clone()), link, client });
        }
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let leader = leader::Candidate::new(own.clone(), namespace, name);
        let (view, seen) = watch::channel(View::default());
        let mut serving = pin!(async {
            match args.metrics {
                Some(address) => serve(address, seen).await,
                None => std::future::pending().await,
            }
        });
        let mut stop = pin!(async {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        });
        let leading = tokio::select! {
            leading = leader.win() => leading?,
            ended = &mut serving => return ended.context("serve metrics"),
            signal = &mut stop => return stopped(signal),
        };
        let (shown, links) = watch::channel(None);
        let following = links::follow::follow(own.clone(), args.namespace, args.linkerd_namespace, book, shown);
        let setup = Setup { cluster: name_here, own, peers, gateway, terms };
        let signal = tokio::select! {
            ended = controller::run(setup, links, view) => return ended.context("mirror"),
            ended = following => return ended.context("follow links"),
            ended = serving => return ended.context("serve metrics"),
            lost = leading.hold() => return lost.context("lead"),
            signal = stop => signal,
        };
        // Nothing is written any more: another one may begin at once.
        leading.release().await;
        stopped(signal)
    })
}

fn stopped(signal: &str) -> anyhow::Result<()> {
    info!(signal, "stopping; what was written stays");
    Ok(())
}
