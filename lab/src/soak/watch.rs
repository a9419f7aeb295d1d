//! Agents while they soak: what they find out, and what they take.

use crate::{
    clusters::{Agent, Clusters},
    report::now,
};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::{Duration, Instant},
};
use tombolo::health::Findings;

/// How long an agent gets to answer at the beginning and at the end.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// Lines of an agent's log that go with a false positive.
const LINES_KEPT: usize = 100;
/// Counters of the programs that are told.
const COUNTERS: [&str; 6] = ["aborted", "spared", "redrawn", "last_resort", "udp_refused", "event_lost"];

/// Watches all agents.
pub(super) struct Watch {
    began: Duration,
    agents: BTreeMap<String, Watched>,
    /// Whose turn it is.
    turn: usize,
    pub(super) false_positives: Vec<FalsePositive>,
}

/// One agent.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Watched {
    #[serde(skip)]
    first: Said,
    #[serde(skip)]
    last: Said,
    /// What it found out since the watch began.
    pub(super) found: Findings,
    /// What the programs counted since then.
    pub(super) counted: BTreeMap<String, u64>,
    /// How often its tables held something else than it wrote.
    pub(super) drift: u64,
    /// Questions that it left unanswered: a busy machine.
    pub(super) unanswered_questions: u64,
    /// Whatever it said was odd.
    pub(super) problems: BTreeSet<String>,
    /// What it took, over time.
    pub(super) weights: Vec<Weight>,
}

/// What a status says, as far as it is watched.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    findings: Findings,
    counters: BTreeMap<String, u64>,
    drift: u64,
    /// Clusters that are not up.
    down: BTreeSet<String>,
    problems: BTreeSet<String>,
}

/// What a process takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Weight {
    /// Seconds since the watch began.
    pub(super) at_s: f64,
    pub(super) rss_kib: u64,
    pub(super) descriptors: usize,
}

/// Somebody who was alive was taken for dead.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct FalsePositive {
    /// By the agent of this node.
    pub(super) node: String,
    /// Seconds since the watch began, when it was seen: some seconds after it was so.
    pub(super) at_s: f64,
    /// What was found.
    pub(super) what: String,
    /// The end of the agent's log then.
    pub(super) log: Vec<String>,
}

impl Watch {
    /// From how all agents are now.
    pub(super) fn start(clusters: &mut Clusters) -> Result<Self> {
        let mut watch = Self { began: now()?, agents: BTreeMap::new(), turn: 0, false_positives: Vec::new() };
        for agent in clusters.agents() {
            let first = wait_for_answer(agent)?;
            ensure!(
                first.down.is_empty(),
                "{} takes {:?} for dead before anything has begun",
                agent.node(),
                first.down
            );
            watch.agents.insert(agent.node().to_owned(), Watched { last: first.clone(), first, ..Watched::default() });
        }
        watch.weigh(clusters)?;
        Ok(watch)
    }

    /// Asks the next agent. Fails if it has ended.
    pub(super) fn ask_next(&mut self, clusters: &mut Clusters) -> Result<()> {
        let turn = self.turn % self.agents.len().max(1);
        self.turn = turn + 1;
        let agent = clusters.agents().nth(turn).context("there are agents")?;
        ensure!(agent.is_running()?, "the agent of {} has ended", agent.node());
        match ask(agent) {
            Some(said) => self.hear(agent, said),
            None => {
                self.watched(agent).unanswered_questions += 1;
                Ok(())
            }
        }
    }

    /// Asks all agents for the last time.
    pub(super) fn end(&mut self, clusters: &mut Clusters) -> Result<()> {
        for agent in clusters.agents() {
            let said = wait_for_answer(agent)?;
            self.hear(agent, said)?;
        }
        self.weigh(clusters)
    }

    fn hear(&mut self, agent: &Agent, said: Said) -> Result<()> {
        let at_s = self.elapsed()?;
        let watched = self.watched(agent);
        let wrong = said.wrong_since(&watched.last);
        watched.take_in(said);
        for what in wrong {
            println!("FALSE POSITIVE after {at_s:.0} s on {}: {what}", agent.node());
            let log = fs::read_to_string(agent.log()).unwrap_or_default();
            let lines: Vec<String> = log.lines().map(str::to_owned).collect();
            let log = lines[lines.len().saturating_sub(LINES_KEPT)..].to_vec();
            self.false_positives.push(FalsePositive { node: agent.node().to_owned(), at_s, what, log });
        }
        Ok(())
    }

