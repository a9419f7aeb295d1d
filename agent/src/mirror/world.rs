//! Everything known, and which imports it concerns: one object's change makes only those dirty.
//!
//! Level-triggered: what an import should be follows from what is known now ([`desired`](super::import::desired)),
//! whatever the way there was. The order in which changes come, and whether they come twice, makes no difference.

mod own;
mod peer;
mod quota;

use super::{
    conventions::{self, Export},
    gateway::{self, published::Leading},
    lease::Standing,
    names,
    read::Written,
    slices::Placed,
    source::{Import, Link, LinkName, McsVersions, Origin, Service, ServiceExport, Slice},
};
use crate::model::{ClusterName, ObjectName};
pub use own::{Own, OwnAddresses};
pub use peer::{Before, Kept, Peer, Said, Shown};
use quota::Admitted;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Bound,
};

/// What appears in this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImportKind {
    /// A Service under a name of its own: `<svc>-<cluster>`, `<svc>-federated`.
    Named,
    /// A ServiceImport, and the Service that is derived from it.
    ServiceImport,
    /// Nothing: endpoints join a Service of this cluster's own.
    Joined,
    /// No import at all: a Service of the gateway by which others come in, or the allocation of its ports.
    Gateway,
}

impl ImportKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Named, Self::ServiceImport, Self::Joined, Self::Gateway];

    /// As the label has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Named => "service",
            Self::ServiceImport => "serviceimport",
            Self::Joined => "joined",
            Self::Gateway => "gateway",
        }
    }

    /// The kind that the label names.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An import, by what it is called here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImportKey {
    /// What appears.
    pub kind: ImportKind,
    /// What it is called.
    pub object: ObjectName,
}

/// What is exported, and by whom.
pub type Exporter = (Origin, ObjectName);

/// One cluster's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Its Services.
    pub services: BTreeMap<ObjectName, Service>,
    /// The slices of each Service that its own controllers wrote.
    pub slices: BTreeMap<ObjectName, BTreeMap<String, Slice>>,
    /// Its ServiceExports.
    pub exports: BTreeMap<ObjectName, ServiceExport>,
    /// Which Services of its gateway lead where.
    pub gateways: Leading,
    /// The Service that each slice belongs to.
    service_by_slice: BTreeMap<ObjectName, ObjectName>,
}

/// Everything known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// The own cluster.
    pub own: Own,
    /// The peers, by link.
    pub peers: BTreeMap<LinkName, Peer>,
    /// What the host names of peers' gateways stand for.
    pub hosts: BTreeMap<String, BTreeSet<IpAddr>>,
    by_import: BTreeMap<ImportKey, BTreeSet<Exporter>>,
    by_exporter: BTreeMap<Exporter, Vec<Export>>,
    /// Which exports each link's quota lets in; none for a link without exports.
    admitted: BTreeMap<LinkName, Admitted>,
    /// Imports, by the name of the Service that they are derived as.
    derived: BTreeMap<ObjectName, ImportKey>,
    dirty: BTreeSet<ImportKey>,
}

/// One thing that is new, or gone (`None`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link.
    Link(LinkName, Option<Box<Link>>),
    /// All that a peer has was listed.
    Listed(LinkName),
    /// A peer's Services were listed.
    ServicesListed(LinkName),
    /// A peer's slices were listed.
    SlicesListed(LinkName),
    /// A peer was never listed, for so long that nobody waits for it any more.
    GivenUp(LinkName),
    /// How a peer stands.
    Standing(LinkName, Standing),
    /// A Service.
    Service(Origin, ObjectName, Option<Box<Service>>),
    /// A slice.
    Slice(Origin, ObjectName, Option<Written>),
    /// A ServiceExport.
    Export(Origin, ObjectName, Option<ServiceExport>),
    /// A ServiceImport of the own cluster.
    Import(ObjectName, Option<Import>),
    /// A namespace of the own cluster, and whether it can take objects.
    Namespace(String, bool),
    /// The own cluster's addresses.
    Addresses(OwnAddresses),
    /// The versions of the MCS API that the own API server has.
    Versions(McsVersions),
    /// Whether the own API server knows `PreferSameZone` and `PreferSameNode`.
    KnowsSameNode(bool),
    /// What the host name of a gateway stands for.
    Host(String, BTreeSet<IpAddr>),
}

