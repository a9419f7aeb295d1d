//! What the API server says of the place: the node's zone, how many nodes there are, which cluster this is.

use super::{news::Failure, pace, reach::Reach};
use crate::{
    model::ClusterName,
    sources::{Origin, Problem, objects::cluster_name},
};
use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::warn;

const ZONE: &str = "topology.kubernetes.io/zone";
/// What it was called before Kubernetes 1.17.
const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
/// How often the node is looked at. Until it is in a zone more often: clouds write that some time after the node is there.
const LOOK: Duration = Duration::from_secs(600);
const LOOK_FOR_ZONE: Duration = Duration::from_secs(30);

/// ClusterProperties, whose name says what they are.
const CLUSTER_ID: &str = "cluster.clusterset.k8s.io";
const ABOUT: &str = "about.k8s.io";
const ABOUT_VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// How long the last error is not repeated in the log.
const REPEAT: Duration = Duration::from_secs(60);

/// What a look at the node gave: its zone, or what is wrong.
pub(super) type Look = Result<Option<String>, Problem>;

/// Looks at the node from time to time, and counts nodes.
pub(super) async fn run(
    client: Client,
    node: String,
    reach: Arc<Reach>,
    told: mpsc::Sender<Look>,
) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(client);
    let mut refusals = 0;
    loop {
        let look = nodes.get(&node).await.map(|node| zone(&node));
        if look.is_ok()
            && let Ok(count) = count(&nodes).await
        {
            reach.set_nodes(count);
        }
        let failure = look.as_ref().err().map(|error| Failure::of(error, "get", "nodes"));
        let wait = match &failure {
            None if matches!(look, Ok(Some(_))) => LOOK,
            None => LOOK_FOR_ZONE,
            Some(_) => {
                refusals += 1;
                pace::refused(refusals, 0.5)
            }
        };
        let told_look = match &failure {
            None => Ok(look.ok().flatten()),
            Some(failure) => Err(Problem {
                origin: Origin::Watch(format!("Node {node}")),
                reason: format!("{}; without --zone its zone is unknown", failure.reason()),
            }),
        };
        if told.send(told_look).await.is_err() {
            return Ok(());
        }
        match failure {
            Some(Failure::Unreachable(reason)) => reach.regain(&reason).await,
            _ => sleep(wait.mul_f64(0.75 + pace::chance() / 2.0)).await,
        }
    }
}

fn zone(node: &Node) -> Option<String> {
    let labels = node.metadata.labels.as_ref()?;
    labels.get(ZONE).or_else(|| labels.get(OLD_ZONE)).filter(|zone| !zone.is_empty()).cloned()
}

/// How many nodes there are, by a list of one that says how many remain.
async fn count(nodes: &Api<Node>) -> kube::Result<u32> {
    let list = nodes.list_metadata(&ListParams::default().limit(1)).await?;
    let listed = list.items.len() as u64;
    let remaining = list.metadata.remaining_item_count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
    Ok(u32::try_from(listed + remaining).unwrap_or(u32::MAX))
}

/// This cluster's id in the ClusterSet, as its ClusterProperty says. Waits for an API server that doesn't answer.
///
/// # Errors
///
/// There is no such property, it can't be read, or it can't be a cluster's id.
pub async fn cluster_id(client: &Client) -> anyhow::Result<ClusterName> {
    let (mut attempt, mut said) = (0, None::<Instant>);
    loop {
        match cluster_property(client).await {
            Ok(Some(id)) => {
                return cluster_name(&id).map_err(anyhow::Error::msg).context(format!("ClusterProperty {CLUSTER_ID}"));
            }
            Ok(None) => bail!(
                "--cluster isn't given, and the API server has no ClusterProperty {CLUSTER_ID} ({ABOUT}) that would say \
                 which cluster of the ClusterSet this is"
            ),
            Err(error) => match Failure::of(&error, "get", "clusterproperties.about.k8s.io") {
                Failure::Unreachable(reason) => {
                    if said.is_none_or(|at| at.elapsed() >= REPEAT) {
                        warn!(
                            reason,
                            "waiting for the API server, to learn which cluster this is; --cluster would say it"
                        );
                        said = Some(Instant::now());
                    }
                    sleep(pace::unreachable(attempt, pace::ASSUMED_NODES, pace::chance())).await;
                    attempt += 1;
                }
                failure => bail!("--cluster isn't given, and {}", failure.reason()),
            },
        }
    }
}

async fn cluster_property(client: &Client) -> kube::Result<Option<String>> {
    for version in ABOUT_VERSIONS {
        let mut kind = ApiResource::from_gvk(&GroupVersionKind::gvk(ABOUT, version, "ClusterProperty"));
        kind.plural = "clusterproperties".to_owned();
        let found = match Api::<DynamicObject>::all_with(client.clone(), &kind).get_opt(CLUSTER_ID).await {
            // There is no such kind.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            found => found?,
        };
        if let Some(value) = found.as_ref().and_then(|property| property.data.pointer("/spec/value")?.as_str()) {
            return Ok(Some(value.to_owned()));
        }
    }
    Ok(None)
}
