//! Pods of the agent's node: those whose connections are left alone.

use super::{Field, ObjectError, Options, Seen, annotation, names, object_name};
use crate::model::Pod;
use k8s_openapi::api::core::v1 as core;

/// Names of the containers that a mesh puts into a pod.
const PROXIES: [&str; 2] = ["linkerd-proxy", "istio-proxy"];

/// A pod, with its UID.
///
/// # Errors
///
/// It has no name or no UID, by which its cgroup is found.
pub fn pod(object: &core::Pod, options: &Options) -> Result<Seen<(String, Pod)>, ObjectError> {
    let meta = &object.metadata;
    let name = object_name(meta)?;
    let spec = object.spec.as_ref().ok_or_else(|| Field::new("spec").wrong("missing"))?;
    if spec.node_name.as_ref() != Some(&options.node) {
        return Ok(Seen::Left("it is on another node"));
    }
    let uid = meta.uid.clone().filter(|uid| !uid.is_empty());
    let uid = uid.ok_or_else(|| Field::new("metadata").key("uid").wrong("missing"))?;
    // A proxy that is started before all else is an init container that never ends.
    let has_proxy = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .any(|container| PROXIES.contains(&container.name.as_str()));
    let meshed = has_proxy || annotation(meta, names::ISTIO_REDIRECTION) == Some("enabled");
    let opted_out = annotation(meta, names::OPT_OUT) == Some("true");
    Ok(Seen::Taken((uid, Pod { name, meshed, opted_out })))
}
