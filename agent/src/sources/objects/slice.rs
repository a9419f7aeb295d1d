//! EndpointSlices.

use super::{Field, ObjectError, Seen, address, annotation, cluster_name, label, names, object_name, port, protocol};
use crate::model::{ClusterName, Endpoint, ObjectName, Path, PeerState, ServiceKind, ServicePort, ServiceRef, Slice};
use k8s_openapi::{api::discovery::v1 as discovery, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use std::sync::Arc;
use tracing::debug;

/// Most pods that one endpoint may claim to stand for: more than a cluster can have.
const MAX_WEIGHT: u32 = 1_000_000;

/// Whom a slice's endpoints belong to.
struct Owner {
    service: ServiceRef,
    fallback: bool,
}

/// A slice of IPv4 or IPv6 endpoints that belongs to somebody.
///
/// # Errors
///
/// A field that the API server would have refused, or a label of ours with a value that it can't have.
pub fn slice(object: &discovery::EndpointSlice) -> Result<Seen<(ObjectName, Slice)>, ObjectError> {
    let meta = &object.metadata;
    let name = object_name(meta)?;
    let want_ipv4 = match object.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        "FQDN" => return Ok(Seen::Left("its endpoints are names, not addresses")),
        other => {
            return Err(Field::new("addressType").wrong(format!("{other:?} is none of IPv4, IPv6, FQDN")));
        }
    };
    let Some(owner) = owner(meta, &name)? else {
        return Ok(Seen::Left("no label says whose endpoints these are"));
    };
    let managed_by = label(meta, names::MANAGED_BY).unwrap_or_default();
    if through_linkerd_gateway(meta, managed_by) {
        return Ok(Seen::Left("a Linkerd gateway refuses what comes from no Linkerd proxy"));
    }
    let source_cluster = source_cluster(meta, managed_by)?;
    let built_in = [names::SLICE_CONTROLLER, names::SLICE_MIRRORING_CONTROLLER].contains(&managed_by);
    let mut problems = Vec::new();
    let slice = Slice {
        owner: owner.service,
        built_in: built_in && source_cluster.is_none(),
        source_cluster,
        path: path(meta)?,
        fallback: owner.fallback,
        peer: peer_state(meta, &name, &mut problems),
        weight: weight(meta)?,
        ports: ports(&name, object.ports.as_deref().unwrap_or_default())?,
        endpoints: endpoints(&object.endpoints, want_ipv4)?,
        problems,
    };
    Ok(Seen::Taken((name, slice)))
}

/// The first of three labels that is there. The fallback's stands before the ServiceImport's, which every slice from
/// another cluster carries: a fallback must not be taken for more because it says where it came from.
fn owner(meta: &ObjectMeta, slice: &ObjectName) -> Result<Option<Owner>, ObjectError> {
    let labels = [
        (names::SERVICE_NAME, ServiceKind::Service, false),
        (names::FALLBACK_FOR, ServiceKind::Service, true),
        (names::IMPORT_NAME, ServiceKind::ServiceImport, false),
    ];
    for (name, kind, fallback) in labels {
        let Some(value) = label(meta, name).filter(|value| !value.is_empty()) else { continue };
        if !names::is_label(value) {
            return Err(Field::label(name).wrong(format!("{value:?} is not a DNS label")));
        }
        let object = ObjectName { namespace: slice.namespace.clone(), name: value.to_owned() };
        return Ok(Some(Owner { service: ServiceRef { kind, object }, fallback }));
    }
    Ok(None)
}

/// Linkerd makes Endpoints for its gateway mirrors only, and those become slices by the mirroring controller, labels
/// and annotations kept. Their port, 4143, takes nothing but Linkerd's own TLS.
fn through_linkerd_gateway(meta: &ObjectMeta, managed_by: &str) -> bool {
    let copied_from_mirror = managed_by == names::SLICE_MIRRORING_CONTROLLER
        && label(meta, names::LINKERD_MIRRORED) == Some("true")
        && label(meta, names::LINKERD_CLUSTER).is_some();
    copied_from_mirror || annotation(meta, names::LINKERD_GATEWAY_IDENTITY).is_some()
}

/// The built-in controller copies a Service's labels to its slices, whose endpoints are nevertheless local.
fn source_cluster(meta: &ObjectMeta, managed_by: &str) -> Result<Option<ClusterName>, ObjectError> {
    if managed_by == names::SLICE_CONTROLLER {
        return Ok(None);
    }
    for name in [names::SOURCE_CLUSTER, names::LINKERD_CLUSTER] {
        if let Some(value) = label(meta, name) {
            return cluster_name(value).map(Some).map_err(|reason| Field::label(name).wrong(reason));
        }
    }
    Ok(None)
}

