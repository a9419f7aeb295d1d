//! A person's own Services that carry Cilium's mark and Istio's, in all clusters: the others' pods join them.

use crate::{
    clusters::NAMES,
    demo::shares::{by_endpoint, check},
    kubernetes::{stage::Stage, workloads::MARKED},
};
use anyhow::Result;
use std::time::Duration;

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    for service in MARKED {
        stage.settle(service, &by_endpoint(), &NAMES)?;
        stage.ask_everywhere(service)?;
        stage.watch(Duration::from_secs(4))?;
        for (cluster, report) in stage.stop()? {
            check(&format!("clients of {service} in {cluster}"), &report.by_cluster, &by_endpoint())?;
        }
    }
    stage.said.note("Services of one's own, joined by service.cilium.io/global and by istio.io/global");
    Ok(())
}
