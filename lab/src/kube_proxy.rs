//! The rules that kube-proxy's nftables mode would have for a Service: what a connection gets without Tombolo.
//!
//! Of its rules those are here that decide on a packet to a ClusterIP: a verdict map from address, protocol and port
//! to the service's chain, a random draw there among the endpoints' chains, and their DNAT. The hook is `output`, for
//! clients that are in the namespace itself.

use crate::{
    addresses::Dual,
    manifests::{NAMESPACE, POD_PORT, SERVICE_PORT},
};
use std::{
    fmt::{self, Write},
    net::{IpAddr, SocketAddr},
};

/// Ports of every Service, as the manifests have them: protocol and name.
const PORTS: [(&str, &str); 2] = [("tcp", "http"), ("udp", "echo")];

/// What `nft -f` takes, for the Service `name` with these ClusterIPs and pods.
pub fn rules(name: &str, addresses: Dual, pods: &[Dual]) -> String {
    let mut text = String::new();
    for (side, (family, kind)) in [("ip", "ipv4_addr"), ("ip6", "ipv6_addr")].into_iter().enumerate() {
        let pods: Vec<IpAddr> = pods.iter().map(|pod| pod.both()[side]).collect();
        table(&mut text, family, kind, name, addresses.both()[side], &pods).expect("a string takes everything");
    }
    text
}

fn table(
    text: &mut String,
    family: &str,
    kind: &str,
    name: &str,
    address: IpAddr,
    pods: &[IpAddr],
) -> Result<(), fmt::Error> {
    writeln!(text, "add table {family} kube-proxy\ndelete table {family} kube-proxy\ntable {family} kube-proxy {{")?;
    writeln!(text, "map service-ips {{\ntype {kind} . inet_proto . inet_service : verdict")?;
    let service = |protocol: &str, port: &str| format!("service-{NAMESPACE}/{name}/{protocol}/{port}");
    let entries = PORTS
        .map(|(protocol, port)| format!("{address} . {protocol} . {SERVICE_PORT} : goto {}", service(protocol, port)));
    writeln!(text, "elements = {{ {} }}\n}}", entries.join(", "))?;
    writeln!(text, "chain nat-output {{\ntype nat hook output priority -100\njump services\n}}")?;
    writeln!(text, "chain services {{\n{family} daddr . meta l4proto . th dport vmap @service-ips\n}}")?;
    for (protocol, port) in PORTS {
        let endpoint = |number: usize| format!("endpoint-{number}-{NAMESPACE}/{name}/{protocol}/{port}");
        let draws: Vec<_> = (0..pods.len()).map(|number| format!("{number} : goto {}", endpoint(number))).collect();
        let draw = match pods.len() {
            // As kube-proxy does it where nothing is ready.
            0 => "reject".to_owned(),
            count => format!("numgen random mod {count} vmap {{ {} }}", draws.join(", ")),
        };
        writeln!(text, "chain {} {{\n{draw}\n}}", service(protocol, port))?;
        for (number, &pod) in pods.iter().enumerate() {
            let to = SocketAddr::new(pod, POD_PORT);
            writeln!(text, "chain {} {{\nmeta l4proto {protocol} dnat to {to}\n}}", endpoint(number))?;
        }
    }
    writeln!(text, "}}")
}
