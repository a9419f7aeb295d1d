//! Watches Link objects and the Secrets that they name, and shows the links that should run as a whole, each time anew.
//!
//! Of Secrets only those that a link names are asked for, by name: so the mirror needs no right on any other.

use super::{
    LinkerdLink,
    book::{Book, Definer, Wanted, held},
    object::{GROUP, LinkObject, VERSION},
    part::{self, Unread},
};
use crate::{mirror::source::LinkName, model::ObjectName};
use anyhow::bail;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tracing::{info, warn};

/// The first wait after a failure and the longest: a credential that is put right should be used soon.
const FIRST: Duration = Duration::from_millis(250);
const LAST: Duration = Duration::from_secs(5);
/// How long it takes until a kind that an API server doesn't have is asked for again.
const ABSENT: Duration = Duration::from_secs(10);
/// How often in a row it has to say that it doesn't have it: one that starts may not know its own kinds for a moment.
const ABSENCES: u32 = 3;
/// News that may wait.
const WAITING: usize = 64;

/// The links as they should be.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Those that should run.
    pub links: BTreeMap<LinkName, Wanted>,
    /// Objects that are left out, and why.
    pub left: BTreeMap<Definer, String>,
}

/// A kind of Link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Tombolo,
    Linkerd,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Tombolo, Self::Linkerd];

    /// By preference: read at v1alpha1, Linkerd's Links lack what selects federated Services.
    fn resources(self) -> Vec<ApiResource> {
        let (group, versions): (&str, &[&str]) = match self {
            Self::Tombolo => (GROUP, &[VERSION]),
            Self::Linkerd => ("multicluster.linkerd.io", &["v1alpha3", "v1alpha2"]),
        };
        let resource =
            |version: &&str| ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, "Link"), "links");
        versions.iter().map(resource).collect()
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tombolo => "links.tombolo.io",
            Self::Linkerd => "links.multicluster.linkerd.io",
        }
    }
}

enum Seen {
    Link(Kind, ObjectName, Option<Box<DynamicObject>>),
    Listed(Kind, BTreeSet<ObjectName>),
    /// The API server has no such kind.
    Absent(Kind),
    /// None if it isn't there.
    Secret(ObjectName, Option<Box<Secret>>),
    /// Why it can't be read.
    Unread(ObjectName, String),
}

/// Watches Tombolo's Links in `namespace` and Linkerd's in `linkerd`, and shows what they come to once both were listed.
///
/// # Errors
///
/// A part of it ended by itself.
pub async fn follow(
    client: Client,
    namespace: String,
    linkerd: String,
    mut book: Book,
    shown: watch::Sender<Option<Shown>>,
) -> anyhow::Result<()> {
    let (told, mut seen) = mpsc::channel(WAITING);
    let mut tasks = JoinSet::new();
    for kind in Kind::ALL {
        let namespace = if kind == Kind::Tombolo { namespace.clone() } else { linkerd.clone() };
        tasks.spawn(links(client.clone(), kind, namespace, told.clone()));
    }
    let mut listed = BTreeSet::new();
    let mut secrets: BTreeMap<ObjectName, AbortHandle> = BTreeMap::new();
    loop {
        tokio::select! {
            Some(first) = seen.recv() => {
                take(&mut book, &mut listed, first);
                for _ in 0..WAITING {
                    let Ok(next) = seen.try_recv() else { break };
                    take(&mut book, &mut listed, next);
                }
            }
            Some(ended) = tasks.join_next() => match ended {
                Ok(()) => bail!("a watch of links ended by itself"),
                Err(error) if error.is_cancelled() => continue,
                Err(error) => return Err(error.into()),
            },
            () = shown.closed() => return Ok(()),
        }
        let wanted = book.secrets();
        secrets.retain(|name, watch| {
            let is_wanted = wanted.contains(name);
            if !is_wanted {
                watch.abort();
            }
            is_wanted
        });
        for name in wanted {
            secrets.entry(name.clone()).or_insert_with(|| tasks.spawn(secret(client.clone(), name, told.clone())));
        }
        if listed.len() == Kind::ALL.len() && book.is_whole() {
            let (links, left) = book.links();
            shown.send_replace(Some(Shown { links, left }));
        }
    }
}

