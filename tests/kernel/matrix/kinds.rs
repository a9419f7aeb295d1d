//! The rows of the matrix: kinds of sockets, and how each dials.

use super::echo;
use crate::{
    servers::Servers,
    sockets::{
        PATIENCE, ask, peer, read_answer, recv_from, recv_msg, send_msg, send_to, socket, tcp_connect, tcp_socket,
        udp_connect, udp_socket,
    },
    uring,
};
use nix::sys::socket::{setsockopt, sockopt::TcpFastOpenConnect};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// A kind of socket and a way to use it.
pub(crate) struct Kind {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// In which form it names addresses.
    pub(crate) family: Family,
    /// What is expected of it.
    pub(crate) class: Class,
    /// Why this kernel doesn't have it, if so: found by trying.
    pub(crate) missing: fn() -> Option<String>,
    /// Dials, and has a word with whoever is there.
    pub(crate) dial: fn(&Place<'_>, SocketAddr) -> io::Result<Seen>,
}

/// In which form a socket names addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
    /// AF_INET6 with IPv4-mapped addresses.
    Mapped,
}

/// What is expected of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Goes to a backend; its peer is what was dialled.
    Connected,
    /// Goes to a backend; its peer is the backend, since the hook sees the subflow and not the socket that is asked.
    Mptcp,
    /// Goes to a backend without ever having a peer.
    Unconnected,
    /// Goes to a backend past the peer that it has, which stays.
    Aside,
    /// Is not translated.
    Untouched,
}

/// What a client saw.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Who served it.
    pub(crate) server: SocketAddr,
    /// getpeername, where there is a peer.
    pub(crate) peer: Option<SocketAddr>,
    /// Where answers came from, where the calls that receive them tell.
    pub(crate) sources: Vec<SocketAddr>,
}

/// What a client needs to know besides what it dials.
pub(crate) struct Place<'a> {
    /// Its own address.
    pub(crate) own: IpAddr,
    /// A service that is always there.
    pub(crate) home: SocketAddr,
    /// Those who answer, and know what they got.
    pub(crate) servers: &'a Servers,
}

/// All kinds.
pub(crate) fn all() -> Vec<Kind> {
    use Class::{Aside, Connected, Mptcp, Unconnected, Untouched};
    use Family::{Mapped, V4, V6};
    let kind = |name, family, class, dial| Kind { name, family, class, missing: || None, dial };
    vec![
        kind("TCP", V4, Connected, tcp),
        kind("TCP, non-blocking", V4, Connected, tcp_non_blocking),
        Kind { missing: no_fast_open, ..kind("TCP, MSG_FASTOPEN", V4, Connected, msg_fast_open) },
        Kind { missing: no_fast_open, ..kind("TCP, TCP_FASTOPEN_CONNECT", V4, Connected, fast_open_connect) },
        Kind { missing: uring::missing, ..kind("TCP, io_uring inline", V4, Connected, uring_inline) },
        Kind { missing: uring::missing, ..kind("TCP, io_uring worker", V4, Connected, uring_worker) },
        Kind { missing: || lacks(Type::STREAM, Protocol::MPTCP), ..kind("MPTCP", V4, Mptcp, mptcp) },
        kind("TCP, bound", V4, Connected, tcp_bound),
        kind("TCP, SO_REUSEPORT", V4, Connected, tcp_reuse_port),
        kind("TCP6", V6, Connected, tcp),
        kind("TCP6, non-blocking", V6, Connected, tcp_non_blocking),
        Kind { missing: no_fast_open, ..kind("TCP6, MSG_FASTOPEN", V6, Connected, msg_fast_open) },
        kind("TCP6, IPv4-mapped", Mapped, Connected, tcp),
        kind("UDP, connected", V4, Connected, udp_connected),
        kind("UDP, bound and connected", V4, Connected, udp_bound),
        kind("UDP, sendto", V4, Unconnected, udp_send_to),
        kind("UDP, sendmsg", V4, Unconnected, udp_send_msg),
        kind("UDP, sendto when connected", V4, Aside, udp_aside),
        kind("UDP6, connected", V6, Connected, udp_connected),
        kind("UDP6, sendto", V6, Unconnected, udp_send_to),
        kind("UDP6, sendmsg", V6, Unconnected, udp_send_msg),
        kind("UDP6, IPv4-mapped, connected", Mapped, Connected, udp_connected),
        kind("UDP6, IPv4-mapped, sendto", Mapped, Unconnected, udp_send_to),
        kind("ping", V4, Untouched, echo::ping),
        kind("ping6", V6, Untouched, echo::ping),
        kind("raw ICMP", V4, Untouched, echo::raw),
        Kind { missing: || lacks(Type::DGRAM, Protocol::UDPLITE), ..kind("UDP-Lite", V4, Untouched, udp_lite) },
        Kind { missing: || lacks(Type::STREAM, Protocol::SCTP), ..kind("SCTP", V4, Untouched, sctp) },
    ]
}

/// Why there is no IPv4 socket of this protocol, if so.
pub(crate) fn lacks(kind: Type, protocol: Protocol) -> Option<String> {
    Socket::new(Domain::IPV4, kind, Some(protocol)).err().map(|error| format!("no such socket: {error}"))
}

