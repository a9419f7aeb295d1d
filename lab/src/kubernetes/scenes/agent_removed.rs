//! Agents are removed from a cluster, and what they had in its nodes' kernels: kube-proxy serves the same Services.

use crate::{
    demo::shares::{by_endpoint, check},
    kubernetes::{
        install,
        sockets::{Caller, dial, v4},
        stage::Stage,
        workloads::FEDERATED,
    },
};
use anyhow::{Result, ensure};
use std::time::Duration;

const CLUSTER: &str = "west";
const CALLERS: [Caller; 1] = [Caller { name: "plain", beside: &[], annotations: &[], dials_after: 0 }];

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    let west = stage.ground.cluster(CLUSTER);
    let target = v4(stage.ground.address(CLUSTER, FEDERATED)?)?;
    let (node, _) = stage.ground.client(CLUSTER)?;
    stage.ask(CLUSTER, FEDERATED, false)?;
    stage.watch(Duration::from_secs(1))?;
    let removed = install::remove_agents(west).and_then(|()| {
        let seen = stage.sample(CLUSTER, Duration::from_secs(4))?;
        check("west without agents", &seen.by_cluster, &by_endpoint())?;
        let went = dial(west, &node, &CALLERS, target.into())?;
        ensure!(went["plain"] == target, "a socket went to {}, so hooks still act", went["plain"]);
        Ok(())
    });
    // Back before anything else: the other scenes are played with agents.
    stage.ground.install(west)?;
    install::wait(west)?;
    removed?;
    stage.settle(FEDERATED, &by_endpoint(), &[CLUSTER])?;
    let seen = stage.sample(CLUSTER, Duration::from_secs(1))?;
    check("west with agents again", &seen.by_cluster, &by_endpoint())?;
    stage.stop()?;
    stage.said.note("agents removed and put back under load: kube-proxy takes over and hands back");
    Ok(())
}
