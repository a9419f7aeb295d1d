//! What an import should be, from all that is known: the Service, the ServiceImport, the endpoints, and what is wrong.

mod conflicts;
mod endpoints;
mod metadata;
mod ports;
#[cfg(test)]
pub(super) mod tests;

use super::{
    conventions::{self, Convention, Export},
    lease::Standing,
    names,
    slices::Wanted,
    source::{Family, Import, ImportSpec, Link, LinkName, McsVersion, Origin, Port, Reach, Service, ServiceExport},
    validate::{Refusal, Refused},
    values,
    world::{Cluster, ImportKey, ImportKind, Peer, World, key_of},
};
use crate::{
    model::{ClusterName, ObjectName, PeerState},
    sources::objects::{barred, names::is_label},
};
pub use conflicts::{Reason, reasons};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What an import should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// What should become of the Service that clients dial.
    pub service: Fate<ServiceWish>,
    /// What should become of the ServiceImport.
    pub import: Fate<ImportWish>,
    /// The Service that slices name; none for a headless ServiceImport.
    pub owner: Option<String>,
    /// The endpoints.
    pub endpoints: Wanted,
    /// What the own cluster's ServiceExport of this name should say, if there is one.
    pub export: Option<ExportStatus>,
    /// What is wrong, for people.
    pub problems: BTreeSet<Problem>,
    /// Endpoints that were refused.
    pub refused: Refused,
}

impl Imported {
    /// Counts endpoints of a link that are refused.
    fn refuse(&mut self, link: &LinkName, refusal: Refusal, count: u32) {
        if count > 0 {
            let known = self.refused.entry((link.clone(), refusal)).or_default();
            *known = known.saturating_add(count);
        }
    }
}

/// What should become of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fate<T> {
    /// It is as it should be, or none of ours.
    #[default]
    Left,
    /// It should be so.
    Put(T),
    /// It is ours and should go.
    Deleted,
}

/// A Service that the mirror makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceWish {
    /// Its name.
    pub name: ObjectName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Whether it has no address.
    pub is_headless: bool,
    /// Its one family; none for as many as there are.
    pub family: Option<Family>,
    /// The timeout of ClientIP affinity in seconds, if it has that.
    pub affinity_seconds: Option<i32>,
    /// As of the exported one.
    pub internal_traffic_policy: Option<String>,
    /// As of the exported one.
    pub traffic_distribution: Option<String>,
    /// The ServiceImport that owns it.
    pub owner: Option<ImportRef>,
}

/// A ServiceImport as an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportRef {
    /// The version in which the API server has it.
    pub version: McsVersion,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A ServiceImport that the mirror makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportWish {
    /// Its name.
    pub name: ObjectName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// What it is; its addresses are the derived Service's.
    pub spec: ImportSpec,
    /// The exporting clusters.
    pub clusters: BTreeSet<ClusterName>,
    /// Whether clients can use it.
    pub ready: Result<(), NotReady>,
}

/// Why a ServiceImport can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// Its address is not there yet.
    Pending,
    /// No Service of this cluster has a family that its endpoints have.
    Family,
    /// The Service that would have its address is somebody's own.
    Taken(ObjectName),
}

/// What a ServiceExport should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportStatus {
    /// Whether it can be exported; else why not.
    pub valid: Result<(), Invalid>,
    /// In what it differs from others of its name.
    pub conflicts: BTreeSet<Reason>,
    /// Why this cluster doesn't import it, though it is valid.
    pub failure: Option<Problem>,
}

/// Why something can't be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// There is no Service of this name.
    NoService,
    /// It is of a type that has no endpoints, or is itself an import.
    ServiceType,
}

