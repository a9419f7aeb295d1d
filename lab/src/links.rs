//! Links, addresses and routes of a namespace, by netlink.
//!
//! Each call opens a netlink socket inside the namespace and closes it again: some 0.2 ms, and no state to go stale.

use crate::netns::Netns;
use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
    packet_route::{
        address::AddressHeaderFlags,
        link::{InfoData, InfoVeth},
        route::RouteScope,
    },
};
use std::{
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
    thread::sleep,
    time::{Duration, Instant},
};

/// How long the kernel may take to make an address usable, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(10);
/// Any port.
const DISCARD: u16 = 9;

impl Netns {
    /// Joins this namespace to `peer` by a pair of virtual links, `name` here and `peer_name` there; both are up.
    ///
    /// Names have at most 15 bytes. The pair goes when either namespace goes.
    pub fn veth(&self, name: &str, peer: &Netns, peer_name: &str) -> Result<()> {
        let fd = peer.fd().as_raw_fd();
        let other = LinkMessageBuilder::<LinkUnspec>::new().name(peer_name).setns_by_fd(fd).build();
        let pair = LinkVeth::new(name, peer_name).set_info_data(InfoData::Veth(InfoVeth::Peer(other))).up().build();
        let what = || format!("add veth {name} in {} with {peer_name} in {}", self.label(), peer.label());
        self.netlink(async |handle| handle.link().add(pair).execute().await).with_context(what)?;
        // Not in the same message: the kernel would open it before it has its peer (ENOTCONN).
        peer.up(peer_name)
    }

    /// Adds a bridge, which is up.
    pub fn bridge(&self, name: &str) -> Result<()> {
        let bridge = LinkBridge::new(name).build();
        self.netlink(async |handle| handle.link().add(bridge).execute().await)
            .with_context(|| format!("add bridge {name} in {}", self.label()))
    }

    /// Makes `link` a port of `bridge`.
    pub fn bridge_port(&self, link: &str, bridge: &str) -> Result<()> {
        self.netlink(async |handle| {
            let bridge = index(&handle, bridge).await?;
            handle.link().set(LinkUnspec::new_with_name(link).controller(bridge).build()).execute().await
        })
        .with_context(|| format!("make {link} a port of bridge {bridge} in {}", self.label()))
    }

    /// Brings a link up.
    pub fn up(&self, link: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(link).up().build();
        self.netlink(async |handle| handle.link().set(message).execute().await)
            .with_context(|| format!("bring up {link} in {}", self.label()))
    }

    /// Takes a link down: what is sent over it vanishes.
    pub fn down(&self, link: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(link).down().build();
        self.netlink(async |handle| handle.link().set(message).execute().await)
            .with_context(|| format!("take down {link} in {}", self.label()))
    }

    /// Removes a link, and with it its peer.
    pub fn delete_link(&self, link: &str) -> Result<()> {
        self.netlink(async |handle| handle.link().del(index(&handle, link).await?).execute().await)
            .with_context(|| format!("remove {link} in {}", self.label()))
    }

    /// Gives `link`, which has to be up, an address, with the length of the prefix that is reached directly over it.
    /// The address is usable when this returns.
    pub fn address(&self, link: &str, address: IpNet) -> Result<()> {
        self.netlink(async |handle| {
            let link = index(&handle, link).await?;
            let mut request = handle.address().add(link, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                request.message_mut().header.flags = AddressHeaderFlags::Nodad;
            }
            request.execute().await
        })
        .and_then(|()| if address.addr().is_ipv6() { self.await_route(address.addr()) } else { Ok(()) })
        .with_context(|| format!("add address {address} to {link} in {}", self.label()))
    }

    /// Waits for the route to an IPv6 address of this namespace: also without duplicate detection the kernel adds it
    /// from a work queue, some time after the address, and until then a connect finds the network unreachable.
    fn await_route(&self, address: IpAddr) -> Result<()> {
        let start = Instant::now();
        self.run(|| {
            loop {
                // Looks the route up, and sends nothing.
                match UdpSocket::bind((address, 0)).and_then(|socket| socket.connect((address, DISCARD))) {
                    Ok(()) => return Ok(()),
                    Err(error) if start.elapsed() > PATIENCE => {
                        return Err(error).with_context(|| format!("not usable after {PATIENCE:?}"));
                    }
                    Err(_) => sleep(Duration::from_millis(1)),
                }
            }
        })?
    }

    /// Sends what goes to `to` through the router `via`, which has to be reachable already.
    pub fn route_via(&self, to: IpNet, via: IpAddr) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .and_then(|route| route.gateway(via))
            .with_context(|| format!("build route {to} via {via}"))?
            .build();
        self.netlink(async |handle| handle.route().add(route).replace().execute().await)
            .with_context(|| format!("add route {to} via {via} in {}", self.label()))
    }

    /// Says that the addresses of `to` are reached directly over `link`.
    pub fn route_over(&self, to: IpNet, link: &str) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .with_context(|| format!("build route {to}"))?
            .scope(if to.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe });
        self.netlink(async |handle| {
            let route = route.output_interface(index(&handle, link).await?).build();
            handle.route().add(route).replace().execute().await
        })
        .with_context(|| format!("add route {to} over {link} in {}", self.label()))
    }

    /// Has `work` talk to the namespace's netlink.
    fn netlink<T: Send>(&self, work: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send) -> Result<T> {
        let talk = || -> Result<T> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = new_connection()?;
                let connection = tokio::spawn(connection);
                let result = work(handle).await;
                // It ends when the handle is gone, unless there were messages that nobody asked for.
                connection.abort();
                Ok(result?)
            })
        };
        self.run(talk)?
    }
}

async fn index(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let link = handle.link().get().match_name(name.to_owned()).execute().try_next().await?;
    Ok(link.ok_or(rtnetlink::Error::RequestFailed)?.header.index)
}
