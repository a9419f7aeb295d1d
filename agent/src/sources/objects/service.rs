//! Services and ServiceImports.

use super::{
    Field, ObjectError, Options, address, annotation,
    marks::{Shared, shared},
    names, object_name, port, protocol,
    traffic::traffic,
};
use crate::model::{ObjectName, Service, ServiceKind, ServicePort, ServiceRef};
use k8s_openapi::{
    api::core::v1::{self as core, SessionAffinityConfig},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Deserialize;
use std::{net::IpAddr, time::Duration};
use tracing::debug;

/// Affinity's timeout if none is given, in seconds: the API's default of three hours.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
/// The longest timeout that the API allows.
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// A multicluster.x-k8s.io ServiceImport, in v1alpha1 and v1beta1, which don't differ.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct ServiceImport {
    /// The object's metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is imported.
    pub spec: Option<ServiceImportSpec>,
}

/// The part of a ServiceImport's spec that concerns connections.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImportSpec {
    /// `ClusterSetIP` or `Headless`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// The addresses that clients dial, at most one of each family.
    pub ips: Option<Vec<String>>,
    /// Its ports. A ServiceImport's have no targetPort, and nothing else that a Service's don't have.
    pub ports: Option<Vec<core::ServicePort>>,
    /// `None` or `ClientIP`.
    pub session_affinity: Option<String>,
    /// The affinity's timeout.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// As of a Service.
    pub internal_traffic_policy: Option<String>,
    /// As of a Service.
    pub traffic_distribution: Option<String>,
}

/// What Services and ServiceImports have in common.
struct Common<'a> {
    name: &'a ObjectName,
    meta: &'a ObjectMeta,
    addresses: Vec<IpAddr>,
    ports: &'a [core::ServicePort],
    affinity: Option<&'a str>,
    affinity_config: Option<&'a SessionAffinityConfig>,
    internal_traffic_policy: Option<&'a str>,
    traffic_distribution: Option<&'a str>,
    federated: bool,
    exclusive: bool,
}

/// A Service, federated or not.
///
/// # Errors
///
/// A field that the API server would have refused.
pub fn service(object: &core::Service, options: &Options) -> Result<(ServiceRef, Service), ObjectError> {
    let meta = &object.metadata;
    let name = service_name(meta)?;
    let spec = object.spec.as_ref().ok_or_else(|| Field::new("spec").wrong("missing"))?;
    let shared = shared(&name, meta);
    let by_switch = options.all_services && shared != Shared::ByLinkerdGateway && !names::barred(&name);
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    let mut service = Common {
        name: &name,
        meta,
        addresses: cluster_ips(spec)?,
        ports: spec.ports.as_deref().unwrap_or_default(),
        affinity: spec.session_affinity.as_deref(),
        affinity_config: spec.session_affinity_config.as_ref(),
        internal_traffic_policy: spec.internal_traffic_policy.as_deref(),
        traffic_distribution: spec.traffic_distribution.as_deref(),
        federated: by_switch || matches!(shared, Shared::UnderItsOwnName | Shared::ByMark),
        // Nobody but kube-proxy serves it, and that from the same slices. A Service that somebody else selects pods for
        // may have endpoints that we don't know yet.
        exclusive: by_switch || (shared == Shared::UnderItsOwnName && !selects),
    }
    .service(options)?;
    service.local_member = local_member(meta)?;
    // A dump has the address; what a person wrote and the API server has not seen yet has none.
    let headless = spec.cluster_ip.as_deref() == Some("None") || spec.type_.as_deref() == Some("ExternalName");
    if service.federated && service.addresses.is_empty() && !headless {
        service.problems.push("spec.clusterIP: missing, so there is no address that clients could dial".to_owned());
    }
    Ok((ServiceRef { kind: ServiceKind::Service, object: name }, service))
}

