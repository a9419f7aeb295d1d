//! Objects of the API, read as they come: what isn't for us is dropped at once.

use super::{
    news::{Object, Reading},
    rounds::Names,
};
use crate::{
    model::{Change, ObjectName, ServiceKind, ServiceRef},
    sources::{
        key::Key,
        objects::{self, ObjectError, Options, Seen, ServiceImport},
    },
};
use k8s_openapi::{
    api::{
        core::v1::{Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::core::DynamicObject;

/// How objects of a kind are read.
pub(super) trait Read: Send + Sync + 'static {
    /// The kind.
    type Kind;

    /// Names an object; none if it lacks what it would be known by.
    fn key(&self, object: &Self::Kind) -> Option<Key>;

    /// Its metadata.
    fn meta<'k>(&self, object: &'k Self::Kind) -> &'k ObjectMeta;

    /// What the model gets of it.
    fn change(&self, object: &Self::Kind) -> Result<Seen<Change>, ObjectError>;

    /// The object with all that is to be known of it.
    fn object(&self, object: &Self::Kind) -> Option<Object> {
        let key = self.key(object)?;
        let version = self.meta(object).resource_version.as_deref().and_then(|version| version.parse().ok());
        let reading = match self.change(object) {
            Ok(Seen::Taken(change)) => Reading::Taken(Box::new(change)),
            Ok(Seen::Left(_)) => Reading::Left,
            Err(error) => Reading::Bad(error.to_string()),
        };
        Some(Object { key, version: version.unwrap_or(0), reading })
    }
}

/// Services.
pub(super) struct Services(pub(super) Options);

/// ServiceImports, of whatever version.
pub(super) struct Imports(pub(super) Options);

/// The node's pods.
pub(super) struct Pods(pub(super) Options);

/// EndpointSlices: those of these Services, or all.
pub(super) struct Slices(pub(super) Option<Names>);

impl Read for Services {
    type Kind = Service;

    fn key(&self, object: &Service) -> Option<Key> {
        service_key(ServiceKind::Service, &object.metadata)
    }

    fn meta<'k>(&self, object: &'k Service) -> &'k ObjectMeta {
        &object.metadata
    }

    fn change(&self, object: &Service) -> Result<Seen<Change>, ObjectError> {
        let (name, service) = objects::service(object, &self.0)?;
        Ok(Seen::Taken(Change::Service(name, Some(service))))
    }
}

impl Read for Imports {
    type Kind = DynamicObject;

    fn key(&self, object: &DynamicObject) -> Option<Key> {
        service_key(ServiceKind::ServiceImport, &object.metadata)
    }

    fn meta<'k>(&self, object: &'k DynamicObject) -> &'k ObjectMeta {
        &object.metadata
    }

    fn change(&self, object: &DynamicObject) -> Result<Seen<Change>, ObjectError> {
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let spec =
            serde_json::from_value(spec).map_err(|error| objects::Field::new("spec").wrong(error.to_string()))?;
        let import = ServiceImport { metadata: object.metadata.clone(), spec };
        let (name, service) = objects::service_import(&import, &self.0)?;
        Ok(Seen::Taken(Change::Service(name, Some(service))))
    }
}

impl Read for Pods {
    type Kind = Pod;

    fn key(&self, object: &Pod) -> Option<Key> {
        objects::pod_uid(object).map(|uid| Key::Pod(uid.to_owned()))
    }

    fn meta<'k>(&self, object: &'k Pod) -> &'k ObjectMeta {
        &object.metadata
    }

    fn change(&self, object: &Pod) -> Result<Seen<Change>, ObjectError> {
        Ok(match objects::pod(object, &self.0)? {
            Seen::Left(reason) => Seen::Left(reason),
            Seen::Taken((uid, pod)) => Seen::Taken(Change::Pod(uid, Some(pod))),
        })
    }
}

impl Read for Slices {
    type Kind = EndpointSlice;

    fn key(&self, object: &EndpointSlice) -> Option<Key> {
        object_name(&object.metadata).map(Key::Slice)
    }

    fn meta<'k>(&self, object: &'k EndpointSlice) -> &'k ObjectMeta {
        &object.metadata
    }

    fn change(&self, object: &EndpointSlice) -> Result<Seen<Change>, ObjectError> {
        let (name, slice) = match objects::slice(object)? {
            Seen::Left(reason) => return Ok(Seen::Left(reason)),
            Seen::Taken(taken) => taken,
        };
        let is_wanted = self.0.as_ref().is_none_or(|names| names.contains(&slice.owner.object));
        Ok(if is_wanted {
            Seen::Taken(Change::Slice(name, Some(slice)))
        } else {
            Seen::Left("its Service has no local endpoints that are wanted")
        })
    }
}

fn service_key(kind: ServiceKind, meta: &ObjectMeta) -> Option<Key> {
    object_name(meta).map(|object| Key::Service(ServiceRef { kind, object }))
}

fn object_name(meta: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}
