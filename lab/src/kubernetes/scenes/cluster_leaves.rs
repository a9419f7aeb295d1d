//! A cluster withdraws from a federated service, politely, and comes back.

use crate::{
    demo::shares::{by_endpoint, check},
    kubernetes::{
        stage::Stage,
        workloads::{FEDERATED, NAMESPACE},
    },
};
use anyhow::Result;
use std::time::Duration;

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    let others = ["west", "north"];
    let mut without = by_endpoint();
    without.remove("east");
    for cluster in others {
        stage.ask(cluster, FEDERATED, false)?;
    }
    stage.watch(Duration::from_secs(1))?;
    let label = |value: &str| {
        let label = format!("mirror.linkerd.io/federated{value}");
        let words = ["--namespace", NAMESPACE, "label", "service", "frontend", &label];
        stage.ground.cluster("east").run(&words).map(drop)
    };
    label("-")?;
    let left = stage.settle(FEDERATED, &without, &others)?;
    for cluster in others {
        let seen = stage.sample(cluster, Duration::from_secs(2))?;
        check(&format!("{cluster} without east"), &seen.by_cluster, &without)?;
    }
    let label = ["--namespace", NAMESPACE, "label", "service", "frontend", "mirror.linkerd.io/federated=member"];
    stage.ground.cluster("east").run(&label)?;
    let back = stage.settle(FEDERATED, &by_endpoint(), &others)?;
    for cluster in others {
        let seen = stage.sample(cluster, Duration::from_secs(2))?;
        check(&format!("{cluster} with east back"), &seen.by_cluster, &by_endpoint())?;
    }
    stage.stop()?;
    stage.said.fact_ms("left_after_ms", left);
    stage.said.fact_ms("back_after_ms", back);
    stage.said.note("east's label removed and put back: nobody notices");
    Ok(())
}