/// Why a client can't ask for Fast Open, if so.
pub(crate) fn no_fast_open() -> Option<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    setsockopt(&socket, TcpFastOpenConnect, &true).err().map(|error| format!("TCP_FASTOPEN_CONNECT: {error}"))
}

fn tcp(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    over_stream(&tcp_connect(to)?)
}

fn tcp_non_blocking(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = tcp_socket(to);
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
            poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&patience))?;
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        other => other?,
    }
    // The peer is asked for before anything else, as event loops do.
    let early = peer(&socket)?;
    socket.set_nonblocking(false)?;
    let seen = over_stream(&socket)?;
    if seen.peer != Some(early) {
        return Err(io::Error::other(format!("the peer was {early} first, then {:?}", seen.peer)));
    }
    Ok(seen)
}

fn msg_fast_open(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = tcp_socket(to);
    socket.send_to_with_flags(b"?", &to.into(), libc::MSG_FASTOPEN)?;
    let server = read_answer(&socket)?;
    Ok(Seen { server, peer: Some(peer(&socket)?), sources: vec![] })
}

fn fast_open_connect(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = tcp_socket(to);
    setsockopt(&socket, TcpFastOpenConnect, &true)?;
    socket.connect(&to.into())?;
    (&socket).write_all(b"?")?;
    let server = read_answer(&socket)?;
    Ok(Seen { server, peer: Some(peer(&socket)?), sources: vec![] })
}

fn uring_inline(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = tcp_socket(to);
    uring::connect(&socket, to, false)?;
    over_stream(&socket)
}

fn uring_worker(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = tcp_socket(to);
    uring::connect(&socket, to, true)?;
    over_stream(&socket)
}

fn mptcp(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = socket(to, Type::STREAM, Some(Protocol::MPTCP))?;
    socket.connect(&to.into())?;
    over_stream(&socket)
}

fn tcp_bound(place: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = tcp_socket(to);
    socket.bind(&SocketAddr::new(place.own, 0).into())?;
    socket.connect(&to.into())?;
    over_stream(&socket)
}

/// Two sockets bound to one port: what is remembered of one must not be taken for the other's.
fn tcp_reuse_port(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let (other, socket) = (tcp_socket(to), tcp_socket(to));
    let mut address = SocketAddr::new(unspecified(to), 0);
    for socket in [&other, &socket] {
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        address.set_port(socket.local_addr()?.as_socket().map_or(0, |own| own.port()));
    }
    socket.connect(&to.into())?;
    over_stream(&socket)
}

fn udp_connected(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    over_datagrams(&udp_connect(to)?)
}

fn udp_bound(place: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = udp_socket(to);
    socket.bind(&SocketAddr::new(place.own, 0).into())?;
    socket.connect(&to.into())?;
    over_datagrams(&socket)
}

fn udp_send_to(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    unconnected(to, send_to)
}

fn udp_send_msg(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    unconnected(to, send_msg)
}

fn udp_aside(place: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = udp_connect(place.home)?;
    let payload = format!("aside {to}");
    send_to(&socket, payload.as_bytes(), to)?;
    let server =
        place.servers.heard(payload.as_bytes(), PATIENCE).ok_or_else(|| io::Error::other("nobody got the datagram"))?;
    // What comes from elsewhere doesn't reach a connected socket; its own conversation goes on.
    socket.send(b"?")?;
    let (_, source) = recv_from(&socket)?;
    Ok(Seen { server, peer: Some(peer(&socket)?), sources: vec![source] })
}

fn udp_lite(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = socket(to, Type::DGRAM, Some(Protocol::UDPLITE))?;
    socket.connect(&to.into())?;
    over_datagrams(&socket)
}

fn sctp(_: &Place<'_>, to: SocketAddr) -> io::Result<Seen> {
    let socket = socket(to, Type::STREAM, Some(Protocol::SCTP))?;
    socket.connect(&to.into())?;
    over_stream(&socket)
}

fn over_stream(socket: &Socket) -> io::Result<Seen> {
    let server = ask(socket)?;
    Ok(Seen { server, peer: Some(peer(socket)?), sources: vec![] })
}

/// Two datagrams over a connected socket, and two ways to receive.
fn over_datagrams(socket: &Socket) -> io::Result<Seen> {
    let early = peer(socket)?;
    socket.send(b"?")?;
    let (server, source) = recv_from(socket)?;
    socket.send(b"?")?;
    let (second, second_source) = recv_msg(socket)?;
    if (server, early) != (second, peer(socket)?) {
        return Err(io::Error::other("a connected socket changed its peer"));
    }
    Ok(Seen { server, peer: Some(early), sources: vec![source, second_source] })
}

fn unconnected(to: SocketAddr, send: fn(&Socket, &[u8], SocketAddr) -> io::Result<()>) -> io::Result<Seen> {
    let socket = udp_socket(to);
    send(&socket, b"?", to)?;
    let (server, source) = recv_from(&socket)?;
    send(&socket, b"?", to)?;
    let (second, second_source) = recv_msg(&socket)?;
    if server != second {
        return Err(io::Error::other(format!("served by {server} first, then by {second}")));
    }
    Ok(Seen { server, peer: None, sources: vec![source, second_source] })
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
