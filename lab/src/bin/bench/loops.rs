//! What the client does: loops that call one hook once a round.

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, connect, getpeername, setsockopt,
    socket, sockopt::Linger,
};
use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

/// A kind of loop.
#[derive(Clone, Debug)]
pub(crate) enum Loop {
    /// Connects one UDP socket again and again, to these addresses in turn.
    UdpConnect(Vec<SocketAddr>),
    /// Connects a new UDP socket each time.
    UdpNewSocket(SocketAddr),
    /// Makes a TCP connection and ends it by a reset, to these addresses in turn.
    TcpConnect(Vec<SocketAddr>),
    /// Sends a datagram from an unconnected socket and waits for the answer.
    UdpPingPong(SocketAddr),
    /// Asks one TCP connection for its peer.
    GetPeerName(SocketAddr),
}

impl Loop {
    /// Runs `rounds` rounds.
    pub(crate) fn run(&self, rounds: usize) -> Result<()> {
        match self {
            Self::UdpConnect(to) => {
                let socket = open(to[0], SockType::Datagram)?;
                to.iter().cycle().take(rounds).try_for_each(|to| dial(&socket, *to))
            }
            Self::UdpNewSocket(to) => (0..rounds).try_for_each(|_| dial(&open(*to, SockType::Datagram)?, *to)),
            Self::TcpConnect(to) => to.iter().cycle().take(rounds).try_for_each(|to| {
                let socket = open(*to, SockType::Stream)?;
                // A reset leaves no TIME_WAIT behind, of which there would be too many.
                setsockopt(&socket, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
                dial(&socket, *to)
            }),
            Self::UdpPingPong(to) => ping_pong(*to, rounds),
            Self::GetPeerName(to) => {
                let socket = open(*to, SockType::Stream)?;
                dial(&socket, *to)?;
                for _ in 0..rounds {
                    getpeername::<SockaddrStorage>(socket.as_raw_fd()).context("getpeername")?;
                }
                Ok(())
            }
        }
    }
}

fn ping_pong(to: SocketAddr, rounds: usize) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("open a UDP socket")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = [0; 16];
    for _ in 0..rounds {
        socket.send_to(b"ping", to).with_context(|| format!("send to {to}"))?;
        let (_, from) = socket.recv_from(&mut answer).with_context(|| format!("receive from {to}"))?;
        ensure!(from == to, "asked {to}, and {from} answered");
    }
    Ok(())
}

fn open(to: SocketAddr, kind: SockType) -> Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).context("open a socket")
}

fn dial(socket: &OwnedFd, to: SocketAddr) -> Result<()> {
    match to {
        SocketAddr::V4(to) => connect(socket.as_raw_fd(), &SockaddrIn::from(to)),
        SocketAddr::V6(to) => connect(socket.as_raw_fd(), &SockaddrIn6::from(to)),
    }
    .with_context(|| format!("connect to {to}"))
}
