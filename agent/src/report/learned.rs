//! What programs learned by themselves, in people's units: times are counted from now.

use crate::health::ClusterView;
use serde::{Deserialize, Serialize};
use tombolo_ebpf::abi::{BackendState, ClusterState, ejection};

/// What programs learned about a backend's TCP connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Learned {
    /// Connections that are established and not closed, of those that began since the programs are attached.
    pub open: u64,
    /// Connections that were established.
    pub established: u64,
    /// Connects that were refused or went unanswered.
    pub failed: u64,
    /// Milliseconds since it last answered a SYN; none if it never did.
    pub answered_ms: Option<u64>,
    /// Whether it is left out; none if it isn't.
    pub ejected: Option<Ejected>,
}

/// A backend that is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ejected {
    /// For so many milliseconds more. 0: the next connection tries it.
    pub for_ms: u64,
    /// For everybody, or only for the pod whose connection failed.
    pub for_all: bool,
    /// That pod, by the cookie of its network namespace.
    pub by_netns: u64,
    /// How many ejections followed each other.
    pub times: u32,
    /// Whether a connection is just trying it.
    pub tried: bool,
}

/// What is in the kernel about a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRow {
    /// What the agent decided: `up`, `draining` or `down`.
    pub verdict: String,
    /// What programs decided by themselves, for a second each time; none if they have no doubt.
    pub suspect: Option<Suspect>,
    /// SYNs that went unanswered since it was last heard.
    pub unanswered: u32,
    /// Milliseconds since anything was heard of it; none if nothing ever was.
    pub heard_ms: Option<u64>,
    /// The round-trip time of its SYNs in microseconds; none if there was none.
    pub rtt_us: Option<u32>,
    /// The first SYN timeout of its connections in jiffies; none if that is the kernel's own.
    pub syn_timeout_jiffies: Option<u32>,
    /// Milliseconds since one of the ways to it last went down or came back, by the agent's word; none if it never did, or the
    /// agent is gone.
    pub since_ms: Option<u64>,
    /// By whom it is out, if it is: `probes` of the agent, or `connections` that went unanswered.
    pub by: Option<String>,
    /// What the agent found out by probes and events; none once the agent is gone.
    pub health: Option<ClusterView>,
}

/// A cluster that new connections avoid for the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// For so many milliseconds more.
    pub for_ms: u64,
    /// For everybody, or only for the pod whose connects went unanswered.
    pub for_all: bool,
    /// That pod, by the cookie of its network namespace.
    pub by_netns: u64,
}

impl Learned {
    /// `now` is the kernel's time in nanoseconds, as in [`BackendState`].
    pub(super) fn of(state: &BackendState, now: u64) -> Self {
        let ejected = (state.ejected_until != 0).then(|| Ejected {
            for_ms: milliseconds(state.ejected_until.saturating_sub(now)),
            for_all: state.ejection & ejection::SHARED != 0,
            by_netns: state.ejected_by,
            times: state.ejection & ejection::STEPS,
            tried: state.ejection & ejection::TRIAL != 0,
        });
        Self {
            open: crate::datapath::open_connections(state),
            established: state.established,
            failed: state.failed,
            answered_ms: since(state.last_alive, now),
            ejected,
        }
    }
}

impl ClusterRow {
    pub(super) fn of(verdict: &str, syn_timeout: u32, state: &ClusterState, now: u64) -> Self {
        let suspect = (state.suspect_until > now).then(|| Suspect {
            for_ms: milliseconds(state.suspect_until - now),
            for_all: state.unanswered_shared != 0,
            by_netns: state.unanswered_by,
        });
        Self {
            verdict: verdict.to_owned(),
            suspect,
            unanswered: state.unanswered,
            heard_ms: since(state.last_alive, now),
            rtt_us: Some(state.rtt_us).filter(|rtt| *rtt != 0),
            syn_timeout_jiffies: Some(syn_timeout).filter(|jiffies| *jiffies != 0),
            since_ms: None,
            by: if verdict == "down" {
                Some("probes".to_owned())
            } else {
                (state.suspect_until > now).then(|| "connections".to_owned())
            },
            health: None,
        }
    }
}

impl Ejected {
    /// As people read it in a table.
    pub fn text(&self) -> String {
        let whom = if self.for_all { "all" } else { "one pod" };
        match (self.tried, self.for_ms) {
            (true, _) => format!("on trial, {whom}"),
            (false, 0) => format!("next one tries, {whom}"),
            (false, ms) => format!("{}, {whom}", seconds(ms)),
        }
    }
}

/// As people read it: `0.3 s`.
pub fn seconds(ms: u64) -> String {
    let tenths = ms.div_ceil(100);
    format!("{}.{} s", tenths / 10, tenths % 10)
}

fn since(time: u64, now: u64) -> Option<u64> {
    (time != 0).then(|| milliseconds(now.saturating_sub(time)))
}

fn milliseconds(nanoseconds: u64) -> u64 {
    nanoseconds.div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 5_000_000_000;

    #[test]
    fn an_ejection_is_told_with_its_end_and_for_whom_it_is() {
        let mut state = BackendState {
            ejected_until: NOW + 249_500_000,
            ejected_by: 42,
            ejection: 3 | ejection::SHARED,
            last_alive: NOW - 1_000_000_000,
            open: 2,
            ..BackendState::default()
        };
        let learned = Learned::of(&state, NOW);
        assert_eq!((learned.open, learned.answered_ms), (2, Some(1000)));
        let ejected = learned.ejected.unwrap();
        assert_eq!((ejected.for_ms, ejected.for_all, ejected.by_netns, ejected.times), (250, true, 42, 3));
        assert_eq!(ejected.text(), "0.3 s, all");
        let text = |state: &BackendState| Learned::of(state, NOW).ejected.map(|ejected| ejected.text());
        (state.ejected_until, state.ejection) = (NOW - 1, 1);
        assert_eq!(text(&state).as_deref(), Some("next one tries, one pod"));
        state.ejection |= ejection::TRIAL;
        assert_eq!(text(&state).as_deref(), Some("on trial, one pod"));
        state.ejected_until = 0;
        assert_eq!(text(&state), None);
    }

    #[test]
    fn more_connections_closed_than_opened_are_none() {
        let state = BackendState { open: 0u64.wrapping_sub(3), ..BackendState::default() };
        assert_eq!(Learned::of(&state, NOW).open, 0, "their beginning was before the programs'");
    }

    #[test]
    fn a_suspicion_ends_by_itself() {
        let state = ClusterState { suspect_until: NOW + 1, unanswered_by: 7, rtt_us: 900, ..ClusterState::default() };
        let row = ClusterRow::of("up", 0, &state, NOW);
        assert_eq!(row.suspect, Some(Suspect { for_ms: 1, for_all: false, by_netns: 7 }));
        assert_eq!((row.rtt_us, row.syn_timeout_jiffies, row.heard_ms), (Some(900), None, None));
        assert_eq!(ClusterRow::of("up", 50, &state, NOW + 1).suspect, None);
    }
}
