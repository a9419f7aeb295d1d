//! What a Service of a gateway says of itself: written by the exporting cluster's mirror, read by that and by importers'.

use crate::{
    mirror::{
        names,
        source::{Claim, ExportedPort, Gateway, GatewayPort, Transport},
        world::ImportKind,
    },
    model::ObjectName,
    sources::objects::names::{is_label, is_subdomain},
};
use k8s_openapi::{
    api::core::v1::{ServiceSpec, ServiceStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Most addresses, and most host names, of one Service that mean anything.
const MAX_ADDRESSES: usize = 64;

/// A port's claim, as the annotation has it by the port's name.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    /// `namespace/name`.
    service: String,
    port: u16,
    /// As RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<String>,
}

/// What a Service leads to; none if it isn't a gateway's. What can't be understood is left out.
pub(in crate::mirror) fn read(
    meta: &ObjectMeta,
    spec: &ServiceSpec,
    status: Option<&ServiceStatus>,
) -> Option<Box<Gateway>> {
    let label = |name: &str| meta.labels.as_ref()?.get(name).map(String::as_str);
    if label(names::MANAGED) != Some(names::MIRROR) || label(names::IMPORT_KIND) != Some(ImportKind::Gateway.name()) {
        return None;
    }
    let annotation = |name: &str| meta.annotations.as_ref()?.get(name).map(String::as_str);
    let claims = annotation(names::GATEWAY_PORTS).map(claims).unwrap_or_default();
    let is_node_port = spec.type_.as_deref() == Some("NodePort");
    let mut outside = BTreeMap::new();
    for port in spec.ports.iter().flatten() {
        let number = if is_node_port { port.node_port } else { Some(port.port) };
        let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
        let name = port.name.as_deref().and_then(parse_name);
        if let (Some(name), Some(number)) = (name, number) {
            outside.insert(name, number);
        }
    }
    let mut gateway = Gateway { claims, outside, ..Gateway::default() };
    match annotation(names::GATEWAY_ADDRESSES) {
        Some(said) => said.split(',').for_each(|text| gateway.add_address(text.trim())),
        None if is_node_port => {}
        None => {
            let ingresses = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
            for ingress in ingresses.into_iter().flatten() {
                match (&ingress.ip, &ingress.hostname) {
                    (Some(ip), _) if !ip.is_empty() => gateway.add_address(ip),
                    (_, Some(host)) => gateway.add_address(host),
                    _ => {}
                }
            }
        }
    }
    Some(Box::new(gateway))
}

impl Gateway {
    fn add_address(&mut self, text: &str) {
        if let Ok(address) = text.parse::<IpAddr>() {
            if self.addresses.len() < MAX_ADDRESSES {
                self.addresses.insert(address);
            }
        } else {
            let host = text.trim_end_matches('.').to_lowercase();
            if is_host(&host) && self.hosts.len() < MAX_ADDRESSES {
                self.hosts.insert(host);
            }
        }
    }
}

/// Whether that is a name to be looked up. What ends in a number would be taken for an address, however it is written.
pub(in crate::mirror) fn is_host(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    is_subdomain(text) && !last.starts_with(|digit: char| digit.is_ascii_digit())
}

/// What each port is for, as the annotation says it.
fn claims(text: &str) -> BTreeMap<GatewayPort, Claim> {
    let all: BTreeMap<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let claim = |(name, value): (String, Value)| {
        let port = parse_name(&name)?;
        let recorded: Recorded = serde_json::from_value(value).ok()?;
        let (namespace, name) = recorded.service.split_once('/')?;
        if !is_label(namespace) || !is_subdomain(name) || recorded.port == 0 {
            return None;
        }
        let service = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        // One that can't be understood was released, whenever that was.
        let second = |since: String| since.parse::<Timestamp>().map_or(0, Timestamp::as_second);
        let released = recorded.released.map(second);
        let target = ExportedPort { service, port: recorded.port, protocol: port.protocol };
        Some((port, Claim { target, released }))
    };
    all.into_iter().filter_map(claim).collect()
}

/// The annotation that says so.
pub(super) fn render_claims(claims: &BTreeMap<GatewayPort, Claim>) -> String {
    let recorded: BTreeMap<String, Recorded> = claims
        .iter()
        .map(|(port, claim)| {
            let released = claim.released.and_then(|since| Timestamp::from_second(since).ok());
            let recorded = Recorded {
                service: claim.target.service.to_string(),
                port: claim.target.port,
                released: released.map(|since| since.to_string()),
            };
            (port_name(*port), recorded)
        })
        .collect();
    serde_json::to_string(&recorded).expect("texts and numbers are JSON")
}

/// What a gateway's port is called: short enough for whatever takes names of ports.
pub(super) fn port_name(port: GatewayPort) -> String {
    format!("{}-{}", port.protocol.name().to_lowercase(), port.number)
}

fn parse_name(name: &str) -> Option<GatewayPort> {
    let (protocol, number) = name.split_once('-')?;
    let protocol = match protocol {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return None,
    };
    let port = GatewayPort { protocol, number: number.parse().ok()? };
    // One way to write it only.
    (port_name(port) == name && port.number > 0).then_some(port)
}

/// Which Services of a cluster's gateway lead to which of its Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leading {
    gateways: BTreeSet<ObjectName>,
    gateways_by_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
}

impl Leading {
    /// The Services of the gateway that have a port for `service`, whether it rests or not.
    pub fn to(&self, service: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        self.gateways_by_service.get(service).into_iter().flatten()
    }

    /// All Services of the gateway.
    pub(in crate::mirror) fn all(&self) -> &BTreeSet<ObjectName> {
        &self.gateways
    }

