//! An API server as a source: one watch a resource, and of what they tell only what is federated is kept.
//!
//! | what | which |
//! |---|---|
//! | Services | all; those that aren't federated are dropped but for what is needed should they be joined later |
//! | ServiceImports | all, v1beta1 or else v1alpha1; an API server without them is asked again every minute |
//! | EndpointSlices | those from other clusters, those for fallback, and built-in ones of local members, by name |
//! | Pods | those of this node |
//! | Node | this one, for its zone |
//!
//! An API server that can't be reached, or refuses, takes nothing away: what was listed stays, and `tombolo status` says
//! since when. A watch whose history is gone lists again, and what was deleted meanwhile is found by what the list lacks.

mod connect;
mod failure;
mod follow;
mod holders;
mod imports;
mod known;
mod news;
mod node;
mod pace;
mod reach;
mod read;
mod rounds;
mod selector;
#[cfg(test)]
mod tests;

pub use connect::{connect, connect_as};
pub(crate) use failure::chain;
pub use node::cluster_id;

use super::{Event, Problem, objects::Options};
use crate::report;
use anyhow::{Context, bail};
use follow::{Shared, follow};
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use known::{Known, State};
use kube::{Api, Client, runtime::watcher};
use news::{Failure, News, Watch};
use reach::Reach;
use rounds::Names;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{info, warn};

/// The label of slices from other clusters.
const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// The label of slices that only the agent may use.
const FALLBACK_FOR: &str = "tombolo.io/fallback-for";
/// Objects that one answer lists at most, so that a large list is never in memory as a whole: 200 slices of 20 endpoints take
/// some 3 MB until they are read.
const PAGE: u32 = 200;
/// News that may wait, and that are taken in at once.
const QUEUE: usize = 1024;
/// How long names of local members are collected before they are watched, and how far rounds are apart.
const COLLECT: Duration = Duration::from_millis(100);
const APART: Duration = Duration::from_secs(1);
/// How often the state of the watches is shown.
const SHOW: Duration = Duration::from_millis(500);

/// Watches an API server.
pub struct KubernetesSource {
    client: Client,
    options: Options,
    wants_zone: bool,
    shown: watch::Sender<Vec<report::Watch>>,
}

impl KubernetesSource {
    /// A source of what `client`'s server has. The state of the watches is shown through `shown`; the zone is told if it
    /// is wanted.
    pub fn new(client: Client, options: Options, wants_zone: bool, shown: watch::Sender<Vec<report::Watch>>) -> Self {
        Self { client, options, wants_zone, shown }
    }

    /// Delivers what the API server has, says that this was all, and follows it until nobody listens any more.
    ///
    /// # Errors
    ///
    /// A part of it ended by itself.
    pub async fn run(self, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
        let (told, mut news) = mpsc::channel(QUEUE);
        let (looked, mut looks) = mpsc::channel(1);
        let reach = Arc::new(Reach::new(self.client.clone()));
        let shared = Shared { reach: Arc::clone(&reach), told };
        let mut tasks = JoinSet::new();
        let scouting = Arc::clone(&reach);
        tasks.spawn(async move { scouting.scout().await });
        tasks.spawn(node::run(self.client.clone(), self.options.node.clone(), reach, looked));
        self.watch(&mut tasks, &shared);

        let mut teller = Teller::new(Known::new(self.options.all_services), events);
        let mut rounds: BTreeMap<u32, Vec<AbortHandle>> = BTreeMap::new();
        let (mut due, mut last) = (None, None::<Instant>);
        let mut show = interval(SHOW);
        show.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((watch, told)) = news.recv() => {
                    teller.take(watch, told);
                    // What else has come meanwhile belongs to the same look.
                    for _ in 0..QUEUE {
                        let Ok((watch, told)) = news.try_recv() else { break };
                        teller.take(watch, told);
                    }
                }
                Some(look) = looks.recv() => teller.take_look(look, self.wants_zone).await,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    if let Some(names) = teller.known.new_round() {
                        last = Some(Instant::now());
                        let (round, watches) = self.begin_round(&mut teller.known, &names, &mut tasks, &shared);
                        rounds.insert(round, watches);
                        // One without names is complete at once, and no news will say so.
                        teller.is_new = true;
                    }
                }
                _ = show.tick() => drop(self.shown.send_replace(teller.show())),
                Some(ended) = tasks.join_next() => match ended {
                    Ok(ended) => {
                        ended?;
                        bail!("a watch ended by itself");
                    }
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(error).context("follow the API server"),
                },
                () = teller.events.closed() => return Ok(()),
            }
            if teller.is_new && due.is_none() && teller.known.new_round().is_some() {
                let now = Instant::now();
                due = Some(last.map_or(now, |last| last + APART).max(now + COLLECT));
            }
            rounds.retain(|round, watches| {
                let is_running = teller.known.is_running(*round);
                if !is_running {
                    watches.iter().for_each(AbortHandle::abort);
                }
                is_running
            });
            if !teller.tell().await {
                return Ok(());
            }
        }
    }

    /// Starts the watches that always run.
    fn watch(&self, tasks: &mut JoinSet<anyhow::Result<()>>, shared: &Shared) {
        let (client, options) = (&self.client, &self.options);
        let config = || watcher::Config::default().page_size(PAGE);
        let slices = || Api::<EndpointSlice>::all(client.clone());
        let mirrored = if options.all_services { config() } else { config().labels(SOURCE_CLUSTER) };
        let pods = config().fields(&format!("spec.nodeName={}", options.node));
        let services = read::Services(options.clone());
        spawn(tasks, Watch::Services, Api::<core::Service>::all(client.clone()), config(), services, shared);
        spawn(tasks, Watch::Mirrored, slices(), mirrored, read::Slices(None), shared);
        spawn(tasks, Watch::Fallback, slices(), config().labels(FALLBACK_FOR), read::Slices(None), shared);
        spawn(tasks, Watch::Pods, Api::<core::Pod>::all(client.clone()), pods, read::Pods(options.clone()), shared);
        tasks.spawn(imports::run(client.clone(), options.clone(), shared.clone()));
    }

    /// Starts the watches of local members' slices.
    fn begin_round(
        &self,
        known: &mut Known,
        names: &Names,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        shared: &Shared,
    ) -> (u32, Vec<AbortHandle>) {
        let selectors = selector::selectors(names);
        let parts = u8::try_from(selectors.len()).expect("there are few parts");
        let round = known.begin_round(Arc::clone(names), parts);
        let watches = (0..parts).zip(&selectors).map(|(part, selector)| {
            let config = watcher::Config::default().page_size(PAGE).labels(selector);
            let api = Api::<EndpointSlice>::all(self.client.clone());
            let slices = read::Slices(Some(Arc::clone(names)));
            spawn(tasks, Watch::Local { round, part }, api, config, slices, shared)
        });
        (round, watches.collect())
    }
}

