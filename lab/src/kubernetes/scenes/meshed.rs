//! A pod with a mesh proxy keeps the ClusterIP from its very first connect on; so does one that opted out.

use crate::kubernetes::{
    sockets::{Caller, dial, v4},
    stage::Stage,
    workloads::FEDERATED,
};
use anyhow::{Result, ensure};
use std::time::Duration;

/// When a plain pod dials: the agent has to hear of it first.
const LATER: u32 = 4;
const PLAIN: &str = "plain";
const CALLERS: [Caller; 5] = [
    Caller { name: "meshed-1", beside: &["linkerd-proxy"], annotations: &[], dials_after: 0 },
    Caller { name: "meshed-2", beside: &["istio-proxy"], annotations: &[], dials_after: 0 },
    Caller { name: "meshed-3", beside: &["linkerd-proxy"], annotations: &[], dials_after: LATER },
    Caller { name: "opted-out", beside: &[], annotations: &[("tombolo.io/opt-out", "true")], dials_after: 0 },
    Caller { name: PLAIN, beside: &[], annotations: &[], dials_after: LATER },
];

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    let target = v4(stage.ground.address("west", FEDERATED)?)?;
    let (node, _) = stage.ground.client("west")?;
    // Beside a load that is translated all the while.
    stage.ask("west", FEDERATED, false)?;
    let went = dial(stage.ground.cluster("west"), &node, &CALLERS, target.into())?;
    stage.watch(Duration::from_millis(500))?;
    stage.stop()?;
    for (name, to) in &went {
        if *name == PLAIN {
            ensure!(*to != target, "a plain pod's connect was not translated, so the others prove nothing");
        } else {
            ensure!(*to == target, "{name} dialled {target}, and its socket went to {to}");
        }
    }
    stage.said.note("two pods with a proxy at their first connect, and one that opted out: all keep the ClusterIP");
    Ok(())
}
