//! What a scene has at hand: the clusters, clients, counts, and the screen.

use super::{
    Scene,
    outage::Outage,
    screen::Screen,
    shares,
    summary::{Said, SceneResult},
};
use crate::{
    clusters::{Client, Clusters, Load, NAMES},
    manifests::SERVICE_PORT,
    report::{Report, now},
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

/// Requests a second of each client.
pub(super) const RATE: u32 = 100;
/// How long an agent gets to follow a change, on a busy machine.
pub(super) const SETTLED_WITHIN: Duration = Duration::from_secs(5);
/// How often the screen is drawn and conditions are looked at.
const TICK: Duration = Duration::from_millis(50);

/// A scene that is being played.
pub(super) struct Stage<'a> {
    /// What it is played on.
    pub(super) clusters: &'a mut Clusters,
    scene: &'static Scene,
    screen: &'a mut Screen,
    began: Instant,
    clients: Vec<Client>,
    /// What goes into the table, the JSON and the summary.
    pub(super) said: Said,
    outage: Option<Outage>,
    next: Option<&'static str>,
}

impl<'a> Stage<'a> {
    /// For `scene`, which goes on with an outage if one is handed over. `next` is the scene after it.
    pub(super) fn new(
        scene: &'static Scene,
        next: Option<&'static str>,
        outage: Option<Outage>,
        clusters: &'a mut Clusters,
        screen: &'a mut Screen,
    ) -> Self {
        Self {
            clusters,
            scene,
            screen,
            began: Instant::now(),
            clients: Vec::new(),
            said: Said::default(),
            outage,
            next,
        }
    }

    /// Waits until what every scene starts from is in force.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.settle("frontend-federated", &shares::by_endpoint(), &NAMES)?;
        self.began = Instant::now();
        Ok(())
    }

    /// Starts a client in `cluster` that asks a service by its ClusterIPs, IPv4 and IPv6 in turn, and by nothing else.
    pub(super) fn ask(&mut self, cluster: &str, service: &str, udp: bool) -> Result<()> {
        let addresses = self.clusters.service_addresses(cluster, service).both();
        let targets = addresses.map(|address| SocketAddr::new(address, SERVICE_PORT)).to_vec();
        let load = Load { targets, udp, rate: RATE, requests: None };
        self.clients.push(self.clusters.load(cluster, &load)?);
        Ok(())
    }

    /// Starts such a client in every cluster.
    pub(super) fn ask_everywhere(&mut self, service: &str) -> Result<()> {
        NAMES.into_iter().try_for_each(|cluster| self.ask(cluster, service, false))
    }

    /// Has the mirrors of all clusters put an annotation on `frontend-federated`, with the next manifests.
    pub(super) fn annotate(&mut self, annotation: &str, value: &str) {
        self.clusters.mirroring.annotations.insert(annotation.to_owned(), value.to_owned());
    }

    /// Lets time pass.
    pub(super) fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.tick()?;
        }
        Ok(())
    }

    /// Waits until `seen` holds of what the client in `cluster` reports; `what` is for the error.
    pub(super) fn watch_until(
        &mut self,
        what: &str,
        cluster: &str,
        mut seen: impl FnMut(&Report) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + SETTLED_WITHIN;
        loop {
            let report = self.report(cluster);
            if seen(&report) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("not seen from {cluster}: {what} (answers: {:?})", report.by_cluster);
            }
            self.tick()?;
        }
    }

    fn tick(&mut self) -> Result<()> {
        for client in &mut self.clients {
            client.ended()?;
        }
        let mut reports: Vec<_> = self.clients.iter().map(|client| (client.label(), client.report())).collect();
        let mut state = None;
        if let Some(outage) = &mut self.outage {
            outage.look(self.clusters)?;
            reports.extend(outage.rows());
            state = Some(outage.state()?);
        }
        self.screen.draw(self.scene, self.began.elapsed(), &reports, state.as_deref())?;
        thread::sleep(TICK);
        Ok(())
    }

    /// What the clients in `cluster` that are running have seen so far.
    pub(super) fn report(&self, cluster: &str) -> Report {
        let mut sum = Report::default();
        for client in self.clients.iter().filter(|client| client.cluster() == cluster) {
            sum.add(&client.report());
        }
        sum
    }

    /// Waits until the kernel of each client's node holds these shares for a service's first choice, and returns how
    /// long it took.
    pub(super) fn settle(
        &mut self,
        service: &str,
        expected: &BTreeMap<String, f64>,
        clusters: &[&str],
    ) -> Result<Duration> {
        let begin = Instant::now();
        for cluster in clusters {
            let address = SocketAddr::new(self.clusters.service_addresses(cluster, service).v4.into(), SERVICE_PORT);
            loop {
                let found = self.clusters.cluster_mut(cluster).client_agent()?.shares(address)?;
                if found.as_ref().is_some_and(|found| shares::same(found, expected)) {
                    break;
                }
                if begin.elapsed() > SETTLED_WITHIN {
                    bail!(
                        "{service} in {cluster} has shares {found:?} after {:.1} s, not {expected:?}",
                        SETTLED_WITHIN.as_secs_f64()
                    );
                }
                self.tick()?;
            }
        }
        Ok(begin.elapsed())
    }

    /// Ends all clients and returns what those in each cluster have seen.
    pub(super) fn stop(&mut self) -> Result<BTreeMap<&'static str, Report>> {
        let mut seen = BTreeMap::<_, Report>::new();
        let mut clients = std::mem::take(&mut self.clients);
        for client in &mut clients {
            client.tell_to_stop()?;
        }
        for client in clients {
            let (cluster, report) = (client.cluster(), client.stop()?);
            seen.entry(cluster).or_default().add(&report);
            self.said.count(cluster, &report);
        }
        Ok(seen)
    }

    /// Has callers go on from here on.
    pub(super) fn begin_outage(&mut self, outage: Outage) {
        self.outage = Some(outage);
    }

    /// The outage that is being played.
    pub(super) fn outage(&self) -> Result<&Outage> {
        self.outage.as_ref().context("no cluster was lost")
    }

    /// Does something to the outage and the clusters.
    pub(super) fn on_outage(&mut self, work: impl FnOnce(&mut Outage, &mut Clusters) -> Result<()>) -> Result<()> {
        work(self.outage.as_mut().context("no cluster was lost")?, self.clusters)
    }

    /// What the agents thought of the clusters after `event`.
    pub(super) fn minds(&mut self, event: Duration) -> Result<Value> {
        self.outage.as_ref().context("no cluster was lost")?.minds(self.clusters, event)
    }

    /// Ends the clients that are still there and sums up. An outage that the next scene
    /// goes on with is left to it.
    pub(super) fn end(mut self, played: Result<()>) -> Result<(SceneResult, Option<Outage>)> {
        let mut stopped = self.stop().context("end the clients").map(drop);
        let (next, time) = (self.next, self.began.elapsed());
        let left = self.outage.take_if(|outage| outage.goes_on_with(next));
        if let Some(mut outage) = self.outage.take() {
            stopped = stopped.and(outage.stop(self.clusters));
        }
        let outcome = played.and(stopped);
        let began = now()?.saturating_sub(time);
        Ok((SceneResult::new(self.scene.name, began, time, self.said, outcome), left))
    }
}
