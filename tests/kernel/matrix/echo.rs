//! ICMP's echo, by ping sockets and raw ones. The kernel answers for the address it is sent to.

use super::kinds::{Place, Seen};
use crate::sockets::{peer, socket};
use socket2::{Protocol, Socket, Type};
use std::{io, net::SocketAddr};

const REQUEST4: u8 = 8;
const REPLY4: u8 = 0;
const REQUEST6: u8 = 128;
const REPLY6: u8 = 129;

/// By a ping socket: the kernel fills in identifier and checksum.
pub(crate) fn ping(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let (protocol, request, reply) =
        if to.is_ipv4() { (Protocol::ICMPV4, REQUEST4, REPLY4) } else { (Protocol::ICMPV6, REQUEST6, REPLY6) };
    let socket = socket(to, Type::DGRAM, Some(protocol))?;
    socket.connect(&to.into())?;
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1])?;
    let source = receive(&socket, 0, reply)?;
    seen(&socket, to, source)
}

/// By a raw socket, which gets the IP header too.
pub(crate) fn raw(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = socket(to, Type::RAW, Some(Protocol::ICMPV4))?;
    // Without a port the socket would count as not connected.
    socket.connect(&to.into())?;
    let checksum = !(u16::from_be_bytes([REQUEST4, 0]) + 1);
    let [high, low] = checksum.to_be_bytes();
    socket.send(&[REQUEST4, 0, high, low, 0, 0, 0, 1])?;
    let source = receive(&socket, 20, REPLY4)?;
    seen(&socket, to, source)
}

/// Echo has no ports: the one dialled is taken for read.
fn seen(socket: &Socket, to: SocketAddr, source: SocketAddr) -> io::Result<Seen> {
    let with_port = |address: SocketAddr| SocketAddr::new(address.ip(), to.port());
    let source = with_port(source);
    Ok(Seen { server: source, peer: Some(with_port(peer(socket)?)), sources: vec![source] })
}

/// Waits for an ICMP message of this type that begins at `offset`; its source.
fn receive(socket: &Socket, offset: usize, kind: u8) -> io::Result<SocketAddr> {
    let mut buffer = [0; 64];
    loop {
        let (length, _, source) = rustix::net::recvfrom(socket, &mut buffer[..], rustix::net::RecvFlags::empty())?;
        if buffer[..length].get(offset) == Some(&kind) {
            let source = source.ok_or_else(|| io::Error::other("an echo without a source"))?;
            return SocketAddr::try_from(source).map_err(io::Error::from);
        }
    }
}
