//! A service of one other cluster, under a name of its own.

use crate::{
    demo::shares::{check, shares},
    kubernetes::stage::Stage,
};
use anyhow::Result;
use std::time::Duration;

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    let ways = [("west", "api-east", "east"), ("east", "api-west", "west")];
    for (from, service, to) in ways {
        stage.settle(service, &shares([(to, 1.0)]), &[from])?;
        stage.ask(from, service, false)?;
    }
    stage.watch(Duration::from_secs(3))?;
    let seen = stage.stop()?;
    for (from, service, to) in ways {
        check(&format!("{service} from {from}"), &seen[from].by_cluster, &shares([(to, 1.0)]))?;
    }
    stage.said.note("straight to the other cluster's pods");
    Ok(())
}
