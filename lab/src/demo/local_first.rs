//! The own cluster first; what it can't carry goes to the others.

use super::{
    Scene,
    shares::{by_endpoint, check, shares},
    stage::Stage,
};
use crate::manifests::Condition;
use anyhow::Result;
use std::{collections::BTreeMap, time::Duration};

pub(super) const SCENE: Scene = Scene {
    name: "local-first",
    shows: "west keeps to itself, spills over in proportion as its pods go, and comes home when they are back",
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.annotate("tombolo.io/traffic", "local-first");
    stage.annotate("tombolo.io/local-minimum", "2");
    let home = shares([("west", 1.0)]);
    let mut away = by_endpoint();
    away.remove("west");
    // One of the two that carry the load is left: half stays, half goes to three pods in east and one in north.
    let half = shares([("west", 4.0), ("east", 3.0), ("north", 1.0)]);

    stage.clusters.publish()?;
    stage.settle("frontend-federated", &home, &["west"])?;
    stage.ask("west", "frontend-federated", false)?;
    act(stage, "both pods", 0, &home)?;
    act(stage, "one pod left", 1, &half)?;
    act(stage, "no pod left", 2, &away)?;
    act(stage, "both back", 0, &home)?;
    stage.stop()?;
    stage.said.note("west 100 %, then 50 %, then 0 %, then 100 % at home");
    Ok(())
}

/// Makes `gone` of west's pods unready and checks where requests go then.
fn act(stage: &mut Stage<'_>, name: &str, gone: usize, expected: &BTreeMap<String, f64>) -> Result<()> {
    let frontends = stage.clusters.cluster_mut("west").pods_mut().iter_mut().filter(|pod| pod.app() == "frontend");
    for (number, pod) in frontends.enumerate() {
        pod.condition = if number < gone { Condition::NotReady } else { Condition::Ready };
    }
    stage.clusters.publish()?;
    let time = stage.settle("frontend-federated", expected, &["west"])?;
    stage.said.fact_ms(&format!("{name} after_ms").replace(' ', "_"), time);
    // Requests that began before are not counted.
    stage.watch(Duration::from_millis(300))?;
    let before = stage.report("west");
    stage.watch(Duration::from_secs(2))?;
    check(&format!("west with {name}"), &stage.report("west").since(&before).by_cluster, expected)
}