fn take(book: &mut Book, listed: &mut BTreeSet<Kind>, seen: Seen) {
    match seen {
        Seen::Link(Kind::Tombolo, name, object) => book.put_tombolo(name, object.map(|it| read::<LinkObject>(*it))),
        Seen::Link(Kind::Linkerd, name, object) => book.put_linkerd(name, object.map(|it| read::<LinkerdLink>(*it))),
        Seen::Listed(kind, names) => {
            match kind {
                Kind::Tombolo => book.keep_tombolo(&names),
                Kind::Linkerd => book.keep_linkerd(&names),
            }
            if listed.insert(kind) {
                info!(kind = kind.name(), objects = names.len(), "links listed");
            }
        }
        // A kind that is gone takes its objects along, which is told one by one: here nothing is known to be gone.
        Seen::Absent(kind) => drop(listed.insert(kind)),
        Seen::Secret(name, secret) => {
            book.put_secret(name, secret.map(|secret| held(secret.data.unwrap_or_default())));
        }
        Seen::Unread(name, reason) => book.put_unread(name, reason),
    }
}

fn read<T: DeserializeOwned + Default>(object: DynamicObject) -> Result<T, Unread<T>> {
    let value = serde_json::to_value(object);
    part::read(value.map_err(|error| Unread { reason: error.to_string(), part: Box::default() })?)
}

/// Follows one kind of Link until nobody listens any more.
async fn links(client: Client, kind: Kind, namespace: String, told: mpsc::Sender<Seen>) {
    let resources = kind.resources();
    let (mut said, mut absences) = (String::new(), 0_u32);
    for resource in resources.iter().cycle() {
        let is_last = resource == resources.last().expect("there is a version");
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, resource);
        let (mut wait, mut was_listed) = (FIRST, false);
        let mut names = BTreeSet::new();
        let mut events = pin!(watcher(api, watcher::Config::default()));
        while let Some(event) = events.next().await {
            let seen = match event {
                Ok(Event::Init) => {
                    names.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    let name = name(&object.metadata.name, &namespace);
                    names.insert(name.clone());
                    Seen::Link(kind, name, Some(Box::new(object)))
                }
                Ok(Event::Apply(object)) => {
                    Seen::Link(kind, name(&object.metadata.name, &namespace), Some(Box::new(object)))
                }
                Ok(Event::Delete(object)) => Seen::Link(kind, name(&object.metadata.name, &namespace), None),
                Ok(Event::InitDone) => {
                    (wait, was_listed, absences) = (FIRST, true, 0);
                    said.clear();
                    Seen::Listed(kind, std::mem::take(&mut names))
                }
                Err(error) if is_absent(&error) && !was_listed => {
                    if is_last {
                        absences = absences.saturating_add(1);
                        if absences >= ABSENCES && told.send(Seen::Absent(kind)).await.is_err() {
                            return;
                        }
                        sleep(if absences >= ABSENCES { ABSENT } else { FIRST }).await;
                    }
                    break;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if reason != said {
                        warn!(kind = kind.name(), namespace, reason, "links can't be watched; what is known stays");
                        said = reason;
                    }
                    sleep(wait).await;
                    wait = (wait * 2).min(LAST);
                    continue;
                }
            };
            if told.send(seen).await.is_err() {
                return;
            }
        }
    }
}

fn is_absent(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// Follows one Secret until nobody listens any more.
async fn secret(client: Client, name: ObjectName, told: mpsc::Sender<Seen>) {
    let api: Api<Secret> = Api::namespaced(client, &name.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", name.name));
    let (mut wait, mut said) = (FIRST, String::new());
    let mut is_there = false;
    let mut events = pin!(watcher(api, config));
    while let Some(event) = events.next().await {
        let secret = match event {
            Ok(Event::Init) => {
                is_there = false;
                continue;
            }
            Ok(Event::InitApply(secret)) => {
                is_there = true;
                Some(secret)
            }
            Ok(Event::Apply(secret)) => Some(secret),
            Ok(Event::Delete(_)) => None,
            Ok(Event::InitDone) => {
                wait = FIRST;
                said.clear();
                if is_there {
                    continue;
                }
                None
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != said {
                    warn!(secret = %name, reason, "Secret can't be watched; what is known stays");
                    said.clone_from(&reason);
                }
                if told.send(Seen::Unread(name.clone(), reason)).await.is_err() {
                    return;
                }
                sleep(wait).await;
                wait = (wait * 2).min(LAST);
                continue;
            }
        };
        if told.send(Seen::Secret(name.clone(), secret.map(Box::new))).await.is_err() {
            return;
        }
    }
}

fn name(name: &Option<String>, namespace: &str) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: name.clone().unwrap_or_default() }
}
