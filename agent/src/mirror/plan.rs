//! From what an import should be and what is there to what is to be written, in order.
//!
//! The ServiceImport comes first, since it owns the Service, and what is deleted goes last, so that nothing that leads anywhere is
//! missing in between. Each step may fail or be lost: the next look plans from what is there then.

use super::{
    gateway,
    import::{Fate, ImportWish, Imported, ServiceWish, desired},
    names, read, render,
    slices::pack,
    source::{Import, Reach, Service},
    world::{ImportKey, ImportKind, World},
};
use crate::model::{ClusterName, ObjectName};
use serde_json::Value;
use std::collections::BTreeMap;

/// A kind of object that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    Slice,
    /// multicluster.x-k8s.io ServiceImport.
    Import,
    /// multicluster.x-k8s.io ServiceExport: its status only.
    Export,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Apply this object.
    Put(Kind, ObjectName, Value),
    /// Set the ports of a Service, all of them: what others have put among them isn't ours to leave out when applying.
    SetPorts(ObjectName, Value),
    /// Apply this status.
    PutStatus(Kind, ObjectName, Value),
    /// Delete the object of this name if it still is the one of this UID; whichever it is without one.
    Delete(Kind, ObjectName, Option<String>),
}

impl Step {
    /// What it is about.
    pub fn name(&self) -> &ObjectName {
        match self {
            Self::Put(_, name, _)
            | Self::SetPorts(name, _)
            | Self::PutStatus(_, name, _)
            | Self::Delete(_, name, _) => name,
        }
    }

    /// Whether it asks for the same as `other`, whenever either was planned: conditions that turn have the time of that.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::PutStatus(kind, name, status), Self::PutStatus(its_kind, its_name, its)) => {
                (kind, name) == (its_kind, its_name) && timeless(status) == timeless(its)
            }
            _ => self == other,
        }
    }
}

/// A status without the times of its conditions.
fn timeless(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastTransitionTime");
        }
    }
    status
}

/// The one cluster that a step is about; none where it is about what all members have a part in.
pub fn source(world: &World, key: &ImportKey, step: &Step) -> Option<ClusterName> {
    if key.kind == ImportKind::Gateway {
        return None;
    }
    let cluster = match step {
        Step::Put(Kind::Slice, _, body) => body["metadata"]["labels"][names::SOURCE_CLUSTER].as_str()?,
        Step::Delete(Kind::Slice, name, _) => &world.own.placed.get(key)?.get(&name.name)?.content.cluster.0,
        _ => return None,
    };
    Some(ClusterName(cluster.to_owned()))
}

/// What `key` should be, and the writes that bring it there; none if it is so already. `now` as RFC 3339.
pub fn steps(world: &World, key: &ImportKey, now: &str) -> (Imported, Vec<Step>) {
    if key.kind == ImportKind::Gateway {
        let (problems, steps) = gateway::steps(world, key, now);
        return (Imported { problems, ..Imported::default() }, steps);
    }
    let imported = desired(world, key);
    let mut steps = Vec::new();
    let (service, import) = (&imported.service, &imported.import);
    let known_import = world.own.imports.get(&key.object);
    if let Fate::Put(wish) = import {
        let body = render::import(wish, world.own.versions.imports);
        if !known_import.is_some_and(|there| is_import(there, wish, &body)) {
            steps.push(Step::Put(Kind::Import, wish.name.clone(), body));
        }
        let told = known_import.and_then(|there| there.status.as_ref());
        let status = render::import_status(wish, told, now);
        let is_told = told.is_some_and(|told| told.says(&read::told(&status)));
        // The status belongs to an object that is there.
        if known_import.is_some() && !is_told {
            steps.push(Step::PutStatus(Kind::Import, wish.name.clone(), status));
        }
    }
    if let Fate::Put(wish) = service {
        let body = render::service(wish);
        let there = world.own.cluster.services.get(&wish.name);
        if !there.is_some_and(|there| is_applied(there, wish, &body)) {
            // Whether it has an address can't be changed: it has to be made anew. Its slices stay meanwhile.
            if let Some(there) = there.filter(|there| (there.reach == Reach::Headless) != wish.is_headless) {
                steps.push(Step::Delete(Kind::Service, wish.name.clone(), Some(there.uid.clone())));
            } else if there.is_some_and(|there| is_signed(there, &body) && !has_ports(there, wish)) {
                steps.push(Step::SetPorts(wish.name.clone(), body["spec"]["ports"].clone()));
            }
            steps.push(Step::Put(Kind::Service, wish.name.clone(), body));
        }
    }
    let empty = Default::default();
    let there = world.own.placed.get(key).unwrap_or(&empty);
    let packed = pack(key, imported.owner.as_deref(), &imported.endpoints, there);
    let slice_name = |name: &String| ObjectName { namespace: key.object.namespace.clone(), name: name.clone() };
    for (name, placed) in &packed.put {
        steps.push(Step::Put(Kind::Slice, slice_name(name), render::slice(key, name, placed)));
    }
    for name in &packed.delete {
        steps.push(Step::Delete(Kind::Slice, slice_name(name), None));
    }
    if *service == Fate::Deleted {
        let name = match key.kind {
            ImportKind::ServiceImport => super::conventions::derived_name(&key.object),
            ImportKind::Named | ImportKind::Joined | ImportKind::Gateway => key.object.clone(),
        };
        let uid = world.own.cluster.services.get(&name).map(|there| there.uid.clone());
        steps.push(Step::Delete(Kind::Service, name, uid));
    }
    if *import == Fate::Deleted {
        let uid = known_import.map(|there| there.uid.clone());
        steps.push(Step::Delete(Kind::Import, key.object.clone(), uid));
    }
    if let (Some(status), Some(export)) = (&imported.export, world.own.cluster.exports.get(&key.object)) {
        let status = render::export_status(status, export.status.as_ref(), now);
        if !export.status.as_ref().is_some_and(|told| told.says(&read::told(&status))) {
            steps.push(Step::PutStatus(Kind::Export, key.object.clone(), status));
        }
    }
    (imported, steps)
}

/// Whether a ServiceImport is as it was applied, and nobody changed what is ours of it.
fn is_import(there: &Import, wish: &ImportWish, body: &Value) -> bool {
    there.annotations.get(names::APPLIED).map(String::as_str) == render::signature(body)
        && has_all(&there.labels, &wish.labels)
        && has_all(&there.annotations, &wish.annotations)
        && there.spec == wish.spec
}

fn has_all(there: &BTreeMap<String, String>, wished: &BTreeMap<String, String>) -> bool {
    wished.iter().all(|(name, value)| there.get(name) == Some(value))
}

/// Whether a Service is as it was applied, and nobody changed what is ours of it.
fn is_applied(there: &Service, wish: &ServiceWish, body: &Value) -> bool {
    is_signed(there, body)
        && has_all(&there.labels, &wish.labels)
        && has_all(&there.annotations, &wish.annotations)
        && has_ports(there, wish)
        && there.affinity_seconds == wish.affinity_seconds
        && there.traffic_distribution == wish.traffic_distribution
}

/// Whether a Service was applied like this last.
pub(super) fn is_signed(there: &Service, body: &Value) -> bool {
    there.annotations.get(names::APPLIED).map(String::as_str) == render::signature(body)
}

/// Whether a Service has the ports that it should have and no others, in any order.
fn has_ports(there: &Service, wish: &ServiceWish) -> bool {
    let (mut ports, mut wished) = (there.ports.clone(), wish.ports.clone());
    ports.sort();
    wished.sort();
    ports == wished
}
