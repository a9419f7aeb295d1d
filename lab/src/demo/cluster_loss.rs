//! A cluster dies without a word.

use super::{
    Scene,
    habits::{Way, check_retries, check_silence, fields, in_words},
    outage::{CALLERS, LOST, Outage},
    stage::Stage,
};
use crate::{caller::Kind, report::now};
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;

pub(super) const SCENE: Scene = Scene {
    name: "cluster-loss",
    shows: "east dies under load, no reset, no message, its API server gone too: with one retry nobody notices",
    play,
};

/// How long all is well first.
const BEFORE: Duration = Duration::from_secs(3);
/// How long the cluster is gone.
const GONE: Duration = Duration::from_secs(20);
/// How long callers get to tell of what is under way.
const TOLD_WITHIN: Duration = Duration::from_millis(300);

fn play(stage: &mut Stage<'_>) -> Result<()> {
    lose(stage, BEFORE, GONE)?;
    stage.on_outage(Outage::ask)?;
    stage.watch(TOLD_WITHIN)?;
    let outage = stage.outage()?;
    let (lost, dark) = (outage.lost.context("lost above")?, outage.dark.context("lost above")?);
    let now = now()?;
    for way in [Way::Tombolo, Way::KubeProxy] {
        let attempts = outage.attempts(way, Kind::NewConnections, Duration::ZERO, now);
        check_silence(&attempts, LOST, lost, dark)?;
    }
    let ours = outage.figures(Way::Tombolo, Duration::ZERO, now, lost);
    let theirs = outage.figures(Way::KubeProxy, Duration::ZERO, now, lost);
    stage.on_outage(|outage, _| {
        outage.summed = now;
        Ok(())
    })?;
    let minds = stage.minds(lost)?;
    stage.said.sum(CALLERS, &ours.0, fields(&ours));
    stage.said.field("kube_proxy", Value::Object(fields(&theirs)));
    stage.said.field("clusters", minds);
    stage.said.note(in_words("Tombolo", &ours.0));
    stage.said.note(in_words("kube-proxy", &theirs.0));
    if let Some(change) = stage.outage()?.change_in_words(lost) {
        stage.said.note(change);
    }
    check_retries(&ours.0)
}

/// Starts the callers, and has the cluster go dark after `before`, for `gone` so far.
pub(super) fn lose(stage: &mut Stage<'_>, before: Duration, gone: Duration) -> Result<()> {
    let outage = Outage::start(stage.clusters)?;
    stage.begin_outage(outage);
    stage.watch(before)?;
    stage.on_outage(Outage::lose)?;
    stage.watch(gone)
}