    /// Notes what every agent takes.
    pub(super) fn weigh(&mut self, clusters: &mut Clusters) -> Result<()> {
        let at_s = self.elapsed()?;
        for agent in clusters.agents() {
            let weight = weight(agent.id()?, at_s).with_context(|| format!("weigh the agent of {}", agent.node()))?;
            self.watched(agent).weights.push(weight);
        }
        Ok(())
    }

    pub(super) fn into_agents(self) -> (BTreeMap<String, Watched>, Vec<FalsePositive>) {
        (self.agents, self.false_positives)
    }

    /// How all agents are, in a few words.
    pub(super) fn in_words(&self) -> String {
        let sum = |field: fn(&Findings) -> u64| self.agents.values().map(|agent| field(&agent.found)).sum::<u64>();
        let count = |name: &str| self.agents.values().filter_map(|agent| agent.counted.get(name)).sum::<u64>();
        let weights = || self.agents.values().filter_map(|agent| agent.weights.last());
        let most_kib = weights().map(|weight| weight.rss_kib).max().unwrap_or(0);
        format!(
            "down {}, out {}, dead {}, suspect {}, SYNs unanswered {}, ejected {} ({} for all), aborted {}, spared {}; \
             at most {} KiB, {} descriptors",
            sum(|found| found.clusters_down),
            sum(|found| found.paths_down),
            sum(|found| found.backends_dead),
            sum(|found| found.clusters_suspect),
            sum(|found| found.unanswered),
            sum(|found| found.ejected) + sum(|found| found.ejected_for_all),
            sum(|found| found.ejected_for_all),
            count("aborted"),
            count("spared"),
            most_kib,
            weights().map(|weight| weight.descriptors).max().unwrap_or(0),
        )
    }

    fn watched(&mut self, agent: &Agent) -> &mut Watched {
        self.agents.get_mut(agent.node()).expect("all agents are watched from the start")
    }

    fn elapsed(&self) -> Result<f64> {
        Ok(now()?.saturating_sub(self.began).as_secs_f64())
    }
}

impl Watched {
    fn take_in(&mut self, said: Said) {
        self.found = said.findings.since(&self.first.findings);
        let before = |name: &String| self.first.counters.get(name).copied().unwrap_or(0);
        let counted = said.counters.iter().map(|(name, count)| (name.clone(), count.saturating_sub(before(name))));
        self.counted = counted.collect();
        self.drift = said.drift.saturating_sub(self.first.drift);
        self.problems.extend(said.problems.iter().cloned());
        self.last = said;
    }

    /// By how much its memory grows, in KiB an hour: the slope of the line that fits best. The first tenth of the time, in
    /// which whatever is kept comes to its size, is left out. None of less than three samples.
    pub(super) fn growth_kib_per_hour(&self) -> Option<f64> {
        let from = self.weights.last()?.at_s / 10.0;
        let samples: Vec<&Weight> = self.weights.iter().filter(|weight| weight.at_s >= from).collect();
        if samples.len() < 3 {
            return None;
        }
        let mean = |value: &dyn Fn(&Weight) -> f64| {
            samples.iter().map(|weight| value(weight)).sum::<f64>() / float(samples.len())
        };
        let kib = |weight: &Weight| f64::from(u32::try_from(weight.rss_kib).unwrap_or(u32::MAX));
        let (at, rss) = (mean(&|weight| weight.at_s), mean(&kib));
        let together: f64 = samples.iter().map(|weight| (weight.at_s - at) * (kib(weight) - rss)).sum();
        let spread: f64 = samples.iter().map(|weight| (weight.at_s - at).powi(2)).sum();
        (spread > 0.0).then(|| together / spread * 3600.0)
    }
}

