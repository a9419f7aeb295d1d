//! What a scene has at hand: the clusters, clients, counts.

use super::{
    client::Client,
    ground::Ground,
    install,
    workloads::{FEDERATED, NAMESPACE},
};
use crate::{
    clusters::{NAMES, agent},
    demo::{
        shares,
        summary::{Said, SceneResult},
    },
    report::{Report, now},
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

/// Requests a second of each client.
const RATE: u32 = 100;
/// Requests that a sample has at least.
const SAMPLED: u64 = 50;
/// How long a change may take from a cluster's API server by a mirror to an agent of another cluster, on a machine that runs
/// three of them.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// How long a change takes at most that agents know of to be seen in the counts: as long as a request may take.
const SEEN_AFTER: Duration = Duration::from_millis(700);

/// A scene that is being played.
pub(super) struct Stage<'a> {
    /// What it is played on.
    pub(super) ground: &'a Ground,
    name: &'static str,
    began: Instant,
    clients: Vec<Client>,
    /// What goes into the table, the JSON and the summary.
    pub(super) said: Said,
}

impl<'a> Stage<'a> {
    pub(super) fn new(name: &'static str, ground: &'a Ground) -> Self {
        Self { ground, name, began: Instant::now(), clients: Vec::new(), said: Said::default() }
    }

    /// Waits until what every scene starts from is in force.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.settle(FEDERATED, &shares::by_endpoint(), &NAMES)?;
        NAMES.into_iter().try_for_each(|cluster| self.whole_share(cluster))?;
        self.began = Instant::now();
        Ok(())
    }

    /// Starts a client in `cluster` that asks a service by its ClusterIP, and by nothing else, and waits for its first answer.
    pub(super) fn ask(&mut self, cluster: &str, service: &str, udp: bool) -> Result<()> {
        let address = self.ground.address(cluster, service)?;
        self.clients.push(Client::start(self.ground.cluster(cluster), address, udp, RATE)?);
        self.until("a first report", |stage| stage.clients.last().is_some_and(|client| client.report().requests > 0))
    }

    /// Starts such a client in every cluster.
    pub(super) fn ask_everywhere(&mut self, service: &str) -> Result<()> {
        NAMES.into_iter().try_for_each(|cluster| self.ask(cluster, service, false))
    }

    /// Lets time pass.
    pub(super) fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.clients.iter_mut().try_for_each(Client::check)?;
            thread::sleep(Duration::from_millis(50).min(time));
        }
        Ok(())
    }

    /// What the clients in `cluster` see in so long, beginning with what is in force now; longer where a busy machine lets
    /// them ask for little.
    pub(super) fn sample(&mut self, cluster: &str, time: Duration) -> Result<Report> {
        self.watch(SEEN_AFTER)?;
        let before = self.report(cluster);
        self.watch(time)?;
        self.until("enough requests", |stage| stage.report(cluster).since(&before).requests >= SAMPLED)?;
        Ok(self.report(cluster).since(&before))
    }

    /// Waits until something holds, as long as a change may take.
    pub(super) fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + SETTLED_WITHIN;
        while !holds(self) {
            if Instant::now() > end {
                bail!("not within {} s: {what}", SETTLED_WITHIN.as_secs());
            }
            self.watch(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// What the clients in `cluster` that are running have seen so far.
    pub(super) fn report(&self, cluster: &str) -> Report {
        let mut sum = Report::default();
        for client in self.clients.iter().filter(|client| client.cluster == cluster) {
            sum.add(&client.report());
        }
        sum
    }

    /// Waits until the kernel of each client's node holds these shares for a service's first choice, and returns how long
    /// it took, the asking included.
    pub(super) fn settle(
        &mut self,
        service: &str,
        expected: &BTreeMap<String, f64>,
        clusters: &[&str],
    ) -> Result<Duration> {
        let begin = Instant::now();
        for cluster in clusters {
            let address = self.ground.address(cluster, service)?;
            let (node, _) = self.ground.client(cluster)?;
            loop {
                let services = install::ask_agent(self.ground.cluster(cluster), &node, "services");
                let found = services.map(|services| agent::shares(&services, address).map(by_cluster));
                if matches!(&found, Ok(Some(found)) if shares::same(found, expected)) {
                    break;
                }
                if begin.elapsed() > SETTLED_WITHIN {
                    let found = found.context("ask the agent")?;
                    bail!("{NAMESPACE}/{service} in {cluster} has shares {found:?}, not {expected:?}");
                }
                self.watch(Duration::from_millis(200))?;
            }
        }
        Ok(begin.elapsed())
    }

    /// Waits until the agent beside the client takes all clusters for well and gives them all that they are due: one that was lost
    /// comes back bit by bit.
    fn whole_share(&mut self, cluster: &str) -> Result<()> {
        let begin = Instant::now();
        let (node, _) = self.ground.client(cluster)?;
        let is_whole = |row: &Value| row["verdict"] == "up" && row["health"]["share"].as_u64().unwrap_or(100) == 100;
        loop {
            let status = install::ask_agent(self.ground.cluster(cluster), &node, "status");
            let rows = status.as_ref().map(|status| &status["clusters"]);
            if rows.is_ok_and(|rows| NAMES.iter().all(|name| is_whole(&rows[name]))) {
                return Ok(());
            }
            if begin.elapsed() > SETTLED_WITHIN {
                bail!("the agent in {cluster} takes clusters for {}", status.context("ask the agent")?["clusters"]);
            }
            self.watch(Duration::from_millis(500))?;
        }
    }

    /// Ends all clients and returns what those in each cluster have seen.
    pub(super) fn stop(&mut self) -> Result<BTreeMap<&'static str, Report>> {
        let mut seen = BTreeMap::<_, Report>::new();
        for (cluster, report) in self.stop_each()? {
            seen.entry(cluster).or_default().add(&report);
        }
        Ok(seen)
    }

    /// Ends all clients and returns what each has seen, in the order in which they were started, with its cluster.
    pub(super) fn stop_each(&mut self) -> Result<Vec<(&'static str, Report)>> {
        let mut seen = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            let (cluster, report) = (client.cluster, client.stop()?);
            self.said.count(cluster, &report);
            seen.push((cluster, report));
        }
        Ok(seen)
    }

    /// Ends the clients that are still there and sums up.
    pub(super) fn end(mut self, played: Result<()>) -> Result<SceneResult> {
        let stopped = self.stop().context("end the clients").map(drop);
        let time = self.began.elapsed();
        let began = now()?.saturating_sub(time);
        Ok(SceneResult::new(self.name, began, time, self.said, played.and(stopped)))
    }
}

/// Shares with those of a cluster's gateway counted as the cluster's.
fn by_cluster(shares: BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (way, share) in shares {
        let cluster = way.strip_suffix("/gateway").unwrap_or(&way);
        *sums.entry(cluster.to_owned()).or_default() += share;
    }
    sums
}
