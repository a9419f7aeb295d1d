//! Watches: what one API server has of one kind of object, told as it changes.
//!
//! An object that can't be read is logged and left out, or stays as it was read last: one of a peer's can't keep the
//! others from being heard.

use super::{
    names,
    raw::RawObject,
    read::{self, Written},
    source::{LinkName, McsVersion, McsVersions, Origin},
    world::Change,
};
use crate::model::ObjectName;
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client,
    api::ApiResource,
    core::GroupVersionKind,
    runtime::watcher::{self, Event, watcher},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::sleep,
};
use tracing::{debug, warn};

/// Objects that one answer lists at most.
const PAGE: u32 = 500;
/// The first wait after a failure and the longest.
const FIRST: Duration = Duration::from_millis(250);
const LAST: Duration = Duration::from_secs(10);
/// How long it takes until a kind that an API server doesn't have is asked for again.
const ABSENT: Duration = Duration::from_secs(10);
/// How long a kind that was there has to be missing until that is believed: API servers that start know of none for a while.
const BELIEVED: Duration = Duration::from_secs(60);
/// News of one cluster that may wait: a peer that floods us waits for itself.
pub(super) const WAITING: usize = 512;

/// A kind of object that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watched {
    Services,
    Slices,
    Exports,
    Imports,
    Namespaces,
    Nodes,
}

impl Watched {
    /// What is watched of a peer, and no more than that: it is all that its RBAC has to allow.
    pub(super) const PEER: [Self; 3] = [Self::Services, Self::Slices, Self::Exports];
    pub(super) const OWN: [Self; 6] =
        [Self::Services, Self::Slices, Self::Exports, Self::Imports, Self::Namespaces, Self::Nodes];

    /// Whether it is of the MCS API: an API server may have no such kind, or have it in one of two versions. Of the others,
    /// none would mean that something else answers.
    fn is_mcs(self) -> bool {
        matches!(self, Self::Exports | Self::Imports)
    }

