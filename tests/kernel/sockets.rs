//! What clients do with sockets, each call the one it is named after. Nothing waits longer than [`PATIENCE`].

use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny, recvfrom, recvmsg as receive,
    sendmsg_addr,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::SocketAddr,
    time::Duration,
};

/// How long something may take that takes a moment, on a slow and busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A TCP socket of the family of `address`.
pub(crate) fn tcp_socket(address: SocketAddr) -> Socket {
    socket(address, Type::STREAM, None).unwrap()
}

/// A UDP socket of the family of `address`.
pub(crate) fn udp_socket(address: SocketAddr) -> Socket {
    socket(address, Type::DGRAM, None).unwrap()
}

/// A socket of the family of `address`, if the kernel has this kind.
pub(crate) fn socket(address: SocketAddr, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, protocol)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A TCP connection to `address`, or why there is none.
pub(crate) fn tcp_connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = tcp_socket(address);
    socket.connect(&address.into())?;
    Ok(socket)
}

/// A UDP socket connected to `address`, or why not.
pub(crate) fn udp_connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = udp_socket(address);
    socket.connect(&address.into())?;
    Ok(socket)
}

/// getpeername.
pub(crate) fn peer(socket: &Socket) -> io::Result<SocketAddr> {
    socket.peer_addr()?.as_socket().ok_or_else(|| io::Error::other("the peer has no address"))
}

/// getsockname: where the backends are addresses of the client's own, the address of the one that it is connected to.
pub(crate) fn local(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no address"))
}

/// Which server is at the other end of a connection.
pub(crate) fn ask(mut socket: &Socket) -> io::Result<SocketAddr> {
    socket.write_all(b"?")?;
    read_answer(socket)
}

/// The answer to something that was sent over a connection.
pub(crate) fn read_answer(mut socket: &Socket) -> io::Result<SocketAddr> {
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        match socket.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => answer.push(byte[0]),
            // A socket with a timeout isn't read on from after an interruption, and on Linux 6.1 what io_uring still has to
            // do in this thread is one.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    parse(answer.trim_ascii_end())
}

/// A datagram by recvfrom: which server it says it is from, and its source.
pub(crate) fn recv_from(socket: &Socket) -> io::Result<(SocketAddr, SocketAddr)> {
    let mut buffer = [0; 64];
    let (length, _, source) = recvfrom(socket, &mut buffer[..], RecvFlags::empty())?;
    Ok((parse(&buffer[..length])?, source_of(source)?))
}

/// Likewise by recvmsg.
pub(crate) fn recv_msg(socket: &Socket) -> io::Result<(SocketAddr, SocketAddr)> {
    let mut buffer = [0; 64];
    let mut control = RecvAncillaryBuffer::new(&mut []);
    let received = receive(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::empty())?;
    Ok((parse(&buffer[..received.bytes])?, source_of(received.address)?))
}

/// A datagram by sendto.
pub(crate) fn send_to(socket: &Socket, payload: &[u8], address: SocketAddr) -> io::Result<()> {
    socket.send_to(payload, &address.into()).map(drop)
}

/// A datagram by sendmsg.
pub(crate) fn send_msg(socket: &Socket, payload: &[u8], address: SocketAddr) -> io::Result<()> {
    let mut control = SendAncillaryBuffer::new(&mut []);
    sendmsg_addr(socket, &address, &[IoSlice::new(payload)], &mut control, SendFlags::empty())?;
    Ok(())
}

fn source_of(source: Option<SocketAddrAny>) -> io::Result<SocketAddr> {
    let source = source.ok_or_else(|| io::Error::other("a datagram without a source"))?;
    SocketAddr::try_from(source).map_err(io::Error::from)
}

fn parse(answer: &[u8]) -> io::Result<SocketAddr> {
    let text = String::from_utf8_lossy(answer);
    text.parse().map_err(|_| io::Error::other(format!("not an answer: {text:?}")))
}
