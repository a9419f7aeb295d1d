//! What the objects say that the mirror makes: the first member decides, and the ports are all members'.

use super::{ImportRef, ImportWish, Imported, Member, NotReady, Problem, ServiceWish, may_be_unheard, ports};
use crate::{
    mirror::{
        conventions::Convention,
        names,
        source::{Family, Import, ImportSpec, Origin, Port, Reach, Service},
        validate::Refusal,
        values::Left,
        world::{ImportKey, ImportKind, World},
    },
    model::{ClusterName, ObjectName},
};
use std::collections::{BTreeMap, BTreeSet};

/// Annotations that hold for the Service that they were written to, and for none made after it.
const NOT_COPIED: [&str; 4] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "service.kubernetes.io/topology-mode",
    "service.kubernetes.io/topology-aware-hints",
    "meta.helm.sh/release-name",
];
/// Prefixes of labels and annotations by which a Service is exported, imported or joined: a copy would be another export.
const NOT_COPIED_PREFIXES: [&str; 5] = [
    "mirror.linkerd.io/",
    "multicluster.linkerd.io/",
    "service.cilium.io/",
    "multicluster.kubernetes.io/",
    names::OURS,
];
/// How the exporting side wants connections spread: the importing side's agents read it.
const POLICIES: [&str; 5] = [names::TRAFFIC, names::CLUSTERS, names::WEIGHTS, names::LOCAL_MINIMUM, names::ABORT];