/// A ServiceImport: always federated.
///
/// # Errors
///
/// A field that the API server would have refused.
pub fn service_import(object: &ServiceImport, options: &Options) -> Result<(ServiceRef, Service), ObjectError> {
    let meta = &object.metadata;
    let name = service_name(meta)?;
    let spec = object.spec.as_ref().ok_or_else(|| Field::new("spec").wrong("missing"))?;
    let addresses = match spec.type_.as_deref() {
        Some("ClusterSetIP") => addresses(spec.ips.as_deref().unwrap_or_default(), &Field::new("spec").key("ips"))?,
        Some("Headless") => Vec::new(),
        other => {
            let reason = format!("{:?} is none of ClusterSetIP, Headless", other.unwrap_or_default());
            return Err(Field::new("spec").key("type").wrong(reason));
        }
    };
    let service = Common {
        name: &name,
        meta,
        addresses,
        ports: spec.ports.as_deref().unwrap_or_default(),
        affinity: spec.session_affinity.as_deref(),
        affinity_config: spec.session_affinity_config.as_ref(),
        internal_traffic_policy: spec.internal_traffic_policy.as_deref(),
        traffic_distribution: spec.traffic_distribution.as_deref(),
        federated: true,
        exclusive: true,
    }
    .service(options)?;
    Ok((ServiceRef { kind: ServiceKind::ServiceImport, object: name }, service))
}

impl Common<'_> {
    fn service(self, options: &Options) -> Result<Service, ObjectError> {
        let mut problems = Vec::new();
        let mut opted_out = switch(self.meta, names::OPT_OUT, false, &mut problems);
        if self.internal_traffic_policy == Some("Local") {
            // Only this node's endpoints may be used, and none is no reason to go elsewhere: kube-proxy does that.
            opted_out = true;
            if self.federated {
                problems.push("spec.internalTrafficPolicy: Local is left to kube-proxy".to_owned());
            }
        }
        Ok(Service {
            addresses: self.addresses,
            ports: ports(self.name, self.ports)?,
            affinity: affinity(self.affinity, self.affinity_config)?,
            federated: self.federated,
            opted_out,
            exclusive: self.exclusive,
            abort: switch(self.meta, names::ABORT, true, &mut problems),
            local_member: None,
            traffic: traffic(self.meta, self.traffic_distribution, &options.cluster, &mut problems),
            problems,
        })
    }
}

/// An annotation that is true or false; what isn't is reported, and the default holds.
fn switch(meta: &ObjectMeta, name: &str, default: bool, problems: &mut Vec<String>) -> bool {
    match annotation(meta, name) {
        None => default,
        Some("true") => true,
        Some("false") => false,
        Some(other) => {
            problems.push(format!("annotation {name}: {other:?} is neither true nor false"));
            default
        }
    }
}

/// Unlike other objects', a Service's name is a single label: it is part of a DNS name.
fn service_name(meta: &ObjectMeta) -> Result<ObjectName, ObjectError> {
    let name = object_name(meta)?;
    if names::is_label(&name.name) {
        return Ok(name);
    }
    Err(Field::new("metadata").key("name").wrong(format!("{:?} is not a DNS label", name.name)))
}

fn cluster_ips(spec: &core::ServiceSpec) -> Result<Vec<IpAddr>, ObjectError> {
    let spec_field = Field::new("spec");
    match spec.cluster_ips.as_deref() {
        Some(ips) if !ips.is_empty() => addresses(ips, &spec_field.key("clusterIPs")),
        _ => match spec.cluster_ip.as_deref() {
            None | Some("" | "None") => Ok(Vec::new()),
            Some(ip) => Ok(vec![address(ip, spec_field.key("clusterIP"))?]),
        },
    }
}

fn addresses(texts: &[String], field: &Field) -> Result<Vec<IpAddr>, ObjectError> {
    let given = texts.iter().enumerate().filter(|(_, text)| !matches!(text.as_str(), "" | "None"));
    given.map(|(index, text)| address(text, field.clone().index(index))).collect()
}

fn ports(service: &ObjectName, given: &[core::ServicePort]) -> Result<Vec<ServicePort>, ObjectError> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, given) in given.iter().enumerate() {
        let field = Field::new("spec").key("ports").index(index);
        let number = port(given.port, field.clone().key("port"))?;
        let name = given.name.clone().unwrap_or_default();
        let Some(protocol) = protocol(given.protocol.as_deref(), field.clone().key("protocol"))? else {
            debug!(%service, port = number, "port left out: SCTP is not translated");
            continue;
        };
        if ports.iter().any(|other| other.name == name) {
            return Err(field.key("name").wrong(format!("{name:?} is there twice")));
        }
        if ports.iter().any(|other| (other.port, other.protocol) == (number, protocol)) {
            return Err(field.key("port").wrong(format!("{number} is there twice for one protocol")));
        }
        ports.push(ServicePort { name, port: number, protocol });
    }
    Ok(ports)
}

