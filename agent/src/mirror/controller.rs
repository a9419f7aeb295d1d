//! The loop between the watches and the writer: takes news in, finds what is dirty, has it written. Decides nothing itself.

mod facts;
#[cfg(test)]
mod tests;

use super::{
    gateway,
    import::Problem,
    lease::{Standing, Terms},
    links::{follow::Shown, status::StatusWriter},
    lookup::Lookups,
    peer::{FEWER, OBJECTS, PeerTask, Sorted},
    plan, probe,
    queue::Queue,
    serve::View,
    source::{Link, LinkName, McsVersions, Origin, Understood},
    validate::Refused,
    versions::Versions,
    watch::{self, News, Teller, Told, Watched},
    world::{Change, ImportKey, ImportKind, OwnAddresses, Peer, World},
    writer::{
        self, Done, Performed, Writer,
        refused::{self, Denial},
    },
};
use crate::model::{ClusterName, ObjectName};
use anyhow::{Context, bail};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch as shown},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{info, warn};

/// News that are taken in before what they made dirty is looked at.
const BATCH: usize = 1024;
/// Imports that are written at once.
const WRITERS: usize = 16;
/// How long news are taken in before what they made dirty is looked at, and the other way round.
const TURN: Duration = Duration::from_millis(20);
/// How often pods of a peer that is lost are dialled.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How often it is said how links stand.
const REPORT: Duration = Duration::from_secs(1);
/// How often ports of the gateway that have rested long enough are given up.
const GATEWAY: Duration = Duration::from_secs(600);

/// A peer that was given as a flag: its link, and a client of its API server.
pub struct PeerConfig {
    /// The link's name.
    pub name: LinkName,
    /// The link.
    pub link: Link,
    /// A client that can read what [`mirror`](crate::mirror) needs of it.
    pub client: Client,
}

/// What a mirror is told at its start.
pub struct Setup {
    /// The own cluster's id.
    pub cluster: ClusterName,
    /// A client of the own API server.
    pub own: Client,
    /// Peers that were given as flags.
    pub peers: Vec<PeerConfig>,
    /// The gateway by which others come in, if there is to be one.
    pub gateway: Option<gateway::Config>,
    /// When a peer that isn't heard is lost. Link objects have terms of their own.
    pub terms: Terms,
}

/// Runs a mirror until a part of it ends.
///
/// Nothing is written before `links` are known: what a link brought in must not be taken for nobody's. How each link stands is
/// shown through `view`.
///
/// # Errors
///
/// A part of it ended by itself.
pub async fn run(
    setup: Setup,
    mut links: shown::Receiver<Option<Shown>>,
    view: shown::Sender<View>,
) -> anyhow::Result<()> {
    let Setup { cluster, own, peers, gateway, terms } = setup;
    let (told, mut news) = mpsc::unbounded_channel();
    let mut controller = Controller::new(cluster, own.clone(), told.clone());
    controller.world.set_gateway(gateway);
    for watched in Watched::OWN {
        let teller = Teller::new(Origin::Own, 0, told.clone());
        controller.tasks.spawn(watch::follow(own.clone(), watched, teller, false));
    }
    controller.tasks.spawn(watch::learn(own.clone(), Teller::new(Origin::Own, 0, told.clone())));
    for peer in peers {
        controller.add(peer, terms);
    }
    let mut status = StatusWriter::new(own);
    let mut report = interval(REPORT);
    report.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = controller.due();
        tokio::select! {
            Some(told) = news.recv() => {
                controller.take(told);
                let began = Instant::now();
                for _ in 0..BATCH {
                    // One of them may concern every import.
                    if began.elapsed() >= TURN {
                        break;
                    }
                    let Ok(told) = news.try_recv() else { break };
                    controller.take(told);
                }
            }
            Some(written) = controller.writes.join_next() => controller.written(written.context("write")?),
            Some(probed) = controller.probes.join_next() => controller.probed(probed.context("probe")?),
            Some((host, found)) = controller.lookups.answered() => controller.world.apply(Change::Host(host, found)),
            Some(ended) = controller.tasks.join_next() => {
                ended.context("watch")?;
                bail!("a watch ended by itself");
            }
            changed = links.changed() => {
                changed.context("links are not followed any more")?;
                let shown = links.borrow_and_update().clone();
                if let Some(shown) = shown {
                    controller.link(shown).await;
                }
            }
            _ = report.tick() => {
                let now = controller.facts();
                status.report(&now);
                let links = now.into_iter().map(|(facts, _)| facts).collect();
                let denied = controller.invalid.len();
                drop(view.send_replace(View { leads: true, is_synced: controller.is_synced(), denied, links }));
            }
            () = sleep_until(due.into()) => {}
        }
        controller.settle();
    }
}

