//! A cluster that was dead is back, and gets its share again bit by bit.

use crate::{
    attempts::{Figures, ms, ms_after},
    caller::{Attempt, End, Kind},
    demo::{
        habits::{Way, check_retries, fields, in_words, part},
        shares::{by_endpoint, check},
    },
    kubernetes::{
        outage::{CALLERS, LOST, Outage, with_outage},
        stage::Stage,
        workloads::FEDERATED,
    },
    report::now,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;

/// How long all is well first.
const BEFORE: Duration = Duration::from_secs(2);
/// How long the cluster is gone: long enough to be taken for dead.
const GONE: Duration = Duration::from_secs(10);
/// How long it may take until the cluster has its share again.
const BACK_WITHIN: Duration = Duration::from_secs(45);
/// The stretch of time that shares are taken over.
const STRETCH: Duration = Duration::from_secs(3);
/// What part of its share a cluster has to have to be fully back; chance would not go lower.
const FULL: f64 = 0.75;
/// How long requests go on that are made when it is.
const AFTER: Duration = Duration::from_millis(500);

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    with_outage(stage, |stage, outage| {
        outage.watch(stage, BEFORE)?;
        outage.lose()?;
        outage.watch(stage, GONE)?;
        outage.find()?;
        let full = until_full(stage, outage)?;
        outage.watch(stage, STRETCH + AFTER)?;
        let end = now()?;
        outage.stop()?;
        sum_up(stage, outage, full, end)
    })
}

/// Waits until the cluster has its share again, and returns how long after it was back that was.
fn until_full(stage: &mut Stage<'_>, outage: &mut Outage<'_>) -> Result<Duration> {
    let (back, expected) = (outage.back.context("it is back")?, by_endpoint());
    let share = expected[LOST] / expected.values().sum::<f64>();
    loop {
        outage.watch(stage, Duration::from_millis(200))?;
        let now = now()?;
        let latest = outage.attempts(Way::Tombolo, Kind::NewConnections, now - STRETCH, now);
        if now > back + STRETCH && part(LOST, &Figures::of(&latest, back)) >= share * FULL {
            return Ok(now - STRETCH - back);
        }
        ensure!(now < back + BACK_WITHIN, "{LOST} has not got its share back after {} s", BACK_WITHIN.as_secs());
    }
}

fn sum_up(stage: &mut Stage<'_>, outage: &Outage<'_>, full: Duration, end: Duration) -> Result<()> {
    let (back, lost) = (outage.back.context("it is back")?, outage.lost.context("it was lost")?);
    let attempts = outage.attempts(Way::Tombolo, Kind::NewConnections, back, end);
    let of_lost = attempts.iter().filter(|each| matches!(&each.end, End::Answered(cluster) if cluster == LOST));
    let first = of_lost.map(Attempt::ended).min().context("it has answers, for it has its share")?;
    let last = attempts.iter().filter(|attempt| attempt.began > end - STRETCH);
    let last = Figures::of(last, back);
    let ours = outage.figures(Way::Tombolo, back, back);
    let theirs = outage.figures(Way::KubeProxy, back, back);
    stage.said.sum(CALLERS, &ours.0, fields(&ours));
    stage.said.field("kube_proxy", Value::Object(fields(&theirs)));
    stage.said.field("first_answer_ms", ms_after(back, first).into());
    stage.said.field("full_share_ms", ms(full).into());
    stage.said.note(in_words("Tombolo", &ours.0));
    stage.said.note(in_words("kube-proxy", &theirs.0));
    if let Some(verdict) = outage.verdict_in_words() {
        stage.said.note(verdict);
    }
    stage.said.note(format!(
        "{LOST} answered again {:.0} ms after it was back, and had its share of {FEDERATED} after {:.0} ms",
        ms_after(back, first),
        ms(full)
    ));
    check(&format!("{CALLERS} with {LOST} back"), &last.by_cluster, &by_endpoint())?;
    // What began before it was back counts here too: nothing may fail in spite of its retry.
    check_retries(&outage.figures(Way::Tombolo, Duration::ZERO, lost).0)?;
    ensure!(ours.0.failed == 0, "{} requests failed that began when {LOST} was back", ours.0.failed);
    Ok(())
}