impl Change {
    /// Whether it says that an object is gone.
    pub fn is_removal(&self) -> bool {
        match self {
            Self::Link(_, it) => it.is_none(),
            Self::Service(.., it) => it.is_none(),
            Self::Slice(.., it) => it.is_none(),
            Self::Export(.., it) => it.is_none(),
            Self::Import(_, it) => it.is_none(),
            Self::Namespace(_, is_there) => !is_there,
            _ => false,
        }
    }
}

impl World {
    /// Nothing but the own cluster's id.
    pub fn new(name: ClusterName) -> Self {
        Self {
            own: Own::new(name),
            peers: BTreeMap::new(),
            hosts: BTreeMap::new(),
            by_import: BTreeMap::new(),
            by_exporter: BTreeMap::new(),
            admitted: BTreeMap::new(),
            derived: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// Imports that may not be as they should be any more; they are clean from now on.
    pub fn take_dirty(&mut self) -> BTreeSet<ImportKey> {
        std::mem::take(&mut self.dirty)
    }

    /// Has an import looked at again.
    pub fn touch(&mut self, key: ImportKey) {
        self.dirty.insert(key);
    }

    /// Who exports what becomes `key`, and how; the own cluster first.
    pub fn exporters<'a>(&'a self, key: &'a ImportKey) -> impl Iterator<Item = (&'a Exporter, &'a Export)> {
        self.by_import.get(key).into_iter().flatten().flat_map(move |exporter| {
            let exports = self.by_exporter.get(exporter).into_iter().flatten();
            exports.filter(move |export| export.import == *key).map(move |export| (exporter, export))
        })
    }

    /// Everything that is imported, or should be.
    pub fn imports(&self) -> impl Iterator<Item = &ImportKey> {
        self.by_import.keys()
    }

    /// The objects of a cluster; none if its link is gone.
    pub fn cluster(&self, origin: &Origin) -> Option<&Cluster> {
        match origin {
            Origin::Own => Some(&self.own.cluster),
            Origin::Link(link) => Some(&self.peers.get(link)?.cluster),
        }
    }

    /// How many exports a link has.
    pub fn export_count(&self, link: &LinkName) -> usize {
        self.admitted.get(link).map_or(0, Admitted::total)
    }

    /// Whether `exporter` is among those exports of its link, in the order of names, that its quota lets in.
    pub fn is_within_quota(&self, exporter: &Exporter) -> bool {
        let Origin::Link(link) = &exporter.0 else { return true };
        self.admitted.get(link).is_some_and(|admitted| admitted.lets_in(&exporter.1))
    }

    fn of_link<'a>(&'a self, link: &LinkName) -> impl Iterator<Item = (&'a Exporter, &'a Vec<Export>)> {
        let origin = Origin::Link(link.clone());
        let all = self.by_exporter.range((Bound::Included(quota::first(&origin)), Bound::Unbounded));
        all.take_while(move |(exporter, _)| exporter.0 == origin)
    }

    /// How many objects are known of a cluster.
    pub fn object_count(&self, origin: &Origin) -> usize {
        self.cluster(origin)
            .map_or(0, |cluster| cluster.services.len() + cluster.exports.len() + cluster.service_by_slice.len())
    }

    /// Whether the object that a change is about is known already.
    pub fn knows(&self, change: &Change) -> bool {
        let is_there = |origin, has: &dyn Fn(&Cluster) -> bool| self.cluster(origin).is_some_and(has);
        match change {
            Change::Service(origin, name, _) => is_there(origin, &|it| it.services.contains_key(name)),
            Change::Slice(origin, name, _) => is_there(origin, &|it| it.service_by_slice.contains_key(name)),
            Change::Export(origin, name, _) => is_there(origin, &|it| it.exports.contains_key(name)),
            _ => true,
        }
    }

    /// The names of all slices that are known of a cluster.
    pub fn slice_names(&self, origin: &Origin) -> BTreeSet<ObjectName> {
        let first_hand = self.cluster(origin).into_iter().flat_map(|cluster| cluster.service_by_slice.keys());
        let ours = self.own.key_by_placed.keys().filter(|_| *origin == Origin::Own);
        first_hand.chain(ours).cloned().collect()
    }