/// What came of writing an import.
struct Wrote {
    key: ImportKey,
    objects: BTreeSet<(Watched, ObjectName)>,
    performed: Performed,
}

struct Controller {
    world: World,
    writer: Writer,
    peers: BTreeMap<LinkName, PeerTask>,
    /// Whether Link objects were listed.
    links_known: bool,
    own_listed: BTreeSet<Watched>,
    /// Kinds that the own API server doesn't have: those of the MCS API, if at all.
    absent: BTreeSet<Watched>,
    nodes: BTreeMap<String, OwnAddresses>,
    told: mpsc::UnboundedSender<Told>,
    tasks: JoinSet<()>,
    mcs: McsVersions,
    writes: JoinSet<Wrote>,
    queue: Queue,
    /// Steps that were refused and wait to be tried again.
    invalid: BTreeMap<ImportKey, Vec<Denial>>,
    /// Whether there is more to look at than there was time for.
    is_behind: bool,
    /// Versions of own objects, as writes and watches know them.
    versions: Versions,
    probes: JoinSet<(LinkName, Option<bool>)>,
    lookups: Lookups,
    /// When the ports of the gateway are looked at for the time alone that has passed.
    gateway_at: Instant,
    refused: BTreeMap<ImportKey, Refused>,
    problems: BTreeMap<ImportKey, BTreeSet<Problem>>,
}

