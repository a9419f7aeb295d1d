//! When connected UDP sockets are to be refused what they send to backends that are gone or dead.
//!
//! The hook costs every packet that leaves a pod a little, so it is there only for as long after a loss as sockets may turn
//! up that haven't noticed: a resolver sends whenever it is asked.

use super::Reconciler;
use crate::{datapath::probe, tables::Installed};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::{Counter, UDP, verdict};
use tracing::warn;

/// The part of the least time after which, without a refusal, nobody is left who hasn't noticed: of an hour, ten minutes.
const QUIET: u32 = 6;

/// What is known of losses.
pub(super) struct Refusing {
    /// How long the hook stays at least.
    hold: Duration,
    lost: Lost,
    /// When something was lost last.
    lost_at: Option<Instant>,
    /// Refusals that were counted so far.
    refused: u64,
    /// When that number was seen to have grown last.
    refused_at: Option<Instant>,
    /// Why the hook is not as it should be.
    fault: Option<String>,
}

/// What connected UDP sockets can't reach.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lost {
    /// Dead backends of UDP, by index and generation.
    backends: BTreeSet<(u32, u32)>,
    /// Clusters that are down and have backends of UDP.
    clusters: BTreeSet<u32>,
}

impl Lost {
    fn of(installed: &Installed) -> Self {
        let udp = |index: &u32| installed.backend(*index).filter(|backend| backend.proto == UDP);
        let dead = |index: &u32| Some((*index, udp(index)?.generation));
        let clusters = installed.clusters().iter().filter(|(_, entry)| entry.verdict != verdict::OK);
        let has_udp =
            |cluster: u32| installed.backends().any(|(_, backend)| backend.cluster == cluster && backend.proto == UDP);
        Self {
            backends: installed.dead().iter().filter_map(dead).collect(),
            clusters: clusters.map(|(index, _)| *index).filter(|cluster| has_udp(*cluster)).collect(),
        }
    }

    fn is_within(&self, other: &Self) -> bool {
        self.backends.is_subset(&other.backends) && self.clusters.is_subset(&other.clusters)
    }
}

impl Refusing {
    /// The hook stays for `hold` after a loss, and then until nothing was refused for a sixth of that.
    pub(super) fn new(hold: Duration) -> Self {
        Self { hold, lost: Lost::default(), lost_at: None, refused: 0, refused_at: None, fault: None }
    }

    /// Why connected UDP sockets are not refused although that is needed.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Takes in how things are: whether the hook `is_on`, and whether a backend was `removed` since. An earlier agent's hook
    /// stands for a loss of which nothing else is known.
    fn note(&mut self, installed: &Installed, is_on: bool, removed: bool, now: Instant) {
        let lost = Lost::of(installed);
        if removed || !lost.is_within(&self.lost) || is_on && self.lost_at.is_none() {
            self.lost_at = Some(now);
        }
        self.lost = lost;
    }

    /// Takes in how often packets were refused in all.
    fn note_refused(&mut self, refused: u64, now: Instant) {
        if refused > self.refused {
            self.refused_at = Some(now);
        }
        self.refused = refused;
    }

    fn is_needed(&self, installed: &Installed, now: Instant) -> bool {
        let is_within = |time: Option<Instant>, limit| time.is_some_and(|time| now.duration_since(time) < limit);
        let is_due = is_within(self.lost_at, self.hold)
            || self.lost_at.is_some() && is_within(self.refused_at, self.hold / QUIET);
        is_due && installed.frontends().keys().any(|key| key.proto == UDP && !probe::is_probe(key.addr))
    }
}

impl Reconciler {
    /// Has connected UDP sockets refused, or not any more.
    pub(super) fn mind_udp(&mut self) {
        if self.writer.datapath.waits() {
            return;
        }
        let (now, is_on) = (Instant::now(), self.writer.datapath.refuses_udp());
        let removed = self.writer.take_removed_udp();
        self.refusing.note(self.writer.installed(), is_on, removed, now);
        let is_needed = self.refusing.is_needed(self.writer.installed(), now);
        // An attached one is looked after too: its cgroup may have been removed.
        let done = if is_needed || is_on { self.writer.datapath.refuse_udp(is_needed) } else { Ok(()) };
        let fault = done.err().map(|error| format!("{error:#}"));
        if let Some(reason) = fault.as_ref().filter(|reason| self.refusing.fault.as_ref() != Some(reason)) {
            warn!(%reason, "connected UDP sockets of lost backends are not refused");
        }
        self.refusing.fault = fault;
    }