fn spawn<R: read::Read>(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    watch: Watch,
    api: Api<R::Kind>,
    config: watcher::Config,
    read: R,
    shared: &Shared,
) -> AbortHandle
where
    R::Kind: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let shared = shared.clone();
    tasks.spawn(async move {
        follow(watch, api, config, read, &shared).await.with_context(|| format!("watch {}", watch.name()))?;
        Ok(())
    })
}

/// Tells the loop behind what is new, and the log what is newly wrong.
struct Teller {
    known: Known,
    events: mpsc::Sender<Event>,
    /// As told last.
    problems: Vec<Problem>,
    /// As told last; none before everything was listed.
    synced: Option<bool>,
    /// Whether it was said that all pods are known.
    pods_told: bool,
    zone: Option<String>,
    /// What is wrong with the node.
    node: Option<Problem>,
    /// Whether anything was taken in that may be worth telling.
    is_new: bool,
}

impl Teller {
    fn new(known: Known, events: mpsc::Sender<Event>) -> Self {
        Self {
            known,
            events,
            problems: Vec::new(),
            synced: None,
            pods_told: false,
            zone: None,
            node: None,
            is_new: true,
        }
    }

    fn take(&mut self, watch: Watch, news: News) {
        if news == News::Listed {
            info!(watch = watch.name(), "listed");
        }
        self.known.take(watch, news, std::time::Instant::now());
        self.is_new = true;
    }

    async fn take_look(&mut self, look: node::Look, wants_zone: bool) {
        self.is_new = true;
        match look {
            Ok(zone) => {
                self.node = None;
                if wants_zone && zone.is_some() && zone != self.zone {
                    self.zone.clone_from(&zone);
                    // Nobody listens: that ends the loop.
                    drop(self.events.send(Event::Zone(zone)).await);
                }
            }
            Err(problem) => self.node = wants_zone.then_some(problem),
        }
    }

    /// Whether anybody still listens.
    async fn tell(&mut self) -> bool {
        if !std::mem::take(&mut self.is_new) {
            return true;
        }
        let changes = self.known.changes();
        if !changes.is_empty() && self.events.send(Event::Changes(changes)).await.is_err() {
            return false;
        }
        let synced = self.known.synced();
        if synced.is_some() && !self.pods_told {
            self.pods_told = true;
            if self.events.send(Event::PodsKnown).await.is_err() {
                return false;
            }
        }
        self.tell_problems().await && self.tell_synced(synced).await
    }

    /// Once at the start, and once more when what could not be listed then can be.
    async fn tell_synced(&mut self, synced: Option<bool>) -> bool {
        let Some(complete) = synced.filter(|complete| self.synced.is_none_or(|told| *complete && !told)) else {
            return true;
        };
        self.synced = Some(complete);
        self.events.send(Event::Synced { complete }).await.is_ok()
    }

    async fn tell_problems(&mut self) -> bool {
        let problems: Vec<_> = self.known.problems().into_iter().chain(self.node.clone()).collect();
        if problems == self.problems {
            return true;
        }
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!(origin = %problem.origin, reason = %problem.reason, "API problem");
        }
        self.problems.clone_from(&problems);
        self.events.send(Event::Problems(problems)).await.is_ok()
    }

    /// How the watches stand.
    fn show(&self) -> Vec<report::Watch> {
        let now = std::time::Instant::now();
        let ago = |at: Option<std::time::Instant>| at.map(|at| now.saturating_duration_since(at).as_secs());
        let shown = |(name, state, objects): (&str, State, usize)| report::Watch {
            name: name.to_owned(),
            synced_for_s: ago(state.listed),
            heard_before_s: ago(state.heard),
            objects,
            absent: state.failure == Some(Failure::Absent),
            problem: state.failure.as_ref().filter(|failure| failure.is_problem()).map(Failure::reason),
        };
        self.known.states().into_iter().map(shown).collect()
    }
}
