//! What health finds out and what it has to know, on the loop's side.

use super::Reconciler;
use crate::{
    datapath::clock,
    health::{Changed, Hz, Used, View, driver::Fact, local_addresses},
    model::{ClusterName, PeerState},
    resolve::Conditions,
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

/// The loop's end of the lines to health.
pub(super) struct Judging {
    facts: mpsc::Sender<Fact>,
    views: watch::Receiver<View>,
    /// Jiffies a second; none if that isn't known, and SYN timeouts are left to the kernel.
    hz: Option<Hz>,
    /// What was put into force last; none until health has heard what is in use.
    in_force: Option<Changed>,
    /// What health was told last, and after how many changes of the model and of the tables.
    used: Option<Arc<Used>>,
    told: Option<(u64, u64)>,
    peers: BTreeMap<ClusterName, PeerState>,
}

impl Judging {
    pub(super) fn new(facts: mpsc::Sender<Fact>, views: watch::Receiver<View>) -> Self {
        let hz = clock::tick().ok().and_then(Hz::of_tick);
        if hz.is_none() {
            warn!("the kernel's HZ is not known: SYN timeouts are left as they are");
        }
        Self { facts, views, hz, in_force: None, used: None, told: None, peers: BTreeMap::new() }
    }

    /// What health thinks of each cluster, and what it has found out.
    pub(super) fn view(&self) -> View {
        self.views.borrow().clone()
    }

    /// Whether there was room for it; if not, it is told the next time.
    fn tell(&self, fact: Fact) -> bool {
        let told = self.facts.try_send(fact);
        if told.is_err() {
            debug!("health is busy");
        }
        told.is_ok()
    }
}

impl Reconciler {
    /// Takes in what health found out: what gets worse at once, what gets better once the tables have the new shares.
    pub(super) fn heed(&mut self, changed: Changed) {
        // It has not heard yet what is in use.
        if changed.clusters.is_empty() {
            return;
        }
        let hz = self.judging.hz;
        let conditions = Conditions { ramps: changed.ramps.clone(), paths_out: changed.paths_out.clone() };
        if conditions != self.conditions {
            if let Some(before) = &self.judging.in_force {
                let worse = changed.worse_than(before);
                self.judge(worse.verdicts(hz));
            }
            self.conditions = conditions;
            self.kept.forget();
            self.pass();
        }
        self.judge(changed.verdicts(hz));
        self.judging.in_force = Some(changed);
    }

    /// Tells health what the tables use and what is said of peers, if that is news.
    pub(super) fn tell_health(&mut self) {
        let changes = Some((self.changes, self.writer.writes()));
        if self.judging.told == changes {
            return;
        }
        let peers = self.model.peer_states().into_iter();
        let peers: BTreeMap<ClusterName, PeerState> = peers.map(|(name, state)| (name.clone(), state)).collect();
        if peers != self.judging.peers {
            if !self.judging.tell(Fact::Peers(peers.clone())) {
                return;
            }
            self.judging.peers = peers;
        }
        let used = Used::of(self.writer.installed(), &local_addresses(&self.model, &self.place));
        if self.judging.used.as_deref() != Some(&used) {
            // Health has it with us: it is as large as the tables are.
            let used = Arc::new(used);
            if !self.judging.tell(Fact::Used(Arc::clone(&used))) {
                return;
            }
            self.judging.used = Some(used);
        }
        self.judging.told = changes;
    }
}