/// What is wrong with an import.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// The name that the import would have can't be a Service's.
    BadName(String),
    /// Somebody's own Service has that name.
    Taken(ObjectName),
    /// Somebody's own ServiceImport has that name.
    ImportTaken(ObjectName),
    /// Something else is imported under that name, from here.
    Ambiguous(ClusterName, ObjectName),
    /// A member is reached by its cluster's gateway only, and that doesn't lead there.
    NoGateway(LinkName, ObjectName),
    /// A family that no Service of this cluster can have.
    FamilyNotSupported(Family),
    /// Ports that are one in number and two in name, or the other way round, by member.
    Port(ClusterName, String),
    /// More ports than are imported, by member.
    TooManyPorts(ClusterName),
    /// Endpoints of other clusters don't join a headless Service.
    HeadlessNotJoined,
    /// A link brings in more exports than its quota lets it.
    OverQuota(LinkName),
    /// What is the cluster's own is never shared.
    Barred(ObjectName),
    /// So many exported ports find no free one at the gateway.
    GatewayFull(usize),
    /// The namespace for the gateway is not there.
    NoGatewayNamespace(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName(name) => {
                write!(f, "{name} can't be a Service's name: at most 63 of a to z, 0 to 9 and -, a letter first")
            }
            Self::Taken(name) => write!(f, "Service {name} is somebody's own, and stays as it is"),
            Self::ImportTaken(name) => write!(f, "ServiceImport {name} is somebody else's, and stays as it is"),
            Self::Ambiguous(cluster, service) => {
                write!(f, "{service} of {cluster} is left out: something else is imported under that name")
            }
            Self::NoGateway(link, service) => write!(f, "no gateway of link {link} leads to {service}"),
            Self::FamilyNotSupported(family) => write!(f, "Services of this cluster have no {} address", family.name()),
            Self::Port(cluster, port) => {
                write!(f, "port {port} of {cluster} has another name or number than that of an older export")
            }
            Self::TooManyPorts(cluster) => write!(f, "{cluster} has more ports than are imported"),
            Self::HeadlessNotJoined => f.write_str("endpoints of other clusters don't join a headless Service"),
            Self::OverQuota(link) => write!(f, "link {link} brings in more exports than its quota"),
            Self::Barred(name) => write!(f, "{name} is never exported: it is each cluster's own"),
            Self::GatewayFull(ports) => write!(f, "the gateway has no free port for {ports} exported ones"),
            Self::NoGatewayNamespace(name) => write!(f, "namespace {name}, where the gateway should be, is not there"),
        }
    }
}

/// A cluster that exports the service.
#[derive(Clone, Copy, Debug)]
struct Member<'a> {
    origin: &'a Origin,
    object: &'a ObjectName,
    service: &'a Service,
    export: &'a Export,
    /// The ServiceExport, if that is how it is exported.
    spec: Option<&'a ServiceExport>,
    cluster: &'a Cluster,
    name: &'a ClusterName,
    /// None for the own cluster.
    peer: Option<(&'a LinkName, &'a Link, Standing)>,
}

impl Member<'_> {
    fn is_own(&self) -> bool {
        self.peer.is_none()
    }
}

/// What `key` should be.
///
/// A peer that wasn't listed yet takes nothing away: of what is there, what may be its stays.
pub fn desired(world: &World, key: &ImportKey) -> Imported {
    let mut imported = Imported::default();
    if key.kind == ImportKind::ServiceImport {
        imported.export = export_status(world, key);
    }
    if !world.own.namespaces.contains(&key.object.namespace) || key.kind == ImportKind::Gateway {
        return imported;
    }
    let mut members = members(world, key, &mut imported);
    let served_by = match key.kind {
        ImportKind::ServiceImport => conventions::derived_name(&key.object),
        ImportKind::Named | ImportKind::Joined | ImportKind::Gateway => key.object.clone(),
    };
    // One that others' endpoints join has its name already.
    let is_new = key.kind != ImportKind::Joined;
    let is_good = is_label(&key.object.name) && (!is_new || values::is_service_name(&served_by.name));
    if !members.is_empty() && !is_good {
        imported.problems.insert(Problem::BadName(served_by.name.clone()));
        members.clear();
    }
    let there = world.own.cluster.services.get(&served_by);
    let owner = Owner::of(there);
    match key.kind {
        ImportKind::Gateway => {}
        ImportKind::Joined => join(world, key, there, &mut members, &mut imported),
        ImportKind::Named => name(world, key, there, owner, &mut members, &mut imported),
        ImportKind::ServiceImport => import(world, key, &served_by, there, owner, &mut members, &mut imported),
    }
    if let Some(export) = &mut imported.export {
        let is_blocking = |problem: &&Problem| matches!(problem, Problem::ImportTaken(_) | Problem::Taken(_));
        let blocking = imported.problems.iter().find(is_blocking).cloned();
        export.failure = std::mem::take(&mut export.failure).or(blocking);
    }
    let import = world.own.imports.get(&key.object).filter(|_| key.kind == ImportKind::ServiceImport);
    let stays = imported.import == Fate::Left && import.is_some_and(|import| import.is_ours);
    if imported.owner.is_some() || stays || matches!(imported.import, Fate::Put(_)) {
        // What only a peer knows that wasn't heard yet stays as it is.
        endpoints::keep_unheard(world, key, &mut imported);
    }
    imported
}