    /// The kind, in the version that matters if there is more than one.
    pub(super) fn resource(self, versions: McsVersions) -> ApiResource {
        const MCS: &str = "multicluster.x-k8s.io";
        let (group, version, kind, plural) = match self {
            Self::Services => ("", "v1", "Service", "services"),
            Self::Slices => ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
            Self::Exports => (MCS, versions.exports.name(), "ServiceExport", "serviceexports"),
            Self::Imports => (MCS, versions.imports.name(), "ServiceImport", "serviceimports"),
            Self::Namespaces => ("", "v1", "Namespace", "namespaces"),
            Self::Nodes => ("", "v1", "Node", "nodes"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }
}

/// What a watch tells.
pub(super) enum News {
    /// One object, and which of its versions this is: its name, and `resourceVersion` if that is a number, as Kubernetes'
    /// own API servers count them.
    Change(ObjectName, Option<u64>, Box<Change>),
    /// The API server has this kind in this version.
    Version(McsVersion),
    /// A node's addresses and its pods' ranges; none once it is gone.
    Node(String, Option<Box<Value>>),
    /// Everything was listed; what isn't among these is gone.
    Listed(BTreeSet<ObjectName>),
    /// The API server has no objects of this kind.
    Absent,
    /// It failed.
    Failed(String),
    /// It failed before, and is watched again from where that was.
    Watching,
    /// The API server is of Kubernetes 1.this.
    Minor(u32),
    /// The API server answers, after so long.
    Answers(Duration),
}

/// News, where they come from, and the place that they took.
pub(super) struct Told {
    pub(super) origin: Origin,
    /// The round of watches that tells.
    pub(super) round: u64,
    pub(super) watched: Option<Watched>,
    pub(super) news: News,
    _place: OwnedSemaphorePermit,
}

/// Where the news of one cluster go.
#[derive(Clone)]
pub(super) struct Teller {
    origin: Origin,
    round: u64,
    /// Whether the credential is one of Linkerd's.
    is_linkerds: bool,
    places: Arc<Semaphore>,
    told: mpsc::UnboundedSender<Told>,
}

impl Teller {
    pub(super) fn new(origin: Origin, round: u64, told: mpsc::UnboundedSender<Told>) -> Self {
        Self { origin, round, is_linkerds: false, places: Arc::new(Semaphore::new(WAITING)), told }
    }

    /// The same with a credential of Linkerd's, or not.
    pub(super) fn with_linkerds(self, is_linkerds: bool) -> Self {
        Self { is_linkerds, ..self }
    }

    /// Whether anybody listens. Waits for those before it of the same cluster only.
    pub(super) async fn tell(&self, watched: Option<Watched>, news: News) -> bool {
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return false };
        self.told.send(Told { origin: self.origin.clone(), round: self.round, watched, news, _place: place }).is_ok()
    }
}

/// Follows one kind of object until nobody listens any more.
///
/// If such objects were listed before (`was_listed`), an API server that suddenly knows of none isn't believed at once.
pub(super) async fn follow(client: Client, watched: Watched, teller: Teller, was_listed: bool) {
    let version = McsVersion::default();
    let mut follower = Follower { watched, teller, wait: FIRST, was_listed, absences: 0, absent_since: None, version };
    while follower.follow(&client).await {}
}

struct Follower {
    watched: Watched,
    teller: Teller,
    wait: Duration,
    /// Whether there were such objects once, and how often in a row the API server knew of none since.
    was_listed: bool,
    absences: u32,
    absent_since: Option<Instant>,
    /// The version that is tried, or that is there.
    version: McsVersion,
}

impl Follower {
    /// Follows objects of one version until the API server doesn't have it. Whether to go on.
    async fn follow(&mut self, client: &Client) -> bool {
        let (watched, version) = (self.watched, self.version);
        let versions = McsVersions { imports: version, exports: version };
        let opened = Arc::new(Notify::new());
        let client = telling(client.clone(), Arc::clone(&opened));
        let api: Api<RawObject> = Api::all_with(client, &watched.resource(versions));
        let mut has_failed = false;
        let mut names = BTreeSet::new();
        let mut config = watcher::Config::default().page_size(PAGE);
        if watched == Watched::Slices && self.teller.origin != Origin::Own {
            // What a peer's mirror wrote is about others, or the peer's gateway: the same pods again.
            config = config.labels(&format!("{}!={}", names::MANAGED_BY, names::MIRROR));
        }
        let mut events = pin!(watcher(api, config));
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                () = opened.notified() => {
                    if std::mem::take(&mut has_failed) && !self.teller.tell(Some(watched), News::Watching).await {
                        return false;
                    }
                    continue;
                }
            };
            let Some(event) = event else { return false };
            let news = match event {
                Ok(Event::Init) => {
                    names.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    names.extend(name(&object.metadata));
                    there(watched, &self.teller.origin, &object)
                }
                Ok(Event::Apply(object)) => {
                    self.wait = FIRST;
                    there(watched, &self.teller.origin, &object)
                }
                Ok(Event::Delete(object)) => gone(watched, &self.teller.origin, &object.metadata),
                Ok(Event::InitDone) => {
                    (self.wait, self.was_listed, self.absences) = (FIRST, true, 0);
                    self.absent_since = None;
                    if watched.is_mcs() && !self.teller.tell(Some(watched), News::Version(version)).await {
                        return false;
                    }
                    Some(News::Listed(std::mem::take(&mut names)))
                }
                Err(error) if watched.is_mcs() && is_absent(&error) => return self.absent().await,
                // Linkerd's credentials grant no look at ServiceExports, of which its links know nothing.
                Err(error) if watched == Watched::Exports && self.teller.is_linkerds && is_forbidden(&error) => {
                    return self.absent().await;
                }
                Err(error) => {
                    if !self.teller.tell(Some(watched), News::Failed(error.to_string())).await {
                        return false;
                    }
                    has_failed = true;
                    // What was opened before it failed doesn't count.
                    while opened.notified().now_or_never().is_some() {}
                    sleep(self.wait).await;
                    self.wait = (self.wait * 2).min(LAST);
                    continue;
                }
            };
            if let Some(news) = news
                && !self.teller.tell(Some(watched), news).await
            {
                return false;
            }
        }
    }

    /// The API server doesn't have the kind in this version: the other one is tried, and after both all again, later.
    async fn absent(&mut self) -> bool {
        self.version = self.version.other();
        self.absences += 1;
        if self.absences % 2 == 1 {
            return true;
        }
        // An API server that starts may not know its own resources for a moment.
        let since = *self.absent_since.get_or_insert_with(Instant::now);
        let is_gone = !self.was_listed || since.elapsed() >= BELIEVED;
        let news = if is_gone { News::Absent } else { News::Failed("the kind is not there any more".to_owned()) };
        if !self.teller.tell(Some(self.watched), news).await {
            return false;
        }
        sleep(if is_gone { ABSENT } else { self.wait }).await;
        self.wait = (self.wait * 2).min(LAST);
        true
    }
}

/// The same client, which tells whenever an API server grants a watch. A watcher keeps that to itself, and one that is quiet
/// can't be told from one that is still refused.
fn telling(client: Client, opened: Arc<Notify>) -> Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (client, opened) = (client.clone(), Arc::clone(&opened));
        async move {
            let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|it| it == "watch=true"));
            let response = client.send(request).await?;
            if is_watch && response.status().is_success() {
                opened.notify_one();
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, "default")
}