    /// Finds out whether packets are still refused.
    pub(super) fn count_refused_udp(&mut self) {
        if !self.writer.datapath.refuses_udp() {
            return;
        }
        match self.writer.datapath.maps.count(Counter::UdpRefused) {
            Ok(refused) => self.refusing.note_refused(refused, Instant::now()),
            Err(error) => warn!(error = format!("{error:#}"), "refused datagrams not counted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Step;
    use tombolo_ebpf::abi::{Backend, FrontendKey, Group, MAX_GROUPS, MAX_TIERS, Service, TCP};

    const HOLD: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    /// Tables with a service of `proto`, and a backend with `verdict`.
    fn tables(proto: u8, verdict: u8) -> Installed {
        let mut installed = Installed::default();
        let key = FrontendKey { addr: [7; 16], port: [0, 53], proto, pad: 0 };
        let service = Service {
            key,
            id: 0,
            version: 1,
            flags: 0,
            affinity_seconds: 0,
            tier_end: [0; MAX_TIERS],
            pad: 0,
            groups: [Group::default(); MAX_GROUPS],
        };
        installed.apply(&Step::PutBackend(0, Backend { proto, verdict, generation: 1, ..Backend::default() }));
        installed.apply(&Step::PutService(0, Box::new(service)));
        installed.apply(&Step::PutFrontend(key, 0));
        installed
    }

    #[test]
    fn the_hook_stays_an_hour_after_the_last_loss_and_ten_minutes_after_the_last_refusal() {
        let (start, installed) = (Instant::now(), tables(UDP, verdict::OK));
        let mut refusing = Refusing::new(HOLD);
        refusing.note(&installed, false, false, start);
        assert!(!refusing.is_needed(&installed, start));
        refusing.note(&installed, false, true, start);
        refusing.note(&installed, true, true, start + MINUTE);
        refusing.note(&installed, true, false, start + 2 * MINUTE);
        assert!(refusing.is_needed(&installed, start + 60 * MINUTE));
        assert!(!refusing.is_needed(&installed, start + 61 * MINUTE));
        refusing.note_refused(1, start + 55 * MINUTE);
        refusing.note_refused(1, start + 60 * MINUTE);
        assert!(refusing.is_needed(&installed, start + 64 * MINUTE));
        assert!(!refusing.is_needed(&installed, start + 65 * MINUTE));
    }

    #[test]
    fn what_becomes_dead_is_a_loss_once_and_for_udp_alone() {
        let start = Instant::now();
        for (proto, is_needed) in [(UDP, true), (TCP, false)] {
            let installed = tables(proto, verdict::DEAD);
            let mut refusing = Refusing::new(HOLD);
            refusing.note(&installed, false, false, start);
            assert_eq!(refusing.is_needed(&installed, start), is_needed);
            refusing.note(&installed, is_needed, false, start + 30 * MINUTE);
            assert!(!refusing.is_needed(&installed, start + 60 * MINUTE), "it is still dead");
        }
        let without = tables(TCP, verdict::OK);
        let mut refusing = Refusing::new(HOLD);
        refusing.note(&without, false, true, start);
        assert!(!refusing.is_needed(&without, start), "there is no service of UDP any more");
    }

    #[test]
    fn an_earlier_agents_hook_stays_for_the_whole_time() {
        let (start, installed) = (Instant::now(), tables(UDP, verdict::OK));
        let mut refusing = Refusing::new(HOLD);
        refusing.note(&installed, true, false, start);
        assert!(refusing.is_needed(&installed, start + 59 * MINUTE));
        assert!(!refusing.is_needed(&installed, start + 60 * MINUTE));
    }
}