fn path(meta: &ObjectMeta) -> Result<Path, ObjectError> {
    match label(meta, names::PATH) {
        None | Some("pod") => Ok(Path::Pod),
        Some("gateway") => Ok(Path::Gateway),
        Some(other) => Err(Field::label(names::PATH).wrong(format!("{other:?} is none of pod, gateway"))),
    }
}

/// A word that isn't known takes nothing away: it may be that of a mirror newer than this agent.
fn peer_state(meta: &ObjectMeta, slice: &ObjectName, problems: &mut Vec<String>) -> PeerState {
    match label(meta, names::PEER_STATE) {
        None | Some("fresh") => PeerState::Fresh,
        Some("lost") => PeerState::Lost,
        Some("stale") => PeerState::Stale,
        Some(other) => {
            let label = names::PEER_STATE;
            problems.push(format!("slice {slice}: label {label}: {other:?} is none of fresh, lost, stale"));
            PeerState::Fresh
        }
    }
}

fn weight(meta: &ObjectMeta) -> Result<u32, ObjectError> {
    let Some(text) = annotation(meta, names::WEIGHT) else { return Ok(1) };
    match text.trim().parse() {
        Ok(weight) if (1..=MAX_WEIGHT).contains(&weight) => Ok(weight),
        _ => Err(Field::annotation(names::WEIGHT).wrong(format!("{text:?} is not from 1 to {MAX_WEIGHT}"))),
    }
}

fn ports(slice: &ObjectName, given: &[discovery::EndpointPort]) -> Result<Vec<ServicePort>, ObjectError> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, given) in given.iter().enumerate() {
        let field = Field::new("ports").index(index);
        let name = given.name.clone().unwrap_or_default();
        let Some(protocol) = protocol(given.protocol.as_deref(), field.clone().key("protocol"))? else {
            debug!(%slice, port = %name, "port left out: SCTP is not translated");
            continue;
        };
        // Slices that serve no Service may leave the number out.
        let Some(number) = given.port else {
            debug!(%slice, port = %name, "port left out: it has no number");
            continue;
        };
        let number = port(number, field.clone().key("port"))?;
        if ports.iter().any(|other| other.name == name) {
            return Err(field.key("name").wrong(format!("{name:?} is there twice")));
        }
        ports.push(ServicePort { name, port: number, protocol });
    }
    Ok(ports)
}

