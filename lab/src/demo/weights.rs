//! A canary: a fixed part of the connections for one cluster.

use super::{
    Scene,
    shares::{check, percent, shares},
    stage::Stage,
};
use crate::clusters::NAMES;
use anyhow::Result;
use std::time::Duration;

pub(super) const SCENE: Scene =
    Scene { name: "weights", shows: "10 % of the connections for a canary in north, the rest by endpoints", play };

fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.annotate("tombolo.io/weights", "north=10");
    stage.clusters.publish()?;
    let expected = shares([("west", 36.0), ("east", 54.0), ("north", 10.0)]);
    let time = stage.settle("frontend-federated", &expected, &NAMES)?;
    stage.said.fact_ms("in_force_after_ms", time);
    stage.ask_everywhere("frontend-federated")?;
    stage.watch(Duration::from_secs(5))?;
    let mut total = crate::report::Report::default();
    for (cluster, report) in stage.stop()? {
        check(&format!("the client in {cluster}"), &report.by_cluster, &expected)?;
        total.add(&report);
    }
    check("all clients", &total.by_cluster, &expected)?;
    stage.said.fact("expected_per_cent", serde_json::to_value(&expected)?);
    stage.said.note(format!("expected {}", percent(expected.iter().map(|(name, &share)| (name, share)))));
    Ok(())
}