/// Whose a Service is that has an import's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Mirror,
    Linkerd,
    Somebody,
}

impl Owner {
    fn of(service: Option<&Service>) -> Self {
        let Some(service) = service else { return Self::Nobody };
        let label = |name: &str| service.labels.get(name).map(String::as_str);
        if label(names::MANAGED) == Some(names::MIRROR) {
            Self::Mirror
        } else if label(names::LINKERD_MIRRORED) == Some("true") && !service.selects {
            Self::Linkerd
        } else {
            Self::Somebody
        }
    }
}

/// Those who export `key`, by precedence.
fn members<'a>(world: &'a World, key: &'a ImportKey, imported: &mut Imported) -> Vec<Member<'a>> {
    let mut members = Vec::new();
    for (exporter, export) in world.exporters(key) {
        let (origin, object) = exporter;
        let (peer, name) = match origin {
            Origin::Own => (None, &world.own.name),
            Origin::Link(link) => {
                let Some(peer) = world.peers.get(link) else { continue };
                (Some((link, &peer.link, peer.standing)), &peer.link.cluster)
            }
        };
        if let Origin::Link(link) = origin
            && !world.is_within_quota(exporter)
        {
            imported.problems.insert(Problem::OverQuota(link.clone()));
            continue;
        }
        let Some(cluster) = world.cluster(origin) else { continue };
        let Some(service) = cluster.services.get(object) else { continue };
        let spec = cluster.exports.get(object).filter(|_| key.kind == ImportKind::ServiceImport);
        members.push(Member { origin, object, service, export, spec, cluster, name, peer });
    }
    // The standard's precedence is the ServiceExports' age; Linkerd's is the own cluster, then the links' age.
    members.sort_by_key(|member| {
        let age = match (member.spec, member.peer) {
            (Some(spec), _) => spec.created,
            (None, Some((_, link, _))) => link.created,
            (None, None) => i64::MIN,
        };
        (age, member.name, member.origin, member.export.convention)
    });
    members
}

fn join(
    world: &World,
    key: &ImportKey,
    there: Option<&Service>,
    members: &mut Vec<Member<'_>>,
    imported: &mut Imported,
) {
    let Some(local) = there else { return };
    let carries = |convention: Convention| conventions::mark_of(&key.object, local, convention);
    let mut seen = BTreeSet::new();
    members.retain(|member| carries(member.export.convention) && seen.insert(member.origin));
    // An import of ours that carries a copied mark is no Service of this cluster's own.
    let is_marked = carries(Convention::Cilium) || carries(Convention::Istio);
    if !is_marked || Owner::of(there) != Owner::Somebody || local.is_derived {
        return;
    }
    // It has what peers gave it that weren't listed yet.
    imported.owner = (local.reach == Reach::ClusterIp).then(|| key.object.name.clone());
    if members.is_empty() {
        return;
    }
    if local.reach != Reach::ClusterIp {
        imported.problems.insert(Problem::HeadlessNotJoined);
        return;
    }
    endpoints::gather(world, members, &local.ports, local.traffic_distribution.is_some(), imported);
}

