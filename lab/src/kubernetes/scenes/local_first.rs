//! The own cluster first; what it can't carry goes to the others.

use crate::{
    demo::shares::{by_endpoint, check, shares},
    kubernetes::{
        stage::Stage,
        workloads::{FEDERATED, NAMESPACE},
    },
};
use anyhow::Result;
use std::{collections::BTreeMap, time::Duration};

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.ground.annotate("tombolo.io/traffic", "local-first")?;
    stage.ground.annotate("tombolo.io/local-minimum", "2")?;
    let home = shares([("west", 1.0)]);
    let mut away = by_endpoint();
    away.remove("west");
    // One of the two that carry the load is left: half stays, half goes to three pods in east and one in north.
    let half = shares([("west", 4.0), ("east", 3.0), ("north", 1.0)]);

    stage.settle(FEDERATED, &home, &["west"])?;
    stage.ask("west", FEDERATED, false)?;
    act(stage, "both pods", 2, &home)?;
    act(stage, "one pod left", 1, &half)?;
    act(stage, "no pod left", 0, &away)?;
    act(stage, "both back", 2, &home)?;
    stage.stop()?;
    stage.said.note("west 100 %, then 50 %, then 0 %, then 100 % at home");
    Ok(())
}

/// Leaves west so many pods and checks where requests go then.
fn act(stage: &mut Stage<'_>, name: &str, pods: usize, expected: &BTreeMap<String, f64>) -> Result<()> {
    stage.ground.scale("west", NAMESPACE, "frontend", pods)?;
    let time = stage.settle(FEDERATED, expected, &["west"])?;
    stage.said.fact_ms(&format!("{name} after_ms").replace(' ', "_"), time);
    let seen = stage.sample("west", Duration::from_secs(2))?;
    check(&format!("west with {name}"), &seen.by_cluster, expected)
}