    /// Takes `change` in.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Link(name, link) => self.apply_link(name, link.map(|link| *link)),
            Change::Listed(name) => {
                if let Some(peer) = self.peers.get_mut(&name)
                    && !std::mem::replace(&mut peer.is_listed, true)
                {
                    if peer.is_heard() {
                        peer.before.clear();
                    }
                    // What was kept because it might still have been there may be gone.
                    self.touch_all();
                }
            }
            Change::ServicesListed(name) => self.show(&name, |peer| &mut peer.shows_services),
            Change::SlicesListed(name) => self.show(&name, |peer| &mut peer.shows_endpoints),
            Change::GivenUp(name) => {
                if let Some(peer) = self.peers.get_mut(&name)
                    && !std::mem::replace(&mut peer.is_given_up, true)
                {
                    self.touch_all();
                }
            }
            Change::Standing(name, standing) => {
                self.remember(&name, standing);
                if let Some(peer) = self.peers.get_mut(&name)
                    && std::mem::replace(&mut peer.standing, standing) != standing
                {
                    // Of one that was never listed, only what was written for it before is known.
                    if peer.is_heard() { self.touch_link(&name) } else { self.touch_all() }
                }
            }
            Change::Service(origin, name, service) => self.apply_service(origin, name, service.map(|it| *it)),
            Change::Slice(origin, name, written) => self.apply_slice(origin, name, written),
            Change::Export(origin, name, export) => {
                let Some(cluster) = self.cluster_mut(&origin) else { return };
                if put(&mut cluster.exports, &name, export) {
                    if origin == Origin::Own {
                        self.touch_gateway(&name);
                    }
                    self.index(&(origin, name.clone()));
                    self.touch_all_exports(&name);
                }
            }
            Change::Import(name, import) => {
                if put(&mut self.own.imports, &name, import) {
                    self.dirty.insert(ImportKey { kind: ImportKind::ServiceImport, object: name });
                }
            }
            Change::Namespace(name, is_there) => {
                let changed =
                    if is_there { self.own.namespaces.insert(name.clone()) } else { self.own.namespaces.remove(&name) };
                if changed {
                    let gateway = self.own.gateway.as_ref().map(gateway::root);
                    let keys = self.by_import.keys().chain(&gateway).filter(|key| key.object.namespace == name);
                    self.dirty.extend(keys.cloned());
                }
            }
            Change::Addresses(addresses) => {
                if std::mem::replace(&mut self.own.addresses, addresses.clone()) != addresses {
                    self.touch_all();
                }
            }
            Change::Versions(versions) => {
                if std::mem::replace(&mut self.own.versions, versions) != versions {
                    self.touch_all();
                }
            }
            Change::KnowsSameNode(knows) => {
                if std::mem::replace(&mut self.own.knows_same_node, knows) != knows {
                    self.touch_all();
                }
            }
            Change::Host(host, addresses) => self.apply_host(host, addresses),
        }
    }

    fn cluster_mut(&mut self, origin: &Origin) -> Option<&mut Cluster> {
        match origin {
            Origin::Own => Some(&mut self.own.cluster),
            Origin::Link(link) => Some(&mut self.peers.get_mut(link)?.cluster),
        }
    }

    fn apply_link(&mut self, name: LinkName, link: Option<Link>) {
        match link {
            None => {
                let gone: Vec<Exporter> = self.of_link(&name).map(|(exporter, _)| exporter.clone()).collect();
                if self.peers.remove(&name).is_some() {
                    gone.iter().for_each(|exporter| self.index(exporter));
                    self.touch_all();
                }
            }
            Some(link) => {
                let peer = self.peers.entry(name.clone()).or_insert_with(|| Peer {
                    link: link.clone(),
                    is_listed: false,
                    shows_services: false,
                    shows_endpoints: false,
                    standing: Standing::Fresh,
                    is_given_up: false,
                    before: BTreeMap::new(),
                    cluster: Cluster::default(),
                });
                peer.link = link;
                if peer.is_heard() {
                    peer.before.clear();
                }
                let objects: BTreeSet<ObjectName> =
                    peer.cluster.services.keys().chain(peer.cluster.exports.keys()).cloned().collect();
                for object in objects {
                    self.index(&(Origin::Link(name.clone()), object));
                }
                if let (Some(admitted), Some(peer)) = (self.admitted.get_mut(&name), self.peers.get(&name)) {
                    admitted.settle(&Origin::Link(name.clone()), &self.by_exporter, peer.link.quota.exports);
                }
                // Its ranges say what others may not offer.
                self.touch_all();
            }
        }
    }

    fn apply_service(&mut self, origin: Origin, name: ObjectName, service: Option<Service>) {
        let Some(cluster) = self.cluster_mut(&origin) else { return };
        let old = cluster.services.get(&name).cloned();
        if !put(&mut cluster.services, &name, service) {
            return;
        }
        let gateway = |service: Option<&Service>| service.and_then(|service| service.gateway.clone());
        let (before, now) = (gateway(old.as_ref()), gateway(cluster.services.get(&name)));
        for service in cluster.gateways.change(&name, before.as_deref(), now.as_deref()) {
            self.touch_exports(&(origin.clone(), service));
        }
        if origin == Origin::Own {
            let now = self.own.cluster.services.get(&name).cloned();
            self.own.count(old.as_ref(), now.as_ref());
            self.touch_gateway(&name);
            // It may be in the way of an import, be one, or be what endpoints join.
            for kind in [ImportKind::Named, ImportKind::Joined] {
                self.touch_known(ImportKey { kind, object: name.clone() });
            }
            if self.own.cluster.exports.contains_key(&name) {
                self.touch_all_exports(&name);
            }
            if let Some(key) = self.derived.get(&name) {
                self.dirty.insert(key.clone());
            }
            if let Some(key) =
                [old.as_ref(), now.as_ref()].into_iter().flatten().find_map(|service| key_of(&name, service))
            {
                self.dirty.insert(key);
            }
        }
        self.index(&(origin, name));
    }

    fn apply_slice(&mut self, origin: Origin, name: ObjectName, written: Option<Written>) {
        let is_own = origin == Origin::Own;
        let Some(cluster) = self.cluster_mut(&origin) else { return };
        let (first_hand, ours) = match written {
            Some(Written::FirstHand(slice)) => (Some(slice), None),
            Some(Written::Ours(key, placed)) if is_own => (None, Some((key, placed))),
            Some(Written::Ours(..) | Written::Elsewhere) | None => (None, None),
        };
        let mut touched = Vec::new();
        let old = cluster.service_by_slice.get(&name).cloned();
        let new = first_hand
            .as_ref()
            .map(|slice| ObjectName { namespace: name.namespace.clone(), name: slice.service.clone() });
        let unchanged = match (&old, &first_hand) {
            (Some(service), Some(slice)) => {
                old == new && cluster.slices.get(service).and_then(|slices| slices.get(&name.name)) == Some(slice)
            }
            (None, None) => true,
            _ => false,
        };
        if !unchanged {
            if let Some(service) = old {
                remove_within(&mut cluster.slices, &service, &name.name);
                cluster.service_by_slice.remove(&name);
                touched.push(service);
            }
            if let (Some(service), Some(slice)) = (new, first_hand) {
                cluster.slices.entry(service.clone()).or_default().insert(name.name.clone(), slice);
                cluster.service_by_slice.insert(name.clone(), service.clone());
                touched.push(service);
            }
        }
        for service in touched {
            match &origin {
                Origin::Own => self.touch_gateway_slices(&service),
                Origin::Link(link) => self.touch_kept(link, &service),
            }
            self.touch_exports(&(origin.clone(), service));
        }
        if is_own {
            self.apply_placed(name, ours);
        }
    }

    fn apply_placed(&mut self, name: ObjectName, ours: Option<(ImportKey, Placed)>) {
        let old = self.own.key_by_placed.get(&name).cloned();
        if let (Some(old), Some((new, placed))) = (&old, &ours)
            && old == new
            && self.own.placed.get(old).and_then(|slices| slices.get(&name.name)) == Some(placed)
        {
            return;
        }
        if let Some(old) = old {
            remove_within(&mut self.own.placed, &old, &name.name);
            self.own.key_by_placed.remove(&name);
            self.dirty.insert(old);
        }
        if let Some((key, placed)) = ours {
            self.own.placed.entry(key.clone()).or_default().insert(name.name.clone(), placed);
            self.own.key_by_placed.insert(name, key.clone());
            self.dirty.insert(key);
        }
    }

    /// Looks at what an object is exported as, again.
    fn index(&mut self, exporter: &Exporter) {
        let (origin, name) = exporter;
        let exports = match origin {
            Origin::Own => conventions::own(name, &self.own.cluster),
            Origin::Link(link) => self.peers.get(link).map_or_else(Vec::new, |peer| conventions::of_peer(name, peer)),
        };
        let old = if exports.is_empty() {
            self.by_exporter.remove(exporter).unwrap_or_default()
        } else {
            self.by_exporter.insert(exporter.clone(), exports.clone()).unwrap_or_default()
        };
        let counts = (old.len(), exports.len());
        for import in old.into_iter().map(|export| export.import) {
            if !exports.iter().any(|export| export.import == import) {
                let members = self.by_import.get_mut(&import);
                if members.is_some_and(|members| members.remove(exporter) && members.is_empty()) {
                    self.by_import.remove(&import);
                    if import.kind == ImportKind::ServiceImport {
                        self.derived.remove(&conventions::derived_name(&import.object));
                    }
                }
            }
            self.dirty.insert(import);
        }
        for import in exports.into_iter().map(|export| export.import) {
            self.by_import.entry(import.clone()).or_default().insert(exporter.clone());
            if import.kind == ImportKind::ServiceImport {
                self.derived.insert(conventions::derived_name(&import.object), import.clone());
            }
            self.dirty.insert(import);
        }
        self.admit(exporter, counts);
    }

    /// An exporter has another number of exports than before: one more may push another one out, one less lets one in.
    fn admit(&mut self, exporter: &Exporter, counts: (usize, usize)) {
        let (origin @ Origin::Link(link), _) = exporter else { return };
        let Some(peer) = self.peers.get(link) else { return drop(self.admitted.remove(link)) };
        if counts.0 == counts.1 {
            return;
        }
        let admitted = self.admitted.entry(link.clone()).or_default();
        let moved = admitted.change(exporter, counts, &self.by_exporter, peer.link.quota.exports);
        if admitted.total() == 0 {
            self.admitted.remove(link);
        }
        for object in moved {
            self.touch_exports(&(origin.clone(), object));
        }
    }

    pub(super) fn touch_exports(&mut self, exporter: &Exporter) {
        let exports = self.by_exporter.get(exporter).into_iter().flatten();
        self.dirty.extend(exports.map(|export| export.import.clone()));
    }

    /// A ServiceExport of any cluster concerns that of the own one: conflicts are said on all of them.
    fn touch_all_exports(&mut self, object: &ObjectName) {
        self.dirty.insert(ImportKey { kind: ImportKind::ServiceImport, object: object.clone() });
    }

    fn touch_known(&mut self, key: ImportKey) {
        if self.by_import.contains_key(&key) || self.own.placed.contains_key(&key) {
            self.dirty.insert(key);
        }
    }

    fn touch_link(&mut self, link: &LinkName) {
        let keys: Vec<ImportKey> =
            self.of_link(link).flat_map(|(_, exports)| exports.iter().map(|export| export.import.clone())).collect();
        self.dirty.extend(keys);
    }

    /// Everything that should be there, and everything of ours that is.
    fn touch_all(&mut self) {
        self.dirty.extend(self.own.gateway.as_ref().map(gateway::root));
        self.dirty.extend(self.by_import.keys().cloned());
        self.dirty.extend(self.own.placed.keys().cloned());
        let services = &self.own.cluster.services;
        self.dirty.extend(services.iter().filter_map(|(name, service)| key_of(name, service)));
        let imports = self.own.imports.iter().filter(|(_, import)| import.is_ours);
        let key = |object: &ObjectName| ImportKey { kind: ImportKind::ServiceImport, object: object.clone() };
        self.dirty.extend(imports.map(|(name, _)| key(name)));
    }
}

/// The import that a Service of ours was made for; none if it isn't ours.
pub(super) fn key_of(name: &ObjectName, service: &Service) -> Option<ImportKey> {
    if service.labels.get(names::MANAGED).map(String::as_str) != Some(names::MIRROR) {
        return None;
    }
    let kind = ImportKind::named(service.labels.get(names::IMPORT_KIND)?)?;
    let object = match service.labels.get(names::IMPORT_NAME) {
        Some(import) => ObjectName { namespace: name.namespace.clone(), name: import.clone() },
        None => name.clone(),
    };
    Some(ImportKey { kind, object })
}

/// Whether that changed anything.
fn put<T: PartialEq>(map: &mut BTreeMap<ObjectName, T>, name: &ObjectName, value: Option<T>) -> bool {
    match value {
        None => map.remove(name).is_some(),
        Some(value) => {
            let is_new = map.get(name) != Some(&value);
            map.insert(name.clone(), value);
            is_new
        }
    }
}

fn remove_within<K: Ord, T>(map: &mut BTreeMap<K, BTreeMap<String, T>>, key: &K, name: &str) {
    if let Some(inner) = map.get_mut(key) {
        inner.remove(name);
        if inner.is_empty() {
            map.remove(key);
        }
    }
}
