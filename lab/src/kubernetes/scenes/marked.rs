//! A person's own Service that carries Cilium's mark, in all clusters: the others' pods join it.

use crate::{
    clusters::NAMES,
    demo::shares::{by_endpoint, check},
    kubernetes::{stage::Stage, workloads::MARKED},
};
use anyhow::Result;
use std::time::Duration;

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.settle(MARKED, &by_endpoint(), &NAMES)?;
    stage.ask_everywhere(MARKED)?;
    stage.watch(Duration::from_secs(4))?;
    for (cluster, report) in stage.stop()? {
        check(&format!("clients in {cluster}"), &report.by_cluster, &by_endpoint())?;
    }
    stage.note("a Service of one's own, joined by service.cilium.io/global");
    Ok(())
}
