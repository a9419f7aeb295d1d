//! What two scenes share in which a cluster dies without a word: callers of all kinds, through Tombolo and, beside it,
//! through kube-proxy's rules, and what they amount to.

use super::{
    cluster_back,
    habits::{self, ByKind, LOAD, Way},
};
use crate::{
    attempts::{Figures, ms_after},
    caller::{Attempt, Kind},
    clusters::{Caller, Calls, Clusters, KUBE_PROXY_CLIENT},
    manifests::SERVICE_PORT,
    report::{Report, now},
};
use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// The cluster that dies.
pub(super) const LOST: &str = "east";
/// The cluster that the callers are in.
pub(super) const CALLERS: &str = "west";
/// What they call.
pub(super) const CALLED: &str = "frontend-federated";
/// How often the agent is asked what it thinks of the clusters.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Callers that go on while a cluster is lost and comes back.
pub(super) struct Outage {
    callers: Vec<(Way, Caller)>,
    /// When the cluster was lost: just before the first packet could vanish.
    pub(super) lost: Option<Duration>,
    /// When nothing could reach it any more for sure.
    pub(super) dark: Option<Duration>,
    /// When it was back.
    pub(super) back: Option<Duration>,
    /// Up to when attempts have been summed up, those that ended then.
    pub(super) summed: Duration,
    asked: Option<Instant>,
    verdicts: BTreeMap<String, Verdict>,
    marks: Vec<Mark>,
}

/// What an agent thinks of a cluster, as its status says it.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Verdict {
    verdict: Value,
    /// Since when, and who found it: null where the agent doesn't say.
    since_ms: Value,
    by: Value,
}

/// An agent has changed its mind.
#[derive(Clone, Debug, Serialize)]
struct Mark {
    node: String,
    cluster: String,
    /// When it was seen, by [`now`]: up to 0.3 s after it was so.
    #[serde(skip)]
    seen: Duration,
    #[serde(flatten)]
    verdict: Verdict,
}

impl Verdict {
    fn in_words(&self) -> String {
        self.verdict.as_str().map_or_else(|| self.verdict.to_string(), str::to_owned)
    }
}

impl Outage {
    /// Starts the callers.
    pub(super) fn start(clusters: &mut Clusters) -> Result<Self> {
        clusters.start_kube_proxy_client(CALLERS, CALLED)?;
        let addresses = clusters.service_addresses(CALLERS, CALLED).both();
        let targets = addresses.map(|address| SocketAddr::new(address, SERVICE_PORT)).to_vec();
        let mut callers = Vec::new();
        for (way, pod, prefix) in [(Way::Tombolo, "client", ""), (Way::KubeProxy, KUBE_PROXY_CLIENT, "kube-proxy ")] {
            for (kind, rate, connections, timeout) in LOAD {
                let calls = Calls { targets: targets.clone(), kind, rate, connections, timeout };
                callers.push((way, clusters.call(CALLERS, pod, format!("{prefix}{kind}"), &calls)?));
            }
        }
        let (verdicts, marks) = (BTreeMap::new(), Vec::new());
        Ok(Self { callers, lost: None, dark: None, back: None, summed: Duration::ZERO, asked: None, verdicts, marks })
    }

    /// Has the cluster go dark. Nobody publishes anything from here on: its API server is gone as well.
    pub(super) fn lose(&mut self, clusters: &mut Clusters) -> Result<()> {
        self.lost = Some(now()?);
        clusters.black_out(LOST)?;
        self.dark = Some(now()?);
        Ok(())
    }

    /// Has the cluster come back.
    pub(super) fn find(&mut self, clusters: &mut Clusters) -> Result<()> {
        clusters.light_up(LOST)?;
        self.back = Some(now()?);
        Ok(())
    }

    /// Sees that the callers run, and asks the agent beside them what it thinks if it is time to.
    pub(super) fn look(&mut self, clusters: &mut Clusters) -> Result<()> {
        for (_, caller) in &mut self.callers {
            caller.check()?;
        }
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let agent = clusters.cluster_mut(CALLERS).client_agent()?;
        let (node, seen) = (agent.node().to_owned(), now()?);
        for (cluster, verdict) in verdicts(&agent.status()?) {
            let old = self.verdicts.insert(cluster.clone(), verdict.clone());
            if old.is_some_and(|old| old.verdict != verdict.verdict) {
                self.marks.push(Mark { node: node.clone(), cluster, seen, verdict });
            }
        }
        Ok(())
    }

    /// What to show of the callers.
    pub(super) fn rows(&self) -> Vec<(String, Report)> {
        self.callers.iter().map(|(_, caller)| (caller.label().to_owned(), caller.sum())).collect()
    }