impl Said {
    /// What of it is wrong that was not so `before`: everybody is alive.
    fn wrong_since(&self, before: &Self) -> Vec<String> {
        let (now, then) = (&self.findings, &before.findings);
        let counts = [
            (now.clusters_down, then.clusters_down, "clusters down"),
            (now.paths_down, then.paths_down, "paths out"),
            (now.backends_dead, then.backends_dead, "backends dead"),
        ];
        let counted = counts.iter().filter(|(now, then, _)| now != then);
        let counted = counted.map(|(now, then, what)| format!("{what}: {now} since its start, {then} before"));
        let down = self.down.difference(&before.down).map(|name| format!("{name} is down"));
        counted.chain(down).collect()
    }
}

/// What a status says; none if no agent answered.
fn said(status: &Value) -> Option<Said> {
    if status["agent"] != "running" {
        return None;
    }
    let clusters = status["clusters"].as_object()?;
    let down = clusters.iter().filter(|(_, row)| row["verdict"] != "up").map(|(name, _)| name.clone());
    let texts = status["problems"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned);
    let counter = |name: &str| Some((name.to_owned(), status["counters"][name].as_u64()?));
    Some(Said {
        findings: serde_json::from_value(status["findings"].clone()).ok()?,
        counters: COUNTERS.into_iter().filter_map(counter).collect(),
        drift: status["drift"].as_u64()?,
        down: down.collect(),
        problems: texts.collect(),
    })
}

/// What an agent says; none if it doesn't in time. What it counts isn't lost with that.
fn ask(agent: &Agent) -> Option<Said> {
    agent.status().ok().as_ref().and_then(said)
}

fn wait_for_answer(agent: &mut Agent) -> Result<Said> {
    let begun = Instant::now();
    loop {
        ensure!(agent.is_running()?, "the agent of {} has ended", agent.node());
        if let Some(said) = ask(agent) {
            return Ok(said);
        }
        ensure!(begun.elapsed() < ANSWERED_WITHIN, "the agent of {} does not answer", agent.node());
        thread::sleep(Duration::from_millis(100));
    }
}

fn weight(id: u32, at_s: f64) -> Result<Weight> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).context("read its status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it has no VmRSS")?;
    let rss = line.split_whitespace().next().context("VmRSS is empty")?;
    let descriptors = fs::read_dir(format!("/proc/{id}/fd")).context("list its descriptors")?.count();
    Ok(Weight { at_s, rss_kib: rss.parse().context("read VmRSS")?, descriptors })
}

/// Counts of samples are small.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whoever_is_taken_for_dead_is_told_even_if_he_is_back_at_the_next_look() {
        let before = said(&status(0, "up")).unwrap();
        assert!(said(&status(0, "up")).unwrap().wrong_since(&before).is_empty());
        let blink = said(&status(1, "up")).unwrap();
        assert_eq!(blink.wrong_since(&before), ["clusters down: 1 since its start, 0 before"]);
        assert!(blink.wrong_since(&blink).is_empty(), "told once");
        assert!(said(&status(0, "down")).unwrap().wrong_since(&before).contains(&"east is down".to_owned()));
    }

    #[test]
    fn an_agent_that_does_not_answer_says_nothing() {
        let mut status = status(0, "up");
        status["agent"] = json!("gone");
        assert_eq!(said(&status), None);
    }

    #[test]
    fn growth_is_that_of_the_line_through_the_samples_after_the_first_tenth() {
        let watched = |samples: &[(f64, u64)]| {
            let weight = |&(at_s, rss_kib): &(f64, u64)| Weight { at_s, rss_kib, descriptors: 9 };
            Watched { weights: samples.iter().map(weight).collect(), ..Watched::default() }
        };
        let growing = watched(&[(0.0, 100), (360.0, 1000), (1800.0, 1400), (3600.0, 1900)]);
        let growth = growing.growth_kib_per_hour().unwrap();
        assert!((growth - 1000.0).abs() < 10.0, "{growth}");
        assert_eq!(watched(&[(0.0, 100), (3600.0, 200)]).growth_kib_per_hour(), None);
    }

    fn status(downs: u64, east: &str) -> Value {
        let findings = Findings { clusters_down: downs, ..Findings::default() };
        json!({
            "agent": "running", "problems": [], "drift": 0, "findings": findings,
            "clusters": {"west": {"verdict": "up"}, "east": {"verdict": east}},
            "counters": {"aborted": 0, "spared": 0},
        })
    }
}
