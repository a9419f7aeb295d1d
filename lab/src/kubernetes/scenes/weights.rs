//! A canary: a fixed part of the connections for one cluster.

use crate::{
    clusters::NAMES,
    demo::shares::{check, percent, shares},
    kubernetes::{stage::Stage, workloads::FEDERATED},
};
use anyhow::Result;
use std::time::Duration;

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.ground.annotate("tombolo.io/weights", "north=10")?;
    let expected = shares([("west", 36.0), ("east", 54.0), ("north", 10.0)]);
    let time = stage.settle(FEDERATED, &expected, &NAMES)?;
    stage.said.fact_ms("in_force_after_ms", time);
    stage.ask_everywhere(FEDERATED)?;
    stage.watch(Duration::from_secs(4))?;
    for (cluster, report) in stage.stop()? {
        check(&format!("the client in {cluster}"), &report.by_cluster, &expected)?;
    }
    stage.said.note(format!("expected {}", percent(expected.iter().map(|(name, &share)| (name, share)))));
    Ok(())
}
