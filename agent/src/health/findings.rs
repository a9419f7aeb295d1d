//! What was found out since the agent started, counted where it is decided: who asks later has missed nothing.

use super::{Changed, Event, Failure};
use serde::{Deserialize, Serialize};

/// How often what was found out. Nothing here ever gets less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Clusters taken out by the agent, with all ways to them. Those that an earlier agent left out count too.
    pub clusters_down: u64,
    /// Ways taken out by the agent to clusters that stayed in use.
    pub paths_down: u64,
    /// Backends that probes found dead.
    pub backends_dead: u64,
    /// Clusters that programs avoided for a second, because SYNs to several of their backends went unanswered.
    pub clusters_suspect: u64,
    /// Connects whose first SYN went unanswered.
    pub unanswered: u64,
    /// Connects that were refused.
    pub refused: u64,
    /// Backends left out by programs, for longer with each time that it goes on, for the pod that met the failure.
    pub ejected: u64,
    /// Backends left out by programs for all, because a second pod met a failure too.
    pub ejected_for_all: u64,
    /// Backends that were left out and established a connection.
    pub recovered: u64,
}

impl Findings {
    /// What was found out since it was `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            clusters_down: self.clusters_down.saturating_sub(before.clusters_down),
            paths_down: self.paths_down.saturating_sub(before.paths_down),
            backends_dead: self.backends_dead.saturating_sub(before.backends_dead),
            clusters_suspect: self.clusters_suspect.saturating_sub(before.clusters_suspect),
            unanswered: self.unanswered.saturating_sub(before.unanswered),
            refused: self.refused.saturating_sub(before.refused),
            ejected: self.ejected.saturating_sub(before.ejected),
            ejected_for_all: self.ejected_for_all.saturating_sub(before.ejected_for_all),
            recovered: self.recovered.saturating_sub(before.recovered),
        }
    }

    /// Takes in what programs reported.
    pub(super) fn event(&mut self, event: Event) {
        let count = match event {
            Event::Failed { failure: Failure::Unanswered, .. } => &mut self.unanswered,
            Event::Failed { failure: Failure::Refused, .. } => &mut self.refused,
            Event::Ejected { for_all: false } => &mut self.ejected,
            Event::Ejected { for_all: true } => &mut self.ejected_for_all,
            Event::Recovered { .. } => &mut self.recovered,
            Event::Suspect { .. } => &mut self.clusters_suspect,
        };
        *count += 1;
    }

    /// Takes in what was decided, after `before`.
    pub(super) fn decided(&mut self, before: &Changed, after: &Changed) {
        let was_down = |name| before.clusters.get(name).is_some_and(|judged| judged.down);
        let downs = after.clusters.iter().filter(|(name, judged)| judged.down && !was_down(name)).count();
        self.clusters_down += number(downs);
        self.paths_down += number(after.paths_out.difference(&before.paths_out).count());
        self.backends_dead += number(after.dead.difference(&before.dead).count());
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        health::Judged,
        model::{ClusterName, Path},
    };
    use tombolo_ebpf::abi::{self, BackendKey};

    #[test]
    fn what_goes_down_is_counted_each_time_and_what_stays_down_once() {
        let (well, ill) = (decision(false), decision(true));
        let mut findings = Findings::default();
        for (before, after) in [(&well, &ill), (&ill, &ill), (&ill, &well), (&well, &ill)] {
            findings.decided(before, after);
        }
        let expected = Findings { clusters_down: 2, paths_down: 2, backends_dead: 2, ..Findings::default() };
        assert_eq!(findings, expected);
    }

    #[test]
    fn what_programs_report_is_counted_by_its_kind() {
        let mut findings = Findings::default();
        let failed = |failure| Event::Failed { backend: 1, generation: 1, failure };
        for event in [
            failed(Failure::Unanswered),
            failed(Failure::Unanswered),
            failed(Failure::Refused),
            Event::Ejected { for_all: false },
            Event::Ejected { for_all: true },
            Event::Suspect { cluster: 1 },
            Event::Recovered { backend: 1, generation: 1 },
        ] {
            findings.event(event);
        }
        let expected = Findings {
            unanswered: 2,
            refused: 1,
            ejected: 1,
            ejected_for_all: 1,
            clusters_suspect: 1,
            recovered: 1,
            ..Findings::default()
        };
        assert_eq!(findings, expected);
    }

    /// One cluster, a way to another, and a backend: all down, or all well.
    fn decision(down: bool) -> Changed {
        let mut changed = Changed::default();
        changed.clusters.insert(ClusterName("east".to_owned()), Judged { down, own: false, syn_timeout: None });
        if down {
            changed.paths_out.insert((ClusterName("north".to_owned()), Path::Pod));
            changed.dead.insert(BackendKey { addr: [0; 16], port: [0, 80], proto: abi::TCP, pad: 0 });
        }
        changed
    }
}
