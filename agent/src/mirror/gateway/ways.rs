//! What of the gateway is to be looked at again when something changes, and where peers' gateways are.

use super::{Config, root};
use crate::{
    mirror::{
        conventions,
        slices::Placed,
        source::{Gateway, LinkName, Origin, Transport},
        validate::check,
        world::{Cluster, ImportKey, ImportKind, Peer, World},
    },
    model::{ObjectName, Path},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// Most host names of one peer that are looked up: those of more are rather an attack than load balancers.
const MAX_HOSTS: usize = 256;

impl Cluster {
    /// The Services of its gateway that have a port for `service`.
    pub fn ways_to(&self, service: &ObjectName) -> impl Iterator<Item = &Gateway> {
        self.gateways.to(service).filter_map(|name| self.services.get(name)?.gateway.as_deref())
    }
}

impl World {
    /// Says what gateway the own cluster has for others; none by default. What there is of another one goes.
    pub fn set_gateway(&mut self, config: Option<Config>) {
        if let Some(config) = &config {
            self.touch(root(config));
        }
        self.own.gateway = config;
    }

    /// Where a gateway is, as far as its names are known.
    pub fn addresses_of(&self, gateway: &Gateway) -> BTreeSet<IpAddr> {
        let named = gateway.hosts.iter().filter_map(|host| self.hosts.get(host)).flatten();
        gateway.addresses.iter().chain(named).copied().collect()
    }

    /// Where a peer's ready endpoint of `service` is dialled by TCP over `path`, if that may be.
    pub(in crate::mirror) fn target(&self, name: &LinkName, service: &ObjectName, path: Path) -> Option<SocketAddr> {
        let peer = self.peers.get(name)?;
        let may_be = |address: IpAddr| check(self, name, &peer.link, path, address).is_ok();
        let mut slices = peer.cluster.slices.get(service)?.values();
        if path == Path::Gateway {
            slices.flat_map(|slice| &slice.endpoints).find(|endpoint| endpoint.ready)?;
            return peer.cluster.ways_to(service).find_map(|gateway| {
                let claims = gateway.claims.iter();
                let (port, _) = claims
                    .filter(|(port, _)| port.protocol == Transport::Tcp)
                    .find(|(_, claim)| claim.target.service == *service && claim.released.is_none())?;
                let address = self.addresses_of(gateway).into_iter().find(|address| may_be(*address))?;
                Some(SocketAddr::new(address, *gateway.outside.get(port)?))
            });
        }
        slices.find_map(|slice| {
            let port = slice.ports.iter().find(|port| port.protocol == Transport::Tcp)?;
            let endpoint = slice.endpoints.iter().find(|endpoint| endpoint.ready && may_be(endpoint.address))?;
            Some(SocketAddr::new(endpoint.address, port.port))
        })
    }

    /// Where endpoints are dialled by TCP that were written for a peer which isn't heard, one of each import. Those that are not
    /// ready come last: they may be so because nothing answered.
    pub(in crate::mirror) fn written_targets(&self, name: &LinkName) -> Vec<SocketAddr> {
        let Some(peer) = self.peers.get(name).filter(|peer| peer.is_unheard()) else { return Vec::new() };
        let of_import = |slices: &BTreeMap<String, Placed>| {
            let slices = slices.values().filter(|placed| placed.content.cluster == peer.link.cluster);
            let endpoints = slices.flat_map(|placed| {
                let port = placed.content.ports.iter().find(|port| port.protocol == Transport::Tcp);
                let may_be = |address| check(self, name, &peer.link, placed.content.path, address).is_ok();
                let endpoints = placed.endpoints.iter().filter(move |it| !it.terminating && may_be(it.address));
                endpoints.filter_map(move |it| Some((!it.ready, SocketAddr::new(it.address, port?.port))))
            });
            endpoints.min()
        };
        let mut targets: Vec<(bool, SocketAddr)> = self.own.placed.values().filter_map(of_import).collect();
        targets.sort();
        targets.dedup();
        targets.into_iter().map(|(_, target)| target).collect()
    }

    /// The host names of all peers' gateways by link, of no peer more than [`MAX_HOSTS`].
    pub fn gateway_hosts(&self) -> BTreeSet<(&LinkName, &str)> {
        fn of_peer(peer: &Peer) -> BTreeSet<&str> {
            let names = peer.cluster.gateways.all();
            let gateways = names.iter().filter_map(|name| peer.cluster.services.get(name)?.gateway.as_deref());
            gateways.flat_map(|gateway| &gateway.hosts).map(String::as_str).collect()
        }
        let of_link = |(link, peer)| of_peer(peer).into_iter().take(MAX_HOSTS).map(move |host| (link, host));
        self.peers.iter().flat_map(of_link).collect()
    }

    /// A host name stands for other addresses now.
    pub(in crate::mirror) fn apply_host(&mut self, host: String, addresses: BTreeSet<IpAddr>) {
        if self.hosts.get(&host).unwrap_or(&BTreeSet::new()) == &addresses {
            return;
        }
        let mut led = Vec::new();
        for (link, peer) in &self.peers {
            for name in peer.cluster.gateways.all() {
                let gateway = peer.cluster.services.get(name).and_then(|service| service.gateway.as_deref());
                let claims = gateway.filter(|gateway| gateway.hosts.contains(&host)).into_iter();
                let services = claims.flat_map(|gateway| gateway.claims.values()).map(|claim| &claim.target.service);
                led.extend(services.map(|service| (Origin::Link(link.clone()), service.clone())));
            }
        }
        if addresses.is_empty() {
            self.hosts.remove(&host);
        } else {
            self.hosts.insert(host, addresses);
        }
        led.iter().for_each(|exporter| self.touch_exports(exporter));
    }

    /// An object of the own cluster changed that the gateway may lead to, or be.
    pub(in crate::mirror) fn touch_gateway(&mut self, name: &ObjectName) {
        self.touch_gateway_slices(name);
        let Some(config) = &self.own.gateway else { return };
        let cluster = &self.own.cluster;
        let is_led_to = cluster.gateways.to(name).next().is_some() || conventions::is_exported(name, cluster);
        if is_led_to || name.namespace == config.namespace {
            let root = root(config);
            self.touch(root);
        }
    }

    /// The endpoints of a Service of the own cluster changed.
    pub(in crate::mirror) fn touch_gateway_slices(&mut self, service: &ObjectName) {
        let gateways = self.own.cluster.gateways.to(service).cloned();
        let keys: Vec<ImportKey> = gateways.map(|object| ImportKey { kind: ImportKind::Gateway, object }).collect();
        keys.into_iter().for_each(|key| self.touch(key));
    }
}