fn name(
    world: &World,
    key: &ImportKey,
    there: Option<&Service>,
    owner: Owner,
    members: &mut Vec<Member<'_>>,
    imported: &mut Imported,
) {
    if let Some(first) = members.first().map(|member| (member.export.convention, member.origin, member.object)) {
        let is_federated = first.0 == Convention::LinkerdFederated;
        members.retain(|member| {
            let is_same = if is_federated {
                member.export.convention == Convention::LinkerdFederated
            } else {
                (member.origin, member.object) == (first.1, first.2)
            };
            if !is_same {
                let problem = Problem::Ambiguous(member.name.clone(), member.object.clone());
                imported.problems.insert(problem);
            }
            is_same
        });
    }
    if members.is_empty() {
        let may_be_unheard = there.is_some_and(|service| may_be_unheard(world, key, service));
        if owner == Owner::Mirror && !may_be_unheard && is_for(key, there) {
            imported.service = Fate::Deleted;
        } else if owner == Owner::Mirror || owner == Owner::Linkerd {
            imported.owner = Some(key.object.name.clone());
        }
        return;
    }
    if owner == Owner::Somebody {
        imported.problems.insert(Problem::Taken(key.object.clone()));
        return;
    }
    let linkerds = linkerds(world, members);
    if linkerds && owner == Owner::Nobody {
        // Linkerd's mirror is about to make it, or its Link says why not.
        return;
    }
    if owner == Owner::Linkerd && members[0].export.convention == Convention::LinkerdGateway {
        // Its endpoints are Linkerd's gateway, and Linkerd's to write.
        return;
    }
    imported.owner = Some(key.object.name.clone());
    // One that the mirror made before Linkerd was there is not taken from Linkerd's mirror, which takes it over.
    let is_left = owner == Owner::Linkerd || linkerds;
    let (ports, prefers_zone) = match there.filter(|_| is_left) {
        Some(there) => (there.ports.clone(), there.traffic_distribution.is_some()),
        None => {
            let wish = metadata::named(world, key, members, there, imported);
            let (ports, prefers_zone) = (wish.ports.clone(), wish.traffic_distribution.is_some());
            imported.service = Fate::Put(wish);
            (ports, prefers_zone)
        }
    };
    endpoints::gather(world, members, &ports, prefers_zone, imported);
}

