//! Which of a peer's endpoints may come in: a peer is not trusted, it can offer what lies in its link's ranges only.
//!
//! An endpoint that is refused never reaches a slice. It is counted, with the reason.

#[cfg(test)]
mod tests;

use super::{
    source::{Link, LinkName},
    world::World,
};
use crate::model::Path;
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Why an endpoint is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// No address, or none of the slice's family.
    Malformed,
    /// `0.0.0.0`, `::`, and all of `0.0.0.0/8`.
    Unspecified,
    /// The importing node itself.
    Loopback,
    /// Among them the metadata servers of clouds.
    LinkLocal,
    /// A metadata server that is not link-local.
    Metadata,
    /// Many at once.
    Multicast,
    /// Reserved, broadcast, or for documentation of protocols.
    Reserved,
    /// An IPv4 address in IPv6 disguise: it would pass checks of one family and be dialled in the other.
    Embedded,
    /// A node or an API server of this cluster.
    OwnHost,
    /// A Service of this cluster.
    OwnService,
    /// A pod of this cluster.
    OwnPod,
    /// A pod or gateway of another peer.
    OtherPeer,
    /// None of the link's `podRanges`: a node of the peer, and pods in its network, among them.
    OutsidePodRanges,
    /// None of the link's `gatewayRanges`.
    OutsideGatewayRanges,
    /// More than the link's quota of endpoints for one export.
    OverEndpointQuota,
    /// An export beyond the link's quota.
    OverExportQuota,
    /// A value that no API server takes, as of a host name or a port's name: it is left out, and the rest stays.
    InvalidValue,
}

impl Refusal {
    /// As status and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "Malformed",
            Self::Unspecified => "Unspecified",
            Self::Loopback => "Loopback",
            Self::LinkLocal => "LinkLocal",
            Self::Metadata => "Metadata",
            Self::Multicast => "Multicast",
            Self::Reserved => "Reserved",
            Self::Embedded => "EmbeddedIPv4",
            Self::OwnHost => "OwnHost",
            Self::OwnService => "OwnService",
            Self::OwnPod => "OwnPod",
            Self::OtherPeer => "OtherPeer",
            Self::OutsidePodRanges => "OutsidePodRanges",
            Self::OutsideGatewayRanges => "OutsideGatewayRanges",
            Self::OverEndpointQuota => "OverEndpointQuota",
            Self::OverExportQuota => "OverExportQuota",
            Self::InvalidValue => "InvalidValue",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many endpoints were refused, by link and reason.
pub type Refused = BTreeMap<(LinkName, Refusal), u32>;

/// Whether `address`, as it is written, may be an endpoint of what `link` brings in by `path`.
///
/// # Errors
///
/// It may not, and this is why.
pub fn check(world: &World, name: &LinkName, link: &Link, path: Path, address: IpAddr) -> Result<(), Refusal> {
    if let Some(refusal) = nobodys(address) {
        return Err(refusal);
    }
    let own = &world.own.addresses;
    let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
    if own.hosts.contains(&address) || world.own.is_api_server(address) {
        return Err(Refusal::OwnHost);
    }
    if within(&own.service_ranges) || world.own.is_cluster_ip(address) {
        return Err(Refusal::OwnService);
    }
    if within(&own.pod_ranges) {
        return Err(Refusal::OwnPod);
    }
    let (ranges, outside) = match path {
        Path::Pod => (&link.pod_ranges, Refusal::OutsidePodRanges),
        Path::Gateway => (&link.gateway_ranges, Refusal::OutsideGatewayRanges),
    };
    if !ranges.is_empty() && !within(ranges) {
        return Err(outside);
    }
    // Two links may lead to one cluster, so only other clusters' ranges are others'.
    let others = world.peers.iter().filter(|(other, peer)| *other != name && peer.link.cluster != link.cluster);
    for (_, other) in others {
        // Where ranges are declared on both sides and overlap, the narrower one is meant.
        let theirs = narrowest(other.link.pod_ranges.iter().chain(&other.link.gateway_ranges), address);
        if theirs.is_some_and(|theirs| narrowest(ranges.iter(), address).is_none_or(|ours| ours <= theirs)) {
            return Err(Refusal::OtherPeer);
        }
    }
    Ok(())
}

/// The longest prefix length among the ranges that contain `address`.
fn narrowest<'a>(ranges: impl Iterator<Item = &'a IpNet>, address: IpAddr) -> Option<u8> {
    ranges.filter(|range| range.contains(&address)).map(IpNet::prefix_len).max()
}

/// Why an address is nobody's that could be dialled across clusters, whatever ranges say.
fn nobodys(address: IpAddr) -> Option<Refusal> {
    match address {
        IpAddr::V4(address) => nobodys_v4(address),
        IpAddr::V6(address) => nobodys_v6(address),
    }
}

fn nobodys_v4(address: Ipv4Addr) -> Option<Refusal> {
    let octets = address.octets();
    let refusal = match octets {
        // "This network": Linux takes 0.0.0.0 for loopback.
        [0, ..] => Refusal::Unspecified,
        [127, ..] => Refusal::Loopback,
        [169, 254, ..] => Refusal::LinkLocal,
        // Metadata servers of Alibaba and Oracle clouds, and Azure's platform address.
        [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16] => Refusal::Metadata,
        [224..=239, ..] => Refusal::Multicast,
        [240..=255, ..] | [192, 0, 0, _] => Refusal::Reserved,
        _ => return None,
    };
    Some(refusal)
}

fn nobodys_v6(address: Ipv6Addr) -> Option<Refusal> {
    let segments = address.segments();
    if address.is_unspecified() {
        return Some(Refusal::Unspecified);
    }
    if address.is_loopback() {
        return Some(Refusal::Loopback);
    }
    let refusal = match segments {
        // IPv4-mapped and IPv4-compatible, SIIT, NAT64 (both prefixes), 6to4, Teredo.
        [0, 0, 0, 0, 0, 0xffff | 0, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, ..]
        | [0x2002, ..]
        | [0x2001, 0, ..] => Refusal::Embedded,
        // ISATAP: the interface identifier is 0:5efe or 200:5efe and an IPv4 address.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Refusal::Embedded,
        [0xfe80..=0xfebf, ..] => Refusal::LinkLocal,
        // Site-local, long withdrawn, and still routed by some.
        [0xfec0..=0xfeff, ..] => Refusal::Reserved,
        [0xff00..=0xffff, ..] => Refusal::Multicast,
        // Amazon's and Google's metadata servers; fd00:42::42 is Scaleway's.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, _]
        | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
        | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42] => Refusal::Metadata,
        // Discard-only.
        [0x100, 0, 0, 0, ..] => Refusal::Reserved,
        _ => return None,
    };
    Some(refusal)
}

/// A range as a link declares it.
///
/// # Errors
///
/// It isn't one, or so wide that it would declare nothing: that is said in a person's words.
pub fn range(text: &str) -> Result<IpNet, String> {
    let range: IpNet = text.trim().parse().map_err(|_| format!("{text:?} is not of the form address/length"))?;
    if range.trunc() != range {
        return Err(format!("{text} has bits set beyond its length: {} is meant?", range.trunc()));
    }
    let widest = match range {
        IpNet::V4(_) => 4,
        IpNet::V6(_) => 12,
    };
    if range.prefix_len() < widest {
        return Err(format!("{text} declares nothing: lengths from {widest} on do"));
    }
    if let Some(refusal) = nobodys(range.addr()) {
        return Err(format!("{text} can't hold endpoints ({refusal})"));
    }
    Ok(range)
}
