//! One ClusterIP, three clusters behind it.

use crate::{
    clusters::NAMES,
    demo::shares::{by_endpoint, check, percent},
    kubernetes::{stage::Stage, workloads::FEDERATED},
};
use anyhow::{Result, ensure};
use std::{collections::BTreeMap, time::Duration};

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    for cluster in NAMES {
        stage.ask(cluster, FEDERATED, false)?;
        stage.ask(cluster, FEDERATED, true)?;
    }
    stage.watch(Duration::from_secs(5))?;
    let mut pods: BTreeMap<String, u64> = BTreeMap::new();
    for (cluster, report) in stage.stop()? {
        check(&format!("clients in {cluster}"), &report.by_cluster, &by_endpoint())?;
        for (name, pod) in report.by_pod {
            *pods.entry(name).or_default() += pod.answers;
        }
        let (_, own) = stage.ground.client(cluster)?;
        ensure!(
            report.seen_as.iter().all(|address| *address == own),
            "servers saw requests from {cluster} come from {:?}, not from the client itself, which is {own}",
            report.seen_as
        );
    }
    let alike = pods.keys().map(|name| (name.clone(), 1.0)).collect();
    ensure!(pods.len() == 6, "of 6 pods these answered: {pods:?}");
    check("all pods", &pods, &alike)?;
    stage.said.fact("by_pod", serde_json::to_value(&pods)?);
    stage.said.note(format!("all 6 pods alike: {}", percent(by_endpoint().iter().map(|(name, &share)| (name, share)))));
    stage.said.note("pods see the client's own address, clients the ClusterIP");
    Ok(())
}
