//! `tombolo link`: prints what has to be applied where so that this cluster imports from another one.

use super::say;
use crate::{
    mirror::{
        links::{
            credentials,
            manifests::{OwnHalf, PeerHalf, covering},
        },
        validate,
    },
    model::ClusterName,
    sources::{
        documents::documents,
        kubernetes::{cluster_id, connect_as},
        objects::{cluster_name, names::is_label},
    },
};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::{
    Api, Client,
    api::ListParams,
    config::{Cluster, Kubeconfig},
};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};
use tokio::time::{Instant, sleep};

/// How long the peer may take to make a token.
const PATIENCE: Duration = Duration::from_secs(15);

/// Print the manifests of a link.
///
/// Its flags are no environment variables, as those of other subcommands are: these names stand for the cluster that agent and mirror run in.
#[derive(Args)]
pub(super) struct LinkArgs {
    /// What the link is called here. Mirrored Services are called after it, `<service>-<link>`.
    #[arg(value_parser = link_name)]
    name: String,
    /// Print the half that is applied in the other cluster: an account that may read what is exported. Apply it first.
    #[arg(long)]
    peer: bool,
    /// The kubeconfig by which you reach the other cluster. What is printed holds its server and its certificate authority, not
    /// your credential.
    #[arg(long, value_name = "FILE", required_unless_present = "peer")]
    kubeconfig: Option<PathBuf>,
    /// Where the mirror reaches the other cluster's API server, where that is another address than yours.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The other cluster's id in the ClusterSet; by default its ClusterProperty, else the link's name.
    #[arg(long, value_name = "NAME", value_parser = cluster_name)]
    cluster: Option<ClusterName>,
    /// Whether the other cluster's pods can be reached from here, or its gateways only.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Where its pods may be; by default what it says of itself.
    #[arg(long, value_name = "RANGE", value_delimiter = ',', value_parser = validate::range)]
    pod_ranges: Vec<IpNet>,
    /// Where its gateways may be.
    #[arg(long, value_name = "RANGE", value_delimiter = ',', value_parser = validate::range)]
    gateway_ranges: Vec<IpNet>,
    /// The mirror's namespace, in both clusters.
    #[arg(long, value_name = "NAMESPACE", default_value = "tombolo-system")]
    namespace: String,
    /// The account in the other cluster. One for each cluster that imports can be taken away from each.
    #[arg(long, value_name = "NAME", default_value = "tombolo-peer")]
    account: String,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// By their addresses.
    #[default]
    Flat,
    /// Through gateways.
    Gateway,
}

fn link_name(text: &str) -> Result<String, String> {
    if is_label(text) { Ok(text.to_owned()) } else { Err("at most 63 of a to z, 0 to 9 and -".to_owned()) }
}

pub(super) fn run(args: &LinkArgs) -> anyhow::Result<()> {
    let half = PeerHalf { namespace: &args.namespace, account: &args.account };
    let Some(file) = args.kubeconfig.as_ref().filter(|_| !args.peer) else {
        return print(&half.objects());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let read = Kubeconfig::read_from(file).with_context(|| format!("use kubeconfig {}", file.display()))?;
        let place = cluster(&read).with_context(|| format!("use kubeconfig {}", file.display()))?.clone();
        let client = connect_as(read).await.with_context(|| format!("use kubeconfig {}", file.display()))?;
        let token = token(&client, &half, &args.name).await?;
        let kubeconfig = credentials::kubeconfig(&args.name, &place, args.server.as_deref(), &token)?;
        // Found now rather than by the mirror.
        credentials::Credentials::new(kubeconfig.clone().into_bytes()).read().map_err(anyhow::Error::msg)?;
        let cluster = match &args.cluster {
            Some(cluster) => Some(cluster.0.clone()),
            None => cluster_id(&client).await.ok().map(|cluster| cluster.0),
        };
        let pod_ranges = match &args.pod_ranges[..] {
            [] if args.mode == Mode::Flat => discovered(&client).await,
            given => given.to_vec(),
        };
        let own = OwnHalf {
            namespace: &args.namespace,
            name: &args.name,
            cluster: cluster.as_deref().filter(|cluster| *cluster != args.name),
            is_gateway: args.mode == Mode::Gateway,
            pod_ranges: &pod_ranges,
            gateway_ranges: &args.gateway_ranges,
            kubeconfig: &kubeconfig,
        };
        print(&own.objects())
    })
}