    /// How things stand, in a line.
    pub(super) fn state(&self) -> Result<String> {
        let now = now()?;
        let cluster = match (self.lost, self.back) {
            (_, Some(back)) => format!("{LOST} is back since {:.1} s", (now - back).as_secs_f64()),
            (Some(lost), None) => format!("{LOST} is gone since {:.1} s", (now - lost).as_secs_f64()),
            (None, None) => format!("{LOST} is well"),
        };
        let verdicts = self.verdicts.iter().map(|(name, verdict)| format!("{name} {}", verdict.in_words()));
        Ok(format!("{cluster}; the agent says: {}", verdicts.collect::<Vec<_>>().join(", ")))
    }

    /// Attempts of this way and kind that ended in this stretch of time.
    pub(super) fn attempts(&self, way: Way, kind: Kind, from: Duration, to: Duration) -> Vec<Attempt> {
        let it = |(its_way, caller): &&(Way, Caller)| *its_way == way && caller.kind() == kind;
        self.callers.iter().filter(it).flat_map(|(_, caller)| caller.attempts(from, to)).collect()
    }

    /// What the attempts of this way that ended in this stretch of time amount to, seen from `event`: all together, and
    /// by kind.
    pub(super) fn figures(&self, way: Way, from: Duration, to: Duration, event: Duration) -> (Figures, ByKind) {
        habits::figures(event, |kind| self.attempts(way, kind, from, to))
    }

    /// What agents thought: changes that the one beside the callers went through after `event`, and what each of them
    /// says now.
    pub(super) fn minds(&self, clusters: &mut Clusters, event: Duration) -> Result<Value> {
        let mut now = BTreeMap::new();
        for agent in clusters.agents() {
            let minds: BTreeMap<_, _> = verdicts(&agent.status()?).into_iter().collect();
            now.insert(agent.node().to_owned(), json!(minds));
        }
        let changes = self.marks.iter().filter(|mark| mark.seen >= event).map(|mark| {
            let mut change = json!(mark);
            change["seen_after_ms"] = json!(ms_after(event, mark.seen));
            change
        });
        Ok(json!({"changes": changes.collect::<Vec<_>>(), "at_the_end": now}))
    }

    /// Whether the scene `next` is what comes after it.
    pub(super) fn goes_on_with(&self, next: Option<&str>) -> bool {
        next == Some(cluster_back::SCENE.name) && self.lost.is_some() && self.back.is_none()
    }

    /// When the agent beside the callers took the lost cluster for something else than before, in a line; none if it
    /// did not.
    pub(super) fn change_in_words(&self, event: Duration) -> Option<String> {
        let mark = self.marks.iter().find(|mark| mark.seen >= event && mark.cluster == LOST)?;
        let by = mark.verdict.by.as_str().map(|by| format!(", by {by}")).unwrap_or_default();
        let after = ms_after(event, mark.seen);
        Some(format!("{} takes {LOST} for {}{by}: seen {after:.0} ms after", mark.node, mark.verdict.in_words()))
    }

    /// Has the callers tell of what is under way.
    pub(super) fn ask(&mut self, _: &mut Clusters) -> Result<()> {
        self.callers.iter_mut().try_for_each(|(_, caller)| caller.ask())
    }

    /// Ends the callers. What they told stays.
    pub(super) fn stop(&mut self, _: &mut Clusters) -> Result<()> {
        self.callers.iter_mut().try_for_each(|(_, caller)| caller.stop())
    }
}

/// What a status says of the clusters, by name.
fn verdicts(status: &Value) -> Vec<(String, Verdict)> {
    let verdict = |row: &Value| Verdict {
        verdict: row["verdict"].clone(),
        since_ms: row["since_ms"].clone(),
        by: row["by"].clone(),
    };
    let rows = status["clusters"].as_object().into_iter().flatten();
    rows.map(|(name, row)| (name.clone(), verdict(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo::report::ClusterRow;

    #[test]
    fn verdicts_are_read_from_what_the_agent_reports() {
        let row = ClusterRow {
            verdict: "down".to_owned(),
            suspect: None,
            unanswered: 3,
            heard_ms: None,
            rtt_us: None,
            syn_timeout_jiffies: None,
            since_ms: Some(12),
            by: Some("probes".to_owned()),
            health: None,
        };
        let down = Verdict { verdict: json!("down"), since_ms: json!(12), by: json!("probes") };
        assert_eq!(verdicts(&json!({"clusters": {"east": row}})), [("east".to_owned(), down)]);
        assert_eq!(verdicts(&json!({"ready": true})), []);
    }
}