/// A Service under a name of its own, `<svc>-<cluster>` or `<svc>-federated`.
pub(super) fn named(
    world: &World,
    key: &ImportKey,
    members: &[Member<'_>],
    there: Option<&Service>,
    imported: &mut Imported,
) -> ServiceWish {
    let first = &members[0];
    let link = first.peer.map(|(_, link, _)| link);
    let labels = copied(&first.service.labels, link.map_or(&[], |link| &link.excluded_labels));
    let annotations = copied(&first.service.annotations, link.map_or(&[], |link| &link.excluded_annotations));
    let mut left = Left::default();
    let mut labels = left.within_size(labels);
    let mut annotations = left.within_size(annotations);
    if let Some((link, ..)) = first.peer {
        imported.refuse(link, Refusal::InvalidValue, left.0);
    }
    labels.insert(names::LINKERD_MIRRORED.to_owned(), "true".to_owned());
    managed(&mut labels, key);
    let is_federated = first.export.convention == Convention::LinkerdFederated;
    if is_federated {
        let mut remote = unheard_members(world, there);
        for member in members {
            match member.peer {
                None => {
                    annotations.insert(names::LINKERD_LOCAL_DISCOVERY.to_owned(), member.object.name.clone());
                }
                Some((_, link, _)) => drop(remote.insert(format!("{}@{}", member.object.name, link.suffix))),
            }
        }
        if !remote.is_empty() {
            let remote: Vec<String> = remote.into_iter().collect();
            annotations.insert(names::LINKERD_REMOTE_DISCOVERY.to_owned(), remote.join(","));
        }
    } else if let Some(link) = link {
        labels.insert(names::LINKERD_CLUSTER.to_owned(), link.suffix.clone());
        if first.export.convention == Convention::LinkerdFlat {
            labels.insert(names::LINKERD_REMOTE_DISCOVERY.to_owned(), link.suffix.clone());
            labels.insert(names::LINKERD_REMOTE_SERVICE.to_owned(), first.object.name.clone());
        }
    }
    let mut ports = ports::union(members, &mut imported.problems);
    keep_ports(world, key, there, &mut ports);
    ServiceWish {
        name: key.object.clone(),
        labels,
        annotations,
        ports,
        is_headless: first.service.reach == Reach::Headless,
        family: family(world, members, there, imported),
        affinity_seconds: first.service.affinity_seconds,
        // Only the own node's endpoints, of which there are none: that would be no service at all.
        internal_traffic_policy: None,
        traffic_distribution: distribution(world, &first.service.traffic_distribution),
        owner: None,
    }
}

/// Members that the Service names and whose links weren't heard yet.
fn unheard_members(world: &World, there: Option<&Service>) -> BTreeSet<String> {
    let named = there.and_then(|service| service.annotations.get(names::LINKERD_REMOTE_DISCOVERY));
    let is_unheard = |member: &&str| {
        let suffix = member.rsplit_once('@').map(|(_, suffix)| suffix);
        world.unheard(ImportKind::Named).any(|(_, peer)| suffix == Some(peer.link.suffix.as_str()))
    };
    named.into_iter().flat_map(|named| named.split(',')).filter(is_unheard).map(str::to_owned).collect()
}

/// The clusters that a ServiceImport of ours has, and that weren't heard since the mirror began.
pub(super) fn unheard_clusters(world: &World, import: &ObjectName) -> BTreeSet<ClusterName> {
    let there = world.own.imports.get(import).filter(|there| there.is_ours);
    let told = there.and_then(|there| there.status.as_ref());
    let clusters = told.into_iter().flat_map(|told| &told.clusters).map(|cluster| ClusterName(cluster.clone()));
    clusters.filter(|cluster| world.unheard_as(cluster, ImportKind::ServiceImport).next().is_some()).collect()
}

/// A ServiceImport.
///
/// As long as one of its clusters wasn't heard, it stays what it is, and only gets what others add: that cluster's may be the
/// oldest export.
pub(super) fn import(
    world: &World,
    key: &ImportKey,
    members: &[Member<'_>],
    there: Option<&Service>,
    is_taken: bool,
) -> ImportWish {
    let first = &members[0];
    // Problems of ports are conditions of the exports here.
    let ports = ports::union(members, &mut BTreeSet::new());
    let mut labels = first.spec.map(|spec| without_ours(&spec.labels)).unwrap_or_default();
    let mut annotations = first.spec.map(|spec| without_ours(&spec.annotations)).unwrap_or_default();
    let mut spec = ImportSpec {
        is_headless: first.service.reach == Reach::Headless,
        ports,
        ips: Vec::new(),
        families: first.service.families.clone(),
        affinity_seconds: first.service.affinity_seconds,
        internal_traffic_policy: first.service.internal_traffic_policy.clone(),
        traffic_distribution: first.service.traffic_distribution.clone(),
    };
    let unheard = unheard_clusters(world, &key.object);
    if let Some(known) = world.own.imports.get(&key.object).filter(|_| !unheard.is_empty()) {
        labels = without_ours(&known.labels);
        annotations = without_ours(&known.annotations);
        let new = std::mem::replace(&mut spec, known.spec.clone()).ports;
        spec.ports = ports::added(&known.spec.ports, new);
    }
    labels.insert(names::MANAGED.to_owned(), names::MIRROR.to_owned());
    let mut ready = Ok(());
    spec.ips.clear();
    if !spec.is_headless {
        let derived = crate::mirror::conventions::derived_name(&key.object);
        annotations.insert(names::DERIVED.to_owned(), derived.name.clone());
        // Until the Service is there, its families are those that it will ask for.
        let service = there.filter(|service| !service.addresses.is_empty());
        if let Some(service) = service {
            spec.ips = service.addresses.iter().map(ToString::to_string).collect();
            spec.families = service.addresses.iter().map(|address| Family::of(*address)).collect();
        }
        let own = world.own.families();
        ready = if is_taken {
            Err(NotReady::Taken(derived))
        } else if !own.is_empty() && wanted_families(members).is_disjoint(&own) {
            Err(NotReady::Family)
        } else if service.is_none() {
            Err(NotReady::Pending)
        } else {
            Ok(())
        };
    }
    let clusters = members.iter().map(|member| member.name.clone()).chain(unheard).collect();
    ImportWish { name: key.object.clone(), labels, annotations, spec, clusters, ready }
}

/// The Service that has a ServiceImport's address, so that kube-proxy serves it.
#[expect(clippy::too_many_arguments, reason = "what is known of all that it follows from")]
pub(super) fn derived(
    key: &ImportKey,
    name: &ObjectName,
    import: &ImportWish,
    members: &[Member<'_>],
    there: Option<&Service>,
    world: &World,
    owner: &Import,
    imported: &mut Imported,
) -> ServiceWish {
    let mut labels = BTreeMap::new();
    managed(&mut labels, key);
    labels.insert(names::IMPORT_NAME.to_owned(), key.object.name.clone());
    let first = &members[0];
    let mut annotations: BTreeMap<String, String> = copied(&first.service.annotations, &[])
        .into_iter()
        .filter(|(name, _)| POLICIES.contains(&name.as_str()))
        .collect();
    if let Some(own) = members.iter().find(|member| *member.origin == Origin::Own) {
        annotations.insert(names::LOCAL_MEMBER.to_owned(), own.object.name.clone());
    }
    ServiceWish {
        name: name.clone(),
        labels,
        annotations,
        ports: import.spec.ports.clone(),
        is_headless: false,
        family: family(world, members, there, imported),
        affinity_seconds: import.spec.affinity_seconds,
        internal_traffic_policy: import.spec.internal_traffic_policy.clone(),
        traffic_distribution: distribution(world, &import.spec.traffic_distribution),
        owner: Some(ImportRef {
            version: world.own.versions.imports,
            name: key.object.name.clone(),
            uid: owner.uid.clone(),
        }),
    }
}

/// How connections should be spread, as this cluster's API server can say it: an older one knows nearness by one name only.
fn distribution(world: &World, wish: &Option<String>) -> Option<String> {
    let is_newer = |wish: &&String| ["PreferSameZone", "PreferSameNode"].contains(&wish.as_str());
    match wish.as_ref().filter(is_newer) {
        Some(_) if !world.own.knows_same_node => Some("PreferClose".to_owned()),
        _ => wish.clone(),
    }
}

fn managed(labels: &mut BTreeMap<String, String>, key: &ImportKey) {
    labels.insert(names::MANAGED.to_owned(), names::MIRROR.to_owned());
    labels.insert(names::IMPORT_KIND.to_owned(), key.kind.name().to_owned());
}

/// The one family that an import can have; none if it can have as many as this cluster has.
///
/// The first family of a Service that is there can't be changed any more.
fn family(world: &World, members: &[Member<'_>], there: Option<&Service>, imported: &mut Imported) -> Option<Family> {
    let wanted = wanted_families(members);
    let own = world.own.families();
    imported.problems.extend(unsupported(world, members));
    let mut possible = wanted.intersection(&own);
    match (possible.next(), possible.next()) {
        (Some(family), None) => there.is_none_or(|there| there.families.first() == Some(family)).then_some(*family),
        _ => None,
    }
}

/// Families of endpoints that no Service of this cluster can have.
pub(super) fn unsupported(world: &World, members: &[Member<'_>]) -> Vec<Problem> {
    let own = world.own.families();
    if own.is_empty() {
        return Vec::new();
    }
    wanted_families(members).difference(&own).map(|family| Problem::FamilyNotSupported(*family)).collect()
}

fn wanted_families(members: &[Member<'_>]) -> BTreeSet<Family> {
    members.iter().flat_map(|member| &member.service.families).copied().collect()
}

/// A peer that wasn't heard yet may be the one that has these ports.
fn keep_ports(world: &World, key: &ImportKey, there: Option<&Service>, ports: &mut Vec<Port>) {
    if let Some(there) = there.filter(|there| may_be_unheard(world, key, there)) {
        *ports = ports::added(ports, there.ports.clone());
    }
}

fn copied(given: &BTreeMap<String, String>, excluded: &[String]) -> BTreeMap<String, String> {
    let is_excluded = |name: &str| {
        excluded.iter().any(|excluded| match excluded.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == excluded,
        })
    };
    let is_copied = |name: &str| {
        let is_bound = NOT_COPIED.contains(&name)
            || NOT_COPIED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || name == names::ISTIO_GLOBAL;
        (!is_bound || POLICIES.contains(&name)) && !is_excluded(name)
    };
    given.iter().filter(|(name, _)| is_copied(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What an owner may put on an import: anything but what would make it another one's.
fn without_ours(given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_ours = |name: &str| name == names::MANAGED || name == names::APPLIED || name == names::DERIVED;
    given.iter().filter(|(name, _)| !is_ours(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}
