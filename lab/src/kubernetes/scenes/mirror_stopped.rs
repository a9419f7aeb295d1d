//! The mirror of a cluster is gone, and its own pods are replaced: local readiness doesn't take the way through the mirror.

use super::rolling_update::replace;
use crate::kubernetes::{
    install::{self, MIRRORS},
    stage::Stage,
    workloads::FEDERATED,
};
use anyhow::{Result, ensure};

const CLUSTER: &str = "west";
const DEPLOYMENT: &str = "tombolo-mirror";

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    let west = stage.ground.cluster(CLUSTER);
    let mirrors = west.pods(install::NAMESPACE, MIRRORS)?.len();
    stage.ground.scale(CLUSTER, install::NAMESPACE, DEPLOYMENT, 0)?;
    stage.until("no mirror in west", |_| {
        west.names(install::NAMESPACE, "pods", MIRRORS).is_ok_and(|names| names.is_empty())
    })?;
    stage.ask(CLUSTER, FEDERATED, false)?;
    let replaced = replace(stage, &[CLUSTER]);
    ensure!(west.pods(install::NAMESPACE, MIRRORS)?.is_empty(), "somebody started the mirror meanwhile");
    stage.ground.scale(CLUSTER, install::NAMESPACE, DEPLOYMENT, mirrors)?;
    west.rolled_out(install::NAMESPACE, "deployment/tombolo-mirror")?;
    replaced?;
    stage.said.note("west's own pods replaced while it had no mirror");
    Ok(())
}
