//! What is written, as the API spells it: bodies for server-side apply.

use super::{
    import::{ExportStatus, ImportWish, Invalid, NotReady, ServiceWish},
    names,
    slices::Placed,
    source::{Endpoint, McsVersion, Port, SlicePort, Told},
    world::{ImportKey, ImportKind},
};
use crate::model::{Path, PeerState};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A Service, with the digest of itself as an annotation, by which it is known again.
pub fn service(wish: &ServiceWish) -> Value {
    let mut spec = json!({
        "type": "ClusterIP",
        "ports": wish.ports.iter().map(service_port).collect::<Vec<_>>(),
        "sessionAffinity": if wish.affinity_seconds.is_some() { "ClientIP" } else { "None" },
    });
    if wish.is_headless {
        spec["clusterIP"] = json!("None");
    }
    match wish.family {
        Some(family) => {
            spec["ipFamilyPolicy"] = json!("SingleStack");
            spec["ipFamilies"] = json!([family.name()]);
        }
        None => spec["ipFamilyPolicy"] = json!("PreferDualStack"),
    }
    policies(&mut spec, wish.affinity_seconds, &wish.internal_traffic_policy, &wish.traffic_distribution);
    let mut metadata = metadata(&wish.name.namespace, &wish.name.name, &wish.labels, &wish.annotations);
    if let Some(owner) = &wish.owner {
        metadata["ownerReferences"] = json!([{
            "apiVersion": mcs(owner.version),
            "kind": "ServiceImport",
            "name": owner.name,
            "uid": owner.uid,
        }]);
    }
    signed(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}))
}

/// A ServiceImport, without its status.
pub fn import(wish: &ImportWish, version: McsVersion) -> Value {
    let spec = &wish.spec;
    let mut rendered = json!({
        "type": if spec.is_headless { "Headless" } else { "ClusterSetIP" },
        "ports": spec.ports.iter().map(service_port).collect::<Vec<_>>(),
        "ips": spec.ips,
        "ipFamilies": spec.families.iter().map(|family| family.name()).collect::<Vec<_>>(),
        "sessionAffinity": if spec.affinity_seconds.is_some() { "ClientIP" } else { "None" },
    });
    policies(&mut rendered, spec.affinity_seconds, &spec.internal_traffic_policy, &spec.traffic_distribution);
    let metadata = metadata(&wish.name.namespace, &wish.name.name, &wish.labels, &wish.annotations);
    let mut object = signed(json!({"kind": "ServiceImport", "metadata": metadata, "spec": rendered}));
    // Not signed: it is the same object in every version.
    object["apiVersion"] = json!(mcs(version));
    object
}

fn mcs(version: McsVersion) -> String {
    format!("multicluster.x-k8s.io/{}", version.name())
}

fn policies(spec: &mut Value, affinity: Option<i32>, internal: &Option<String>, distribution: &Option<String>) {
    if let Some(seconds) = affinity {
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
    }
    if let Some(policy) = internal {
        spec["internalTrafficPolicy"] = json!(policy);
    }
    if let Some(distribution) = distribution {
        spec["trafficDistribution"] = json!(distribution);
    }
}

/// The status of a ServiceImport; `now` as RFC 3339, `told` as it is.
pub fn import_status(wish: &ImportWish, told: Option<&Told>, now: &str) -> Value {
    let (reason, message) = match &wish.ready {
        Ok(()) => ("Ready", String::new()),
        Err(NotReady::Pending) => ("Pending", "its address is not there yet".to_owned()),
        Err(NotReady::Family) => (
            "IPFamilyNotSupported",
            "Services of this cluster have none of the families that its endpoints have".to_owned(),
        ),
        Err(NotReady::Taken(service)) => {
            ("Pending", format!("the Service {} that would have its address is somebody's own", service.name))
        }
    };
    let ready = Condition { kind: "Ready", is_true: wish.ready.is_ok(), reason, message: &message };
    let clusters: Vec<Value> = wish.clusters.iter().map(|cluster| json!({"cluster": cluster.0})).collect();
    json!({"clusters": clusters, "conditions": [ready.render(told, now)]})
}

/// The status of a ServiceExport; `now` as RFC 3339, `told` as it is.
pub fn export_status(status: &ExportStatus, told: Option<&Told>, now: &str) -> Value {
    let failure = status.failure.as_ref().map(ToString::to_string);
    let (valid, ready) = match status.valid {
        Ok(()) => (
            Condition { kind: "Valid", is_true: true, reason: "Valid", message: "" },
            match &failure {
                None => Condition { kind: "Ready", is_true: true, reason: "Ready", message: "" },
                Some(message) => Condition { kind: "Ready", is_true: false, reason: "Failed", message },
            },
        ),
        Err(invalid) => {
            let (reason, message) = match invalid {
                Invalid::NoService => ("NoService", "there is no Service of this name"),
                Invalid::ServiceType => ("InvalidServiceType", "a Service of this type can't be exported"),
            };
            (
                Condition { kind: "Valid", is_true: false, reason, message },
                Condition { kind: "Ready", is_true: false, reason: "Pending", message: "it is not valid" },
            )
        }
    };
    let reasons: Vec<&str> = status.conflicts.iter().map(|reason| reason.name()).collect();
    let messages: Vec<&str> = status.conflicts.iter().map(|reason| reason.message()).collect();
    let (reasons, message) = (reasons.join(","), format!("{}; the oldest export decides", messages.join("; ")));
    let conflict = if reasons.is_empty() {
        Condition { kind: "Conflict", is_true: false, reason: "NoConflicts", message: "" }
    } else {
        Condition { kind: "Conflict", is_true: true, reason: &reasons, message: &message }
    };
    json!({"conditions": [valid.render(told, now), ready.render(told, now), conflict.render(told, now)]})
}