fn is_forbidden(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 403)
}

/// Whether the API server doesn't know the kind in that version.
fn is_absent(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            matches!(error, kube::Error::Api(status) if status.code == 404)
        }
        _ => false,
    }
}

/// Asks whether the API server answers, again and again: a quiet watch doesn't tell.
pub(super) async fn listen(client: Client, teller: Teller, every: Duration, patience: Duration) {
    loop {
        let asked = Instant::now();
        let news = match tokio::time::timeout(patience, client.apiserver_version()).await {
            Ok(Ok(_)) => News::Answers(asked.elapsed()),
            Ok(Err(error)) => News::Failed(error.to_string()),
            Err(_) => News::Failed(format!("no answer within {patience:?}")),
        };
        if !teller.tell(None, news).await {
            return;
        }
        sleep(every).await;
    }
}

/// Asks an API server for its version now and then: one may be replaced by another.
pub(super) async fn learn(client: Client, teller: Teller) {
    const EVERY: Duration = Duration::from_secs(600);
    loop {
        let minor = client.apiserver_version().await.ok().and_then(|info| {
            // Some write 34+.
            info.minor.trim_end_matches(|last: char| !last.is_ascii_digit()).parse().ok()
        });
        if let Some(minor) = minor
            && !teller.tell(None, News::Minor(minor)).await
        {
            return;
        }
        sleep(if minor.is_some() { EVERY } else { LAST }).await;
    }
}

/// A namespace has none itself.
fn name(meta: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone()? })
}

fn there(watched: Watched, origin: &Origin, object: &RawObject) -> Option<News> {
    let Some(name) = name(&object.metadata) else {
        warn!(?watched, ?origin, "object left out: it has no name that can be read");
        return None;
    };
    match change(watched, origin, name.clone(), object) {
        Ok(news) => Some(news),
        Err(error) => {
            warn!(?watched, ?origin, %name, error = %error, "object left out: it can't be read");
            None
        }
    }
}

fn change(watched: Watched, origin: &Origin, name: ObjectName, object: &RawObject) -> serde_json::Result<News> {
    let is_own = *origin == Origin::Own;
    let origin = origin.clone();
    let is_going = object.metadata.deletion_timestamp.is_some();
    let (subject, version) = (name.clone(), version(&object.metadata));
    let change = match watched {
        Watched::Services => {
            let service = read::service(object.read()?);
            Change::Service(origin, name, Some(Box::new(service)))
        }
        Watched::Slices => {
            let mut written = read::slice(object.read()?);
            if let Some(Written::FirstHand(slice)) = &mut written
                && !is_own
            {
                // Whatever is called so is no node of ours.
                slice.endpoints.iter_mut().for_each(|endpoint| endpoint.node = None);
            }
            Change::Slice(origin, name, written)
        }
        Watched::Exports => {
            let export = read::export(object.read()?, is_own);
            Change::Export(origin, name, (!is_going).then_some(export))
        }
        Watched::Imports => Change::Import(name, Some(read::import(object.read()?))),
        Watched::Namespaces => Change::Namespace(name.name, !is_going),
        Watched::Nodes => return Ok(News::Node(name.name, Some(Box::new(object.read()?)))),
    };
    Ok(News::Change(subject, version, Box::new(change)))
}

/// An object's version, if it is a number.
pub(super) fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_ref()?.parse().ok()
}

fn gone(watched: Watched, origin: &Origin, meta: &ObjectMeta) -> Option<News> {
    let name = name(meta)?;
    debug!(?watched, ?origin, %name, "object gone");
    Some(match removal(watched, origin, name.clone()) {
        Some(change) => News::Change(name, version(meta), Box::new(change)),
        None => News::Node(name.name, None),
    })
}

/// That an object is gone; none for nodes, which the world doesn't know one by one.
pub(super) fn removal(watched: Watched, origin: &Origin, name: ObjectName) -> Option<Change> {
    let origin = origin.clone();
    Some(match watched {
        Watched::Services => Change::Service(origin, name, None),
        Watched::Slices => Change::Slice(origin, name, None),
        Watched::Exports => Change::Export(origin, name, None),
        Watched::Imports => Change::Import(name, None),
        Watched::Namespaces => Change::Namespace(name.name, false),
        Watched::Nodes => return None,
    })
}

/// The link that news come from; none for the own cluster.
pub(super) fn link(origin: &Origin) -> Option<&LinkName> {
    match origin {
        Origin::Own => None,
        Origin::Link(link) => Some(link),
    }
}
