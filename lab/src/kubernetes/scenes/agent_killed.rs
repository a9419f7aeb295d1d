//! The agent's pod is killed and replaced; the data path stays.

use crate::{
    demo::shares::{by_endpoint, check},
    kubernetes::{
        install::{self, AGENTS},
        kubectl::text,
        stage::Stage,
        workloads::FEDERATED,
    },
};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    stage.ask_everywhere(FEDERATED)?;
    stage.watch(Duration::from_secs(1))?;
    let west = stage.ground.cluster("west");
    let (node, _) = stage.ground.client("west")?;
    let pods = west.pods(install::NAMESPACE, AGENTS)?;
    let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == node.as_str()).context("no agent beside the client")?;
    let begin = Instant::now();
    let name = text(pod, "/metadata/name")?;
    west.run(&["--namespace", install::NAMESPACE, "delete", "pod", name, "--force", "--grace-period=0"])?;
    let while_dead = stage.sample("west", Duration::from_secs(2))?;
    check("west while its agent is dead", &while_dead.by_cluster, &by_endpoint())?;
    install::wait(west)?;
    let ready = begin.elapsed();
    stage.settle(FEDERATED, &by_endpoint(), &["west"])?;
    let status = install::ask_agent(west, &node, "status")?;
    let hooks = status["hooks"].as_array().context("hooks")?;
    let adopted = hooks.iter().filter(|hook| hook["adopted"] == true).count();
    anyhow::ensure!(adopted == hooks.len(), "of {} hooks {adopted} were adopted: {}", hooks.len(), status["hooks"]);
    let seen = stage.sample("west", Duration::from_secs(1))?;
    check("west with its agent back", &seen.by_cluster, &by_endpoint())?;
    stage.stop()?;
    stage.said.fact_ms("ready_again_ms", ready);
    stage
        .said
        .note(format!("another pod's agent adopts {adopted} hooks; ready again after {:.1} s", ready.as_secs_f64()));
    Ok(())
}
