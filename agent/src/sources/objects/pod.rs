//! Pods of the agent's node: those whose connections are left alone.

use super::{Field, ObjectError, Options, Seen, annotation, names, object_name};
use crate::model::Pod;
use k8s_openapi::api::core::v1 as core;

/// Names of the containers that a mesh puts into a pod.
const PROXIES: [&str; 2] = ["linkerd-proxy", "istio-proxy"];

/// The UID by which the kubelet names the pod's cgroup; none if it is missing.
///
/// What the API shows of a pod that the kubelet has from a file is a copy with a UID of its own.
pub fn pod_uid(object: &core::Pod) -> Option<&str> {
    let meta = &object.metadata;
    annotation(meta, names::MIRROR_POD).or(meta.uid.as_deref()).filter(|uid| !uid.is_empty())
}

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
    let uid = pod_uid(object).ok_or_else(|| Field::new("metadata").key("uid").wrong("missing"))?.to_owned();
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_from_a_file_is_known_by_the_uid_that_its_cgroup_has() {
        let pod = |annotations: serde_json::Value| -> core::Pod {
            let meta =
                json!({"name": "etcd-a", "namespace": "kube-system", "uid": "1-2-3", "annotations": annotations});
            serde_json::from_value(json!({"metadata": meta, "spec": {"containers": []}})).unwrap()
        };
        assert_eq!(pod_uid(&pod(json!({}))), Some("1-2-3"));
        assert_eq!(pod_uid(&pod(json!({"kubernetes.io/config.mirror": "5f0c"}))), Some("5f0c"));
    }
}