/// The cluster of the current context.
fn cluster(read: &Kubeconfig) -> anyhow::Result<&Cluster> {
    let name = read.current_context.as_ref().context("it has no current-context")?;
    let context = read.contexts.iter().find(|context| context.name == *name).and_then(|it| it.context.as_ref());
    let context = context.context("it lacks its current-context")?;
    let cluster = read.clusters.iter().find(|cluster| cluster.name == context.cluster);
    cluster.and_then(|it| it.cluster.as_ref()).context("it lacks its context's cluster")
}

/// The token of the account in the peer.
async fn token(client: &Client, half: &PeerHalf<'_>, link: &str) -> anyhow::Result<String> {
    let (secret, deadline) = (half.token_secret(), Instant::now() + PATIENCE);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), half.namespace);
    loop {
        let found =
            secrets.get_opt(&secret).await.with_context(|| format!("read Secret {secret} of the other cluster"))?;
        let Some(found) = found else {
            bail!(
                "the other cluster has no Secret {}/{secret}: apply its half first, \
                 `tombolo link {link} --peer | kubectl --kubeconfig … apply -f -`",
                half.namespace
            );
        };
        if let Some(token) = found.data.as_ref().and_then(|data| data.get("token")) {
            return String::from_utf8(token.0.clone()).context("the token is not text");
        }
        if Instant::now() > deadline {
            bail!("the other cluster's controllers have put no token into Secret {}/{secret}", half.namespace);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Where the cluster says that its pods are. That it doesn't say so is told, and is no error.
async fn discovered(client: &Client) -> Vec<IpNet> {
    let (ranges, source) = match of_kubeadm(client).await {
        Some(ranges) => (ranges, "its kubeadm configuration"),
        None => (of_nodes(client).await, "the podCIDRs of its nodes"),
    };
    if ranges.is_empty() {
        eprintln!(
            "warning: the other cluster doesn't say where its pods are, so the link lets in endpoints at any address that isn't \
             refused for another reason; say it by --pod-ranges"
        );
    } else {
        let named: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        eprintln!("podRanges {} by {source}; --pod-ranges says otherwise", named.join(", "));
    }
    ranges
}

async fn of_kubeadm(client: &Client) -> Option<Vec<IpNet>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let map = maps.get_opt("kubeadm-config").await.ok()??;
    let text = map.data?.remove("ClusterConfiguration")?;
    let document: Value = documents(text.as_bytes()).into_iter().next()?.ok()?.value;
    let subnets = document["networking"]["podSubnet"].as_str()?;
    let ranges: Vec<IpNet> = subnets.split(',').filter_map(|range| validate::range(range).ok()).collect();
    (!ranges.is_empty()).then_some(ranges)
}

async fn of_nodes(client: &Client) -> Vec<IpNet> {
    let nodes: Api<Node> = Api::all(client.clone());
    let Ok(nodes) = nodes.list(&ListParams::default()).await else { return Vec::new() };
    let ranges: Vec<IpNet> = nodes
        .items
        .into_iter()
        .flat_map(|node| node.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default())
        .filter_map(|range| range.parse().ok())
        .collect();
    // What is too wide to be a link's range isn't one cluster's.
    covering(&ranges).into_iter().filter(|range| validate::range(&range.to_string()).is_ok()).collect()
}

/// As a stream of YAML documents.
fn print(objects: &[Value]) -> anyhow::Result<()> {
    for object in objects {
        let document = serde_saphyr::to_string(object).context("write YAML")?;
        say(format!("---\n{}", document.trim_end()))?;
    }
    Ok(())
}
