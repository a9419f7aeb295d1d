//! Callers in every cluster, and what became of their requests.

use crate::{
    attempts::{Failure, Figures},
    caller::Kind,
    clusters::{Caller, Calls, Clusters, NAMES},
    manifests::SERVICE_PORT,
    report::now,
};
use anyhow::{Result, ensure};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

/// What an HTTP client waits for an answer, and what a resolver waits.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));
/// In every cluster: requests a second, connections. Little enough that it is not the load that saturates the CPUs.
const LOAD: [(Kind, u32, u32); 6] = [
    (Kind::NewConnections, 20, 1),
    (Kind::KeepAlive, 6, 6),
    (Kind::Stream, 6, 6),
    (Kind::WaitingStream, 6, 6),
    (Kind::ConnectedUdp, 6, 6),
    (Kind::UnconnectedUdp, 6, 6),
];
/// What callers by way of the gateway are shown as.
const BY_GATEWAY: &str = "by-gateway";
/// Failures that are kept with their text, of each kind.
const FAILURES_KEPT: usize = 5;

/// The callers.
pub(super) struct Load {
    callers: Vec<(String, Caller)>,
    began: Duration,
    sums: BTreeMap<String, Sums>,
}

/// What requests amount to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Sums {
    pub(super) requests: u64,
    /// Those whose first attempt failed: what a client sees that doesn't retry.
    pub(super) failed: u64,
    /// Those whose retry failed too.
    pub(super) failed_with_retry: u64,
    /// Answers on sockets that showed another peer than was dialled.
    pub(super) other_peer: u64,
    pub(super) longest_connect_ms: Option<f64>,
    pub(super) by_cluster: BTreeMap<String, u64>,
    /// The first failures, counted from the start of the callers.
    pub(super) failures: Vec<Failure>,
}

impl Load {
    /// Starts callers of every kind in every cluster, and in north one of a service behind east's gateway.
    pub(super) fn start(clusters: &Clusters) -> Result<Self> {
        let call = |cluster: &str, service: &str, name: String, (kind, rate, connections)| -> Result<_> {
            let addresses = clusters.service_addresses(cluster, service).both();
            let targets = addresses.map(|address| SocketAddr::new(address, SERVICE_PORT)).to_vec();
            let is_udp = matches!(kind, Kind::ConnectedUdp | Kind::UnconnectedUdp);
            let timeout = if is_udp { PATIENCE.1 } else { PATIENCE.0 };
            let calls = Calls { targets, kind, rate, connections, timeout };
            let caller = clusters.call(cluster, "client", format!("{name} in {cluster}"), &calls)?;
            Ok((name, caller))
        };
        let began = now()?;
        let mut callers = vec![call("north", "analytics-east", BY_GATEWAY.to_owned(), LOAD[0])?];
        for cluster in NAMES {
            for load in LOAD {
                callers.push(call(cluster, "frontend-federated", load.0.to_string(), load)?);
            }
        }
        Ok(Self { callers, began, sums: BTreeMap::new() })
    }

    /// Waits until each caller has had an answer. What failed until then was for want of time to start.
    pub(super) fn wait_for_answers(&mut self, within: Duration) -> Result<()> {
        let begun = Instant::now();
        for (_, caller) in &mut self.callers {
            while caller.sum().by_cluster.is_empty() {
                caller.check()?;
                ensure!(begun.elapsed() < within, "the caller \"{}\" gets no answer", caller.label());
                thread::sleep(Duration::from_millis(20));
            }
        }
        for (_, caller) in &self.callers {
            caller.take();
        }
        Ok(())
    }

    /// Takes in what callers have told; fails if one has ended.
    pub(super) fn listen(&mut self) -> Result<()> {
        for (name, caller) in &mut self.callers {
            caller.check()?;
            add(&mut self.sums, name, caller, self.began);
        }
        Ok(())
    }

    /// Ends the callers.
    pub(super) fn stop(&mut self) -> Result<()> {
        for (name, caller) in &mut self.callers {
            caller.stop()?;
            add(&mut self.sums, name, caller, self.began);
        }
        Ok(())
    }

    /// Sums by kind of caller.
    pub(super) fn take_sums(&mut self) -> BTreeMap<String, Sums> {
        std::mem::take(&mut self.sums)
    }

    /// How it goes, in a few words.
    pub(super) fn in_words(&self) -> String {
        Sums::all(&self.sums).in_words()
    }
}

fn add(sums: &mut BTreeMap<String, Sums>, name: &str, caller: &Caller, began: Duration) {
    sums.entry(name.to_owned()).or_default().add(&Figures::of(&caller.take(), began));
}

impl Sums {
    fn add(&mut self, figures: &Figures) {
        self.requests += figures.requests;
        self.failed += figures.failed;
        self.failed_with_retry += figures.failed_with_retry;
        self.other_peer += figures.other_peer;
        if figures.longest_connect_ms > self.longest_connect_ms {
            self.longest_connect_ms = figures.longest_connect_ms;
        }
        for (cluster, count) in &figures.by_cluster {
            *self.by_cluster.entry(cluster.clone()).or_default() += count;
        }
        let room = FAILURES_KEPT.saturating_sub(self.failures.len());
        self.failures.extend(figures.failures.iter().take(room).cloned());
    }

    /// All kinds together, without the texts of failures.
    pub(super) fn all(by_kind: &BTreeMap<String, Self>) -> Self {
        let mut all = Self::default();
        for sums in by_kind.values() {
            all.requests += sums.requests;
            all.failed += sums.failed;
            all.failed_with_retry += sums.failed_with_retry;
            all.other_peer += sums.other_peer;
        }
        all
    }

    pub(super) fn in_words(&self) -> String {
        format!("{} requests, {} failed, {} with a retry", self.requests, self.failed, self.failed_with_retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_add_up_and_keep_the_longest_and_the_first() {
        let failure = |error: &str| Failure { began_ms: 1.0, error: error.to_owned() };
        let figures = |longest, error: &str| Figures {
            requests: 10,
            failed: 2,
            failed_with_retry: 1,
            longest_connect_ms: longest,
            by_cluster: BTreeMap::from([("east".to_owned(), 8)]),
            failures: vec![failure(error); 4],
            ..Figures::default()
        };
        let mut sums = Sums::default();
        for figures in [figures(None, "first"), figures(Some(7.0), "second"), figures(Some(3.0), "third")] {
            sums.add(&figures);
        }
        assert_eq!((sums.requests, sums.failed, sums.failed_with_retry), (30, 6, 3));
        assert_eq!((sums.longest_connect_ms, sums.by_cluster["east"]), (Some(7.0), 24));
        let errors: Vec<_> = sums.failures.iter().map(|failure| failure.error.as_str()).collect();
        assert_eq!(errors, ["first", "first", "first", "first", "second"]);
    }
}
