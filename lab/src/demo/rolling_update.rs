//! Every pod of a service replaced under load.

use super::{Scene, shares::by_endpoint, stage::Stage};
use crate::{addresses::Network, clusters::NAMES, manifests::Condition, report::now};
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, time::Duration};

/// How long a pod gets to drain.
const DRAINED_WITHIN: Duration = Duration::from_secs(10);

pub(super) const SCENE: Scene = Scene {
    name: "rolling-update",
    shows: "all pods of frontend replaced one after the other under load: nobody notices",
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.ask_everywhere("frontend-federated")?;
    stage.watch(Duration::from_millis(500))?;
    let mut leaving = BTreeMap::new();
    for cluster in NAMES {
        let old: Vec<String> =
            stage.clusters.cluster(cluster).pods_of("frontend").map(|pod| pod.name().to_owned()).collect();
        for name in old {
            let since = now()?;
            replace(stage, cluster, &name)?;
            leaving.insert(name, since);
        }
    }
    stage.settle("frontend-federated", &by_endpoint(), &NAMES)?;
    stage.watch(Duration::from_millis(500))?;

    let mut longest = Duration::ZERO;
    let mut pods = BTreeMap::new();
    for report in stage.stop()?.values() {
        for (name, pod) in &report.by_pod {
            if let Some(&since) = leaving.get(name) {
                longest = longest.max(pod.last.saturating_sub(since));
            }
            *pods.entry(name.clone()).or_insert(0) += pod.answers;
        }
    }
    ensure!(pods.len() == 2 * leaving.len(), "not every old and new pod answered: {pods:?}");
    stage.said.fact("replaced", leaving.len());
    stage.said.fact_ms("last_request_to_a_leaving_pod_ms", longest);
    stage.said.note(format!(
        "{} pods replaced; a leaving pod got its last request after {} ms at most",
        leaving.len(),
        longest.as_millis()
    ));
    Ok(())
}

/// Replaces the pod `name` as a Deployment and its kubelet would.
fn replace(stage: &mut Stage<'_>, cluster: &str, name: &str) -> Result<()> {
    stage.clusters.cluster_mut(cluster).pod_mut(name)?.condition = Condition::Terminating;
    stage.clusters.publish()?;
    stage.clusters.start_pod(cluster, "frontend", Network::Flat)?;
    stage.clusters.publish()?;
    let pod = stage.clusters.cluster_mut(cluster).pod_mut(name)?;
    let ended = pod.stop(DRAINED_WITHIN)?.with_context(|| format!("{name} did not drain"))?;
    ensure!(ended.success(), "{name} ended with {ended}");
    stage.clusters.cluster_mut(cluster).remove_pod(name);
    stage.clusters.publish()?;
    stage.watch(Duration::from_millis(100))
}