fn endpoints(given: &[discovery::Endpoint], want_ipv4: bool) -> Result<Vec<Endpoint>, ObjectError> {
    // As many as there are and no more: these are what takes most memory of all that is known.
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(given.len());
    for (index, given) in given.iter().enumerate() {
        let mut endpoint = endpoint(given, want_ipv4, index)?;
        if let Some(last) = endpoints.last() {
            share(&mut endpoint.zone, last.zone.as_ref());
            share(&mut endpoint.node, last.node.as_ref());
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

/// Neighbours often are in one place: its name is in memory once then.
fn share(name: &mut Option<Arc<str>>, other: Option<&Arc<str>>) {
    if name.as_ref() == other {
        *name = other.cloned();
    }
}

fn endpoint(given: &discovery::Endpoint, want_ipv4: bool, index: usize) -> Result<Endpoint, ObjectError> {
    let field = Field::new("endpoints").index(index).key("addresses");
    // By the API text only the first address means anything.
    let Some(text) = given.addresses.first() else { return Err(field.wrong("missing")) };
    let address = address(text, field.clone().index(0))?;
    if address.is_ipv4() != want_ipv4 {
        return Err(field.index(0).wrong(format!("{text} is not of the slice's addressType")));
    }
    let conditions = given.conditions.clone().unwrap_or_default();
    Ok(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        zone: given.zone.as_deref().filter(|zone| !zone.is_empty()).map(Arc::from),
        node: given.node_name.as_deref().filter(|node| !node.is_empty()).map(Arc::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_field_that_can_not_be_so_is_named() {
        for (pointer, value, said) in [
            ("/addressType", json!("IPX"), "addressType: \"IPX\" is none of"),
            ("/addressType", json!(""), "addressType: \"\" is none of"),
            ("/endpoints/1/addresses/0", json!("10.0.0"), "endpoints[1].addresses[0]: \"10.0.0\" is not an IP address"),
            ("/endpoints/1/addresses/0", json!("fd00::1"), "endpoints[1].addresses[0]: fd00::1 is not of the slice's"),
            ("/endpoints/1/addresses/0", json!("224.0.0.1"), "endpoints[1].addresses[0]: 224.0.0.1 is nobody's"),
            ("/endpoints/1/addresses", json!([]), "endpoints[1].addresses: missing"),
            ("/ports/0/port", json!(70000), "ports[0].port: 70000 is not from 1 to 65535"),
            ("/ports/0/protocol", json!("tcp"), "ports[0].protocol: \"tcp\" is none of"),
            ("/ports/1/name", json!("http"), "ports[1].name: \"http\" is there twice"),
            ("/metadata/labels/kubernetes.io~1service-name", json!("a.b"), "\"a.b\" is not a DNS label"),
            ("/metadata/labels/multicluster.kubernetes.io~1source-cluster", json!("Ä"), "can't be a cluster's name"),
            ("/metadata/labels/tombolo.io~1path", json!("tunnel"), "\"tunnel\" is none of pod, gateway"),
            ("/metadata/annotations/tombolo.io~1weight", json!("0"), "\"0\" is not from 1 to"),
        ] {
            let mut object = example();
            *object.pointer_mut(pointer).unwrap() = value;
            let error = convert(object).unwrap_err().to_string();
            assert!(error.contains(said), "{pointer}: {error}");
        }
    }

    #[test]
    fn only_the_first_address_of_an_endpoint_means_anything() {
        let mut object = example();
        object["endpoints"][0]["addresses"] = json!(["10.0.0.1", "nonsense"]);
        assert_eq!(taken(object).endpoints.len(), 2);
    }

    #[test]
    fn ports_that_can_not_be_dialled_are_left_out() {
        let mut object = example();
        object["ports"] = json!([{"name": "a"}, {"name": "b", "port": 1, "protocol": "SCTP"}, {"port": 2}]);
        assert_eq!(
            taken(object).ports,
            [ServicePort { name: String::new(), port: 2, protocol: crate::model::Protocol::Tcp }]
        );
    }

    #[test]
    fn what_is_said_of_the_peer_is_one_of_three_words_and_another_one_is_reported() {
        let peer = |word: Value| {
            let mut object = example();
            object["metadata"]["labels"]["tombolo.io/peer-state"] = word;
            let slice = taken(object);
            (slice.peer, slice.problems)
        };
        assert_eq!(taken(example()).peer, PeerState::Fresh);
        for (word, state) in [("fresh", PeerState::Fresh), ("lost", PeerState::Lost), ("stale", PeerState::Stale)] {
            assert_eq!(peer(json!(word)), (state, Vec::new()));
        }
        let (state, problems) = peer(json!("Stale"));
        assert_eq!(state, PeerState::Fresh);
        let said = "slice shop/shop-east: label tombolo.io/peer-state: \"Stale\" is none of fresh, lost, stale";
        assert_eq!(problems, [said]);
    }

    #[test]
    fn a_slice_that_says_nothing_of_its_owner_is_left() {
        let mut object = example();
        object["metadata"]["labels"]["kubernetes.io/service-name"] = json!("");
        assert!(matches!(convert(object), Ok(Seen::Left(_))));
    }

    #[test]
    fn the_clusters_name_is_linkerds_where_the_standards_is_missing() {
        let mut object = example();
        let labels = object["metadata"]["labels"].as_object_mut().unwrap();
        labels.remove("multicluster.kubernetes.io/source-cluster");
        labels.insert("mirror.linkerd.io/cluster-name".to_owned(), json!("east"));
        assert_eq!(taken(object).source_cluster, Some(ClusterName("east".to_owned())));
    }

    #[test]
    fn labels_that_the_built_in_controller_copied_from_a_service_move_no_pod_to_another_cluster() {
        let mut object = example();
        object["metadata"]["labels"][names::MANAGED_BY] = json!(names::SLICE_CONTROLLER);
        let slice = taken(object);
        assert!(slice.built_in);
        assert_eq!(slice.source_cluster, None);
    }

    #[test]
    fn a_slice_copied_from_endpoints_is_first_hand_unless_it_names_a_cluster() {
        let mut object = example();
        object["metadata"]["labels"][names::MANAGED_BY] = json!(names::SLICE_MIRRORING_CONTROLLER);
        assert!(!taken(object.clone()).built_in);
        object["metadata"]["labels"].as_object_mut().unwrap().remove(names::SOURCE_CLUSTER);
        assert!(taken(object).built_in);
    }

    #[test]
    fn an_ipv4_mapped_address_is_an_ipv4_address() {
        let mut object = example();
        object["endpoints"][0]["addresses"] = json!(["::ffff:10.0.0.7"]);
        assert_eq!(taken(object).endpoints[0].address, std::net::IpAddr::from([10, 0, 0, 7]));
    }

    fn taken(object: Value) -> Slice {
        match convert(object).unwrap() {
            Seen::Taken((_, slice)) => slice,
            Seen::Left(reason) => panic!("left: {reason}"),
        }
    }

    fn convert(object: Value) -> Result<Seen<(ObjectName, Slice)>, ObjectError> {
        slice(&serde_json::from_value(object).unwrap())
    }

    fn example() -> Value {
        json!({
            "metadata": {
                "name": "shop-east",
                "namespace": "shop",
                "labels": {
                    "kubernetes.io/service-name": "shop",
                    "multicluster.kubernetes.io/source-cluster": "east",
                    "tombolo.io/path": "pod",
                },
                "annotations": {"tombolo.io/weight": "1"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "admin", "port": 81}],
        })
    }
}