struct Condition<'a> {
    kind: &'a str,
    is_true: bool,
    reason: &'a str,
    message: &'a str,
}

impl Condition<'_> {
    /// It holds since `now`, unless it was `told` that it held before.
    fn render(&self, told: Option<&Told>, now: &str) -> Value {
        let status = if self.is_true { "True" } else { "False" };
        let same = told.filter(|told| told.conditions.get(self.kind).is_some_and(|said| said[0] == status));
        let since = same.and_then(|told| told.since.get(self.kind)).map_or(now, String::as_str);
        json!({
            "type": self.kind, "status": status, "reason": self.reason, "message": self.message,
            "lastTransitionTime": since,
        })
    }
}

/// A slice of `key`.
pub fn slice(key: &ImportKey, name: &str, placed: &Placed) -> Value {
    let mut labels = BTreeMap::from([
        (names::MANAGED_BY.to_owned(), names::MIRROR.to_owned()),
        (names::IMPORT_KIND.to_owned(), key.kind.name().to_owned()),
    ]);
    // By these whoever reads slices takes them for another cluster's.
    if key.kind != ImportKind::Gateway {
        labels.insert(names::IMPORT_NAME.to_owned(), key.object.name.clone());
        labels.insert(names::SOURCE_CLUSTER.to_owned(), placed.content.cluster.0.clone());
    }
    let mut annotations = BTreeMap::new();
    let owner = if placed.content.is_fallback { names::FALLBACK_FOR } else { names::SERVICE_NAME };
    if let Some(service) = &placed.owner {
        labels.insert(owner.to_owned(), service.clone());
    }
    if placed.content.path == Path::Gateway {
        labels.insert(names::PATH.to_owned(), "gateway".to_owned());
    }
    match placed.marks.peer {
        PeerState::Fresh => {}
        PeerState::Lost => drop(labels.insert(names::PEER_STATE.to_owned(), "lost".to_owned())),
        PeerState::Stale => drop(labels.insert(names::PEER_STATE.to_owned(), "stale".to_owned())),
    }
    if placed.marks.weight > 1 {
        annotations.insert(names::WEIGHT.to_owned(), placed.marks.weight.to_string());
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(&key.object.namespace, name, &labels, &annotations),
        "addressType": placed.content.family.name(),
        "endpoints": placed.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": placed.content.ports.iter().map(slice_port).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let mut value = json!({
        "addresses": [endpoint.address.to_string()],
        "conditions": {
            "ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating,
        },
    });
    for (field, said) in [("zone", &endpoint.zone), ("nodeName", &endpoint.node), ("hostname", &endpoint.hostname)] {
        if let Some(said) = said {
            value[field] = json!(said);
        }
    }
    if !endpoint.hints.is_empty() {
        let zones: Vec<Value> = endpoint.hints.iter().map(|zone| json!({"name": zone})).collect();
        value["hints"] = json!({"forZones": zones});
    }
    value
}

fn service_port(port: &Port) -> Value {
    self::port(&port.name, port.port, port.protocol.name(), port.app_protocol.as_deref())
}

fn slice_port(port: &SlicePort) -> Value {
    self::port(&port.name, port.port, port.protocol.name(), port.app_protocol.as_deref())
}

fn port(name: &str, number: u16, protocol: &str, app_protocol: Option<&str>) -> Value {
    let mut value = json!({"port": number, "protocol": protocol});
    if !name.is_empty() {
        value["name"] = json!(name);
    }
    if let Some(app_protocol) = app_protocol {
        value["appProtocol"] = json!(app_protocol);
    }
    value
}

fn metadata(
    namespace: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> Value {
    let mut metadata = Map::new();
    metadata.insert("namespace".to_owned(), json!(namespace));
    metadata.insert("name".to_owned(), json!(name));
    if !labels.is_empty() {
        metadata.insert("labels".to_owned(), json!(labels));
    }
    if !annotations.is_empty() {
        metadata.insert("annotations".to_owned(), json!(annotations));
    }
    Value::Object(metadata)
}

/// The object, with the digest of itself as an annotation.
pub(super) fn signed(mut object: Value) -> Value {
    let digest = super::conventions::base32(&Sha256::digest(object.to_string()));
    object["metadata"]["annotations"][names::APPLIED] = json!(digest.get(..16).expect("the text is ASCII and longer"));
    object
}

/// The digest that an object was written with.
pub fn signature(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"][names::APPLIED].as_str()
}
