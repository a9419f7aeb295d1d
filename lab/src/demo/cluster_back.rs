//! A cluster that was dead is back.

use super::{
    Scene,
    cluster_loss::lose,
    habits::{Way, check_retries, fields, in_words, part},
    outage::{CALLED, CALLERS, LOST, Outage},
    shares::{by_endpoint, check},
    stage::Stage,
};
use crate::{
    attempts::{Figures, ms, ms_after},
    caller::{Attempt, End, Kind},
    report::now,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;

pub(super) const SCENE: Scene = Scene {
    name: "cluster-back",
    shows: "east is back: it gets its share again, bit by bit, and nobody notices",
    play,
};

/// How long the cluster is gone if the scene is played by itself: long enough to be taken for dead.
const GONE: Duration = Duration::from_secs(8);
/// How long it may take until the cluster has its share again.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// The stretch of time that shares are taken over.
const STRETCH: Duration = Duration::from_secs(2);
/// What part of its share a cluster has to have to be fully back; chance would not go lower.
const FULL: f64 = 0.75;

fn play(stage: &mut Stage<'_>) -> Result<()> {
    if stage.outage().is_err() {
        lose(stage, Duration::from_secs(2), GONE)?;
    }
    stage.on_outage(Outage::find)?;
    let back = stage.outage()?.back.context("back since the line above")?;
    let expected = by_endpoint();
    let share = expected[LOST] / expected.values().sum::<f64>();
    let full = loop {
        stage.watch(Duration::from_millis(200))?;
        let now = now()?;
        let latest = stage.outage()?.attempts(Way::Tombolo, Kind::NewConnections, now - STRETCH, now);
        let latest = Figures::of(&latest, back);
        if now > back + STRETCH && part(LOST, &latest) >= share * FULL {
            break now - STRETCH - back;
        }
        ensure!(now < back + BACK_WITHIN, "{LOST} has not got its share back after {} s", BACK_WITHIN.as_secs());
    };
    stage.watch(STRETCH + Duration::from_millis(500))?;
    let minds = stage.minds(back)?;
    stage.on_outage(Outage::stop)?;

    let now = now()?;
    let outage = stage.outage()?;
    let attempts = outage.attempts(Way::Tombolo, Kind::NewConnections, back, now);
    let of_lost = attempts.iter().filter(|each| matches!(&each.end, End::Answered(cluster) if cluster == LOST));
    let first = of_lost.map(Attempt::ended).min().context("it has answers, for it has its share")?;
    let last = attempts.iter().filter(|attempt| attempt.began > now - STRETCH);
    let last = Figures::of(last, back);
    let ours = outage.figures(Way::Tombolo, outage.summed, now, back);
    let theirs = outage.figures(Way::KubeProxy, outage.summed, now, back);
    stage.said.sum(CALLERS, &ours.0, fields(&ours));
    stage.said.field("kube_proxy", Value::Object(fields(&theirs)));
    stage.said.field("clusters", minds);
    stage.said.field("first_answer_ms", ms_after(back, first).into());
    stage.said.field("full_share_ms", ms(full).into());
    stage.said.note(in_words("Tombolo", &ours.0));
    stage.said.note(in_words("kube-proxy", &theirs.0));
    if let Some(change) = stage.outage()?.change_in_words(back) {
        stage.said.note(change);
    }
    stage.said.note(format!(
        "{LOST} answered again {:.0} ms after it was back, and had its share of {CALLED} after {:.0} ms",
        ms_after(back, first),
        ms(full)
    ));
    check(&format!("{CALLERS} with {LOST} back"), &last.by_cluster, &expected)?;
    check_retries(&ours.0)
}
