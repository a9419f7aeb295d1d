//! Pods drained and replaced by their Deployments, in all clusters at once.

use crate::{
    clusters::NAMES,
    demo::shares::by_endpoint,
    kubernetes::{
        stage::Stage,
        workloads::{FEDERATED, NAMESPACE, pods_of},
    },
};
use anyhow::{Result, ensure};
use std::{collections::BTreeSet, time::Duration};

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.ask_everywhere(FEDERATED)?;
    replace(stage, &NAMES)?;
    stage.said.note("every pod of frontend replaced: nobody notices");
    Ok(())
}

/// Has the Deployments of `clusters` replace their pods under the load that runs; every old and every new one has to have
/// answered.
pub(super) fn replace(stage: &mut Stage<'_>, clusters: &[&str]) -> Result<()> {
    let names = |stage: &Stage<'_>| -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for cluster in clusters {
            names.extend(pods_of(stage.ground.cluster(cluster), "frontend")?);
        }
        Ok(names)
    };
    stage.watch(Duration::from_secs(1))?;
    let old = names(stage)?;
    for cluster in clusters {
        let restart = ["--namespace", NAMESPACE, "rollout", "restart", "deployment/frontend"];
        stage.ground.cluster(cluster).run(&restart)?;
    }
    for cluster in clusters {
        stage.ground.cluster(cluster).rolled_out(NAMESPACE, "deployment/frontend")?;
    }
    let new = names(stage)?;
    ensure!(old.is_disjoint(&new), "{:?} were not replaced", old.intersection(&new));
    stage.settle(FEDERATED, &by_endpoint(), clusters)?;
    stage.watch(Duration::from_secs(2))?;
    // Those that leave still answer what comes.
    stage.until("the old pods are gone", |stage| {
        clusters.iter().all(|cluster| {
            let all = stage.ground.cluster(cluster).names(NAMESPACE, "pods", "app=frontend").unwrap_or_default();
            all.iter().all(|name| !old.contains(name.trim_start_matches("pod/")))
        })
    })?;
    let answered: BTreeSet<String> = stage.stop()?.into_values().flat_map(|report| report.by_pod.into_keys()).collect();
    let silent: Vec<&String> = old.union(&new).filter(|name| !answered.contains(*name)).collect();
    ensure!(silent.is_empty(), "these never answered: {silent:?}");
    stage.said.fact("replaced", old.len());
    Ok(())
}
