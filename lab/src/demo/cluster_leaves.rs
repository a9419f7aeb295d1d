//! A cluster withdraws from a federated service, politely, and comes back.

use super::{
    Scene,
    shares::{by_endpoint, check},
    stage::Stage,
};
use crate::report::now;
use anyhow::Result;
use std::time::Duration;

pub(super) const SCENE: Scene = Scene {
    name: "cluster-leaves",
    shows: "east withdraws its endpoints from west and north under load, and comes back: nobody notices",
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<()> {
    let others = ["west", "north"];
    let mut without = by_endpoint();
    without.remove("east");

    stage.ask_everywhere("frontend-federated")?;
    for cluster in others {
        stage.watch_until("an answer from east", cluster, |report| report.by_cluster.contains_key("east"))?;
    }
    stage.watch(Duration::from_secs(1))?;
    let left = now()?;
    stage.clusters.mirroring.withdrawn.insert("east".to_owned());
    stage.clusters.publish()?;
    stage.settle("frontend-federated", &without, &others)?;
    stage.watch(Duration::from_millis(300))?;
    let before = others.map(|cluster| stage.report(cluster));
    stage.watch(Duration::from_millis(2500))?;

    let mut longest = Duration::ZERO;
    for (cluster, before) in others.into_iter().zip(&before) {
        let report = stage.report(cluster);
        check(&format!("{cluster} without east"), &report.since(before).by_cluster, &without)?;
        let pods = report.by_pod.values().filter(|pod| pod.cluster == "east");
        longest = pods.map(|pod| pod.last.saturating_sub(left)).fold(longest, Duration::max);
    }

    stage.clusters.mirroring.withdrawn.clear();
    stage.clusters.publish()?;
    stage.settle("frontend-federated", &by_endpoint(), &others)?;
    stage.watch(Duration::from_millis(300))?;
    let before = others.map(|cluster| stage.report(cluster));
    stage.watch(Duration::from_millis(1500))?;
    for (cluster, before) in others.into_iter().zip(&before) {
        check(&format!("{cluster} with east back"), &stage.report(cluster).since(before).by_cluster, &by_endpoint())?;
    }
    stage.stop()?;
    stage.said.fact_ms("last_request_to_east_ms", longest);
    stage.said.note(format!("the last request to east began {} ms after it left", longest.as_millis()));
    Ok(())
}