/// Whether Linkerd's service-mirror makes the Service of these: one over a Link of Linkerd's, or the own cluster's where
/// Linkerd runs.
fn linkerds(world: &World, members: &[Member<'_>]) -> bool {
    let runs_here = || world.peers.values().any(|peer| peer.link.is_linkerds);
    members.iter().any(|member| member.peer.map_or_else(runs_here, |(_, link, _)| link.is_linkerds))
}

fn import(
    world: &World,
    key: &ImportKey,
    derived: &ObjectName,
    there: Option<&Service>,
    owner: Owner,
    members: &mut Vec<Member<'_>>,
    imported: &mut Imported,
) {
    let import = world.own.imports.get(&key.object);
    if members.is_empty() {
        if !import_may_be_unheard(world, key, import) {
            if import.is_some_and(|import| import.is_ours) {
                imported.import = Fate::Deleted;
            }
            if owner == Owner::Mirror {
                imported.service = Fate::Deleted;
            }
        } else if import.is_some_and(|import| import.is_ours) {
            imported.owner = (owner == Owner::Mirror).then(|| derived.name.clone());
        }
        return;
    }
    if import.is_some_and(|import| !import.is_ours) {
        imported.problems.insert(Problem::ImportTaken(key.object.clone()));
        return;
    }
    let is_taken = matches!(owner, Owner::Somebody | Owner::Linkerd);
    if is_taken {
        imported.problems.insert(Problem::Taken(derived.clone()));
    }
    let wish = metadata::import(world, key, members, there.filter(|_| !is_taken), is_taken);
    if wish.ready == Err(NotReady::Family) {
        imported.problems.extend(metadata::unsupported(world, members));
    }
    let ports = wish.spec.ports.clone();
    let prefers_zone = wish.spec.traffic_distribution.is_some();
    if wish.spec.is_headless {
        if owner == Owner::Mirror {
            imported.service = Fate::Deleted;
        }
    } else if !is_taken {
        imported.owner = Some(derived.name.clone());
        // It is owned by the ServiceImport, which therefore has to be there first.
        if let Some(import) = import
            && (there.is_some() || wish.ready != Err(NotReady::Family))
        {
            let service = metadata::derived(key, derived, &wish, members, there, world, import, imported);
            imported.service = Fate::Put(service);
        }
    }
    imported.import = Fate::Put(wish);
    if !is_taken {
        endpoints::gather(world, members, &ports, prefers_zone, imported);
    }
}

/// Whether a Service of ours is the one of this import: its label says so.
fn is_for(key: &ImportKey, service: Option<&Service>) -> bool {
    service.and_then(|service| key_of(&key.object, service)).is_none_or(|of| of == *key)
}

/// Whether a Service of ours may be exported by a peer that wasn't listed yet: it says, as its slices do, whose it was.
fn may_be_unheard(world: &World, key: &ImportKey, service: &Service) -> bool {
    let annotation = |name: &str| service.annotations.get(name).map(String::as_str);
    let remote = annotation(names::LINKERD_REMOTE_DISCOVERY);
    let suffixes: Option<BTreeSet<&str>> = match service.labels.get(names::LINKERD_CLUSTER) {
        Some(suffix) => Some(BTreeSet::from([suffix.as_str()])),
        None if remote.is_some() || annotation(names::LINKERD_LOCAL_DISCOVERY).is_some() => {
            let members = remote.into_iter().flat_map(|members| members.split(','));
            Some(members.filter_map(|member| Some(member.rsplit_once('@')?.1)).collect())
        }
        None => None,
    };
    let is_named =
        |(_, peer): (&LinkName, &Peer)| suffixes.as_ref().is_none_or(|all| all.contains(peer.link.suffix.as_str()));
    world.unheard(key.kind).any(is_named) || endpoints::has_unheard(world, key)
}

/// Whether a ServiceImport of ours may be exported by a peer that wasn't listed yet: its status says, as its slices do, whose
/// it was.
fn import_may_be_unheard(world: &World, key: &ImportKey, import: Option<&Import>) -> bool {
    let Some(told) = import.and_then(|import| import.status.as_ref()) else {
        return world.unheard(key.kind).next().is_some();
    };
    let mut clusters = told.clusters.iter().map(|cluster| ClusterName(cluster.clone()));
    clusters.any(|cluster| world.unheard_as(&cluster, key.kind).next().is_some()) || endpoints::has_unheard(world, key)
}

fn export_status(world: &World, key: &ImportKey) -> Option<ExportStatus> {
    let object = &key.object;
    let export = world.own.cluster.exports.get(object)?;
    let valid = match world.own.cluster.services.get(object) {
        None => Err(Invalid::NoService),
        Some(service) if service.reach == Reach::ExternalName || service.is_derived => Err(Invalid::ServiceType),
        Some(_) => Ok(()),
    };
    let failure = (valid.is_ok() && barred(object)).then(|| Problem::Barred(object.clone()));
    let mut conflicts = BTreeSet::new();
    if valid.is_ok() {
        conflicts = reasons_of(&members(world, key, &mut Imported::default()));
        // With what a cluster exports that wasn't heard yet, there may be a conflict as before.
        if !metadata::unheard_clusters(world, object).is_empty() {
            let told = export.status.as_ref().and_then(|told| told.conditions.get("Conflict"));
            let reasons = told.into_iter().flat_map(|[_, reasons, _]| reasons.split(','));
            conflicts.extend(reasons.filter_map(Reason::named));
        }
    }
    Some(ExportStatus { valid, conflicts, failure })
}

fn reasons_of(members: &[Member<'_>]) -> BTreeSet<Reason> {
    let pairs: Vec<_> = members.iter().filter_map(|member| Some((member.service, member.spec?))).collect();
    reasons(&pairs)
}

/// What slices say of a member's cluster. The own one is never lost.
fn peer_state(member: &Member<'_>) -> PeerState {
    member.peer.map_or(PeerState::Fresh, |(_, _, standing)| standing.peer_state())
}
