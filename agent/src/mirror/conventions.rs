//! What is exported, by which convention, and what that becomes here: one file a convention, each a pure function.

mod cilium;
mod istio;
mod linkerd;
mod mcs;

pub(super) use linkerd::default_selectors;
pub(super) use mcs::base32;
pub use mcs::derived_name;

use super::{
    names,
    source::{Link, Reach, Service, Understood},
    world::{Cluster, ImportKey, ImportKind, Peer},
};
use crate::{
    model::{ObjectName, Path},
    sources::objects::barred,
};

/// How something came to be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Convention {
    /// Linkerd's flat mirror.
    LinkerdFlat,
    /// Linkerd's gateway mirror.
    LinkerdGateway,
    /// Linkerd's federated Service.
    LinkerdFederated,
    /// The MCS API.
    Mcs,
    /// Cilium's global Service.
    Cilium,
    /// Istio's global Service.
    Istio,
}

/// A Service that is exported, and what it becomes here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Export {
    /// The import that it is a part of.
    pub import: ImportKey,
    /// By which convention.
    pub convention: Convention,
    /// How its endpoints are reached: as the convention wants it, else as the link can.
    pub path: Path,
}

/// A mark by which Services of one name in all clusters become one, if each carries it.
pub(super) struct Mark {
    pub(super) convention: Convention,
    /// Whether a Service carries it, so that others' endpoints join it.
    pub(super) carries: fn(&Service) -> bool,
    /// Whether a Service that carries it lets its endpoints join others.
    pub(super) shares: fn(&Service) -> bool,
}

/// The marks, by precedence.
pub(super) const MARKS: [Mark; 2] = [cilium::MARK, istio::MARK];

/// What a peer's object is exported as, in order. One that carries two marks joins by either.
///
/// Nothing, where it isn't known what its link lets in.
pub(super) fn of_peer(name: &ObjectName, peer: &Peer) -> Vec<Export> {
    if peer.link.understood != Understood::Whole {
        return Vec::new();
    }
    let default_path = if peer.link.is_flat { Path::Pod } else { Path::Gateway };
    let mut exports: Vec<Export> = Vec::new();
    let mut add = |kind, imported: String, convention, path| {
        let import = ImportKey { kind, object: ObjectName { namespace: name.namespace.clone(), name: imported } };
        exports.push(Export { import, convention, path });
    };
    if mcs::is_exported(name, &peer.cluster) {
        add(ImportKind::ServiceImport, name.name.clone(), Convention::Mcs, default_path);
    }
    if let Some(service) = peer.cluster.services.get(name).filter(|service| is_first_hand(service)) {
        for (convention, imported) in linkerd::exports(&name.name, service, &peer.link) {
            let path = if convention == Convention::LinkerdGateway { Path::Gateway } else { default_path };
            add(ImportKind::Named, imported, convention, path);
        }
        if !barred(name) {
            for mark in MARKS.iter().filter(|mark| (mark.shares)(service)) {
                add(ImportKind::Joined, name.name.clone(), mark.convention, default_path);
            }
        }
    }
    exports.sort();
    exports
}

/// What a peer's Service may become here, by whatever convention.
pub(super) fn imports_of(service: &ObjectName, link: &Link) -> [ImportKey; 4] {
    let key =
        |kind, name: String| ImportKey { kind, object: ObjectName { namespace: service.namespace.clone(), name } };
    [
        key(ImportKind::ServiceImport, service.name.clone()),
        key(ImportKind::Joined, service.name.clone()),
        key(ImportKind::Named, linkerd::mirror_name(&service.name, &link.suffix)),
        key(ImportKind::Named, linkerd::federated_name(&service.name)),
    ]
}

/// The Services of a peer that may become an import, by whatever convention.
pub(super) fn services_of(import: &ImportKey, link: &Link) -> Vec<ObjectName> {
    let object = |name: &str| ObjectName { namespace: import.object.namespace.clone(), name: name.to_owned() };
    match import.kind {
        ImportKind::ServiceImport | ImportKind::Joined => vec![import.object.clone()],
        ImportKind::Named => linkerd::named_as(&import.object.name, &link.suffix).map(object).collect(),
        ImportKind::Gateway => Vec::new(),
    }
}

/// What an object of the own cluster is exported as: as itself it is a member too.
///
/// A Service that others' endpoints join needs no help for its own.
pub(super) fn own(name: &ObjectName, cluster: &Cluster) -> Vec<Export> {
    let mut exports = Vec::new();
    let mut add = |kind, imported: String, convention| {
        let import = ImportKey { kind, object: ObjectName { namespace: name.namespace.clone(), name: imported } };
        exports.push(Export { import, convention, path: Path::Pod });
    };
    if mcs::is_exported(name, cluster) {
        add(ImportKind::ServiceImport, name.name.clone(), Convention::Mcs);
    }
    let service = cluster.services.get(name).filter(|service| is_first_hand(service));
    if service.is_some_and(linkerd::is_member) {
        add(ImportKind::Named, linkerd::federated_name(&name.name), Convention::LinkerdFederated);
    }
    exports.sort();
    exports
}

/// Whether an object of the own cluster is exported by any convention, to whomever: by Linkerd's usual labels, whatever its links select.
pub(super) fn is_exported(name: &ObjectName, cluster: &Cluster) -> bool {
    let service = cluster.services.get(name).filter(|service| is_first_hand(service));
    let is_labelled = service.is_some_and(|service| {
        linkerd::is_exported(service) || !barred(name) && MARKS.iter().any(|mark| (mark.shares)(service))
    });
    is_labelled || mcs::is_exported(name, cluster)
}

/// The mark of a Service of the own cluster that endpoints may join by it.
pub(super) fn mark_of(name: &ObjectName, service: &Service, convention: Convention) -> bool {
    !barred(name) && MARKS.iter().any(|mark| mark.convention == convention && (mark.carries)(service))
}

/// Whether a Service stands for its own cluster's pods: what a mirror made there is others'.
fn is_first_hand(service: &Service) -> bool {
    let linkerd_made = service.labels.get(names::LINKERD_MIRRORED).is_some_and(|value| value == "true");
    let discovered = [names::LINKERD_LOCAL_DISCOVERY, names::LINKERD_REMOTE_DISCOVERY]
        .iter()
        .any(|name| service.annotations.contains_key(*name));
    let ours = service.labels.get(names::MANAGED).is_some_and(|by| by == names::MIRROR);
    service.reach != Reach::ExternalName && !linkerd_made && !discovered && !service.is_derived && !ours
}