    /// Takes in that the gateway's Service `name` was as `old` says, and is as `new` says. Tells to which services the way is
    /// another one now.
    pub(in crate::mirror) fn change(
        &mut self,
        name: &ObjectName,
        old: Option<&Gateway>,
        new: Option<&Gateway>,
    ) -> BTreeSet<ObjectName> {
        let targets = |gateway: Option<&Gateway>| -> BTreeSet<ObjectName> {
            let claims = gateway.into_iter().flat_map(|gateway| gateway.claims.values());
            claims.map(|claim| claim.target.service.clone()).collect()
        };
        if old == new {
            return BTreeSet::new();
        }
        if new.is_some() {
            self.gateways.insert(name.clone());
        } else {
            self.gateways.remove(name);
        }
        let (before, now) = (targets(old), targets(new));
        for service in &before {
            if let Some(gateways) = self.gateways_by_service.get_mut(service) {
                gateways.remove(name);
                if gateways.is_empty() {
                    self.gateways_by_service.remove(service);
                }
            }
        }
        for service in &now {
            self.gateways_by_service.entry(service.clone()).or_default().insert(name.clone());
        }
        before.union(&now).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_what_is_read() {
        let port = |protocol, number| GatewayPort { protocol, number };
        let claim = |name: &str, port, protocol, released| {
            let service = ObjectName { namespace: "shop".to_owned(), name: name.to_owned() };
            Claim { target: ExportedPort { service, port, protocol }, released }
        };
        let written = BTreeMap::from([
            (port(Transport::Tcp, 20_001), claim("api", 80, Transport::Tcp, None)),
            (port(Transport::Tcp, 20_002), claim("api", 81, Transport::Tcp, Some(1_800_000_000))),
            (port(Transport::Udp, 20_001), claim("dns", 53, Transport::Udp, None)),
        ]);
        let text = render_claims(&written);
        assert_eq!(claims(&text), written, "{text}");
        assert!(text.contains(r#""tcp-20001":{"service":"shop/api","port":80}"#), "{text}");
    }

    #[test]
    fn a_load_balancer_is_where_its_status_says_and_nodes_where_the_annotation_says() {
        for (kind, annotation, ingress, dialled, number) in [
            ("LoadBalancer", None, json!([{"ip": "198.51.100.20"}]), &["198.51.100.20"][..], 20_001),
            ("LoadBalancer", None, json!([{"hostname": "LB.example.com."}]), &["lb.example.com"], 20_001),
            (
                "LoadBalancer",
                None,
                json!([{"ip": "198.51.100.20"}, {"ip": "fd00::1"}]),
                &["198.51.100.20", "fd00::1"],
                20_001,
            ),
            ("LoadBalancer", None, json!(null), &[], 20_001),
            ("LoadBalancer", Some("203.0.113.9"), json!([{"ip": "198.51.100.20"}]), &["203.0.113.9"], 20_001),
            (
                "NodePort",
                Some("10.0.0.1, 10.0.0.2,gw.example.com"),
                json!(null),
                &["10.0.0.1", "10.0.0.2", "gw.example.com"],
                31_004,
            ),
            ("NodePort", None, json!([{"ip": "198.51.100.20"}]), &[], 31_004),
        ] {
            let gateway = gateway(kind, annotation, ingress.clone());
            let addresses = gateway.addresses.iter().map(ToString::to_string);
            let found: Vec<String> = addresses.chain(gateway.hosts.iter().cloned()).collect();
            assert_eq!(found, dialled, "{kind} {annotation:?} {ingress}");
            assert_eq!(gateway.outside.values().collect::<Vec<_>>(), [&number]);
        }
    }

    #[test]
    fn what_a_hostile_peer_writes_is_left_out() {
        for text in [
            "",
            "{",
            "[]",
            "7",
            r#"{"tcp-1":7}"#,
            r#"{"tcp-0":{"service":"a/b","port":1}}"#,
            r#"{"sctp-1":{"service":"a/b","port":1}}"#,
            r#"{"tcp-+1":{"service":"a/b","port":1}}"#,
            r#"{"tcp-01":{"service":"a/b","port":1}}"#,
            r#"{"tcp-70000":{"service":"a/b","port":1}}"#,
            r#"{"tcp-1":{"service":"ab","port":1}}"#,
            r#"{"tcp-1":{"service":"../b","port":1}}"#,
            r#"{"tcp-1":{"service":"a/b","port":0}}"#,
            r#"{"tcp-1":{"service":"a/b","port":-1}}"#,
            r#"{"tcp-1":{"service":"A/b","port":1}}"#,
        ] {
            assert_eq!(claims(text), BTreeMap::new(), "{text}");
        }
        for host in ["0x7f.1", "127.1", "a.0x1", "localhost:80", "a b", "-a", "", "a..b", "ä.example"] {
            assert!(!is_host(host), "{host}");
        }
        assert!(is_host("k8s-gw-1.elb.eu-west-1.amazonaws.com"));
    }

    fn gateway(kind: &str, annotation: Option<&str>, ingress: Value) -> Gateway {
        let mut meta =
            json!({"labels": {"tombolo.io/managed-by": "mirror.tombolo.io", "tombolo.io/import": "gateway"}});
        if let Some(annotation) = annotation {
            meta["annotations"] = json!({"tombolo.io/gateway-addresses": annotation});
        }
        let spec = json!({"type": kind, "ports": [{"name": "tcp-20001", "port": 20_001, "nodePort": 31_004}, {"name": "x", "port": 1}]});
        let status = json!({"loadBalancer": {"ingress": ingress}});
        let (meta, spec, status) =
            (serde_json::from_value(meta), serde_json::from_value(spec), serde_json::from_value(status));
        *read(&meta.unwrap(), &spec.unwrap(), Some(&status.unwrap())).unwrap()
    }
}
