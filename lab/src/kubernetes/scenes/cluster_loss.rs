//! A cluster dies without a word: its nodes stop answering, and its API server too.

use crate::{
    caller::Kind,
    demo::habits::{Way, check_retries, check_silence, fields, in_words},
    kubernetes::{
        outage::{CALLERS, LOST, Outage, with_outage},
        stage::Stage,
    },
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;

/// How long all is well first.
const BEFORE: Duration = Duration::from_secs(3);
/// How long the cluster is gone.
const GONE: Duration = Duration::from_secs(20);

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    with_outage(stage, |stage, outage| {
        outage.watch(stage, BEFORE)?;
        outage.lose()?;
        outage.watch(stage, GONE)?;
        outage.stop()?;
        sum_up(stage, outage)
    })
}

fn sum_up(stage: &mut Stage<'_>, outage: &Outage<'_>) -> Result<()> {
    let (lost, dark) = (outage.lost.context("lost above")?, outage.dark.context("lost above")?);
    for way in [Way::Tombolo, Way::KubeProxy] {
        let attempts = outage.attempts(way, Kind::NewConnections, Duration::ZERO, Duration::MAX);
        check_silence(&attempts, LOST, lost, dark)?;
    }
    let ours = outage.figures(Way::Tombolo, Duration::ZERO, lost);
    let theirs = outage.figures(Way::KubeProxy, Duration::ZERO, lost);
    stage.said.sum(CALLERS, &ours.0, fields(&ours));
    stage.said.field("kube_proxy", Value::Object(fields(&theirs)));
    stage.said.note(in_words("Tombolo", &ours.0));
    stage.said.note(in_words("kube-proxy", &theirs.0));
    if let Some(verdict) = outage.verdict_in_words() {
        stage.said.note(verdict);
    }
    check_retries(&ours.0)
}
