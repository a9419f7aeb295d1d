//! When the programs of an earlier agent, whose maps can't be had, give way to ours.
//!
//! New maps are filled from the sources alone, so the exchange waits until these have told all there is: what the old tables
//! hold and no document says would be taken out of service by it. A document that can't be read must not keep the old programs
//! for ever, though. Nobody writes their tables any more, so pods that go are dialled for as long as services live, and a
//! cluster that dies is never taken out; this grows worse by the minute, and for every service of the node.
//!
//! So the wait has a bound. After that the programs are exchanged with what could be read. What couldn't be is not taken for
//! gone: a service that the new tables lack is left alone, and kube-proxy serves it by the API's own objects, which are newer
//! than the old tables; one of which only the endpoints are missing is left to kube-proxy too, and refuses nobody. A source
//! that told of no service at all is waited for without a bound, for then there is nothing to exchange the tables for.

use super::Reconciler;
use crate::tables::Desired;
use std::time::{Duration, Instant};
use tracing::warn;

/// What is known of the exchange.
pub(super) struct TakingOver {
    /// How long an incomplete source is waited for.
    patience: Duration,
    /// When the source had first told what could be read.
    synced: Option<Instant>,
    /// Whether the exchange was made before everything could be read.
    incomplete: bool,
}

impl TakingOver {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, synced: None, incomplete: false }
    }

    /// The source has told what could be read.
    pub(super) fn synced(&mut self, now: Instant) {
        self.synced.get_or_insert(now);
    }

    /// Whether tables of so many services are to be put in place of an earlier agent's.
    pub(super) fn is_time(&self, complete: bool, services: usize, now: Instant) -> bool {
        let waited = self.synced.map(|since| now.saturating_duration_since(since));
        complete || services > 0 && waited.is_some_and(|waited| waited >= self.patience)
    }

    /// What people are told while the source is still incomplete.
    pub(super) fn oddity(&self) -> Option<String> {
        self.incomplete.then(|| {
            format!(
                "the tables of an earlier agent were of another layout and were given up after {} s: what could not be read \
                 since is left to kube-proxy until it can be",
                self.patience.as_secs()
            )
        })
    }
}

/// A service without endpoints may only lack those that could not be read: nobody is refused for that.
pub(super) fn refuse_nothing(desired: &mut Desired) {
    for service in desired.services.values_mut() {
        let mut members = service.tiers.iter().flatten().flat_map(|group| &group.members);
        service.exclusive &= members.next().is_some();
    }
}

impl Reconciler {
    /// Puts our programs in place of an earlier agent's, whose maps could not be had.
    pub(super) fn take_over(&mut self) {
        match self.writer.datapath.take_over() {
            Ok(()) => {
                self.taking_over.incomplete = !self.complete;
                if !self.complete {
                    let waited = self.taking_over.patience;
                    warn!(?waited, "took over without what could not be read; kube-proxy serves that");
                }
                self.forget_proof();
            }
            Err(error) => self.note_hooks(Some(format!("{error:#}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{ClusterName, ObjectName, Path},
        tables::{DesiredGroup, DesiredService, Member},
    };
    use tombolo_ebpf::abi::{FrontendKey, TCP};

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn an_incomplete_source_is_waited_for_a_minute_and_one_that_told_nothing_for_ever() {
        let start = Instant::now();
        let mut taking_over = TakingOver::new(MINUTE);
        assert!(!taking_over.is_time(false, 3, start + MINUTE * 9), "nothing was told yet");
        taking_over.synced(start);
        taking_over.synced(start + MINUTE / 2);
        assert!(!taking_over.is_time(false, 3, start + MINUTE / 2));
        assert!(taking_over.is_time(false, 3, start + MINUTE));
        assert!(!taking_over.is_time(false, 0, start + MINUTE * 9), "there is nothing to put in place");
        assert!(taking_over.is_time(true, 0, start), "there is really nothing");
    }

    #[test]
    fn a_service_whose_endpoints_could_not_be_read_refuses_nobody() {
        let cluster = ClusterName("west".to_owned());
        let member = Member { addr: [1; 16], port: [0, 80], path: Path::Pod, cluster: cluster.clone(), weight: 1 };
        let service = |members: Vec<Member>| DesiredService {
            name: ObjectName { namespace: "shop".to_owned(), name: "api".to_owned() },
            affinity_seconds: None,
            exclusive: true,
            no_abort: false,
            draining: Vec::new(),
            tiers: vec![vec![DesiredGroup { cluster: cluster.clone(), weight: 1, members }]],
        };
        let key = |port: u8| FrontendKey { addr: [2; 16], port: [0, port], proto: TCP, pad: 0 };
        let services = [(key(1), service(vec![member])), (key(2), service(Vec::new()))].into();
        let mut desired = Desired { services, ..Desired::default() };
        refuse_nothing(&mut desired);
        let exclusive: Vec<bool> = desired.services.values().map(|service| service.exclusive).collect();
        assert_eq!(exclusive, [true, false]);
    }
}