impl Controller {
    fn new(cluster: ClusterName, own: Client, told: mpsc::UnboundedSender<Told>) -> Self {
        Self {
            world: World::new(cluster),
            writer: Writer::new(own),
            peers: BTreeMap::new(),
            links_known: false,
            own_listed: BTreeSet::new(),
            absent: BTreeSet::new(),
            nodes: BTreeMap::new(),
            told,
            tasks: JoinSet::new(),
            mcs: McsVersions::default(),
            writes: JoinSet::new(),
            queue: Queue::default(),
            invalid: BTreeMap::new(),
            is_behind: false,
            versions: Versions::default(),
            probes: JoinSet::new(),
            lookups: Lookups::default(),
            gateway_at: Instant::now(),
            refused: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    fn add(&mut self, peer: PeerConfig, terms: Terms) {
        let mut task = PeerTask::new(peer.name.clone(), terms, self.told.clone());
        task.connect(peer.client, None);
        self.peers.insert(peer.name.clone(), task);
        self.world.apply(Change::Link(peer.name, Some(Box::new(peer.link))));
    }

    /// Brings what runs to what Link objects ask for.
    async fn link(&mut self, shown: Shown) {
        self.links_known = true;
        let is_gone = |(name, task): (&LinkName, &PeerTask)| {
            (task.wanted.is_some() && !shown.links.contains_key(name)).then(|| name.clone())
        };
        for name in self.peers.iter().filter_map(is_gone).collect::<Vec<_>>() {
            info!(link = %name, "link gone; what it brought in goes too");
            self.peers.remove(&name);
            self.world.apply(Change::Link(name, None));
        }
        for (name, wanted) in shown.links {
            let task = self.peers.entry(name.clone()).or_insert_with(|| {
                info!(link = %name, cluster = %wanted.link.cluster.0, "link found");
                PeerTask::new(name.clone(), wanted.terms, self.told.clone())
            });
            let known = task.wanted.as_ref();
            if known.is_none_or(|known| known.link != wanted.link) {
                self.world.apply(Change::Link(name.clone(), Some(Box::new(wanted.link.clone()))));
            }
            if let Some(problem) = &wanted.problem
                && known.and_then(|known| known.problem.as_ref()) != Some(problem)
            {
                let is_held = wanted.link.understood != Understood::Whole;
                warn!(link = %name, problem, is_held, "link can't be understood; it runs on as it was, or holds what is there");
            }
            task.lease.set_terms(wanted.terms);
            task.is_linkerds = wanted.link.is_linkerds;
            task.is_held = wanted.link.understood != Understood::Whole;
            match &wanted.credentials {
                Ok(credentials) if task.uses(credentials) => {}
                Ok(credentials) => match credentials.client().await {
                    Ok(client) => task.connect(client, Some(credentials.clone())),
                    Err(reason) => task.refused = Some(reason),
                },
                Err(reason) => {
                    let before = known.and_then(|known| known.credentials.as_ref().err());
                    if before != Some(reason) {
                        warn!(link = %name, reason, "no credential for a link; what is known stays");
                    }
                }
            }
            task.wanted = Some(wanted);
        }
    }

    fn take(&mut self, told: Told) {
        let now = Instant::now();
        let Told { origin, round, watched, news, .. } = told;
        let Origin::Link(link) = &origin else { return self.heard(&origin, watched, news, now) };
        let Some(task) = self.peers.get_mut(link) else { return };
        if let Sorted::Taken(all) = task.sort(round, watched, news, now) {
            for (watched, news) in all {
                self.heard(&origin, watched, news, now);
            }
        }
    }

    /// Takes in what counts.
    fn heard(&mut self, origin: &Origin, watched: Option<Watched>, news: News, now: Instant) {
        match (news, watched) {
            (News::Change(_, _, change), _) if self.is_too_much(origin, &change) => {}
            (News::Change(name, version, change), watched) => {
                let is_gone = change.is_removal();
                let is_old = *origin == Origin::Own
                    && watched.is_some_and(|it| self.versions.is_old(it, name, version, is_gone));
                if !is_old {
                    self.world.apply(*change);
                }
            }
            (News::Version(version), Some(watched)) if *origin == Origin::Own => {
                match watched {
                    Watched::Exports => self.mcs.exports = version,
                    _ => self.mcs.imports = version,
                }
                self.world.apply(Change::Versions(self.mcs));
            }
            (News::Node(name, node), _) => {
                match node {
                    Some(node) => drop(self.nodes.insert(name, OwnAddresses::of_node(&node))),
                    None => drop(self.nodes.remove(&name)),
                }
                self.tell_addresses();
            }
            (News::Listed(names), Some(watched)) => {
                self.absent.remove(&watched);
                self.listed(origin, watched, &names, now);
            }
            (News::Absent, Some(watched)) => {
                if *origin == Origin::Own {
                    self.absent.insert(watched);
                }
                self.listed(origin, watched, &BTreeSet::new(), now);
            }
            (News::Minor(minor), _) if *origin == Origin::Own => self.world.apply(Change::KnowsSameNode(minor >= 34)),
            (News::Failed(reason), _) if *origin == Origin::Own => {
                warn!(?watched, reason, "watch failed; what is known stays")
            }
            _ => {}
        }
    }

    /// Whether a peer brings in more objects than any should, by one that is new. What is known of it goes on.
    fn is_too_much(&mut self, origin: &Origin, change: &Change) -> bool {
        let Origin::Link(link) = origin else { return false };
        let is_there =
            matches!(change, Change::Service(.., Some(_)) | Change::Slice(.., Some(_)) | Change::Export(.., Some(_)));
        if !is_there || self.world.object_count(origin) < OBJECTS || self.world.knows(change) {
            return false;
        }
        if let Some(task) = self.peers.get_mut(link) {
            task.overflow();
        }
        true
    }

    /// What is known and wasn't listed is gone.
    fn listed(&mut self, origin: &Origin, watched: Watched, names: &BTreeSet<ObjectName>, now: Instant) {
        let Some(cluster) = self.world.cluster(origin) else { return };
        let known: BTreeSet<ObjectName> = match watched {
            Watched::Services => cluster.services.keys().cloned().collect(),
            Watched::Exports => cluster.exports.keys().cloned().collect(),
            Watched::Slices => self.world.slice_names(origin),
            Watched::Imports => self.world.own.imports.keys().cloned().collect(),
            Watched::Namespaces => {
                let name = |name: &String| ObjectName { namespace: String::new(), name: name.clone() };
                self.world.own.namespaces.iter().map(name).collect()
            }
            Watched::Nodes => {
                self.nodes.retain(|name, _| names.iter().any(|listed| listed.name == *name));
                BTreeSet::new()
            }
        };
        for name in known.difference(names) {
            if *origin == Origin::Own {
                self.versions.is_missing(watched, name.clone());
            }
            if let Some(change) = watch::removal(watched, origin, name.clone()) {
                self.world.apply(change);
            }
        }
        if watched == Watched::Nodes {
            self.tell_addresses();
        }
        match origin {
            Origin::Own => {
                if self.own_listed.insert(watched) {
                    info!(?watched, objects = names.len(), "own cluster listed");
                }
            }
            Origin::Link(link) => {
                match watched {
                    Watched::Services => self.world.apply(Change::ServicesListed(link.clone())),
                    Watched::Slices => self.world.apply(Change::SlicesListed(link.clone())),
                    _ => {}
                }
                let Some(task) = self.peers.get_mut(link) else { return };
                task.listed(watched, now);
                if task.has_listed() {
                    if self.world.peers.get(link).is_some_and(|peer| !peer.is_listed) {
                        info!(%link, "peer listed");
                    }
                    self.world.apply(Change::Listed(link.clone()));
                }
            }
        }
    }

    /// The own cluster's addresses are those of all its nodes.
    fn tell_addresses(&mut self) {
        let mut all = OwnAddresses::default();
        for node in self.nodes.values() {
            all.hosts.extend(&node.hosts);
            all.ready_nodes.extend(&node.ready_nodes);
            all.pod_ranges.extend(&node.pod_ranges);
        }
        all.pod_ranges.sort();
        self.world.apply(Change::Addresses(all));
    }

    /// Has what is dirty written. Nothing before the own cluster is known: what is there must not be made again.
    fn settle(&mut self) {
        let now = Instant::now();
        self.judge(now);
        for host in self.lookups.follow(&self.world.gateway_hosts(), now) {
            self.world.apply(Change::Host(host, BTreeSet::new()));
        }
        if self.gateway_at <= now {
            self.gateway_at = now + GATEWAY;
            let root = self.world.own.gateway.as_ref().map(gateway::root);
            root.into_iter().for_each(|root| self.world.touch(root));
        }
        if !self.is_synced() {
            return;
        }
        for key in self.world.take_dirty() {
            self.queue.push(key);
        }
        let has_mcs = self.absent.is_empty();
        let timestamp = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        self.is_behind = false;
        while self.writes.len() < WRITERS {
            if now.elapsed() >= TURN {
                self.is_behind = true;
                break;
            }
            let is_ready = |key: &ImportKey| has_mcs || key.kind != ImportKind::ServiceImport;
            let Some(key) = self.queue.pop(now, is_ready) else { break };
            let (imported, steps) = plan::steps(&self.world, &key, &timestamp);
            self.note(&key, imported.refused, imported.problems);
            let is_due = self.queue.is_due(&key, now);
            let known = self.invalid.get(&key).filter(|_| !is_due).cloned().unwrap_or_default();
            if steps.is_empty() {
                self.queue.settled(&key);
                self.invalid.remove(&key);
                continue;
            }
            let steps: Vec<_> = steps.into_iter().map(|step| (plan::source(&self.world, &key, &step), step)).collect();
            if refused::is_all_of(&steps, &known) {
                continue;
            }
            let (writer, versions) = (self.writer.clone(), self.mcs);
            self.queue.begin(key.clone());
            let objects: BTreeSet<_> = steps.iter().map(|(_, step)| writer::object(step)).collect();
            self.versions.begin(objects.iter().cloned());
            self.writes.spawn(async move {
                let performed = writer.perform(steps, &known, versions).await;
                Wrote { key, objects, performed }
            });
        }
    }

    /// Whether links and the own cluster's objects are known.
    fn is_synced(&self) -> bool {
        self.links_known && self.own_listed.len() == Watched::OWN.len()
    }

    /// Tells what is newly wrong, and what a peer newly offers that it must not.
    fn note(&mut self, key: &ImportKey, refused: Refused, problems: BTreeSet<Problem>) {
        let known = self.problems.remove(key).unwrap_or_default();
        for problem in problems.difference(&known) {
            warn!(import = %key.object, %problem, "not imported as it should be");
        }
        if !problems.is_empty() {
            self.problems.insert(key.clone(), problems);
        }
        for ((link, reason), count) in &refused {
            let before = self.refused.get(key).and_then(|known| known.get(&(link.clone(), *reason)));
            if before.is_none_or(|before| before < count) {
                warn!(%link, import = %key.object, %reason, count, "endpoints refused");
            }
        }
        if refused.is_empty() {
            drop(self.refused.remove(key))
        } else {
            drop(self.refused.insert(key.clone(), refused))
        }
    }

    fn written(&mut self, Wrote { key, objects, performed }: Wrote) {
        let Performed { done, failure, refused } = performed;
        for Done { watched, name, version, change } in done {
            if self.versions.is_newest(watched, name, version) {
                self.world.apply(change);
            }
        }
        self.versions.end(&objects);
        match failure {
            None if refused.is_empty() => {
                self.invalid.remove(&key);
                self.queue.done(key);
            }
            None => {
                let before = self.invalid.remove(&key).unwrap_or_default();
                for Denial { step, reason } in &refused {
                    if refused::known(&before, step).is_none_or(|before| before.reason != *reason) {
                        warn!(import = %key.object, reason, "write refused; the rest goes on, and this is tried again");
                    }
                }
                self.invalid.insert(key.clone(), refused);
                self.queue.partial(key, Instant::now());
            }
            Some(reason) => {
                let object = key.object.clone();
                let tries = self.queue.failed(key, Instant::now());
                warn!(import = %object, reason, tries, "write failed; to be tried again");
            }
        }
    }

    /// How peers stand, and whether those that are lost answer at all.
    fn judge(&mut self, now: Instant) {
        for (link, task) in &mut self.peers {
            let standing = task.lease.standing(now);
            if task.overflow.is_some() && self.world.object_count(&Origin::Link(link.clone())) < FEWER {
                task.relieve();
            }
            if standing != task.shown {
                info!(%link, ?standing, "peer stands otherwise");
                task.shown = standing;
                self.world.apply(Change::Standing(link.clone(), standing));
            }
            // One that shows its pods is not waited for: they come and go as it says, whatever it says of exports.
            let is_awaited = |peer: &Peer| !peer.is_listed && !peer.shows_endpoints && !peer.is_given_up;
            if self.world.peers.get(link).is_some_and(is_awaited) && task.lease.is_overdue(now) {
                warn!(%link, "peer was never listed; what nobody else has goes");
                self.world.apply(Change::GivenUp(link.clone()));
            }
            if !matches!(standing, Standing::Lost { .. }) {
                task.probe_at = None;
            } else if task.probe_at.is_none_or(|at| at <= now) {
                task.probe_at = Some(now + PROBE_EVERY);
                let targets = probe::targets(&self.world, link);
                let link = link.clone();
                self.probes.spawn(async move { (link, probe::answers(targets).await) });
            }
        }
    }

    fn probed(&mut self, (link, answered): (LinkName, Option<bool>)) {
        if let (Some(task), Some(answered)) = (self.peers.get_mut(&link), answered) {
            task.lease.probed(answered);
        }
    }

    /// When something is due without any news.
    fn due(&self) -> Instant {
        let now = Instant::now();
        let leases = self.peers.values().flat_map(|task| [task.lease.next(now), task.probe_at]).flatten();
        if self.is_behind {
            return now;
        }
        leases
            .chain(self.queue.due())
            .chain(self.lookups.next())
            .filter(|at| *at > now)
            .min()
            .unwrap_or(now + Duration::from_secs(60))
    }
}
