//! What faults strike: clusters with agents, callers that go on, and how to see that all is well.

use crate::{
    addresses::Network,
    attempts::Figures,
    bpffs,
    caller::{Attempt, Kind},
    cleanup,
    clusters::{Agent, Caller, Calls, Clusters, Mirroring, NAMES, Programs},
    manifests::{Condition, SERVICE_PORT},
    nft,
};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// The cluster that the callers are in, on whose node the agent is struck.
pub(super) const HERE: &str = "west";
/// What they call.
pub(super) const CALLED: &str = "frontend-federated";
/// Pods of it, in west, east and north.
const PODS: [usize; 3] = [2, 3, 2];
/// What a caller waits for an answer: longer than a flow to a dead cluster may live.
pub(super) const PATIENCE: Duration = Duration::from_millis(2500);
/// How long it may take until all is well again.
pub(super) const HEALED_WITHIN: Duration = Duration::from_secs(30);
/// How long agents get for their first start.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often something is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Room in the agents' maps: little, so that it can be overfilled in no time.
pub(super) const FRONTENDS: usize = 256;

/// Kinds of callers: requests a second, connections.
const LOAD: [(Kind, u32, u32); 4] =
    [(Kind::NewConnections, 150, 1), (Kind::KeepAlive, 30, 6), (Kind::Stream, 30, 6), (Kind::ConnectedUdp, 30, 6)];

/// Clusters with callers.
pub(super) struct Ground {
    pub(super) clusters: Clusters,
    callers: Vec<Caller>,
    /// In north, by way of east's gateway: there is no other way to these pods.
    by_gateway: Caller,
    /// The agent's bpffs, which is its own.
    bpffs: PathBuf,
    /// The empty programs.
    pub(super) floor: PathBuf,
}

