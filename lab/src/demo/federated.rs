//! One ClusterIP, three clusters behind it.

use super::{
    Scene,
    shares::{by_endpoint, check, percent},
    stage::Stage,
};
use crate::clusters::NAMES;
use anyhow::{Result, ensure};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

pub(super) const SCENE: Scene = Scene {
    name: "federated",
    shows: "one ClusterIP, answered by west, east and north, evenly by endpoint; TCP and UDP, IPv4 and IPv6",
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.ask_everywhere("frontend-federated")?;
    for cluster in NAMES {
        stage.ask(cluster, "frontend-federated", true)?;
    }
    stage.watch(Duration::from_secs(5))?;
    let mut pods: BTreeMap<String, u64> = BTreeMap::new();
    for (cluster, report) in stage.stop()? {
        check(&format!("clients in {cluster}"), &report.by_cluster, &by_endpoint())?;
        for (name, pod) in report.by_pod {
            *pods.entry(name).or_default() += pod.answers;
        }
        let own = stage.clusters.cluster(cluster).client().addresses().both();
        let own: Vec<IpAddr> = own.into_iter().collect();
        ensure!(
            report.seen_as.iter().all(|address| own.contains(address)),
            "servers saw requests from {cluster} come from {:?}, not from the client itself",
            report.seen_as
        );
    }
    let alike = pods.keys().map(|name| (name.clone(), 1.0)).collect();
    ensure!(pods.len() == 6, "of 6 pods these answered: {pods:?}");
    check("all pods", &pods, &alike)?;
    stage.said.fact("by_pod", serde_json::to_value(&pods)?);
    stage.said.fact("expected_per_cent", expected());
    stage.said.note(format!("all 6 pods alike: {}", percent(by_endpoint().iter().map(|(name, &share)| (name, share)))));
    stage.said.note("pods see the client's own address, clients the ClusterIP");
    Ok(())
}

fn expected() -> serde_json::Value {
    let whole: f64 = by_endpoint().values().sum();
    by_endpoint().into_iter().map(|(name, share)| (name, 100.0 * share / whole)).collect()
}
