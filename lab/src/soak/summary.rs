//! What a soak has shown, for people and as JSON.

use super::{
    calls::Sums,
    entries::Entries,
    strain::{Measured, Strain},
    watch::{FalsePositive, Watch, Watched},
};
use anyhow::{Context, Result};
use serde::Serialize;
use std::{collections::BTreeMap, fs, time::Duration};

/// By how much an agent's memory may grow, in KiB an hour, if the soak is long enough to tell.
const MOST_GROWTH: f64 = 1024.0;
/// Probes are under way now and then.
const SPARE_DESCRIPTORS: usize = 40;
const LONG_ENOUGH: Duration = Duration::from_secs(30 * 60);

/// All of it.
#[derive(Serialize)]
pub(super) struct Summary {
    kernel: String,
    pub(super) passed: bool,
    /// Why it could not go on.
    pub(super) error: Option<String>,
    pub(super) phases: Vec<PhaseSummary>,
}

/// One strain.
#[derive(Serialize)]
pub(super) struct PhaseSummary {
    name: Strain,
    minutes: f64,
    passed: bool,
    /// What is wrong, in sentences.
    wrong: Vec<String>,
    pub(super) strain: Option<Measured>,
    pub(super) false_positives: Vec<FalsePositive>,
    pub(super) requests: BTreeMap<String, Sums>,
    agents: BTreeMap<String, AgentSummary>,
    pub(super) entries_before: Entries,
    pub(super) entries_after: Entries,
    #[serde(skip)]
    time: Duration,
}

#[derive(Serialize)]
struct AgentSummary {
    #[serde(flatten)]
    watched: Watched,
    rss_growth_kib_per_hour: Option<f64>,
}

impl Summary {
    pub(super) fn new() -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
        Ok(Self { kernel: kernel.trim().to_owned(), passed: false, error: None, phases: Vec::new() })
    }

    /// To be called at the end.
    pub(super) fn conclude(&mut self) {
        self.passed = self.error.is_none() && self.phases.iter().all(|phase| phase.passed);
        if self.error.is_none() {
            let well = self.phases.iter().filter(|phase| phase.passed).count();
            println!("kernel {}: {well} of {} phases went well", self.kernel, self.phases.len());
        }
    }
}

impl PhaseSummary {
    pub(super) fn new(name: Strain, time: Duration) -> Self {
        Self {
            name,
            minutes: time.as_secs_f64() / 60.0,
            passed: false,
            wrong: Vec::new(),
            strain: None,
            false_positives: Vec::new(),
            requests: BTreeMap::new(),
            agents: BTreeMap::new(),
            entries_before: Entries::default(),
            entries_after: Entries::default(),
            time,
        }
    }

    /// Takes in what was watched.
    pub(super) fn take(&mut self, watch: Watch) {
        let (agents, false_positives) = watch.into_agents();
        self.false_positives = false_positives;
        let summary = |(node, watched): (String, Watched)| {
            let rss_growth_kib_per_hour = watched.growth_kib_per_hour();
            (node, AgentSummary { watched, rss_growth_kib_per_hour })
        };
        self.agents = agents.into_iter().map(summary).collect();
    }

    /// To be called once everything is taken in.
    pub(super) fn conclude(&mut self) {
        let mut wrong: Vec<String> =
            self.false_positives.iter().map(|found| format!("{} on {}", found.what, found.node)).collect();
        match &self.strain {
            Some(strain) => wrong.extend(strain.missing()),
            None => wrong.push("it was not played to its end".to_owned()),
        }
        wrong.extend(self.entries_after.left_since(&self.entries_before));
        for (node, agent) in &self.agents {
            if agent.watched.drift > 0 {
                wrong.push(format!("{node}: its tables held something else {} times", agent.watched.drift));
            }
            let growth = agent.rss_growth_kib_per_hour.filter(|_| self.time >= LONG_ENOUGH);
            if let Some(growth) = growth.filter(|growth| *growth > MOST_GROWTH) {
                wrong.push(format!("{node}: its memory grows by {growth:.0} KiB an hour"));
            }
            if let Some((first, last)) = agent.watched.weights.first().zip(agent.watched.weights.last())
                && last.descriptors > first.descriptors + SPARE_DESCRIPTORS
            {
                let (first, last) = (first.descriptors, last.descriptors);
                wrong.push(format!("{node}: it had {first} descriptors, and has {last}"));
            }
        }
        for (kind, sums) in self.requests.iter().filter(|(_, sums)| sums.other_peer > 0) {
            wrong.push(format!("{kind}: {} sockets showed another peer than was dialled", sums.other_peer));
        }
        self.passed = wrong.is_empty();
        self.wrong = wrong;
    }

    pub(super) fn print(&self) {
        let state = if self.passed { "well" } else { "NOT WELL" };
        println!("{}, {:.1} minutes: {state}", self.name, self.minutes);
        if let Some(strain) = &self.strain {
            println!("  {}", strain.in_words());
        }
        println!("  {}", Sums::all(&self.requests).in_words());
        for (kind, sums) in &self.requests {
            println!("    {kind:<18} {}", sums.in_words());
        }
        for (node, agent) in &self.agents {
            println!("  {node:<9} {}", agent.in_words());
        }
        for wrong in &self.wrong {
            println!("  ! {wrong}");
        }
    }
}

impl AgentSummary {
    fn in_words(&self) -> String {
        let Watched { found, counted, weights, drift, unanswered_questions, problems, .. } = &self.watched;
        let count = |name: &str| counted.get(name).copied().unwrap_or(0);
        let span = match (weights.first(), weights.last()) {
            (Some(first), Some(last)) => {
                let (kib, descriptors) = ((first.rss_kib, last.rss_kib), (first.descriptors, last.descriptors));
                format!("{} to {} KiB, {} to {} descriptors", kib.0, kib.1, descriptors.0, descriptors.1)
            }
            _ => "not weighed".to_owned(),
        };
        let growth = self.rss_growth_kib_per_hour.map_or_else(String::new, |growth| format!(" ({growth:+.0} KiB/h)"));
        format!(
            "down {}, out {}, dead {}, suspect {}, SYNs unanswered {}, ejected {} and {} for all, refused {}, \
             aborted {}, spared {}, last resort {}, drift {drift}; {span}{growth}; {unanswered_questions} questions \
             unanswered, {} kinds of problems",
            found.clusters_down,
            found.paths_down,
            found.backends_dead,
            found.clusters_suspect,
            found.unanswered,
            found.ejected,
            found.ejected_for_all,
            found.refused,
            count("aborted"),
            count("spared"),
            count("last_resort"),
            problems.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_went_well_only_if_nothing_is_wrong() {
        let loss = |lost| Some(Measured::Loss { packets: 100_000, lost });
        let phase = |strain, false_positives| {
            let mut phase = PhaseSummary::new(Strain::Loss, LONG_ENOUGH);
            (phase.strain, phase.false_positives) = (strain, false_positives);
            phase.conclude();
            phase
        };
        assert!(phase(loss(1000), Vec::new()).passed);
        assert!(!phase(loss(0), Vec::new()).passed, "nothing was lost");
        assert!(!phase(None, Vec::new()).passed, "it ended early");
        let found = FalsePositive { node: "west-1".into(), at_s: 7.0, what: "clusters down".into(), log: Vec::new() };
        assert_eq!(phase(loss(1000), vec![found]).wrong, ["clusters down on west-1"]);
    }
}