impl Ground {
    pub(super) fn build(lab: PathBuf, agent: PathBuf, floor: PathBuf) -> Result<Self> {
        let flags =
            [("--max-frontends", FRONTENDS), ("--max-backends", 4 * FRONTENDS), ("--max-slots", 16 * FRONTENDS)];
        let agent_flags = flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.to_string()]).collect();
        let mut clusters = Clusters::build(Programs { lab, agent: Some(agent), agent_flags })?;
        let mut pods: Vec<_> =
            NAMES.into_iter().zip(PODS).map(|(name, count)| (name, "frontend", Network::Flat, count)).collect();
        pods.push(("east", "analytics", Network::Private, 2));
        clusters.start_pods(&pods)?;
        clusters.publish()?;
        for agent in clusters.agents() {
            agent.wait_until_ready(READY_WITHIN)?;
        }
        let agent = clusters.cluster_mut(HERE).client_agent()?;
        agent.unload()?;
        let bpffs = agent.pins().to_owned();
        bpffs::mount_at(&bpffs)?;
        agent.start()?;
        agent.wait_until_ready(READY_WITHIN)?;

        let calls = |cluster: &str, service: &str, kind, rate, connections| {
            let addresses = clusters.service_addresses(cluster, service).both();
            let targets = addresses.map(|address| SocketAddr::new(address, SERVICE_PORT)).to_vec();
            let calls = Calls { targets, kind, rate, connections, timeout: PATIENCE };
            clusters.call(cluster, "client", format!("{kind} in {cluster}"), &calls)
        };
        let by_gateway = calls("north", "analytics-east", Kind::NewConnections, 30, 1)?;
        let callers = LOAD.map(|(kind, rate, connections)| calls(HERE, CALLED, kind, rate, connections));
        let callers = callers.into_iter().collect::<Result<_>>()?;
        Ok(Self { clusters, callers, by_gateway, bpffs, floor })
    }

    /// Ends everything.
    pub(super) fn end(mut self) -> Result<()> {
        self.callers.iter_mut().chain([&mut self.by_gateway]).try_for_each(Caller::stop)?;
        for agent in self.clusters.agents() {
            if agent.pins() == self.bpffs {
                // Its pins go with their file system.
                agent.kill()?;
            } else {
                agent.unload()?;
            }
        }
        drop(self.clusters);
        cleanup::remove_own()
    }

    /// The agent on the callers' node.
    pub(super) fn agent(&mut self) -> Result<&mut Agent> {
        self.clusters.cluster_mut(HERE).client_agent()
    }

    /// Where its pins are: a bpffs of its own.
    pub(super) fn bpffs(&self) -> &PathBuf {
        &self.bpffs
    }

    /// The attempts that callers have told of since the last time, by kind of caller; those by way of the gateway apart.
    pub(super) fn take(&self) -> (BTreeMap<Kind, Vec<Attempt>>, Vec<Attempt>) {
        (self.callers.iter().map(|caller| (caller.kind(), caller.take())).collect(), self.by_gateway.take())
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check()?;
            thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Waits until no attempt is under way that may have begun by now.
    pub(super) fn pass_attempts(&mut self) -> Result<()> {
        self.pass(2 * PATIENCE + Duration::from_millis(200))
    }

    /// Waits until `seen` holds, and returns how long that took; `what` is for the error.
    pub(super) fn until(
        &mut self,
        what: &str,
        within: Duration,
        mut seen: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<Duration> {
        let begin = Instant::now();
        while !seen(self)? {
            self.check()?;
            ensure!(begin.elapsed() < within, "not seen within {} s: {what}", within.as_secs());
            thread::sleep(LOOK);
        }
        Ok(begin.elapsed())
    }

    /// Whether the agent says that it is ready.
    pub(super) fn is_ready(&mut self) -> Result<bool> {
        Ok(self.agent()?.status().is_ok_and(|status| status["ready"] == true && status["agent"] == "running"))
    }

    /// Waits until the agent is ready.
    pub(super) fn ready(&mut self) -> Result<Duration> {
        let ready = self.until("a ready agent", HEALED_WITHIN, Self::is_ready);
        ready.or_else(|error| Err(error).with_context(|| self.complaints()))
    }

    /// What the agent says is wrong with it, and the end of its log.
    fn complaints(&mut self) -> String {
        let Ok(agent) = self.agent() else { return "there is no agent".to_owned() };
        let status = agent.status().unwrap_or_default();
        format!("the agent says {} and {}; its log ends:\n{}", status["agent"], status["problems"], agent.last_words())
    }

    /// Waits until the agent says that it isn't ready.
    pub(super) fn not_ready(&mut self) -> Result<Duration> {
        self.until("an agent that says it isn't ready", HEALED_WITHIN, |ground| Ok(!ground.is_ready()?))
    }

    /// Fails if the agent thinks that a cluster is down.
    pub(super) fn trusts_all(&mut self) -> Result<()> {
        let status = self.agent()?.status()?;
        let clusters = &status["clusters"];
        let rows = clusters.as_object().context("an agent's status has clusters by name")?;
        ensure!(rows.values().all(|row| row["verdict"] != "down"), "a cluster was taken for dead: {clusters}");
        Ok(())
    }

    /// The number in the agent's status at `path`.
    pub(super) fn number(&mut self, path: &str) -> Result<u64> {
        let status = self.agent()?.status()?;
        status.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path} in {status}"))
    }

    /// Waits until the kernel of the callers' node has these clusters' endpoints, and them alone, with the shares that
    /// the endpoints make.
    pub(super) fn follows(&mut self, clusters: &[&str]) -> Result<Duration> {
        let address = SocketAddr::new(self.clusters.service_addresses(HERE, CALLED).v4.into(), SERVICE_PORT);
        let pods = NAMES.into_iter().zip(PODS).filter(|(name, _)| clusters.contains(name));
        let expected: BTreeMap<String, usize> = pods.map(|(name, count)| (name.to_owned(), count)).collect();
        let all: usize = expected.values().sum();
        self.until(&format!("shares by the endpoints of {clusters:?}"), HEALED_WITHIN, |ground| {
            let Ok(Some(found)) = ground.agent()?.shares(address) else { return Ok(false) };
            let is = |name: &String, count: usize| {
                found.get(name).is_some_and(|share| (share - float(count) / float(all)).abs() < 0.001)
            };
            Ok(found.len() == expected.len() && expected.iter().all(|(name, &count)| is(name, count)))
        })
    }

    /// Has north withdraw, and come back, and waits each time until the agent has followed; the longer wait.
    pub(super) fn follows_changes(&mut self) -> Result<Duration> {
        self.clusters.mirroring.withdrawn.insert("north".to_owned());
        self.clusters.publish()?;
        let left = self.follows(&["west", "east"])?;
        self.clusters.mirroring.withdrawn.clear();
        self.clusters.publish()?;
        Ok(left.max(self.follows(&NAMES)?))
    }

    /// Waits until all is well: agents ready, tables in step, and every cluster's share in the answers.
    pub(super) fn well(&mut self) -> Result<()> {
        self.ready()?;
        self.follows(&NAMES)?;
        let answers = Duration::from_secs(1);
        self.until("answers from all clusters, and no failures", HEALED_WITHIN, |ground| {
            let now = crate::report::now()?;
            let latest = ground.callers[0].attempts(now.saturating_sub(answers), now);
            let latest = Figures::of(&latest, now);
            let all: u64 = latest.by_cluster.values().sum();
            let enough = |(name, count): (&str, usize)| {
                let expected = float(count) / float(PODS.iter().sum());
                #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2⁵³")]
                let found = latest.by_cluster.get(name).copied().unwrap_or(0) as f64 / all.max(1) as f64;
                found >= expected / 2.0
            };
            let by_gateway = ground.by_gateway.attempts(now.saturating_sub(answers), now);
            let by_gateway = Figures::of(&by_gateway, now);
            let gateway_works = by_gateway.requests > 0 && by_gateway.failed == 0;
            Ok(latest.failed == 0 && gateway_works && NAMES.into_iter().zip(PODS).all(enough))
        })?;
        Ok(())
    }

    /// Puts back whatever a fault may have left.
    pub(super) fn restore(&mut self) -> Result<()> {
        nft::clear(self.clusters.fabric())?;
        nft::remove_table(self.clusters.gateway(), "inet fault")?;
        for cluster in NAMES {
            self.clusters.light_up(cluster)?;
            for node in self.clusters.cluster(cluster).nodes() {
                self.clusters.fabric().up(node.name())?;
            }
        }
        self.clusters.mirroring = Mirroring::default();
        for (cluster, count) in NAMES.into_iter().zip(PODS) {
            for pod in self.clusters.cluster_mut(cluster).pods_mut() {
                if pod.app() == "frontend" {
                    pod.signal(Signal::SIGCONT)?;
                }
                pod.condition = Condition::Ready;
            }
            self.clusters.cluster_mut(cluster).remove_ended_pods()?;
            let there = self.clusters.cluster(cluster).pods_of("frontend").count();
            self.clusters.start_pods(&[(cluster, "frontend", Network::Flat, count.saturating_sub(there))])?;
        }
        self.clusters.publish()?;
        bpffs::mount_at(&self.bpffs)?;
        let agent = self.agent()?;
        if agent.is_running()? {
            agent.signal(Signal::SIGCONT)?;
        } else {
            agent.start()?;
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.callers.iter_mut().chain([&mut self.by_gateway]).try_for_each(Caller::check)
    }
}

/// Counts of pods are small.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn float(count: usize) -> f64 {
    count as f64
}