fn affinity(kind: Option<&str>, config: Option<&SessionAffinityConfig>) -> Result<Option<Duration>, ObjectError> {
    match kind {
        None | Some("" | "None") => Ok(None),
        Some("ClientIP") => {
            let timeout = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
            let seconds = timeout.unwrap_or(DEFAULT_AFFINITY_SECONDS);
            match u64::try_from(seconds) {
                Ok(valid) if (1..=MAX_AFFINITY_SECONDS).contains(&seconds) => Ok(Some(Duration::from_secs(valid))),
                _ => {
                    let field = Field::new("spec").key("sessionAffinityConfig").key("clientIP").key("timeoutSeconds");
                    Err(field.wrong(format!("{seconds} s is not from 1 to {MAX_AFFINITY_SECONDS}")))
                }
            }
        }
        Some(other) => {
            Err(Field::new("spec").key("sessionAffinity").wrong(format!("{other:?} is none of None, ClientIP")))
        }
    }
}

fn local_member(meta: &ObjectMeta) -> Result<Option<String>, ObjectError> {
    for name in [names::LOCAL_MEMBER, names::LINKERD_LOCAL_DISCOVERY] {
        match annotation(meta, name).map(str::trim) {
            None | Some("") => {}
            Some(member) if names::is_label(member) => return Ok(Some(member.to_owned())),
            Some(other) => {
                let reason = format!("{other:?} is not the name of a Service of this namespace");
                return Err(Field::annotation(name).wrong(reason));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClusterName;
    use serde_json::{Value, json};

    #[test]
    fn a_field_that_the_api_server_would_refuse_is_named() {
        for (pointer, value, said) in [
            ("/metadata/name", json!("Shop_1"), "metadata.name: \"Shop_1\" is not a DNS"),
            ("/metadata/name", json!("a.b"), "metadata.name: \"a.b\" is not a DNS label"),
            ("/metadata/name", json!(null), "metadata.name: missing"),
            ("/metadata/namespace", json!("a.b"), "metadata.namespace: \"a.b\" is not a DNS label"),
            ("/spec", json!(null), "spec: missing"),
            ("/spec/clusterIPs/0", json!("10.0.0.256"), "spec.clusterIPs[0]: \"10.0.0.256\" is not an IP address"),
            ("/spec/clusterIPs/0", json!("0.0.0.0"), "spec.clusterIPs[0]: 0.0.0.0 is nobody's address"),
            ("/spec/clusterIPs/0", json!("ff02::1"), "spec.clusterIPs[0]: ff02::1 is nobody's address"),
            ("/spec/ports/0/port", json!(0), "spec.ports[0].port: 0 is not from 1 to 65535"),
            ("/spec/ports/1/port", json!(65536), "spec.ports[1].port: 65536 is not from 1 to 65535"),
            ("/spec/ports/1/port", json!(80), "spec.ports[1].port: 80 is there twice"),
            ("/spec/ports/1/name", json!("http"), "spec.ports[1].name: \"http\" is there twice"),
            ("/spec/ports/0/protocol", json!("QUIC"), "spec.ports[0].protocol: \"QUIC\" is none of"),
            ("/spec/sessionAffinity", json!("Cookie"), "spec.sessionAffinity: \"Cookie\" is none of"),
            (
                "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
                json!(0),
                "clientIP.timeoutSeconds: 0 s is not from",
            ),
            (
                "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
                json!(86401),
                "timeoutSeconds: 86401 s is not from",
            ),
            ("/metadata/annotations/multicluster.linkerd.io~1local-discovery", json!("a/b"), "\"a/b\" is not the name"),
        ] {
            let mut object = example();
            *object.pointer_mut(pointer).unwrap() = value;
            let error = convert(object).unwrap_err().to_string();
            assert!(error.contains(said), "{pointer}: {error}");
        }
    }

    #[test]
    fn affinity_lasts_three_hours_unless_it_says_otherwise() {
        let mut object = example();
        assert_eq!(convert(object.clone()).unwrap().affinity, Some(Duration::from_secs(60)));
        object["spec"]["sessionAffinityConfig"] = json!(null);
        assert_eq!(convert(object.clone()).unwrap().affinity, Some(Duration::from_secs(10_800)));
        object["spec"]["sessionAffinity"] = json!("None");
        assert_eq!(convert(object).unwrap().affinity, None);
    }

    #[test]
    fn the_older_field_holds_where_the_newer_is_missing() {
        let mut object = example();
        object["spec"]["clusterIPs"] = json!(null);
        assert_eq!(convert(object).unwrap().addresses, [IpAddr::from([10, 104, 0, 8])]);
    }

    #[test]
    fn a_federated_service_without_an_address_says_so() {
        let mut object = example();
        object["spec"]["clusterIPs"] = json!([]);
        object["spec"]["clusterIP"] = json!("");
        let problems = convert(object.clone()).unwrap().problems;
        assert!(problems[0].starts_with("spec.clusterIP: missing"), "{problems:?}");
        object["spec"]["clusterIP"] = json!("None");
        assert_eq!(convert(object).unwrap().problems, [""; 0]);
    }

    #[test]
    fn who_asks_to_be_left_alone_is() {
        for (value, opted_out, problems) in [("true", true, 0), ("false", false, 0), ("yes", false, 1)] {
            let mut object = example();
            object["metadata"]["annotations"]["tombolo.io/opt-out"] = json!(value);
            let service = convert(object).unwrap();
            assert_eq!((service.opted_out, service.problems.len()), (opted_out, problems), "{value}");
        }
    }

    #[test]
    fn connections_are_aborted_unless_the_owner_says_otherwise() {
        assert!(convert(example()).unwrap().abort);
        for (value, abort, problems) in [("true", true, 0), ("false", false, 0), ("never", true, 1)] {
            let mut object = example();
            object["metadata"]["annotations"]["tombolo.io/abort"] = json!(value);
            let service = convert(object).unwrap();
            assert_eq!((service.abort, service.problems.len()), (abort, problems), "{value}");
        }
    }

    #[test]
    fn endpoints_of_the_own_node_only_are_left_to_kube_proxy() {
        let mut object = example();
        object["spec"]["internalTrafficPolicy"] = json!("Local");
        let service = convert(object).unwrap();
        assert!(service.opted_out);
        assert_eq!(service.problems, ["spec.internalTrafficPolicy: Local is left to kube-proxy"]);
    }

    #[test]
    fn a_mirror_that_selects_pods_may_have_endpoints_we_do_not_know() {
        let mut object = example();
        assert!(convert(object.clone()).unwrap().exclusive);
        object["spec"]["selector"] = json!({"app": "a"});
        let service = convert(object).unwrap();
        assert!(service.federated && !service.exclusive);
    }

    #[test]
    fn a_service_import_is_of_one_of_two_types() {
        let import = |of: &str| {
            let object = json!({"metadata": {"name": "a"}, "spec": {"type": of, "ips": ["10.0.0.1"], "ports": []}});
            service_import(&serde_json::from_value(object).unwrap(), &options())
        };
        assert_eq!(import("ClusterSetIP").unwrap().1.addresses.len(), 1);
        assert!(import("Headless").unwrap().1.addresses.is_empty());
        assert!(import("Other").unwrap_err().to_string().starts_with("spec.type: \"Other\""));
    }

    fn convert(object: Value) -> Result<Service, ObjectError> {
        service(&serde_json::from_value(object).unwrap(), &options()).map(|(_, service)| service)
    }

    fn options() -> Options {
        Options { cluster: ClusterName("west".to_owned()), node: "west-1".to_owned(), all_services: false }
    }

    fn example() -> Value {
        json!({
            "metadata": {
                "name": "shop-federated",
                "namespace": "shop",
                "labels": {"mirror.linkerd.io/mirrored-service": "true"},
                "annotations": {"multicluster.linkerd.io/local-discovery": "shop"},
            },
            "spec": {
                "clusterIP": "10.104.0.8",
                "clusterIPs": ["10.104.0.9"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "admin", "port": 81}],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            },
        })
    }
}
