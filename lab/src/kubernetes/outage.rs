//! What two scenes share in which a cluster dies without a word: callers of all habits, through Tombolo and, from a pod that
//! opted out, through the real kube-proxy beside it.

use super::{
    exec::Exec,
    ground::Ground,
    install,
    stage::Stage,
    workloads::{CLIENT, FEDERATED, KUBE_PROXY_CLIENT},
};
use crate::{
    attempts::{Figures, ms_after},
    caller::{Attempt, Kind},
    demo::habits::{self, ByKind, LOAD, Way},
    report::now,
    told::Telling,
};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// The cluster that dies.
pub(super) const LOST: &str = "east";
/// The cluster that the callers are in.
pub(super) const CALLERS: &str = "west";
/// What part of the demo's load there is: here all of it shares the machine with three control planes.
const PART: u32 = 2;
/// How often the agent is asked what it thinks.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Callers that go on while the cluster is lost and comes back. Without them it comes back as well.
pub(super) struct Outage<'a> {
    ground: &'a Ground,
    callers: Vec<Caller>,
    /// When the cluster was lost: just before the first packet could vanish.
    pub(super) lost: Option<Duration>,
    /// When nothing could reach it any more for sure.
    pub(super) dark: Option<Duration>,
    /// When it was back.
    pub(super) back: Option<Duration>,
    /// When the agent beside the callers took the cluster for down: seen, and found by whom.
    down: Option<(Duration, String)>,
    asked: Option<Instant>,
    node: String,
}

struct Caller {
    way: Way,
    kind: Kind,
    exec: Exec,
    telling: Telling,
}

impl<'a> Outage<'a> {
    /// Starts the callers, and waits until each has told of something.
    pub(super) fn start(stage: &mut Stage<'a>) -> Result<Self> {
        let ground = stage.ground;
        let (kubectl, target) = (ground.cluster(CALLERS), ground.address(CALLERS, FEDERATED)?.to_string());
        let (node, _) = ground.client(CALLERS)?;
        let mut callers = Vec::new();
        for (way, pod) in [(Way::Tombolo, CLIENT), (Way::KubeProxy, KUBE_PROXY_CLIENT)] {
            for (kind, rate, connections, patience) in LOAD {
                let (kind_text, rate, connections) = (kind.to_string(), rate / PART, connections / PART);
                let (rate, connections) = (rate.to_string(), connections.max(1).to_string());
                let patience = patience.as_millis().to_string();
                let mut words = vec!["call", "--until-eof", "--kind", &kind_text, "--rate", &rate];
                words.extend(["--connections", &connections, "--timeout-ms", &patience, &target]);
                let label = format!("the caller \"{kind}\" in {pod} of {CALLERS}");
                let (exec, told) = Exec::start(kubectl, pod, label, &words)?;
                callers.push(Caller { way, kind, exec, telling: Telling::read(told) });
            }
        }
        let mut outage = Self { ground, callers, lost: None, dark: None, back: None, down: None, asked: None, node };
        stage.until("callers tell of attempts", |_| {
            outage.callers.iter().all(|caller| caller.telling.sum().requests > 0)
        })?;
        outage.check()?;
        Ok(outage)
    }

    /// Has the cluster go dark.
    pub(super) fn lose(&mut self) -> Result<()> {
        self.lost = Some(now()?);
        self.ground.cut(LOST)?;
        self.dark = Some(now()?);
        Ok(())
    }

    /// Has the cluster come back.
    pub(super) fn find(&mut self) -> Result<()> {
        self.ground.heal()?;
        self.back = Some(now()?);
        Ok(())
    }

    /// Lets time pass, and asks the agent beside the callers meanwhile what it thinks of the cluster.
    pub(super) fn watch(&mut self, stage: &mut Stage<'_>, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            if self.lost.is_some() && self.down.is_none() && self.asked.is_none_or(|asked| asked.elapsed() > ASK_EVERY)
            {
                self.asked = Some(Instant::now());
                let status = install::ask_agent(self.ground.cluster(CALLERS), &self.node, "status")?;
                let cluster = &status["clusters"][LOST];
                if cluster["verdict"] == "down" {
                    self.down = Some((now()?, cluster["by"].as_str().unwrap_or("itself").to_owned()));
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            stage.watch(left.min(Duration::from_millis(100)))?;
        }
    }

    /// Attempts of this way and kind that ended in this stretch of time.
    pub(super) fn attempts(&self, way: Way, kind: Kind, from: Duration, to: Duration) -> Vec<Attempt> {
        let it = |caller: &&Caller| caller.way == way && caller.kind == kind;
        self.callers.iter().filter(it).flat_map(|caller| caller.telling.attempts(from, to)).collect()
    }

    /// What the attempts of this way that began at `from` or later amount to, seen from `event`.
    pub(super) fn figures(&self, way: Way, from: Duration, event: Duration) -> (Figures, ByKind) {
        habits::figures(event, |kind| {
            let mut attempts = self.attempts(way, kind, from, Duration::MAX);
            attempts.retain(|attempt| attempt.began >= from);
            attempts
        })
    }

    /// When the agent beside the callers took the cluster for down, in a line; none if that wasn't seen.
    pub(super) fn verdict_in_words(&self) -> Option<String> {
        let (seen, by) = self.down.as_ref()?;
        let after = ms_after(self.lost?, *seen);
        Some(format!("{} takes {LOST} for down, by {by}: seen {after:.0} ms after", self.node))
    }

    /// Ends the callers. What they told stays; what was under way is told as unfinished.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.callers.iter_mut().try_for_each(|caller| {
            caller.exec.stop()?;
            caller.telling.end()
        })
    }

    fn check(&mut self) -> Result<()> {
        self.callers.iter_mut().try_for_each(|caller| caller.exec.check())
    }
}

/// Plays an outage up to when the callers have ended, and sees to it that the cluster is back afterwards, whatever came of it.
pub(super) fn with_outage<'a, T>(
    stage: &mut Stage<'a>,
    play: impl FnOnce(&mut Stage<'a>, &mut Outage<'a>) -> Result<T>,
) -> Result<T> {
    let ground = stage.ground;
    let played = Outage::start(stage).and_then(|mut outage| {
        let played = play(stage, &mut outage);
        let stopped = outage.stop().context("end the callers");
        played.and_then(|value| stopped.map(|()| value))
    });
    ground.heal()?;
    played
}
